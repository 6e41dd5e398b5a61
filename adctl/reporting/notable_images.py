"""Selection and order of the most important images of a scored set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adctl.evaluation.evaluate import outcome
from adctl.metrics.statistics import p_text

if TYPE_CHECKING:
    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet

_RANKS = {"missed": 0, "false alarm": 1}
_TITLES = {
    "missed": "Missed defect",
    "false alarm": "False alarm",
    "caught": "Defect found",
    "flagged": "Rejected, no label",
    "unflagged": "Not rejected, no label",
    "passed": "Good, not rejected",
    "unjudged": "No threshold",
}


@dataclass(frozen=True)
class NotableImage:
    """Image to show in a report.

    Attributes:
        index: Row number of the image.
        title: Outcome of the image, such as `Missed defect`.
        row: Row of the image, with a probability only if the calibration had labelled defects.
    """

    index: int
    title: str
    row: ScoredImage

    @property
    def facts(self) -> str:
        """Label, score, threshold, p-value and probability in one line."""
        row = self.row
        parts = [row.label or "no label", f"score {row.score:.4g}"]
        parts += [] if row.kind is None else [f"named {row.kind}"]
        parts += [] if row.threshold is None else [f"threshold {row.threshold:.4g}"]
        parts += [] if row.p_value is None else [f"p-value {p_text(row.p_value)}"]
        parts += [] if row.probability is None else [f"anomaly probability {row.probability:.0%}"]
        return " · ".join(parts)


def worst_first(scores: ScoreSet) -> list[int]:
    """Return the row numbers of scored images, the worst mistakes first.

    Missed defects come first, the lowest score first; then false alarms, then all other images, the highest score
    first.
    """

    def order(index: int) -> tuple[int, float]:
        row = scores.rows[index]
        kind, score = outcome(row), row.score or 0.0
        return _RANKS.get(kind, 2), score if kind == "missed" else -score

    return sorted((index for index, row in enumerate(scores.rows) if row.score is not None), key=order)


def notable_images(scores: ScoreSet, limit: int) -> list[NotableImage]:
    """Return the most important images, at most `limit`: missed defects, false alarms, then the highest scores.

    A third of the images is reserved for correct results with the highest scores, also if there are many mistakes.
    """
    order = worst_first(scores)
    mistakes = [index for index in order if outcome(scores.rows[index]) in _RANKS]
    others = [index for index in order if outcome(scores.rows[index]) not in _RANKS]
    reserved = min(len(others), limit // 3)
    shown = mistakes[: limit - reserved]
    shown += others[: limit - len(shown)]
    rows = [(index, scores.rows[index]) for index in shown]
    return [
        NotableImage(index, _TITLES[outcome(row)], replace(row, probability=scores.defect_probability(row)))
        for index, row in rows
    ]
