"""Another threshold for a served model: its promise, and the recent verdicts that it would change. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from adctl.errors import AdctlError
from adctl.serve.served_models import with_threshold
from adctl.thresholds import conformal, methods
from adctl.thresholds.methods import ThresholdRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.records import Calibration
    from adctl.serve.row_writer import Row

T = TypeVar("T")

_BINS = 40
_SHOWN_ABOVE = 2.0
"""Distance above the threshold and the good scores that a histogram shows, as a multiple of the distance below it."""


@dataclass(frozen=True)
class Choice:
    """A threshold that may be applied.

    Attributes:
        calibration: Calibration with the threshold, its expected and promised share of false alarms.
        notes: Remarks for the user.
    """

    calibration: Calibration
    notes: tuple[str, ...] = ()


def by_value(trained: Calibration, threshold: float) -> Choice:
    """Return a threshold that was set by hand: it promises nothing, and its share of false alarms is estimated."""
    if threshold == trained.threshold:
        return Choice(trained)
    changed = with_threshold(trained, threshold)
    assert changed is not None
    good = np.array(trained.evidence.good)
    try:
        judged, notes = methods.calibrate(ThresholdRule(methods.FIXED, threshold), trained.evidence)
    except AdctlError:  # parts of a line, which may be defective, have only thresholds by rate
        return Choice(_replaced(changed, conformal.expected_rate(good, threshold), None, None))
    return Choice(_replaced(changed, judged.expected_false_alarm, None, judged.false_alarm_interval), notes)


def by_rate(trained: Calibration, rate: float) -> Choice:
    """Return the threshold that guarantees a share of false alarms, as far as there are enough good images.

    Raises:
        AdctlError: The calibration scores are too few.
    """
    judged, notes = methods.calibrate(ThresholdRule("conformal", rate), trained.evidence)
    changed = with_threshold(trained, judged.threshold)
    assert changed is not None
    return Choice(
        _replaced(changed, judged.expected_false_alarm, judged.promised_false_alarm, judged.false_alarm_interval), notes
    )


def _replaced(
    changed: Calibration, expected: float, promised: float | None, interval: tuple[float, float] | None
) -> Calibration:
    return replace(changed, expected_false_alarm=expected, promised_false_alarm=promised, false_alarm_interval=interval)


def changed_verdicts(rows: Iterable[Row], present: Calibration, chosen: Calibration) -> list[Row]:
    """Return the verdicts of scored images that change, each with `was` and `becomes`."""
    changed = []
    for row in rows:
        was, becomes = present.verdict(row["score"]), chosen.verdict(row["score"])
        if was is not becomes:
            changed.append({**row, "was": str(was), "becomes": str(becomes)})
    return changed


def histogram(calibration: Calibration, recent: Sequence[float]) -> dict[str, Any]:
    """Return the counts of good and of recent scores in equal bins; higher scores are counted in the last bin."""
    good = np.array(calibration.evidence.good)
    scores = np.concatenate([good, recent, [calibration.threshold]])
    low = float(scores.min())
    usual = max(calibration.threshold, float(good.max(initial=calibration.threshold)))
    high = min(float(scores.max()), low + (1 + _SHOWN_ABOVE) * (usual - low))
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    counts = [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for values in (good, np.array(recent))]
    return {"edges": edges.tolist(), "calibration": counts[0].tolist(), "recent": counts[1].tolist()}


def previous(values: Sequence[T]) -> list[T]:
    """Return the values to which one may go back, the last one first, from all values in the order of their setting.

    Going back to a value removes the one that it replaces: A, B, C, B leaves A.
    """
    stack: list[T] = []
    for value in values:
        if len(stack) > 1 and stack[-2] == value:
            stack.pop()
        elif not stack or stack[-1] != value:
            stack.append(value)
    return stack[-2::-1]
