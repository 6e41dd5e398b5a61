"""Foreground of images: the cells on one side of a threshold along the first principal component of the features.

Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025, section 3. The paper
computes the component of each image anew, with a threshold by hand; here both are those of the good images, so that
they are constants of an exported graph. As in the paper, masks are enlarged by a cell and their gaps closed, and they
are used only if they show an object in the middle of the good images. Tensors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.feature_statistics import CovarianceSums, exact, principal_directions, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

_LEVELS = 256
_SEPARATED = 0.7
"""Least share of the variance along the component that is between its two sides; two thirds for a normal
distribution."""

_MIDDLE = 0.2
"""Width of the rim that does not belong to the middle of an image, as a share of the side."""

_MIDDLE_COVERED, _BORDER_COVERED = 0.35, 0.35
"""Least share of the middle, and largest of the outermost cells, that an object covers."""


def find_foreground(features: Callable[[], Iterable[Tensor]]) -> tuple[Tensor | None, str]:
    """Find the component and the threshold that separate an object from the background of good images.

    Args:
        features: Function that iterates over features [B,C,h,w].

    Returns:
        Tensor [C+1], the direction and the threshold along it, with the object above it; None if the component shows no
        object. And the reason for that, or the share of the cells that the object covers, in words.
    """
    rows = (exact(to_rows(batch)) for batch in features())
    sums = summed(CovarianceSums(len(part), part.sum(0), part.t() @ part) for part in rows)
    direction = principal_directions(sums.mean_and_covariance()[1])[1][:, 0].float()
    along = torch.cat([_along(batch, direction) for batch in features()])
    threshold, separated = _split(along.flatten())
    if separated < _SEPARATED:
        return None, f"the features have no two kinds: {separated:.0%} of their variance is between them"
    if _covered(along > threshold)[0] < _covered(along < threshold)[0]:
        direction, along, threshold = -direction, -along, -threshold
    middle, border = _covered(along > threshold)
    if middle < _MIDDLE_COVERED or border > _BORDER_COVERED:
        return None, f"an object would cover {middle:.0%} of the middle of the images and {border:.0%} of their border"
    found = torch.cat([direction, direction.new_tensor([threshold])])
    return found, f"{(along > threshold).float().mean():.0%} of the cells"


def foreground_mask(features: Tensor, found: Tensor) -> Tensor:
    """Return the mask [B,h,w] of the cells of the object, from features [B,C,h,w] and the result of `find_foreground`.

    It is enlarged by a cell, and gaps of up to two cells are closed. An image without any such cell has all of them.
    """
    seen = (_along(features, found[:-1]) > found[-1]).to(features.dtype).unsqueeze(1)
    larger = F.max_pool2d(seen, 3, stride=1, padding=1)
    closed = -F.max_pool2d(-F.max_pool2d(larger, 3, stride=1, padding=1), 3, stride=1, padding=1)
    mask = closed.squeeze(1) > 0
    return mask | ~mask.flatten(1).any(1).view(-1, 1, 1)


def _along(features: Tensor, direction: Tensor) -> Tensor:
    """Project features [B,C,h,w] onto a direction [C]; return [B,h,w]."""
    return F.conv2d(features, direction.view(1, -1, 1, 1)).squeeze(1)


def _split(values: Tensor) -> tuple[float, float]:
    """Return the threshold that separates values [n] best, and the share of the variance between both sides (Otsu)."""
    low, high = (float(end) for end in values.aminmax())
    counts = torch.histc(values, _LEVELS, low, high).double()
    centres = low + (high - low) * (torch.arange(_LEVELS, dtype=torch.float64, device=values.device) + 0.5) / _LEVELS
    below, total = counts.cumsum(0), counts.sum()
    mean, weighted = (counts * centres).sum() / total, (counts * centres).cumsum(0)
    above = total - below
    between = (weighted - mean * below).square() / (below * above).clamp(min=1)
    variance = (counts * (centres - mean).square()).sum() / total
    best = int(between.argmax())
    threshold = float(centres[best]) + (high - low) / _LEVELS / 2
    return threshold, float(between[best] / variance.clamp(min=1e-12))


def _covered(masks: Tensor) -> tuple[float, float]:
    """Return the shares of the middle and of the outermost cells that masks [B,h,w] cover."""
    height, width = masks.shape[1:]
    rows, columns = round(_MIDDLE * height), round(_MIDDLE * width)
    middle = masks[:, rows : height - rows, columns : width - columns].float().mean()
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1).float().mean()
    return float(middle), float(border)
