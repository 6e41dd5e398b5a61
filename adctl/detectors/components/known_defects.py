"""Known defects of the inspected parts, and what a detector learns from them without going blind to others.

Squared distances to good features are sums over directions. If defects spread along a direction with r times the
variance of good cells, its weight is the Bhattacharyya distance of the two, log((1 + r) / (2 sqrt(r))), which tells how
well the direction separates them (Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, section 3.4). The
weights are blended half and half with equal ones, and shrunk towards these where defects are few: no direction loses
more than half its weight, so that a defect of another kind keeps at least half of its squared distance. N images, D
directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_ONCE = 8
"""Images that pass through the backbone together."""

_COVERED = 0.3
"""Fraction of a cell that a mask must cover for the cell to count as defective."""

_HIGHEST = 0.01
"""Fraction of the cells of an image without mask that count as defective: those with the largest distance."""

_BLEND = 0.5
"""Part of the learnt weights in the blend with equal weights."""

_HALF_TRUSTED = 10
"""Number of images at which the learnt weights have half of their part."""


@dataclass(frozen=True)
class KnownDefects:
    """Images of known defects as network inputs.

    Attributes:
        pixels: Tensor [N,H,W,C] of uint8.
        masks: Tensor [N,H,W] of bool; empty for images without a mask.
    """

    pixels: Tensor
    masks: Tensor

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B,C,H,W] of float32 in [0, 1] and masks [B,H,W], on a device."""
        for pixels, masks in zip(self.pixels.split(_AT_ONCE), self.masks.split(_AT_ONCE), strict=True):
            yield pixels.to(device).permute(0, 3, 1, 2).float() / 255, masks.to(device)


def defect_cells(masks: Tensor, distances: Tensor) -> Tensor:
    """Return which cells [B,h,w] are defective.

    Args:
        masks: Masks [B,H,W]; where one is empty, the cells with the largest distance are taken.
        distances: Distances to good features [B,h,w].
    """
    coverage = F.interpolate(masks.unsqueeze(1).float(), size=distances.shape[1:], mode="area")[:, 0].flatten(1)
    # A defect smaller than a cell counts by the cell that it covers most.
    covered = coverage >= coverage.amax(1, keepdim=True).clamp(max=_COVERED)
    flat = distances.flatten(1)
    count = max(1, round(_HIGHEST * flat.shape[1]))
    highest = flat >= flat.topk(count, 1).values[:, -1:]
    return torch.where(masks.flatten(1).any(1, keepdim=True), covered, highest).view(distances.shape)


def image_spreads(squares: Tensor, cells: Tensor) -> Tensor:
    """Return the mean square of each image's defective cells along each direction, [B,D].

    Args:
        squares: Squares [B,D,h,w] in units of the variance of good cells.
        cells: Which cells are defective [B,h,w].
    """
    chosen = cells.unsqueeze(1).to(squares.dtype)
    return (squares * chosen).sum((2, 3)) / chosen.sum((2, 3)).clamp(min=1)


def direction_weights(spreads: Tensor) -> Tensor:
    """Return the weight [D] of each direction's square, with mean 1.

    Args:
        spreads: Spread [N,D] of each image's defective cells, in units of the variance of good cells.
    """
    # The median over images keeps one wild defect from deciding.
    ratio = spreads.median(0).values.clamp(min=1)
    learnt = ((1 + ratio) / (2 * ratio.sqrt())).log()
    mean = learnt.mean()
    if not bool(mean > 0):
        return torch.ones_like(ratio)
    trust = _BLEND * len(spreads) / (len(spreads) + _HALF_TRUSTED)
    return 1 + trust * (learnt / mean - 1)
