"""Which images of a scored set are worth a look, and in what order. Knows rows, nothing of pictures or pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.evaluation.evaluate import outcome

if TYPE_CHECKING:
    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet

_RANKS = {"missed": 0, "false alarm": 1}
_TITLES = {
    "missed": "Missed defect",
    "false alarm": "False alarm",
    "caught": "Defect found",
    "flagged": "Flagged, no label",
    "unflagged": "Passed, no label",
    "passed": "Good, passed",
    "unjudged": "No threshold",
}


@dataclass(frozen=True)
class NotableImage:
    """One image worth a page.

    Attributes:
        index: Of its row.
        title: What became of it.
        row: The row.
    """

    index: int
    title: str
    row: ScoredImage

    @property
    def facts(self) -> str:
        """Label, score, threshold, p-value and probability on one line."""
        row = self.row
        parts = [row.label or "no label", f"score {row.score:.4g}"]
        parts += [] if row.threshold is None else [f"threshold {row.threshold:.4g}"]
        parts += [] if row.p_value is None else [f"p-value {row.p_value:.2g}"]
        parts += [] if row.probability is None else [f"anomaly probability {row.probability:.0%}"]
        return " · ".join(parts)


def worst_first(scores: ScoreSet) -> list[int]:
    """Scored rows: defects missed by the most, then the loudest false alarms, then the rest, strangest first."""

    def order(index: int) -> tuple[int, float]:
        row = scores.rows[index]
        kind, score = outcome(row), row.score or 0.0
        return _RANKS.get(kind, 2), score if kind == "missed" else -score

    return sorted((index for index, row in enumerate(scores.rows) if row.score is not None), key=order)


def notable_images(scores: ScoreSet, most: int) -> list[NotableImage]:
    """The images to show first: missed defects and false alarms, then the strongest; at most so many.

    A third of the places is kept for the strongest, so that many mistakes do not crowd out what was found.
    """
    order = worst_first(scores)
    mistakes = [index for index in order if outcome(scores.rows[index]) in _RANKS]
    others = [index for index in order if outcome(scores.rows[index]) not in _RANKS]
    kept = min(len(others), most // 3)
    shown = mistakes[: most - kept]
    shown += others[: most - len(shown)]
    return [NotableImage(index, _TITLES[outcome(scores.rows[index])], scores.rows[index]) for index in shown]
