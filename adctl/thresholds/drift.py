"""Whether a scored folder still looks like the images a model was calibrated on, by its scores.

Two measures: the Kolmogorov-Smirnov test (could chance do this?) and the population stability index (is it much?).
Images of today may hold defects, and these score high. So only scores below the 90th percentile of the calibration's
good scores are compared: given that they lie below, good scores of both follow the same law, however many defects lie
above. Images known to be defective are left out by the caller. What remains unseen: defects cannot be told from a
drift that carries nearly all images above that percentile, so that is reported as what it is, and drift that leaves
scores alone is not seen at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adctl.thresholds.unsupervised import Scores

_COMPARED = 0.9
"""Quantile of the good scores below which scores are compared."""

_FEWEST = 10
"""Scores of either side, below which nothing can be said."""

_SIGNIFICANT = 0.01
_MODERATE = 0.1
"""Of the stability index, beyond chance: the customary rule of thumb (Siddiqi 2006) for a shift worth a look."""

_BINS = 10
_IN_A_BIN = 5
_MOSTLY = 0.5


@dataclass(frozen=True)
class Drift:
    """How the scores of a folder compare with those of the calibration.

    Attributes:
        drifted: Whether to warn.
        reason: In words, for the user.
        images: Scores looked at.
        compared: Of them, those low enough to be compared.
        high_share: Share of the scores above the 90th percentile of the calibration's good scores: 0.1 expected
            without drift and without defects.
        ks: The Kolmogorov-Smirnov statistic, 0 to 1; None where there were too few to compare.
        ks_p_value: The probability of such a one by chance.
        psi: The population stability index.
        psi_by_chance: What it would be on average without drift, at these numbers of images.
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
    """Compare scores [m], none of a known defect, with the calibration's good scores [n]; None where m is 0."""
    if len(scores) == 0:
        return None
    cut = float(np.quantile(good, _COMPARED, method="higher")) if len(good) else np.inf
    reference, today = good[good < cut], scores[scores < cut]
    high = 1 - len(today) / len(scores)
    if len(reference) < _FEWEST:
        reason = f"{len(good)} calibration images are too few to see drift."
        return Drift(drifted=False, reason=reason, images=len(scores), compared=len(today), high_share=high)
    if len(scores) >= _FEWEST and high > _MOSTLY:
        reason = (
            f"{high:.0%} of the images score as only the highest {1 - _COMPARED:.0%} of calibration images did: "
            "either many are defective, or images are taken differently now."
        )
        return _measured(reference, today, high, len(scores), reason)
    if len(today) < _FEWEST:
        reason = f"{len(today)} comparable images are too few to see drift."
        return Drift(drifted=False, reason=reason, images=len(scores), compared=len(today), high_share=high)
    return _measured(reference, today, high, len(scores), None)


def population_stability(reference: Scores, today: Scores) -> tuple[float, float]:
    """The population stability index of scores [m] against [n], and what it would be by chance.

    Bins hold equal shares of the reference, at least five scores each; half a count is added to each bin so that an
    empty one does not make it infinite. Without drift it is near (bins - 1)(1/n + 1/m) (Yurdakul 2018).
    """
    bins = int(np.clip(len(reference) // _IN_A_BIN, 2, _BINS))
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = [_shares(values, edges) for values in (reference, today)]
    index = float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))
    return index, len(edges) * (1 / len(reference) + 1 / len(today))


def _shares(values: Scores, edges: Scores) -> Scores:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
    return np.asarray(counts / counts.sum())


def _measured(reference: Scores, today: Scores, high: float, images: int, alarm: str | None) -> Drift:
    """With figures, as far as there are scores to compare; `alarm` is a reason to warn whatever they say."""
    if len(today) < _FEWEST:
        return Drift(drifted=True, reason=str(alarm), images=images, compared=len(today), high_share=high)
    from scipy.stats import ks_2samp

    test = ks_2samp(reference, today)
    index, chance = population_stability(reference, today)
    shifted = test.pvalue < _SIGNIFICANT and index - chance > _MODERATE
    figures = f"KS {test.statistic:.2f}, p = {test.pvalue:.2g}; PSI {index:.2f}, {chance:.2f} by chance"
    direction = "higher" if np.median(today) > np.median(reference) else "lower"
    if shifted:
        reason = f"scores of images that pass lie {direction} than at calibration ({figures})."
    else:
        reason = f"no drift seen in {len(today)} comparable images ({figures})."
    return Drift(
        drifted=shifted or alarm is not None,
        reason=alarm or reason,
        images=images,
        compared=len(today),
        high_share=high,
        ks=float(test.statistic),
        ks_p_value=float(test.pvalue),
        psi=index,
        psi_by_chance=chance,
    )
