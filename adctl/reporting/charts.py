"""Charts of a report as PNG images, for PDF and slides: score histogram with threshold, ROC and PR curve.

No display is needed. Colour-blind people can distinguish the colours, and so can readers of a grey print.
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
_MAX_BINS = 40


def charts(scores: ScoreSet, evaluation: Evaluation) -> list[bytes]:
    """Return PNG files of the same size: a histogram if there are scores, ROC and PR curve if both classes exist."""
    images = [_to_png(lambda axes: _histogram(axes, scores))] if any(r.score is not None for r in scores.rows) else []
    if "roc" in evaluation.curves:
        images.append(_to_png(lambda axes: _roc(axes, evaluation)))
        images.append(_to_png(lambda axes: _pr(axes, evaluation)))
    return images


def _to_png(draw: Callable[[Any], None]) -> bytes:
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
    values = [value for of_kind in kinds.values() for value in of_kind]
    bins, limits = max(10, min(_MAX_BINS, round(2 * len(values) ** 0.5))), (min(values), max(values))
    for (name, of_kind), colour in zip(kinds.items(), (_GOOD, _BAD, _OTHER), strict=True):
        if of_kind:
            axes.hist(of_kind, bins, range=limits, color=colour, alpha=0.75, label=name, edgecolor="white")
    if scores.calibration is not None:
        axes.axvline(scores.calibration.threshold, color=_INK, linestyle="--", label="threshold")
        if scores.calibration.warn_threshold is not None:
            axes.axvline(scores.calibration.warn_threshold, color=_INK, linestyle=":", label="warning threshold")
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
