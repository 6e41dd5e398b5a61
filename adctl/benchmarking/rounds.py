"""Cases timed in turn, so that whatever slows the machine meets all alike; and how far the medians can be trusted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_RESAMPLES = 500
_COVERED = 0.99


def run_interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    update: Callable[[int, int | None], None],
    every: Mapping[str, int],
) -> dict[str, NDArray[np.float64]]:
    """Call each case once a round, in alternating order; one round before them warms up.

    Args:
        cases: What to time; each returns once its result is there.
        rounds: That count.
        update: Told of each round.
        every: Of slow cases: called only in every so many-th round.

    Returns:
        For each case its seconds [rounds]; NaN in rounds that passed it over.
    """
    seconds = {name: np.full(rounds, np.nan) for name in cases}
    order = list(cases)
    for turn in range(-1, rounds):
        for name in order if turn % 2 else reversed(order):
            if turn > 0 and turn % every.get(name, 1):
                continue
            start = time.perf_counter()
            cases[name]()
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
        update(turn + 2, rounds + 1)
    return seconds


def estimate_noise(seconds: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """How far the ratio of two medians may be off by chance: half its 99 % interval, relative to it.

    Whole rounds are drawn again with replacement (the bootstrap), in runs of neighbouring rounds, since a machine
    that is slow in one round is still slow in the next (Kuensch 1989).

    Args:
        seconds: Of a case [rounds], or [rounds,calls].
        reference: Of what it is compared with, in the same rounds, likewise.
    """
    count = len(seconds)
    length = max(1, round(count ** (1 / 3)))
    generator = np.random.default_rng(0)
    starts = generator.integers(0, count, (_RESAMPLES, -(-count // length)))
    drawn = ((starts[..., None] + np.arange(length)) % count).reshape(_RESAMPLES, -1)[:, :count]
    median, of_reference = (np.median(taken[drawn].reshape(_RESAMPLES, -1), axis=1) for taken in (seconds, reference))
    ratios = median / of_reference
    low, high = np.quantile(ratios, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
    return float((high - low) / 2 / np.median(ratios))
