"""Distances of good cells near the border, compared with those inside.

A convolutional backbone pads its input, so features near the border depend on less of the image. They can vary more
from one good image to the next than features inside; then the highest values of good images lie at the border. Many
images show it in the deviation of each place, a handful of images only in all places of the border together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adctl.detectors.components.feature_maps import to_rows

MOST_IMAGES = 16
"""Number of images above which the deviations of places hold what the levels would tell."""

_RINGS = 3
"""Number of rings of cells along the border that have levels of their own."""
_NEIGHBOURS = 2
"""Cells of the same image up to this distance, rows or columns, are too alike to compare."""
_ROWS = 1024


def border_levels(features: Tensor, beyond: Tensor) -> Tensor:
    """Return the mean distance of good cells of each ring along the border, relative to the cells inside.

    The distance of a cell is that to the nearest cell of another image, or of a single image to the nearest that is not
    its neighbour.

    Args:
        features: Reduced features [n,D,h,w] of n good images; memory grows with n h w.
        beyond: Squared distances [n,h,w] that are added to those between the features.

    Returns:
        Tensor [h,w], 1 inside; 1 everywhere if the rings leave no cell inside.
    """
    rings = ring_numbers(*features.shape[2:]).to(features.device)
    inside = rings >= _RINGS
    levels = torch.ones(rings.shape, device=features.device)
    if not bool(inside.any()):
        return levels
    distances = (_nearest_squares(features).view_as(beyond) + beyond).clamp(min=0).sqrt()
    usual = distances[:, inside].mean()
    for ring in range(_RINGS):
        levels[rings == ring] = distances[:, rings == ring].mean() / usual
    return levels if bool(torch.isfinite(levels).all() & (levels > 0).all()) else torch.ones_like(levels)


def ring_numbers(rows: int, columns: int) -> Tensor:
    """Return the number of cells between each cell and the border, tensor [rows,columns]: 0 for the outermost."""
    down, across = torch.arange(rows), torch.arange(columns)
    return torch.minimum(torch.minimum(down, rows - 1 - down)[:, None], torch.minimum(across, columns - 1 - across))


def _nearest_squares(features: Tensor) -> Tensor:
    """Return the squared distance [n*h*w] of each feature to the nearest that it may be compared with."""
    count, _, height, width = features.shape
    rows = to_rows(features)
    squares = rows.square().sum(1)
    image, row, column = (
        axis.flatten().to(rows.device)
        for axis in torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    )
    found = []
    for part in torch.arange(len(rows), device=rows.device).split(_ROWS):
        between = squares[part, None] + squares - 2 * rows[part] @ rows.t()
        if count > 1:
            alike = image[part, None] == image
        else:
            alike = torch.maximum((row[part, None] - row).abs(), (column[part, None] - column).abs()) <= _NEIGHBOURS
        found.append(between.masked_fill(alike, torch.inf).amin(1))
    return torch.cat(found)
