"""Bootstrap confidence intervals, and exact ones for shares of counts.

Images are resampled with replacement within each stratum (good images, each defect type), so that every resample has as
many images of each stratum as the original set. Intervals are percentile intervals (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13).

Shares of counts, such as the share of defects that are found, have exact binomial intervals instead (Clopper and
Pearson, Biometrika 26, 1934): the bootstrap of 0 of 6 would be 0 to 0.

An interval describes the variation over images like these, scored by this model. It does not include the variation
between training runs. An interval of zero width means that every resample gave the same value (as for an AUROC of 1),
not that the value is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from adctl.metrics.labels import Floats

_CHUNK_NUMBERS = 4_000_000
"""Numbers held in memory at once; resamples are processed in chunks of about this size."""

_FEWEST = 2
"""Smallest number of images in a stratum: resampling a single image shows no variation."""


@dataclass(frozen=True)
class Resampling:
    """Bootstrap settings.

    Attributes:
        samples: Number of resamples.
        level: Confidence level, in (0, 1).
        seed: Random seed; the same seed and strata give the same resamples.
    """

    samples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for impossible values."""
        if self.samples < 1 or not 0 < self.level < 1:
            raise ValueError(f"samples must be at least 1 and level between 0 and 1. Got {self} instead.")


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def resample_counts(strata: ArrayLike, resampling: Resampling, *, width: int = 0) -> Iterator[Floats]:
    """Yield how often each resample contains each image, in chunks of resamples [b,n].

    Args:
        strata: Stratum of each image [n].
        resampling: Bootstrap settings.
        width: Further numbers that each resample needs in memory; the chunks are sized accordingly.
    """
    names = np.asarray(strata)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    generator = np.random.default_rng(resampling.seed)
    chunk = max(1, _CHUNK_NUMBERS // (len(names) + width))
    for start in range(0, resampling.samples, chunk):
        rows = min(chunk, resampling.samples - start)
        counts = np.zeros((rows, len(names)))
        for member in members:
            counts[:, member] = _draw_counts(generator, rows, len(member))
        yield counts


def _draw_counts(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.intp]:
    drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)


def replicates(
    strata: ArrayLike, resampling: Resampling, measure: Callable[[Floats], Mapping[str, Floats]], *, width: int = 0
) -> dict[str, Floats]:
    """Compute each metric in every resample [samples].

    Args:
        strata: Stratum of each image [n].
        resampling: Bootstrap settings.
        measure: Function from counts [b,n] to metrics [b] by name.
        width: As for `resample_counts`.
    """
    chunks = [measure(counts) for counts in resample_counts(strata, resampling, width=width)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def can_resample(strata: ArrayLike) -> bool:
    """Return whether there are images, and at least two in each stratum."""
    _, counts = np.unique(np.asarray(strata), return_counts=True)
    return bool(len(counts) and counts.min() >= _FEWEST)


def percentile_interval(values: Floats, level: float) -> Interval | None:
    """Return the percentile interval of replicates [samples]; None if the metric exists in less than half of them."""
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < max(1, len(values)):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def exact_interval(count: int, total: int, level: float) -> Interval:
    """Return the exact binomial interval of a share (Clopper and Pearson 1934).

    Args:
        count: Number of successes, 0 to `total`.
        total: Number of trials, at least 1.
        level: Confidence level, in (0, 1); the true coverage is at least this.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(count, total - count + 1, tail) if count > 0 else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return Interval(float(low), float(high))
