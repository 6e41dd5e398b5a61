"""What detectors that compare features of a frozen backbone share: one grid of patch features an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.shared_feature_cache import backbone_levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FeatureConfig(DetectorConfig):
    """Settings of the patch features."""

    backbone: str = Field(DEFAULT, description="timm model whose features are compared")
    layers: tuple[int, ...] | None = Field(
        None, description="Indices of the backbone's feature levels; chosen by the detector when left out"
    )
    neighbourhood: int = Field(1, ge=1, le=9, description="Side of the window features are averaged over, odd")
    context: int = Field(
        1, ge=1, le=9, description="Side of the window whose average stands beside the finest level, odd; 1 adds none"
    )
    cell: float | None = Field(
        None,
        gt=0,
        description="Side of a map's cell, pixels of the network's input; the finest level's when left out",
    )

    @field_validator("neighbourhood", "context")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class FeatureDetector(Detector):
    """Patch features: backbone levels, locally averaged, brought to the finest grid and stacked."""

    strides: ClassVar[tuple[int, ...]] = (8, 16)
    """Of the levels read from a convolutional backbone unless the settings name others."""

    config: FeatureConfig

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(
            config.backbone, config.layers, config.image_size, strides=self.strides, channels=config.channels
        )

    @property
    def backbone_name(self) -> str:
        """The timm name of the frozen backbone."""
        return self.config.backbone

    @property
    def channels(self) -> int:
        """C, the length of a patch feature."""
        return sum(self.backbone.channels) + (self.backbone.channels[0] if self.config.context > 1 else 0)

    @property
    def grid(self) -> int:
        """The side of the map, cells; never more than the finest level has."""
        finest = self.config.image_size // min(self.backbone.strides)
        if self.config.cell is None:
            return finest
        return min(finest, max(1, round(self.config.image_size / self.config.cell)))

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the backbone's pretrained weights."""
        self.backbone.load_pretrained(weights)

    def patches(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W], or grey ones [B,1,H,W], to patch features [B,C,h,w].

        The local average makes a feature speak for its neighbourhood and forgives small shifts (PatchCore, section
        3.1). Context tells of the region what the finest level tells of the spot, so that either being wrong shows.
        """
        levels = [averaged(level, self.config.neighbourhood) for level in backbone_levels(self.backbone, images)]
        if self.config.context > 1:
            levels.append(averaged(levels[0], self.config.context))
        return stack_levels(levels, None if self.config.cell is None else self.grid)


def averaged(features: Tensor, side: int) -> Tensor:
    """Features [B,C,h,w] averaged over windows of an odd side, at borders over what lies inside."""
    if side == 1:
        return features
    return F.avg_pool2d(features, side, stride=1, padding=side // 2, count_include_pad=False)


def stack_levels(levels: Sequence[Tensor], side: int | None = None) -> Tensor:
    """Feature maps [B,C,h,w] of several levels to one grid with all channels.

    Args:
        levels: The finest first.
        side: Of the grid, cells, at most that of the finest level, which is taken when left out.
    """
    finest = levels[0].shape[-1]
    resized = [_resized(level, finest) for level in levels]
    if side is not None:
        # An average over what a wide cell covers; between two neighbours the interpolation takes one by itself.
        covered = 2 * (finest // (2 * side)) + 1
        resized = [_resized(averaged(level, covered), side) for level in resized]
    return torch.cat(resized, dim=1)


def _resized(level: Tensor, side: int) -> Tensor:
    if level.shape[-1] == side:
        return level
    return F.interpolate(level, size=(side, side), mode="bilinear", align_corners=False)


def random_orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """A random matrix [rows,columns] of float64 with orthonormal columns; the same seed gives the same one."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(drawn).Q
    return orthonormal
