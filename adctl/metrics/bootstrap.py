"""Bootstrap confidence intervals: how images are drawn again, and how what comes of it becomes an interval.

Images are drawn with replacement within each stratum (the good ones, each defect type), so that every resample has
as many of each kind as the set. Intervals are percentile intervals (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Knows no metric.

An interval speaks of other images like these, scored by this model: not of another training. One of no width says
that resampling never met another value (as with an AUROC of 1), not that there is no doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from adctl.metrics.labels import Floats

_CELLS = 4_000_000
"""Numbers held at once: resamples are worked through in chunks of about this size."""

_FEWEST = 2
"""Images of a stratum below which drawing them again shows no spread."""


@dataclass(frozen=True)
class Resampling:
    """How to draw.

    Attributes:
        samples: Resamples.
        level: Share of them inside the interval.
        seed: Same seed and strata, same draws.
    """

    samples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what gives no interval."""
        if self.samples < 1 or not 0 < self.level < 1:
            raise ValueError(f"samples must be at least 1 and level between 0 and 1. Got {self} instead.")


@dataclass(frozen=True)
class Interval:
    """Where the true value lies with the confidence asked for.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def resample_counts(strata: ArrayLike, resampling: Resampling, *, width: int = 0) -> Iterator[Floats]:
    """How often each image was drawn, in chunks of resamples [b,n].

    Args:
        strata: The stratum of each image [n].
        resampling: How to draw.
        width: Numbers a resample takes beside its counts, for the size of a chunk.
    """
    kinds = np.asarray(strata)
    members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    generator = np.random.default_rng(resampling.seed)
    chunk = max(1, _CELLS // (len(kinds) + width))
    for start in range(0, resampling.samples, chunk):
        rows = min(chunk, resampling.samples - start)
        counts = np.zeros((rows, len(kinds)))
        for member in members:
            counts[:, member] = _drawn(generator, rows, len(member))
        yield counts


def _drawn(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.intp]:
    drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)


def replicates(
    strata: ArrayLike, resampling: Resampling, measure: Callable[[Floats], Mapping[str, Floats]], *, width: int = 0
) -> dict[str, Floats]:
    """What each metric comes to in every resample [samples].

    Args:
        strata: The stratum of each image [n].
        resampling: How to draw.
        measure: From counts [b,n] to the metrics [b].
        width: As for `resample_counts`.
    """
    chunks = [measure(counts) for counts in resample_counts(strata, resampling, width=width)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def can_resample(strata: ArrayLike) -> bool:
    """Whether there are images, and at least two of each stratum."""
    _, counts = np.unique(np.asarray(strata), return_counts=True)
    return bool(len(counts) and counts.min() >= _FEWEST)


def percentile_interval(values: Floats, level: float) -> Interval | None:
    """The middle share `level` of replicates [samples]; None where the metric exists in less than half of them."""
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < max(1, len(values)):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
