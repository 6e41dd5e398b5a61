"""ResNet autoencoder, with the encoder of He et al., "Deep Residual Learning", CVPR 2016."""

from __future__ import annotations

import itertools
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.config_checks import require_multiple
from adctl.detectors.reconstruction_detector import Autoencoder, AutoencoderConfig
from adctl.image_sizes import ImageSize

_STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)
_REDUCTION = 32


class ResNetConfig(AutoencoderConfig):
    """Settings of the ResNet autoencoder."""

    image_size: ImageSize = Field(128, description=AutoencoderConfig.model_fields["image_size"].description)
    encoder: Literal["resnet18", "resnet34"] = Field("resnet18", description="Network of the encoder")
    latent: int = Field(1024, ge=8, description="Length of the latent vector")
    skips: bool = Field(False, description="Skip connections between equal levels; they can copy defects")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("ResNetConfig", self.image_size, _REDUCTION, "the encoder's reduction")
        return self


class _Block(nn.Module):
    """Two convolutions and a shortcut, which optionally halve or double the resolution."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, enlarge: bool = False) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut: nn.Module = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if changes
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        # Nearest upsampling and a 1 x 1 convolution commute, so upsampling comes last, at a quarter of the cost.
        shortcut = self._enlarged(self.shortcut(features))
        inner = F.relu(self.norm1(self.first(self._enlarged(features))))
        return F.relu(self.norm2(self.second(inner)) + shortcut)

    def _enlarged(self, features: Tensor) -> Tensor:
        return F.interpolate(features, scale_factor=2.0, mode="nearest") if self.enlarge else features


class _Encoder(nn.Module):
    """ResNet without classifier; returns levels with strides 4, 8, 16 and 32."""

    def __init__(self, channels: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        inputs = 64
        stages = []
        for index, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True)):
            first = _Block(inputs, width, stride=1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(_Block(width, width) for _ in range(depth - 1))))
            inputs = width
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        return levels


class _Decoder(nn.Module):
    """Five residual blocks that double the resolution, from stride 32 to pixels."""

    def __init__(self, channels: int, *, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        widths = (512, 256, 128, 64, 32, 16)
        self.blocks = nn.ModuleList(
            _Block(inputs, outputs, enlarge=True) for inputs, outputs in itertools.pairwise(widths)
        )
        self.output = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, start: Tensor, levels: list[Tensor]) -> Tensor:
        features = start
        for index, block in enumerate(self.blocks):
            features = block(features)
            if self.skips and index < len(levels):
                features = features + levels[-1 - index]
        return torch.sigmoid(self.output(features))


class ResNetAutoencoder(Autoencoder):
    """ResNet encoder, latent vector, residual upsampling decoder with sigmoid output."""

    Config = ResNetConfig
    recomputed = (_Block,)
    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.encoder = _Encoder(config.channels, _STAGES[config.encoder])
        self.decoder = _Decoder(config.channels, skips=config.skips)
        height, width = config.sides
        cells = _WIDTHS[-1] * (height // _REDUCTION) * (width // _REDUCTION)
        self.squeeze = nn.Linear(cells, config.latent)
        self.expand = nn.Linear(config.latent, cells)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] in [0, 1]."""
        levels = self.encoder(self.normalise(images))
        deepest = levels[-1]
        latent = self.squeeze(deepest.flatten(1))
        start = self.expand(latent).view(deepest.shape)
        decoded: Tensor = self.decoder(start, levels[:-1])
        return decoded
