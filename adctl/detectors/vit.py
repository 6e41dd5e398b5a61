"""A vision transformer autoencoder, trained and scored with part of the image hidden.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, for the encoder; He et al., "Masked Autoencoders Are
Scalable Vision Learners", CVPR 2022, for learning to rebuild hidden patches from the visible ones. A patch that is
rebuilt without having been seen cannot be copied, so a defect in it shows.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.image_size import require_multiple
from adctl.detectors.reconstruction_detector import Autoencoder, AutoencoderConfig

if TYPE_CHECKING:
    from adctl.detectors.base import DetectorConfig
    from adctl.detectors.components.losses import Objective
    from adctl.engine.phases import Batch, LossTerms

_SIZES = {
    "tiny": {"width": 192, "depth": 6},
    "small": {"width": 384, "depth": 8},
    "base": {"width": 768, "depth": 12},
}
_DECODER_DEPTH = 2
_NARROWEST = 32


class VisionTransformerConfig(AutoencoderConfig):
    """Settings of the vision transformer autoencoder; what is given by name wins over the size."""

    image_size: int = Field(128, ge=32, le=4096, description="Side of the square images are resized to, pixels")
    size: Literal["tiny", "small", "base"] = Field("tiny", description="Width and depth; base is the published one")
    width: int = Field(192, ge=16, multiple_of=4, description="Length of a patch's vector")
    depth: int = Field(6, ge=1, le=24, description="Layers of the encoder")
    heads: int = Field(8, ge=1, description="Attention heads")
    patch: Literal[8, 16, 32] = Field(16, description="Side of a patch, pixels")
    decoder: Literal["cnn", "transformer"] = Field("cnn", description="What turns vectors back into pixels")
    masked: bool = Field(True, description="Rebuild each patch from others, in training and in scoring")
    masks: int = Field(4, ge=2, description="Masks that together hide each patch once; each hides one part in so many")
    latent: int = Field(16, ge=1, description="Numbers a patch is squeezed to where nothing is masked")
    seed: int = Field(0, ge=0, description="Decides the masks of scoring")

    @model_validator(mode="before")
    @classmethod
    def _filled_from_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**_SIZES.get(values.get("size", "tiny"), {}), **values}

    @field_validator("masks")
    @classmethod
    def _no_more_than_patches(cls, value: int, info: ValidationInfo) -> int:
        patches = (info.data.get("image_size", 32) // info.data.get("patch", 8)) ** 2
        if info.data.get("masked") and value > patches:
            raise ValueError(f"must not be more than the patches of an image, {patches}")
        return value

    @field_validator("heads")
    @classmethod
    def _divides_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width", value)
        if width % value:
            raise ValueError(f"must divide the width, {width}")
        return value

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("VisionTransformerConfig", self.image_size, self.patch, "the patch")
        return self

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


class _TransformerDecoder(nn.Module):
    """A few layers of attention over all patches, then each vector spread over its patch."""

    def __init__(self, config: VisionTransformerConfig, channels: int) -> None:
        super().__init__()
        self.side, self.patch = config.side, config.patch
        self.layers = _layers(config, _DECODER_DEPTH)
        self.pixels = nn.Linear(config.width, channels * config.patch**2)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = self.pixels(self.layers(vectors)).transpose(1, 2).unflatten(2, (self.side, self.side))
        return torch.sigmoid(F.pixel_shuffle(grid, self.patch))


class _ConvolutionalDecoder(nn.Module):
    """Two convolutions over the grid of patches, then transposed ones that double it up to the pixels."""

    def __init__(self, config: VisionTransformerConfig, channels: int) -> None:
        super().__init__()
        self.side = config.side
        doublings = config.patch.bit_length() - 1
        widths = [max(config.width >> level, _NARROWEST) for level in range(doublings + 1)]
        self.mix = nn.Sequential(*(_convolution(nn.Conv2d(widths[0], widths[0], 3, 1, 1), widths[0]) for _ in range(2)))
        self.enlarge = nn.Sequential(
            *(
                _convolution(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), outputs)
                for inputs, outputs in itertools.pairwise(widths)
            )
        )
        self.output = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors.transpose(1, 2).unflatten(2, (self.side, self.side))
        return torch.sigmoid(self.output(self.enlarge(self.mix(grid))))


class VisionTransformerAutoencoder(Autoencoder):
    """Transformer encoder over patches, transformer or convolutional decoder, sigmoid output.

    Masked: each of a few fixed masks hides its share of the patches, and the reconstruction is stitched together
    from the patches each mask hid. Not masked: every patch passes through a few numbers.
    """

    Config = VisionTransformerConfig
    recomputed = (Block,)
    config: VisionTransformerConfig
    places: Tensor
    order: Tensor

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        channels, width = self.input.channels, config.width
        self.embed = nn.Conv2d(channels, width, config.patch, config.patch)
        self.encoder = _layers(config, config.depth)
        self.bridge = (
            nn.Linear(width, width)
            if config.masked
            else nn.Sequential(nn.Linear(width, config.latent), nn.Linear(config.latent, width))
        )
        self.hole = nn.Parameter(0.02 * torch.randn(1, 1, width)) if config.masked else None
        decoder = _TransformerDecoder if config.decoder == "transformer" else _ConvolutionalDecoder
        self.decoder = decoder(config, channels)
        places = build_sincos2d_pos_embed([config.side, config.side], width)
        self.register_buffer("places", places, persistent=False)
        generator = torch.Generator().manual_seed(config.seed)
        self.register_buffer("order", torch.randperm(config.side**2, generator=generator))

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Twice the general learning rate, for data sets of a few hundred images."""
        del config
        return {"learning_rate": 2e-3}

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0, 1] to their reconstructions, same shape and range."""
        vectors = self._embed(images)
        if not self.config.masked:
            whole: Tensor = self.decoder(self.bridge(self.encoder(vectors)) + self.places)
            return whole
        visible, hidden = self._fixed_masks()
        repeated = vectors.repeat_interleave(len(visible), 0)
        made = self._rebuild(repeated, visible.expand(images.shape[0], -1, -1).flatten(0, 1))
        stitched: Tensor = (made.unflatten(0, (-1, len(visible))) * hidden).sum(1)
        return stitched

    def loss(self, batch: Batch, objective: Objective) -> LossTerms:
        """Loss terms of a batch, weighted; where masked, means over the hidden patches.

        In training the patches are hidden at random; in evaluation by the masks of scoring, so that epochs compare.
        """
        if not (self.config.masked and self.training):
            return super().loss(batch, objective)
        patches = self.config.side**2
        count = max(1, round(patches / self.config.masks))
        order = torch.rand(len(batch.images), patches, device=batch.images.device).argsort(1)
        hidden = self._pixels(order[:, :count])
        made = self._rebuild(self._embed(batch.images), order[:, count:])
        terms = objective(torch.where(hidden, made, batch.clean), batch.clean)
        return {name: term * (patches / count) for name, term in terms.items()}

    def _embed(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to vectors [B,N,D] that know their place."""
        vectors: Tensor = self.embed(self.normalise(images)).flatten(2).transpose(1, 2)
        return vectors + self.places

    def _rebuild(self, vectors: Tensor, visible: Tensor) -> Tensor:
        """Vectors [B,N,D] and the numbers [B,V] of those that may be seen to images [B,C,H,W]."""
        assert self.hole is not None
        numbers = visible.unsqueeze(-1).expand(-1, -1, vectors.shape[-1])
        known = self.bridge(self.encoder(vectors.gather(1, numbers)))
        filled = self.hole.to(known.dtype).expand_as(vectors).scatter(1, numbers, known)
        rebuilt: Tensor = self.decoder(filled + self.places)
        return rebuilt

    def _fixed_masks(self) -> tuple[Tensor, Tensor]:
        """Of K masks, the numbers [K,V] of the patches each shows and the pixels [K,1,H,W] it has to rebuild.

        Where K does not divide the patches, some masks leave one more out than they rebuild: all go in one batch.
        """
        parts = self.order.tensor_split(self.config.masks)
        shown = len(self.order) - len(parts[0])
        others = [torch.cat([*parts[:index], *parts[index + 1 :]])[:shown] for index in range(len(parts))]
        return torch.stack(others), torch.cat([self._pixels(part.unsqueeze(0)) for part in parts])

    def _pixels(self, hidden: Tensor) -> Tensor:
        """Numbers [B,h] of patches to their pixels, [B,1,H,W] of bool."""
        side, patch = self.config.side, self.config.patch
        cells = torch.zeros(hidden.shape[0], side**2, dtype=torch.bool, device=hidden.device)
        cells = cells.scatter(1, hidden, torch.ones_like(hidden, dtype=torch.bool))
        spread = cells.view(-1, 1, side, 1, side, 1).expand(-1, -1, -1, patch, -1, patch)
        return spread.reshape(-1, 1, side * patch, side * patch)


def _layers(config: VisionTransformerConfig, depth: int) -> nn.Sequential:
    """Attention layers, normalised at the end."""
    layers = nn.Sequential(
        *(Block(config.width, config.heads, qkv_bias=True) for _ in range(depth)), nn.LayerNorm(config.width)
    )
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return layers


def _convolution(layer: nn.Module, channels: int) -> nn.Sequential:
    """A convolution, normalised and bent."""
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.GELU())
