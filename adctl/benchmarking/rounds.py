"""Interleaved timing of calls, so that a slow phase of the machine affects all of them, and the noise of medians."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_RESAMPLES = 500
_LEVEL = 0.99


def run_interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    update: Callable[[int, int | None], None],
    every: Mapping[str, int],
) -> dict[str, NDArray[np.float64]]:
    """Time each call once per round, in alternating order, after one round for warming up.

    Args:
        cases: Calls to time, by name; each returns after its work is finished.
        rounds: Number of timed rounds.
        update: Function that receives the number of finished rounds and the total.
        every: Interval in rounds of slow calls, by name; all other calls run in every round.

    Returns:
        Seconds [rounds] of each call; NaN in rounds without the call.
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
    """Estimate the noise of the ratio of two medians: half of its 99 % interval, relative to the ratio.

    The interval comes from a block bootstrap of neighbouring rounds, because a machine that is slow in one round is
    often slow in the next one too (Künsch 1989).

    Args:
        seconds: Seconds of a call [rounds] or [rounds,calls].
        reference: Seconds of the reference call in the same rounds [rounds] or [rounds,calls].
    """
    count = len(seconds)
    length = max(1, round(count ** (1 / 3)))
    generator = np.random.default_rng(0)
    starts = generator.integers(0, count, (_RESAMPLES, -(-count // length)))
    resampled = ((starts[..., None] + np.arange(length)) % count).reshape(_RESAMPLES, -1)[:, :count]
    medians = [np.median(times[resampled].reshape(_RESAMPLES, -1), axis=1) for times in (seconds, reference)]
    ratios = medians[0] / medians[1]
    low, high = np.quantile(ratios, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float((high - low) / 2 / np.median(ratios))
