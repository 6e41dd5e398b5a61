"""The charts of a report as pictures, for the formats that cannot draw: scores with the threshold, ROC and PR.

Drawn without a display; colours are told apart by colour-blind eyes and in print.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.evaluation.evaluate import Evaluation
    from adctl.scoring.score_set import ScoreSet

_GOOD, _BAD, _OTHER, _INK = "#2f7fc1", "#d9702f", "#7d8590", "#16202b"
_MOST_BINS = 40


def charts(scores: ScoreSet, evaluation: Evaluation) -> list[bytes]:
    """PNG files of the same size: the histogram where there are scores, ROC and PR where both classes are there."""
    drawn = [_drawn(lambda axes: _histogram(axes, scores))] if any(r.score is not None for r in scores.rows) else []
    if "roc" in evaluation.curves:
        drawn.append(_drawn(lambda axes: _roc(axes, evaluation)))
        drawn.append(_drawn(lambda axes: _pr(axes, evaluation)))
    return drawn


def _drawn(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    stream = io.BytesIO()
    canvas.figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _histogram(axes: Any, scores: ScoreSet) -> None:
    kinds = {"good": [], "defective": [], "no label": []}  # type: dict[str, list[float]]
    for row in scores.rows:
        if row.score is not None:
            kinds["no label" if row.label is None else "good" if row.label == GOOD else "defective"].append(row.score)
    values = [value for found in kinds.values() for value in found]
    bins = max(10, min(_MOST_BINS, round(2 * len(values) ** 0.5)))
    for (name, found), colour in zip(kinds.items(), (_GOOD, _BAD, _OTHER), strict=True):
        if found:
            axes.hist(
                found, bins, range=(min(values), max(values)), color=colour, alpha=0.75, label=name, edgecolor="white"
            )
    if scores.calibration is not None:
        axes.axvline(scores.calibration.threshold, color=_INK, linestyle="--", label="threshold")
        if scores.calibration.warn_threshold is not None:
            axes.axvline(scores.calibration.warn_threshold, color=_INK, linestyle=":", label="warning")
    axes.set(title="Scores", xlabel="score", ylabel="images")


def _roc(axes: Any, evaluation: Evaluation) -> None:
    _curve(axes, evaluation, "roc", (evaluation.image.false_alarm_rate, evaluation.image.recall))
    axes.set(title="ROC", xlabel="false-alarm rate", ylabel="recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))


def _pr(axes: Any, evaluation: Evaluation) -> None:
    _curve(axes, evaluation, "pr", (evaluation.image.recall, evaluation.image.precision))
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))


def _curve(axes: Any, evaluation: Evaluation, name: str, point: tuple[float | None, float | None]) -> None:
    lines = ((name, "images", _GOOD, "-"), (f"pixel_{name}", "pixels", _BAD, ":"))
    for key, label, colour, style in lines:
        if key in evaluation.curves:
            curve = evaluation.curves[key].to_dict()
            axes.plot(curve["x"], curve["y"], color=colour, linestyle=style, linewidth=2, label=label)
    if None not in point:
        axes.plot(*point, marker="D", color=_INK, linestyle="none", label="images at the threshold", clip_on=False)
