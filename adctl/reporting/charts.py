"""Charts of a report: score histogram with threshold, ROC and PR curve; as PNG images, or as SVG and PDF files.

No display is needed. Colour-blind people can distinguish the colours, and so can readers of a grey print.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.scoring.score_set import ScoreSet

    Draw = Callable[[Any], None]

FIGURES = ("histogram", "roc", "pr")
"""Names of the charts, and of their files without suffix."""

FIGURE_SUFFIXES = (".svg", ".pdf")
_GOOD, _BAD, _OTHER, _INK = "#2f7fc1", "#d9702f", "#7d8590", "#16202b"
_MAX_BINS = 40


def charts(scores: ScoreSet, evaluation: Evaluation) -> list[bytes]:
    """Return PNG files of the same size: a histogram if there are scores, ROC and PR curve if both classes exist."""
    return [_encode(draw, "png", titled=True) for draw in drawings(scores, evaluation).values()]


def drawings(scores: ScoreSet, evaluation: Evaluation) -> dict[str, Draw]:
    """Return the function that draws each chart on axes of matplotlib, by its name in `FIGURES`."""
    found: dict[str, Draw] = {}
    if any(row.score is not None for row in scores.rows):
        found["histogram"] = lambda axes: _histogram(axes, scores)
    if "roc" in evaluation.curves:
        found["roc"] = lambda axes: _roc(axes, evaluation)
        found["pr"] = lambda axes: _pr(axes, evaluation)
    return found


def figure_files(folder: Path) -> list[Path]:
    """Return the files that `write_figures` may write."""
    return [folder / f"{name}{suffix}" for name in FIGURES for suffix in FIGURE_SUFFIXES]


def write_figures(folder: Path, drawn: Mapping[str, Draw]) -> list[Path]:
    """Write charts for a paper, without titles, as SVG and PDF with embedded fonts.

    Args:
        folder: Folder of the files; it is made if it does not exist.
        drawn: Function that draws each chart, by its name in `FIGURES`.

    Returns:
        The files.

    Raises:
        OutputError: A file cannot be written.
    """
    written = []
    for name, draw in drawn.items():
        for suffix in FIGURE_SUFFIXES:
            path = folder / f"{name}{suffix}"
            write_figure(path, draw)
            written.append(path)
    return written


def write_figure(path: Path, draw: Draw) -> None:
    """Write one chart, without a title, in the format of the file's suffix.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_bytes(path, _encode(draw, path.suffix[1:], titled=False))


def _encode(draw: Draw, kind: str, *, titled: bool) -> bytes:
    """Return a chart as a file that is the same each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    if not titled:
        axes.set_title("")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    stream = io.BytesIO()
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    metadata = {"Creator": f"Made by adctl {__version__}", date: None} if date else {}
    # Publishers refuse Type 3 fonts; 42 is TrueType.
    with mpl.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "adctl"}):
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
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


def curves_of_models(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Draw]:
    """Return functions that draw the ROC and PR curves of several models.

    Args:
        curves: Curves `roc` and `pr` of each model, as dictionaries with `x` and `y`, by its name.
    """
    if not curves:
        return {}
    styles = ("-", "--", ":", "-.")
    colours = ("#0072b2", "#d55e00", "#007f5f", "#b3588f", "#8a6d00", "#2b8cbe", "#333333")

    def draw(axes: Any, name: str, across: str, up: str) -> None:
        for number, (model, own) in enumerate(curves.items()):
            style = {"color": colours[number % len(colours)], "linestyle": styles[number % len(styles)]}
            axes.plot(own[name]["x"], own[name]["y"], label=model, linewidth=2, **style)
        axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))

    return {
        "roc": lambda axes: draw(axes, "roc", "false-alarm rate", "recall"),
        "pr": lambda axes: draw(axes, "pr", "recall", "precision"),
    }
