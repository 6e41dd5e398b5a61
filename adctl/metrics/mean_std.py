"""Mean and standard deviation of a number over folds or seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation of several values.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation (n - 1 in the denominator); None for a single value.
        count: Number of values.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        """Return text such as `0.951 ± 0.004`, or `0.951` for a single value."""
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


def mean_std(values: Sequence[float]) -> MeanStd:
    """Compute mean and sample standard deviation of one or more values."""
    array = np.asarray(values, np.float64)
    return MeanStd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def mean_stds(rows: Iterable[Mapping[str, float]]) -> dict[str, MeanStd]:
    """Compute mean and standard deviation of each named number, over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: mean_std(values) for name, values in columns.items()}
