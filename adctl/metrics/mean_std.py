"""Mean and spread of a number over repetitions: folds, seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class MeanStd:
    """What a number comes to over repetitions.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation, which divides by one less than the count; None of a single value.
        count: How many values.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        """As it is shown: 0.951 ± 0.004, or 0.951 alone."""
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation of one value or more."""
    found = np.asarray(values, np.float64)
    return MeanStd(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def mean_stds(rows: Iterable[Mapping[str, float]]) -> dict[str, MeanStd]:
    """Mean and spread of every number over rows; one that some rows lack counts where it is there."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: mean_std(values) for name, values in columns.items()}
