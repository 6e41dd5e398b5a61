"""From scores of good images to a threshold. Numbers only: no images, no detectors.

An image is anomalous when its raw score is above the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adctl.errors import DataError
from adctl.records import Calibration

Scores = NDArray[np.float64]

_PIXEL_PERCENTILE = 99.5


@dataclass(frozen=True)
class Threshold:
    """A threshold and the percentile-like rank it has among the good scores.

    Attributes:
        value: In score units.
        level: What was asked for or reached: percentile, target rate, or F1.
        note: What the user should know of it, or None.
    """

    value: float
    level: float
    note: str | None = None


def by_percentile(good: Scores, percentile: float) -> Threshold:
    """The percentile of good scores, by linear interpolation (what numpy calls `linear`)."""
    return Threshold(float(np.percentile(_checked(good), percentile)), percentile)


def by_false_alarm(good: Scores, rate: float) -> Threshold:
    """The smallest threshold that new good images exceed with probability at most `rate`.

    For n exchangeable good scores it is the k-th smallest, k = ceil((n + 1)(1 - rate)): split conformal
    prediction (Vovk et al. 2005; Angelopoulos & Bates 2023, section 1). With too few images no threshold can
    promise the rate; then it is the highest score, and the note says how many are needed.
    """
    ordered = np.sort(_checked(good))
    rank = math.ceil((len(ordered) + 1) * (1 - rate) - 1e-9)
    if rank <= len(ordered):
        return Threshold(float(ordered[rank - 1]), rate)
    needed = math.ceil(1 / rate - 1e-9) - 1
    note = (
        f"{len(ordered)} good images cannot promise a false-alarm rate of {rate:g}: that takes {needed}. "
        f"The threshold is their highest score, which promises {1 / (len(ordered) + 1):.3g}."
    )
    return Threshold(float(ordered[-1]), rate, note)


def by_best_f1(good: Scores, defective: Scores) -> Threshold:
    """The threshold with the highest F1 on labelled images, halfway between the two scores it parts."""
    good, defective = _checked(good), _checked(defective)
    scores = np.concatenate([good, defective])
    order = np.argsort(-scores, kind="stable")
    is_defect = np.concatenate([np.zeros(len(good)), np.ones(len(defective))])[order]
    ordered = scores[order]
    caught = np.cumsum(is_defect)
    f1 = 2 * caught / (np.arange(1, len(ordered) + 1) + len(defective))
    last_of_ties = np.append(ordered[1:] < ordered[:-1], True)
    best = int(np.argmax(np.where(last_of_ties, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - abs(ordered[best]) * 1e-6 - 1e-12
    return Threshold(float((ordered[best] + below) / 2), float(f1[best]))


def calibrate(
    method: str,
    good: Scores,
    good_cells: NDArray[np.float32],
    *,
    percentile: float = 99.0,
    false_alarm: float = 0.01,
    defective: Scores | None = None,
) -> tuple[Calibration, str | None]:
    """Choose thresholds for scores and for map values from images not trained on.

    Args:
        method: `percentile`, `false-alarm` or `f1`.
        good: Raw scores of held-out good images [n].
        good_cells: Their map values [n,cells]. One in 200 of them lies above the pixel threshold, which only
            outlines regions in images judged anomalous: it decides no verdict.
        percentile: For `percentile`.
        false_alarm: For `false-alarm`.
        defective: Raw scores of labelled defective images, for `f1`.

    Returns:
        The calibration, and a note for the user or None.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    if method == "false-alarm":
        chosen = by_false_alarm(good, false_alarm)
    elif method == "f1":
        if defective is None:
            raise DataError("The best F1 needs labelled defective images.", "Give a folder of them with --defects.")
        chosen = by_best_f1(good, defective)
    else:
        chosen = by_percentile(good, percentile)
    calibration = Calibration(
        method=method,
        threshold=chosen.value,
        pixel_threshold=float(np.percentile(good_cells, _PIXEL_PERCENTILE)),
        level=chosen.level,
        good_images=len(good),
        defect_images=0 if defective is None else len(defective),
        expected_false_alarm=_expected_false_alarm(good, chosen.value),
        score_range=(float(good.min()), float(good.max())),
    )
    return calibration, chosen.note


def _expected_false_alarm(good: Scores, threshold: float) -> float:
    """Of n good scores k lie above: a new one does with probability at most (k + 1) / (n + 1)."""
    return float((np.count_nonzero(good > threshold) + 1) / (len(good) + 1))


def _checked(scores: Scores) -> Scores:
    if len(scores) == 0:
        raise DataError("There are no scores to calibrate on.", "Give good images with --good.")
    if not np.isfinite(scores).all():
        raise DataError("Some scores are not finite numbers.", "Train the model again.")
    return np.asarray(scores, dtype=np.float64)
