"""Feature maps [B,C,h,w]: rows, local averages, and several levels on one grid. Tensors only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def to_rows(features: Tensor) -> Tensor:
    """Reshape features [B,C,h,w] to rows [B*h*w,C], image by image, line by line."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def local_average(features: Tensor, side: int) -> Tensor:
    """Average features [B,C,h,w] over windows of an odd side; at borders, over the part inside the map."""
    if side == 1:
        return features
    return F.avg_pool2d(features, side, stride=1, padding=side // 2, count_include_pad=False)


def stack_levels(levels: Sequence[Tensor], side: int | None = None) -> Tensor:
    """Resize feature maps [B,C,h,w] of several levels to one grid, and concatenate their channels.

    Args:
        levels: The feature maps, finest level first.
        side: Side of the grid in cells, at most the side of the finest level, which is the default.
    """
    finest = levels[0].shape[-1]
    resized = [resize_square(level, finest) for level in levels]
    if side is not None:
        # Interpolation reads the two nearest cells only, so average over the area of a coarse cell first.
        covered = 2 * (finest // (2 * side)) + 1
        resized = [resize_square(local_average(level, covered), side) for level in resized]
    return torch.cat(resized, dim=1)


def resize_square(features: Tensor, side: int) -> Tensor:
    """Resize features [B,C,h,h] to [B,C,side,side] by bilinear interpolation."""
    if features.shape[-1] == side:
        return features
    return F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
