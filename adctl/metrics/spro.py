"""Saturated per-region overlap (sPRO), for regions of which a part suffices, such as where a missing part could lie.

Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization",
IJCV 130, 2022, section 4.3, doi:10.1007/s11263-022-01578-9. With saturations equal to the areas it is PRO. Arrays only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.metrics.labels import Bools

LIMIT = 0.05
"""False-positive rate up to which MVTec LOCO AD integrates."""


def area_under_spro(
    maps: Sequence[NDArray[Any]], regions: Sequence[Sequence[tuple[Bools, int]]], limit: float = LIMIT
) -> float:
    """Return the area under the curve of mean sPRO over the false-positive rate, divided by the limit.

    The sPRO of a region is the number of its predicted pixels divided by its saturation, at most 1. The rate is the
    share of the pixels outside all regions of their image that are predicted. All thresholds are used.

    Args:
        maps: Anomaly maps [H,W], one for each image.
        regions: For each image the masks [H,W] of its regions, and their saturations, pixels; none for a good image.
        limit: Largest false-positive rate.

    Raises:
        DataError: There is no region, no pixel outside, or a saturation that is not between 1 and the area.
    """
    normal, defective = [], []
    for values, own in zip(maps, regions, strict=True):
        outside = np.ones(values.shape, np.bool_)
        for mask, saturation in own:
            if not 1 <= saturation <= np.count_nonzero(mask):
                raise DataError(
                    f"A region of {np.count_nonzero(mask)} pixels has the saturation {saturation}.",
                    "It must be at least 1, and at most the area.",
                )
            # Only the highest pixels count: those beyond the saturation add nothing at any threshold.
            defective.append(np.sort(values[mask])[::-1][:saturation])
            outside &= ~mask
        normal.append(values[outside])
    if not defective or not sum(map(len, normal)):
        raise DataError("sPRO needs regions, and pixels outside them.", "Add defective images, or good ones.")
    return _area(np.sort(np.concatenate(normal))[::-1], defective, limit)


def _area(normal: NDArray[Any], defective: Sequence[NDArray[Any]], limit: float) -> float:
    """Integrate over false-positive rates; both are sorted from high to low."""
    values = np.concatenate(defective)
    weights = np.concatenate([np.full(len(one), 1 / (len(one) * len(defective))) for one in defective])
    order = np.argsort(-values, kind="stable")
    values, overlap = values[order], np.cumsum(weights[order])
    last = np.append(values[1:] != values[:-1], True)  # one step for each distinct value
    # Between two steps the overlap stays, while normal pixels are added; equal values are added together.
    sides: tuple[Literal["left", "right"], ...] = ("left", "right")
    rates = [np.searchsorted(-normal, -values[last], side=side) / len(normal) for side in sides]
    x = np.concatenate([np.stack(rates, 1).ravel(), [1.0]])
    y = np.concatenate([np.repeat(overlap[last], 2), [1.0]])
    y[: 2 * last.sum() : 2] = np.concatenate([[0.0], overlap[last][:-1]])
    inside = x < limit
    at_limit = np.interp(limit, x, y)
    return float(np.trapezoid(np.append(y[inside], at_limit), np.append(x[inside], limit)) / limit)
