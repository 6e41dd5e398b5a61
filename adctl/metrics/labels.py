"""Checks of scores and labels, and the wording for an absent class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_NAMED = 3


def check_labelled_scores(
    scores: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None
) -> tuple[Floats, Bools]:
    """Return scores [n] as float64 and labels [n] as bool after checking them.

    Args:
        scores: Raw scores [n].
        labels: True for defective images [n].
        names: Image names [n] for the error message.

    Raises:
        DataError: A score is not a finite number; the message names the images.
        ValueError: Scores and labels differ in length.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and labels must be of one length. Got {values.shape} and {truth.shape} instead.")
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise DataError(
            f"{len(broken)} of {len(values)} scores are not finite numbers{_listed(broken.tolist(), names)}.",
            "Score again, or train again.",
        )
    return values, truth


def _listed(rows: list[int], names: Sequence[str] | None) -> str:
    """Return the names of the first few rows."""
    if names is None:
        return ""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ": " + ", ".join(names[row] for row in rows[:_NAMED]) + more


def absent_class(truth: Bools) -> str:
    """Return which class of images is absent, as the reason why a metric does not exist."""
    if not len(truth):
        return "there are no images"
    return "there are no good images" if truth.any() else "there are no defective images"


def has_both_classes(truth: Bools) -> bool:
    """Return whether there are good and defective images."""
    return bool(truth.any() and not truth.all())
