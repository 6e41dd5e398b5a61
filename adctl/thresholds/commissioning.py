"""Calibration by the first, unlabelled parts of a line: threshold, drift reference and display range anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import UsageError
from adctl.records import Calibration, CalibrationScores
from adctl.thresholds import contaminated
from adctl.thresholds.decision import fit_probability

if TYPE_CHECKING:
    from adctl.thresholds.unsupervised import Scores, Threshold

RATE = 0.01
"""False-alarm rate that `trimmed` aims at."""


def commission(
    parts: CalibrationScores, *, method: str = contaminated.METHOD, rate: float = RATE, warn: float | None = None
) -> tuple[Calibration, tuple[str, ...]]:
    """Compute the calibration of a line from the scores of its first parts.

    Args:
        parts: Scores of all parts, with the largest share of defective ones in `contaminated`.
        method: `trimmed` aims at the rate, and defects among the parts do not hide others; `conformal` promises the
            rate, whatever the defects score. See `adctl.thresholds.contaminated`.
        rate: False-alarm rate, 0 to 1.
        warn: Rate of a second, lower threshold for warnings; None for no warnings.

    Returns:
        The calibration, and notes for the user.

    Raises:
        UsageError: The warning threshold is not below the other.
        DataError: There are too few parts, some scores are not finite, or the share of defective parts is too large.
    """
    share = parts.contaminated or 0.0
    scores = np.array(parts.good)
    chosen = _choose(method, scores, rate, share)
    warning = None if warn is None else _choose(method, scores, warn, share)
    if warning is not None and warning.value >= chosen.value:
        raise UsageError(
            f"The warning threshold {warning.value:.6g} is not below the rejection threshold {chosen.value:.6g}.",
            "Give --warn-at a level that flags more images.",
        )
    likely_good = contaminated.without_highest(parts.good, share)
    promised = contaminated.promised_rate(method, len(scores), share, rate)
    calibration = Calibration(
        method=method,
        threshold=chosen.value,
        pixel_threshold=_choose(method, np.array(parts.peaks), rate, share).value if parts.peaks else None,
        level=chosen.level,
        good_images=len(scores),
        defect_images=0,
        expected_false_alarm=rate if method == contaminated.METHOD else promised,
        score_range=(likely_good[0], likely_good[-1]),
        promised_false_alarm=promised,
        warn_threshold=None if warning is None else warning.value,
        warn_level=None if warning is None else warning.level,
        evidence=parts,
        probability=fit_probability(CalibrationScores(likely_good)),
    )
    return calibration, tuple(one.note for one in (chosen, warning) if one is not None and one.note is not None)


def _choose(method: str, scores: Scores, rate: float, share: float) -> Threshold:
    choose = contaminated.by_trimmed_tail if method == contaminated.METHOD else contaminated.by_false_alarm
    return choose(scores, rate, share)
