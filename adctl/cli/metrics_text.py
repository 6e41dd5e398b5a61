"""Metrics as tables on a terminal: for all images, by defect type and by defect size."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics

    Metrics = ImageMetrics | PixelMetrics

_ABSENT = "-"
_BARS = " ▁▂▃▄▅▆▇█"


def metrics_table(evaluation: Evaluation, lines: Iterable[Sequence[str]]) -> RenderableType:
    """Return the metrics, those of each defect type and size, then notes and further lines."""
    from rich.console import Group
    from rich.padding import Padding

    tables = [_whole(evaluation), _by_defect(evaluation), _by_size(evaluation)]
    shown = [table for table in tables if table is not None]
    shown += _histogram(evaluation)
    shown.append(rows([*(("note", note) for note in evaluation.notes), *lines]))
    return Group(shown[0], *(Padding(table, (1, 0, 0, 0)) for table in shown[1:]))


def _histogram(evaluation: Evaluation) -> list[RenderableType]:
    """Return histograms of the scores of each class; nothing if the terminal cannot show the characters."""
    if evaluation.bins is None or "utf" not in (sys.stdout.encoding or "").lower():
        return []
    axis = f"{evaluation.bins.low:.4g} to {evaluation.bins.high:.4g}"
    lines = [(kind, _bars(counts), str(sum(counts))) for kind, counts in evaluation.bins.counts.items()]
    return [rows(lines, "scores", axis, "images")]


def _bars(counts: Sequence[int]) -> str:
    """Return counts as bars relative to the highest count."""
    most = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts).rstrip()


def _whole(evaluation: Evaluation) -> RenderableType | None:
    found = [*_lines("image", evaluation.image), *_verdicts(evaluation.image), *_lines("pixel", evaluation.pixel)]
    if evaluation.pixel_resolution:
        found.append(("pixel metrics", evaluation.pixel_resolution, ""))
    if not found:
        return None
    if evaluation.resampling is None:
        return rows([line[:2] for line in found])
    return rows(found, "metric", "value", f"{100 * evaluation.resampling.level:.4g} % interval")


def _lines(level: str, metrics: Metrics | None) -> list[tuple[str, str, str]]:
    from adctl.metrics.table import Place, shown_in

    return [
        (one.label, f"{value:.4f}", _range(metrics, one.name))
        for name, one in shown_in(Place.TERMINAL).items()
        if name.startswith(level) and metrics is not None and (value := getattr(metrics, one.name)) is not None
    ]


def _verdicts(image: ImageMetrics) -> list[tuple[str, str, str]]:
    """Return the confusion matrix."""
    if image.tp is None:
        return []
    return [
        ("defects found", f"{image.tp} of {image.defective}", _range(image, "recall")),
        ("false alarms", f"{image.fp} of {image.good}", _range(image, "false_alarm_rate")),
    ]


def _by_defect(evaluation: Evaluation) -> RenderableType | None:
    pixel = evaluation.pixel.by_defect if evaluation.pixel else {}
    lines = [
        (
            kind,
            str(image.defective),
            _cell(image, "recall", ranged=True),
            _cell(image, "auroc", ranged=True),
            _cell(pixel.get(kind), "auroc"),
            _cell(pixel.get(kind), "region_overlap"),
            _cell(pixel.get(kind), "aupro", ranged=True),
        )
        for kind, image in evaluation.by_defect.items()
    ]
    headers = ("defect", "images", "recall", "AUROC", "pixel AUROC", "overlap", "AUPRO")
    return rows(lines, *headers) if lines else None


def _by_size(evaluation: Evaluation) -> RenderableType | None:
    lines = [
        (
            name,
            str(part.regions),
            *(_cell(part, metric) for metric in ("recall", "auroc", "region_overlap")),
            _cell(part, "aupro", ranged=True),
        )
        for name, part in (evaluation.pixel.by_size if evaluation.pixel else {}).items()
    ]
    headers = ("size", "regions", "pixel recall", "pixel AUROC", "overlap", "AUPRO")
    return rows(lines, *headers) if lines else None


def _cell(metrics: Metrics | None, name: str, *, ranged: bool = False) -> str:
    """Return a value, with its interval if there is one and `ranged` asks for it."""
    value = getattr(metrics, name, None)
    if value is None:
        return _ABSENT
    return f"{value:.3f} {_range(metrics, name, 2)}".rstrip() if ranged else f"{value:.3f}"


def _range(metrics: Metrics | None, name: str, digits: int = 3) -> str:
    bounds = metrics.intervals.get(name) if metrics is not None else None
    return "" if bounds is None else f"({bounds.low:.{digits}f} to {bounds.high:.{digits}f})"
