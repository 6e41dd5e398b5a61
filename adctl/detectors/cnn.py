"""Symmetric convolutional autoencoder with a short latent vector.

The preset `plain` is a common baseline, similar to the network of Bergmann et al., "Improving Unsupervised Defect
Segmentation by Applying Structural Similarity to Autoencoders", 2019.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adctl.detectors.components.config_checks import require_multiple
from adctl.detectors.reconstruction_detector import Autoencoder, AutoencoderConfig
from adctl.image_sizes import ImageSize

if TYPE_CHECKING:
    from adctl.detectors.base import DetectorConfig

_PRESETS: dict[str, dict[str, Any]] = {
    "standard": {},
    "plain": {
        "blocks": 4,
        "latent": 512,
        "activation": "relu",
        "batch_norm": False,
        "dropout": 0.0,
        "skips": False,
        "loss": "mse",
        "error": "l2",
        "relative": False,
    },
}
_TRAINING: dict[str, dict[str, Any]] = {
    "standard": {},
    "plain": {
        "epochs": 50,
        "min_steps": 0,
        "batch_size": 16,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
    },
}
_SLOPE = 0.2
_WIDEST = 8
"""Maximum ratio of a block's channels to those of the first block."""


class CNNConfig(AutoencoderConfig):
    """Settings of the convolutional autoencoder; explicit values have precedence over the preset."""

    image_size: ImageSize = Field(128, description=AutoencoderConfig.model_fields["image_size"].description)
    preset: Literal["standard", "plain"] = Field(
        "standard", description="plain: four ReLU blocks without normalisation, trained by squared error only"
    )
    blocks: Literal[4, 5] = Field(5, description="Blocks of the encoder and of the decoder; each halves the image")
    width: int = Field(64, ge=4, le=256, description="Channels of the first block; doubled by each block, up to 8-fold")
    latent: int = Field(512, ge=8, description="Length of the latent vector")
    activation: Literal["leaky_relu", "relu"] = Field("leaky_relu", description="Activation function")
    batch_norm: bool = Field(True, description="Batch normalisation in each block")
    dropout: float = Field(0.1, ge=0, le=0.5, description="Dropout of channels in training; 0.1 to 0.3 is common")
    skips: bool = Field(False, description="Skip connections between equal levels; they can copy defects")

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**_PRESETS.get(values.get("preset", "standard"), {}), **values}

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("CNNConfig", self.image_size, 2**self.blocks, f"the reduction of {self.blocks} blocks")
        return self


class _Block(nn.Sequential):
    """Convolution that changes the resolution, with norm, activation and dropout."""

    def __init__(self, convolution: nn.Module, channels: int, config: CNNConfig) -> None:
        super().__init__(
            convolution,
            nn.BatchNorm2d(channels) if config.batch_norm else nn.Identity(),
            nn.LeakyReLU(_SLOPE) if config.activation == "leaky_relu" else nn.ReLU(),
            nn.Dropout2d(config.dropout),
        )


class ConvolutionalAutoencoder(Autoencoder):
    """Strided convolutions to a latent vector, transposed convolutions back to the image, tanh output."""

    Config = CNNConfig
    recomputed = (_Block,)
    config: CNNConfig

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        widths = [config.width * min(2**level, _WIDEST) for level in range(config.blocks)]
        channels = self.input.channels
        self.encoder = nn.ModuleList(
            _Block(nn.Conv2d(inputs, outputs, 3, 2, 1), outputs, config)
            for inputs, outputs in itertools.pairwise([channels, *widths])
        )
        self.decoder = nn.ModuleList(
            _Block(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), outputs, config)
            for inputs, outputs in itertools.pairwise(widths[::-1])
        )
        self.output = nn.ConvTranspose2d(widths[0], channels, 4, 2, 1)
        height, width = config.sides
        cells = widths[-1] * (height // 2**config.blocks) * (width // 2**config.blocks)
        self.squeeze = nn.Linear(cells, config.latent)
        self.expand = nn.Linear(config.latent, cells)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] in [0, 1]."""
        levels = [self.normalise(images)]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        deepest = levels.pop()
        features = self.expand(self.squeeze(deepest.flatten(1))).view(deepest.shape)
        for block in self.decoder:
            features = block(features)
            if self.config.skips:
                features = features + levels.pop()
        return (torch.tanh(self.output(features)) + 1) / 2

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return the defaults of the preset; for `plain` without weight decay, so AdamW equals Adam."""
        assert isinstance(config, CNNConfig)
        return dict(_TRAINING[config.preset])
