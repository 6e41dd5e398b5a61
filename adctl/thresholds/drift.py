"""Drift test: compare the scores of a folder with the calibration scores.

It uses the Kolmogorov-Smirnov test (is the difference more than chance?) and the population stability index (is the
difference large?).

New images may contain defects, which score high. Therefore only scores below the 90th percentile of the calibration's
good scores are compared: below it, good scores of both sets follow the same distribution without drift, however many
defects score above it. The caller leaves out images known to be defective. Two limits remain. If most images score
above the percentile, many defects and a strong drift look the same, and the reason says so. Drift that does not change
scores is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adctl.thresholds.unsupervised import Scores

_COMPARED = 0.9
"""Quantile of the calibration's good scores; only scores below it are compared."""

_FEWEST = 10
"""Smallest number of scores on each side for a comparison."""

_SIGNIFICANT = 0.01
_LARGE_SHIFT = 0.1
"""Stability index above its chance level that counts as drift: a rule of thumb (Siddiqi 2006)."""

_BINS = 10
_SCORES_PER_BIN = 5
_MOST = 0.5


@dataclass(frozen=True)
class Drift:
    """Result of comparing the scores of a folder with the calibration scores.

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


def measure_drift(good: Scores, scores: Scores) -> Drift | None:
    """Compare scores [m] without known defects with the calibration's good scores [n]; return None if m is 0."""
    if len(scores) == 0:
        return None
    limit = float(np.quantile(good, _COMPARED, method="higher")) if len(good) else np.inf
    reference, new = good[good < limit], scores[scores < limit]
    high = 1 - len(new) / len(scores)
    if len(reference) < _FEWEST:
        reason = f"{len(good)} calibration images are too few to detect drift."
        return Drift(drifted=False, reason=reason, images=len(scores), compared=len(new), high_share=high)
    if len(scores) >= _FEWEST and high > _MOST:
        reason = (
            f"{high:.0%} of the images score as high as the highest {1 - _COMPARED:.0%} of the calibration images: "
            "either many are defective, or the camera, light or product has changed."
        )
        return _measured(reference, new, high, len(scores), reason)
    if len(new) < _FEWEST:
        reason = f"{len(new)} comparable images are too few to detect drift."
        return Drift(drifted=False, reason=reason, images=len(scores), compared=len(new), high_share=high)
    return _measured(reference, new, high, len(scores), None)


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


def _measured(reference: Scores, new: Scores, high: float, images: int, alarm: str | None) -> Drift:
    """Return the drift with its statistics if there are enough scores; a given `alarm` warns regardless of them."""
    if len(new) < _FEWEST:
        return Drift(drifted=True, reason=str(alarm), images=images, compared=len(new), high_share=high)
    from scipy.stats import ks_2samp

    test = ks_2samp(reference, new)
    index, chance = population_stability(reference, new)
    shifted = test.pvalue < _SIGNIFICANT and index - chance > _LARGE_SHIFT
    statistics = f"KS {test.statistic:.2f}, p = {test.pvalue:.2g}; PSI {index:.2f}, {chance:.2f} by chance"
    direction = "higher" if np.median(new) > np.median(reference) else "lower"
    if shifted:
        reason = f"comparable scores are {direction} than at calibration ({statistics})."
    else:
        reason = f"no drift in {len(new)} comparable images ({statistics})."
    return Drift(
        drifted=shifted or alarm is not None,
        reason=alarm or reason,
        images=images,
        compared=len(new),
        high_share=high,
        ks=float(test.statistic),
        ks_p_value=float(test.pvalue),
        psi=index,
        psi_by_chance=chance,
    )
