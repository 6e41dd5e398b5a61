"""Drift test: compare the scores and the images of a folder with those of the calibration.

For scores it uses the Kolmogorov-Smirnov test (is the difference more than chance?) and the population stability index
(is the difference large?). For images it compares the median of each statistic, such as the brightness, with the usual
values at calibration.

Rejected images are no drift. They score high, so only scores below the 90th percentile of the calibration's good scores
are compared: below it, good scores of both sets follow the same distribution without drift, however many defects score
above it. Statistics of rejected images are left out, and so are images that the caller knows to be defective. Only if
nearly all images score high are they no longer told apart: many defects and a strong drift then look the same, and the
reason says so. Drift that changes neither scores nor statistics is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl.records import InputRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.thresholds.unsupervised import Scores

_COMPARED = 0.9
"""Quantile of the calibration's good scores; only scores below it are compared."""

_FEWEST = 10
"""Smallest number of scores on each side for a comparison, and of images for the usual values of their statistics."""

_FEWEST_INPUTS = 5
"""Smallest number of new images whose statistics are compared."""

SIGNIFICANT = 0.01
_LARGE_SHIFT = 0.1
"""Stability index above its chance level that counts as drift: a rule of thumb (Siddiqi 2006)."""

_BINS = 10
_SCORES_PER_BIN = 5
_NEARLY_ALL = 0.9

INPUTS: dict[str, tuple[float, float]] = {
    "brightness": (2.0, 0.0),
    "sharpness": (0.0, 0.1),
    "share of red": (1.0, 0.0),
    "share of blue": (1.0, 0.0),
    "width": (0.0, 0.01),
    "height": (0.0, 0.01),
}
"""Statistics of an image, each with the smallest interquartile range to assume: absolute, and as a share of the median.
Stable light would make the measured range too small."""

_FENCE = (1.0, 8.0, 4.0)
"""Distance beyond the quartiles, in interquartile ranges, from which a median is not usual (Tukey 1977).

It is a constant, and additions divided by the numbers of calibration images and of new images. In simulations of normal
and of heavy-tailed statistics (t with 4 degrees of freedom), an unchanged one was beyond it in less than 0.3 % of sets.
"""


@dataclass(frozen=True)
class Drift:
    """Result of comparing a folder with the calibration.

    Attributes:
        drifted: Whether to warn.
        reason: Explanation for the user.
        images: Number of scores.
        compared: Number of scores low enough to be compared.
        high_share: Share of the scores at or above the 90th percentile of the calibration's good scores; about 0.1
            without drift and defects.
        ks: Kolmogorov-Smirnov statistic, 0 to 1; None if there are too few scores, as for the next three.
        ks_p_value: P-value of that statistic.
        psi: Population stability index.
        psi_by_chance: Expected index without drift for these numbers of images.
        changed: Statistics of the images that have changed, with their values.
    """

    drifted: bool
    reason: str
    images: int
    compared: int
    high_share: float
    ks: float | None = None
    ks_p_value: float | None = None
    psi: float | None = None
    psi_by_chance: float | None = None
    changed: tuple[str, ...] = ()


def measure_drift(
    good: Scores,
    scores: Scores,
    *,
    rejected: NDArray[np.bool_] | None = None,
    ranges: Sequence[InputRange] = (),
    inputs: NDArray[np.float64] | None = None,
    significance: float = SIGNIFICANT,
) -> Drift | None:
    """Compare scores and images without known defects with the calibration; return None if there are no scores.

    Args:
        good: Scores of the good calibration images [n].
        scores: New scores [m].
        rejected: Whether each new image is rejected [m].
        ranges: Usual values of the statistics of the images; empty if unknown.
        inputs: Statistics of new images [m,k], NaN where unknown.
        significance: Largest p-value that counts as drift of the scores.
    """
    if len(scores) == 0:
        return None
    limit = float(np.quantile(good, _COMPARED, method="higher")) if len(good) else np.inf
    reference, new = good[good < limit], scores[scores < limit]
    high = 1 - len(new) / len(scores)
    nearly_all = len(scores) >= _FEWEST and high > _NEARLY_ALL
    changed: tuple[str, ...] = ()
    if inputs is not None:
        judged = inputs if rejected is None or nearly_all else inputs[~rejected]
        changed = _changed_inputs(ranges, judged, len(good))
    alarm = f"the images have changed: {'; '.join(changed)}." if changed else None
    if alarm is None and nearly_all and len(reference) >= _FEWEST:
        alarm = (
            f"{high:.0%} of the images score as high as the highest {1 - _COMPARED:.0%} of the calibration images: "
            "either nearly all are defective, or the camera, light or product has changed."
        )
    base = Drift(alarm is not None, alarm or "", len(scores), len(new), high, changed=changed)
    if len(reference) < _FEWEST or len(new) < _FEWEST:
        few = f"{len(new)} comparable" if len(reference) >= _FEWEST else f"{len(good)} calibration"
        return replace(base, reason=alarm or f"{few} images are too few to detect drift.")
    return _with_statistics(base, reference, new, significance)


def input_ranges(inputs: NDArray[np.float64]) -> tuple[InputRange, ...]:
    """Return the usual values of the statistics of good images [n,k]; nothing if the images are too few."""
    if len(inputs) < _FEWEST:
        return ()
    quartiles = np.quantile(inputs, [0.25, 0.5, 0.75], axis=0).T.tolist()
    return tuple(InputRange(name, *values) for name, values in zip(INPUTS, quartiles, strict=True))


def _changed_inputs(ranges: Sequence[InputRange], inputs: NDArray[np.float64], count: int) -> tuple[str, ...]:
    """Return the statistics whose median over images [m,k] is not usual, with both medians.

    Args:
        ranges: Usual values; empty if unknown.
        inputs: Statistics of the new images, NaN where unknown.
        count: Number of calibration images.
    """
    known = inputs[np.isfinite(inputs).all(axis=1)]
    if not ranges or len(known) < _FEWEST_INPUTS:
        return ()
    fence = _FENCE[0] + _FENCE[1] / count + _FENCE[2] / len(known)
    changed = []
    for usual, median in zip(ranges, np.median(known, axis=0), strict=True):
        absolute, relative = INPUTS[usual.name]
        spread = max(usual.third - usual.first, absolute, relative * abs(usual.median))
        low, high = usual.first - fence * spread, usual.third + fence * spread
        if not low <= median <= high:
            changed.append(f"{usual.name} {median:.3g}, at calibration {usual.median:.3g}")
    return tuple(changed)


def population_stability(reference: Scores, new: Scores) -> tuple[float, float]:
    """Return the population stability index of new scores [m] against reference scores [n], and its chance level.

    Bins hold equal shares of the reference, at least five scores each. Half a count is added to each bin, so that an
    empty bin does not make the index infinite. Without drift the index is about (bins - 1)(1/n + 1/m) (Yurdakul 2018).
    """
    bins = int(np.clip(len(reference) // _SCORES_PER_BIN, 2, _BINS))
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = [_shares(values, edges) for values in (reference, new)]
    index = float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))
    return index, len(edges) * (1 / len(reference) + 1 / len(new))


def _shares(values: Scores, edges: Scores) -> Scores:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
    return np.asarray(counts / counts.sum())


def _with_statistics(base: Drift, reference: Scores, new: Scores, significance: float) -> Drift:
    """Return the drift with the comparison of scores; it stays drifted if the images have changed."""
    from scipy.stats import ks_2samp

    test = ks_2samp(reference, new)
    index, chance = population_stability(reference, new)
    shifted = test.pvalue < significance and index - chance > _LARGE_SHIFT
    statistics = f"KS {test.statistic:.2f}, p = {test.pvalue:.2g}; PSI {index:.2f}, {chance:.2f} by chance"
    direction = "higher" if np.median(new) > np.median(reference) else "lower"
    if shifted:
        reason = f"comparable scores are {direction} than at calibration ({statistics})."
    else:
        reason = f"no drift in {len(new)} comparable images ({statistics})."
    return replace(
        base,
        drifted=shifted or base.drifted,
        reason=base.reason or reason,
        ks=float(test.statistic),
        ks_p_value=float(test.pvalue),
        psi=index,
        psi_by_chance=chance,
    )
