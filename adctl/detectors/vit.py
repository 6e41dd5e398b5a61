"""Vision transformer autoencoder, trained and scored with masked images.

Encoder: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. Masking: He et al., "Masked Autoencoders Are
Scalable Vision Learners", CVPR 2022. A masked patch is reconstructed from the other patches, so a defect in it cannot
be copied to the reconstruction.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import DAMAGED
from adctl.detectors.components.config_checks import check_heads, require_multiple
from adctl.detectors.components.timm_models import import_timm
from adctl.detectors.reconstruction_detector import Autoencoder, AutoencoderConfig
from adctl.errors import ModelFileError
from adctl.image_sizes import ImageSize, both_sides

if TYPE_CHECKING:
    from adctl.detectors.base import DetectorConfig
    from adctl.detectors.components.losses import Objective
    from adctl.engine.phases import Batch, LossTerms

build_sincos2d_pos_embed = import_timm("timm.layers.pos_embed_sincos").build_sincos2d_pos_embed
Block = import_timm("timm.models.vision_transformer").Block

_SIZES = {
    "tiny": {"width": 192, "depth": 6},
    "small": {"width": 384, "depth": 8},
    "base": {"width": 768, "depth": 12},
}
_DECODER_DEPTH = 2
_NARROWEST = 32


class VisionTransformerConfig(AutoencoderConfig):
    """Settings of the vision transformer autoencoder; explicit values have precedence over `size`."""

    image_size: ImageSize = Field(128, description=AutoencoderConfig.model_fields["image_size"].description)
    size: Literal["tiny", "small", "base"] = Field("tiny", description="Width and depth; base is the published size")
    width: int = Field(192, ge=16, multiple_of=4, description="Length of the vector of a patch")
    depth: int = Field(6, ge=1, le=24, description="Layers of the encoder")
    heads: int = Field(8, ge=1, validate_default=True, description="Attention heads")
    patch: Literal[8, 16, 32] = Field(16, description="Side of a patch, pixels")
    decoder: Literal["cnn", "transformer"] = Field("cnn", description="Decoder from vectors to pixels")
    masked: bool = Field(True, description="Reconstruct each patch from other patches, in training and in scoring")
    masks: int = Field(4, ge=2, description="Number of masks for scoring, which together hide each patch once")
    latent: int = Field(16, ge=1, description="Length of the latent vector of a patch, without masking")
    seed: int = Field(0, ge=0, description="Seed of the masks for scoring")

    @model_validator(mode="before")
    @classmethod
    def _filled_from_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**_SIZES.get(values.get("size", "tiny"), {}), **values}

    @field_validator("masks")
    @classmethod
    def _no_more_than_patches(cls, value: int, info: ValidationInfo) -> int:
        patch = info.data.get("patch", 8)
        height, width = both_sides(info.data.get("image_size", 32))
        patches = (height // patch) * (width // patch)
        if info.data.get("masked") and value > patches:
            raise ValueError(f"must not exceed the number of patches of an image, {patches}")
        return value

    _heads = field_validator("heads")(check_heads)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("VisionTransformerConfig", self.image_size, self.patch, "the patch")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.sides[0] // self.patch, self.sides[1] // self.patch

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]


class _TransformerDecoder(nn.Module):
    """Transformer layers over all patches, then a linear layer from each vector to the pixels of its patch."""

    def __init__(self, config: VisionTransformerConfig, channels: int) -> None:
        super().__init__()
        self.grid, self.patch = config.grid, config.patch
        self.layers = _layers(config, _DECODER_DEPTH)
        self.pixels = nn.Linear(config.width, channels * config.patch**2)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = self.pixels(self.layers(vectors)).transpose(1, 2).unflatten(2, self.grid)
        return torch.sigmoid(F.pixel_shuffle(grid, self.patch))


class _ConvolutionalDecoder(nn.Module):
    """Two convolutions over the grid of patches, then transposed convolutions that double the resolution."""

    def __init__(self, config: VisionTransformerConfig, channels: int) -> None:
        super().__init__()
        self.grid = config.grid
        doublings = config.patch.bit_length() - 1
        widths = [config.width, *(max(config.width >> level, _NARROWEST) for level in range(1, doublings + 1))]
        self.mix = nn.Sequential(*(_block(nn.Conv2d(widths[0], widths[0], 3, 1, 1), widths[0]) for _ in range(2)))
        self.enlarge = nn.Sequential(
            *(
                _block(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), outputs)
                for inputs, outputs in itertools.pairwise(widths)
            )
        )
        self.output = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors.transpose(1, 2).unflatten(2, self.grid)
        return torch.sigmoid(self.output(self.enlarge(self.mix(grid))))


class VisionTransformerAutoencoder(Autoencoder):
    """Transformer encoder over patches, transformer or convolutional decoder, sigmoid output.

    With masking, a few fixed masks hide each patch once, and the reconstruction consists of the hidden patches of each
    mask. Without masking, each patch passes through a short latent vector.
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
        places = build_sincos2d_pos_embed([*config.grid], width)
        self.register_buffer("places", places, persistent=False)
        generator = torch.Generator().manual_seed(config.seed)
        self.register_buffer("order", torch.randperm(config.patches, generator=generator))

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return twice the general learning rate, which suits a few hundred images."""
        del config
        return {"learning_rate": 2e-3}

    def check_state(self) -> None:
        """Check the statistics of normal errors, and that the order of the patches names each once.

        Raises:
            ModelFileError: They contradict the settings.
        """
        super().check_state()
        order = self._require_state("order", self.config.patches)
        if sorted(order.tolist()) != list(range(len(order))):
            raise ModelFileError("'order' does not name each patch once.", DAMAGED)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] in [0, 1]."""
        vectors = self._embed(images)
        if not self.config.masked:
            whole: Tensor = self.decoder(self.bridge(self.encoder(vectors)) + self.places)
            return whole
        visible, hidden = self._fixed_masks()
        repeated = vectors.repeat_interleave(len(visible), 0)
        rebuilt = self._rebuild(repeated, visible.expand(images.shape[0], -1, -1).flatten(0, 1))
        combined: Tensor = (rebuilt.unflatten(0, (-1, len(visible))) * hidden).sum(1)
        return combined

    def loss(self, batch: Batch, objective: Objective) -> LossTerms:
        """Return the weighted loss terms of a batch; with masking, means over the hidden patches.

        Masks are random in training. In evaluation they are those of scoring, so that epochs can be compared.
        """
        if not (self.config.masked and self.training):
            return super().loss(batch, objective)
        patches = self.config.patches
        count = max(1, round(patches / self.config.masks))
        order = torch.rand(len(batch.images), patches, device=batch.images.device).argsort(1)
        hidden = self._pixels(order[:, :count])
        rebuilt = self._rebuild(self._embed(batch.images), order[:, count:])
        terms = objective(torch.where(hidden, rebuilt, batch.clean), batch.clean)
        return {name: term * (patches / count) for name, term in terms.items()}

    def _embed(self, images: Tensor) -> Tensor:
        """Return the patch vectors [B,N,D] of images, with position embeddings."""
        vectors: Tensor = self.embed(self.normalise(images)).flatten(2).transpose(1, 2)
        return vectors + self.places

    def _rebuild(self, vectors: Tensor, visible: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] from vectors [B,N,D], of which the indices [B,V] are visible."""
        assert self.hole is not None
        numbers = visible.unsqueeze(-1).expand(-1, -1, vectors.shape[-1])
        known = self.bridge(self.encoder(vectors.gather(1, numbers)))
        filled = self.hole.to(known.dtype).expand_as(vectors).scatter(1, numbers, known)
        rebuilt: Tensor = self.decoder(filled + self.places)
        return rebuilt

    def _fixed_masks(self) -> tuple[Tensor, Tensor]:
        """Return the visible patches [K,V] of K masks, and the pixels [K,1,H,W] to reconstruct by each mask.

        All masks show the same number of patches, so that they fit into one batch. If K does not divide the number of
        patches, some masks hide a patch more than they reconstruct.
        """
        parts = self.order.tensor_split(self.config.masks)
        shown = len(self.order) - len(parts[0])
        others = [torch.cat([*parts[:index], *parts[index + 1 :]])[:shown] for index in range(len(parts))]
        return torch.stack(others), torch.cat([self._pixels(part.unsqueeze(0)) for part in parts])

    def _pixels(self, hidden: Tensor) -> Tensor:
        """Return the mask [B,1,H,W] of the pixels of patches with the indices [B,h]."""
        (rows, columns), patch = self.config.grid, self.config.patch
        cells = torch.zeros(hidden.shape[0], rows * columns, dtype=torch.bool, device=hidden.device)
        cells = cells.scatter(1, hidden, torch.ones_like(hidden, dtype=torch.bool))
        spread = cells.view(-1, 1, rows, 1, columns, 1).expand(-1, -1, -1, patch, -1, patch)
        return spread.reshape(-1, 1, rows * patch, columns * patch)


def _layers(config: VisionTransformerConfig, depth: int) -> nn.Sequential:
    """Return transformer layers, followed by a layer norm."""
    layers = nn.Sequential(
        *(Block(config.width, config.heads, qkv_bias=True) for _ in range(depth)), nn.LayerNorm(config.width)
    )
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return layers


def _block(layer: nn.Module, channels: int) -> nn.Sequential:
    """Return a convolution, followed by batch norm and GELU."""
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.GELU())
