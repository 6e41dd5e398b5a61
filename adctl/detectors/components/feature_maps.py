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


def local_average(features: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Average features [B,C,h,w] over windows of odd sides; at borders, over the part inside the map.

    Args:
        features: The feature maps.
        rows: Height of a window, cells.
        columns: Width of a window, cells; None makes it square.
    """
    window = (rows, rows if columns is None else columns)
    if window == (1, 1):
        return features
    margin = (window[0] // 2, window[1] // 2)
    return F.avg_pool2d(features, window, stride=1, padding=margin, count_include_pad=False)


def stack_levels(levels: Sequence[Tensor], grid: tuple[int, int] | None = None) -> Tensor:
    """Resize feature maps [B,C,h,w] of several levels to one grid, and concatenate their channels.

    Args:
        levels: The feature maps, finest level first.
        grid: Rows and columns of the grid, at most those of the finest level, which are the default.
    """
    finest = (levels[0].shape[-2], levels[0].shape[-1])
    resized = [resize_grid(level, finest) for level in levels]
    if grid is not None:
        # Interpolation reads the two nearest cells only, so average over the area of a coarse cell first.
        rows, columns = (2 * (fine // (2 * side)) + 1 for fine, side in zip(finest, grid, strict=True))
        resized = [resize_grid(local_average(level, rows, columns), grid) for level in resized]
    return torch.cat(resized, dim=1)


def resize_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize features [B,C,h,w] to the rows and columns of a grid by bilinear interpolation."""
    if tuple(features.shape[-2:]) == grid:
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
