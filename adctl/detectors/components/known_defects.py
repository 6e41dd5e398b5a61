"""Known defects of the inspected parts, and what a detector learns from them without going blind to others.

Squared distances to good features are sums over directions. If defects spread along a direction with r times the
variance of good cells, its weight is the Bhattacharyya distance of the two, log((1 + r) / (2 sqrt(r))), which tells how
well the direction separates them (Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, section 3.4). The
weights are blended half and half with equal ones, and shrunk towards these where defects are few: no direction loses
more than half its weight, so that a defect of another kind keeps at least half of its squared distance. N images, D
directions.

Distances to single good features can be raised instead: the memory of defects holds the features of cells of known
defects, and a cell nearer to one of them than to all good features gets up to `LARGEST_RAISE` times its distance. No
distance falls, so that a defect unlike all known ones keeps its score. As in editing of nearest neighbours (Wilson,
"Asymptotic Properties of Nearest Neighbor Rules Using Edited Data", 1972), features that would raise cells of good
images are left out. Good images that resemble known defects anyway limit the factor: it is the largest one that leaves
their highest scores where they were, so that a defect of another kind still lies above them. Both compare good images
with what was learned from other good images only, as a new image is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.coreset import k_center_greedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

LARGEST_RAISE = 1.5
"""Largest factor of the distance of a cell that equals a known defect."""

_RAISES = (LARGEST_RAISE, 1.35, 1.2, 1.1)
"""Factors to choose from, beside 1."""

_HIGH = (0.9, 0.95, 1.0)
"""Quantiles of the scores of good images that a factor must leave where they are."""

_RISE = 0.01
"""Rise of these scores that is allowed."""

_UNUSUAL = 0.9
"""Quantile of the distances of good cells below which a cell of a defect says nothing."""

_TOLERATED = 0.1
"""Closeness to a defect that a good cell may have, 0 for as near to good features, 1 for equal to the defect."""

_MOST_ROWS = 2048
"""Largest number of rows of the memory of defects."""

_AT_ONCE_ROWS = 4096


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


def closeness(to_defects: Tensor, to_good: Tensor) -> Tensor:
    """Return how much nearer cells are to defects than to good features: 0 for not at all, 1 for equal to a defect.

    Args:
        to_defects: Distances to the memory of defects.
        to_good: Distances to good features, of the same shape.
    """
    # A sum and a ReLU, because the optimiser of ONNX graphs breaks a chain of clamps.
    return F.relu(1 - to_defects / (to_good + 1e-12))


def raised(to_good: Tensor, to_defects: Tensor, factor: Tensor | float) -> Tensor:
    """Return distances to good features, raised near known defects; never below the distances given.

    Args:
        to_good: Distances to good features.
        to_defects: Distances to the memory of defects, of the same shape.
        factor: Factor of the distance of a cell that equals a known defect.
    """
    return to_good * (1 + (factor - 1) * closeness(to_defects, to_good))


def harmless_raise(to_good: Tensor, to_defects: Tensor, scores: Callable[[Tensor], Tensor]) -> float:
    """Return the largest factor for `raised` that leaves the highest scores of good images where they were; 1 for none.

    Args:
        to_good: Distances [N,h,w] of the cells of good images to features of others.
        to_defects: Their distances to known defects, of the same shape.
        scores: Function from distances [N,h,w] to scores [N].
    """
    levels = to_good.new_tensor(_HIGH)
    limits = (1 + _RISE) * scores(to_good).quantile(levels)
    harmless = (
        factor for factor in _RAISES if (scores(raised(to_good, to_defects, factor)).quantile(levels) <= limits).all()
    )
    return next(harmless, 1.0)


def defect_memory(defects: Tensor, distances: Tensor, good: Tensor, good_distances: Tensor) -> Tensor:
    """Return the rows [n,D] of the memory of defects: features unlike all good ones; none if all are like them.

    Args:
        defects: Features [M,D] of the cells of known defects.
        distances: Their distances [M] to good features.
        good: Features [G,D] of cells of good images.
        good_distances: Their distances [G] to the good features that were kept of other images.
    """
    # Ranks instead of `quantile`, which takes 16 million values at most.
    usual = good_distances.kthvalue(max(1, round(_UNUSUAL * len(good)))).values
    rows = defects[distances > usual]
    unusual = good_distances > usual
    if not len(rows) or not bool(unusual.any()):
        return rows[:_MOST_ROWS]
    nearest, closest = nearest_rows(good[unusual], rows)
    found = closeness(nearest, good_distances[unusual])
    strongest = torch.zeros(len(rows), device=rows.device).scatter_reduce(0, closest, found, "amax")
    rows = rows[strongest <= _TOLERATED]
    return rows[k_center_greedy(rows, _MOST_ROWS, seed=0)] if len(rows) > _MOST_ROWS else rows


def nearest_rows(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance [G] of each query [G,D] to the nearest row [n,D], and the index [G] of that row."""
    found = [torch.cdist(part, rows).min(1) for part in queries.split(_AT_ONCE_ROWS)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


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
