"""Self-contained HTML page of a comparison: metrics side by side, tests, curves and disagreements.

The curves are computed here; all other numbers come from the comparison.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.metrics.curves import precision_recall_curve, roc_curve
from adctl.metrics.statistics import p_text
from adctl.metrics.table import METRICS, Place, shown_in
from adctl.records import GOOD
from adctl.reporting.content import ABSENT, Table
from adctl.reporting.html_assets import plotly, read_assets, template, to_script_json
from adctl.reporting.pictures import as_data_uri, as_jpeg
from adctl.reporting.side_by_side import views

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.evaluation.compare import Disagreement, ModelResult, SetComparison
    from adctl.evaluation.match_images import SharedScores
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.comparison import Comparison
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics
    from adctl.metrics.table import Metric

_SIDE = 320
_QUALITY = 80
_SIGNIFICANT = 0.05
_DEFECT_METRICS = ("image_auroc", "image_recall", "pixel_aupro")
_DEFECT_NOTE = "Each defect type is compared with all good images; recall is that at the threshold of each model."
_TEST_NOTE = "Paired tests: DeLong for image AUROC, bootstrap for all others; Holm's correction over all pairs."


def write_comparison(
    sets: Sequence[SharedScores], comparison: SetComparison, target: Path, *, title: str | None = None
) -> Path:
    """Write the comparison page.

    Args:
        sets: Scored sets, reduced to the same images.
        comparison: Result of the comparison.
        target: HTML file to write.
        title: Heading of the page; by default the names of the sets.

    Returns:
        Path of the HTML file.

    Raises:
        OutputError: The page cannot be written.
        DataError: The anomaly maps are damaged.
    """
    names = [result.name for result in comparison.sets]
    data = {"curves": model_curves(sets, comparison), "names": names}
    page = template("comparison.html").render(
        title=title or " · ".join(names),
        comparison=comparison,
        notes=comparison.notes,
        summary=summarise(comparison),
        metrics=metric_rows(comparison),
        defects=defect_rows(comparison),
        defect_note=_DEFECT_NOTE,
        tests=_test_rows(comparison),
        level=100 * comparison.resampling.level,
        sets=[_details(result) for result in comparison.sets],
        curves=bool(data["curves"]),
        tiles=_tiles(sets, comparison),
        reproduce=shlex.join(["adctl", "report", *(str(result.folder) for result in comparison.sets)]),
        data=to_script_json(data),
        plotly=plotly(),
        style=read_assets("page.css", "comparison.css"),
        script=read_assets("common.js", "comparison.js"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def summarise(comparison: SetComparison) -> str:
    """Return the result in a few sentences: the best image AUROC, and how certain its lead over the others is."""
    ranked = [result for result in comparison.sets if result.image.auroc is not None]
    if not ranked:
        listed = comparison.disagreements
        count = sum(len(set(image.verdicts)) > 1 for image in listed)
        text = f"{len(comparison.sets)} models scored the same {comparison.images} images."
        return f"{text} The verdicts differ on {count} of the {len(listed)} listed images."
    best = max(ranked, key=lambda result: result.image.auroc or 0.0)
    if len(ranked) > 1 and all(result.image.auroc == best.image.auroc for result in ranked):
        names = _join_names([result.name for result in ranked])
        return f"On {comparison.images} images, {names} have the same image AUROC: {best.image.auroc:.3f}."
    text = f"On {comparison.images} images, {best.name} has the highest image AUROC: {best.image.auroc:.3f}."
    significant, others = _compare_with_best(best.name, comparison)
    if significant:
        text += f" It is significantly better than {_join_names(significant)}."
    if others:
        text += f" The difference from {_join_names(others)} may be due to chance."
    return text


def _compare_with_best(best: str, comparison: SetComparison) -> tuple[list[str], list[str]]:
    """Return the sets that are significantly worse than the best one, and the other sets, all with p-values."""
    significant: list[str] = []
    others: list[str] = []
    for pair in comparison.pairs:
        if best in (pair.first, pair.second) and "image_auroc" in pair.metrics:
            name = pair.second if pair.first == best else pair.first
            corrected = pair.corrected.get("image_auroc")
            is_worse = corrected is not None and corrected < _SIGNIFICANT
            (significant if is_worse else others).append(f"{name} (p {_p(corrected, equals=True)})")
    return significant, others


def metric_rows(comparison: SetComparison) -> list[dict[str, Any]]:
    """Return a row for each metric: its name and, for each set, the value, its interval and whether it is the best."""
    rows = [
        _compared(_capitalised(one.label), [_metric(result, name) for result in comparison.sets], one)
        for name, one in shown_in(Place.COMPARISON).items()
    ]
    return [row for row in rows if row is not None]


def defect_rows(comparison: SetComparison) -> list[dict[str, Any]]:
    """Return a row as `metric_rows` does for each defect type and metric, with the defect and its number of images."""
    rows = []
    for kind, first in comparison.sets[0].by_defect.items():
        for name in _DEFECT_METRICS:
            one = METRICS[name]
            row = _compared(one.label, [_metric(result, name, kind) for result in comparison.sets], one)
            if row is not None:
                rows.append({**row, "defect": kind, "images": first.defective})
    return rows


def _compared(
    label: str, cells: list[tuple[float | None, Interval | None]], metric: Metric[Any]
) -> dict[str, Any] | None:
    """Return a row of cells, one for each set; None if no set has the metric."""
    values = [value for value, _ in cells if value is not None]
    if not values:
        return None
    best = max(values) if metric.higher_is_better else min(values)
    return {
        "name": label,
        "cells": [
            {
                "value": ABSENT if value is None else f"{value:.3f}",
                "range": "" if bounds is None else f"{bounds.low:.3f} to {bounds.high:.3f}",
                "best": value == best and len(set(values)) > 1,
            }
            for value, bounds in cells
        ],
    }


def compared_tables(comparison: SetComparison) -> list[Table]:
    """Return the metrics of each set, those of each defect type, and the tests as tables of text."""
    names = tuple(result.name for result in comparison.sets)
    level = f"{100 * comparison.resampling.level:.4g} %"
    intervals = f"In brackets: {level} confidence intervals, exact for shares of images, else by bootstrap."
    metrics = tuple((row["name"], *map(_cell_text, row["cells"])) for row in metric_rows(comparison))
    defects = tuple(
        (row["defect"], str(row["images"]), row["name"], *map(_cell_text, row["cells"]))
        for row in defect_rows(comparison)
    )
    tests = tuple(
        (row["pair"], row["metric"], row["difference"], row["range"], row["p"], row["corrected"])
        for row in _test_rows(comparison)
        if row["main"]
    )
    counts = f"{comparison.good} good and {comparison.defective} defective images. {intervals}"
    tables = (
        Table("Metrics", ("Metric", *names), metrics, counts),
        Table("By defect type", ("Defect", "Images", "Metric", *names), defects, _DEFECT_NOTE),
        Table("Tests", ("Pair", "Metric", "Difference", f"{level} interval", "p", "p, Holm"), tests, _TEST_NOTE),
    )
    return [table for table in tables if table.rows]


def _cell_text(cell: dict[str, Any]) -> str:
    return f"{cell['value']} [{cell['range']}]" if cell["range"] else str(cell["value"])


def _capitalised(label: str) -> str:
    return label[:1].upper() + label[1:]


def _metric(result: ModelResult, name: str, defect: str | None = None) -> tuple[float | None, Interval | None]:
    """Return the value and the interval of a metric, of the whole set or of a defect type."""
    level, _, metric = name.partition("_")
    metrics: ImageMetrics | PixelMetrics | None = result.image if level == "image" else result.pixel
    if defect is not None:
        by_defect = result.by_defect if level == "image" else result.pixel.by_defect if result.pixel else {}
        metrics = by_defect.get(defect)
    return (None, None) if metrics is None else (getattr(metrics, metric), metrics.intervals.get(metric))


def _test_rows(comparison: SetComparison) -> list[dict[str, Any]]:
    return [
        {
            "pair": f"{pair.second} minus {pair.first}",
            "metric": _capitalised(one.label),
            "main": Place.HEADLINE in one.places,
            "difference": f"{pair.metrics[name].difference:+.3f}",
            "range": _range(pair.metrics[name]),
            "p": _p(pair.metrics[name].p_value),
            "corrected": _p(pair.corrected.get(name)),
            "significant": pair.corrected.get(name, 1.0) < _SIGNIFICANT,
            "method": {"delong": "DeLong", "bootstrap": "bootstrap"}[pair.metrics[name].method],
        }
        for pair in comparison.pairs
        for name, one in shown_in(Place.COMPARISON).items()
        if name in pair.metrics
    ]


def _range(test: Comparison) -> str:
    return test.reason if test.interval is None else f"{test.interval.low:+.3f} to {test.interval.high:+.3f}"


def _p(value: float | None, *, equals: bool = False) -> str:
    if value is None:
        return "unknown" if equals else ABSENT
    text = p_text(value)
    return f"= {text}" if equals and not text.startswith("<") else text


def _join_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _details(result: ModelResult) -> list[tuple[str, str]]:
    speed, size = result.images_per_second, result.model_bytes
    lines = [
        ("Name", result.name),
        ("Detector", result.arch),
        ("Speed", None if speed is None else f"{speed:.1f} images/s on {result.device}"),
        ("Model size", None if size is None else f"{size / 2**20:.1f} MiB"),
        ("Threshold", None if result.threshold is None else f"{result.threshold:.6g}"),
        ("Model file", result.model),
        ("Scores", str(result.folder)),
    ]
    return [(name, value or "not recorded") for name, value in lines]


def model_curves(sets: Sequence[SharedScores], comparison: SetComparison) -> list[dict[str, Any]]:
    """Return the ROC and precision-recall curve of each set; no curves without good and defective images."""
    if not comparison.good or not comparison.defective:
        return []
    all_curves = []
    for scores in sets:
        rows = [(row.score, row.label) for row in scores.rows if row.score is not None and row.label is not None]
        values, truth = [score for score, _ in rows], [label != GOOD for _, label in rows]
        curves = {"roc": roc_curve(values, truth), "pr": precision_recall_curve(values, truth)}
        all_curves.append({name: curve.to_dict() for name, curve in curves.items()})
    return all_curves


def _tiles(sets: Sequence[SharedScores], comparison: SetComparison) -> list[dict[str, Any]]:
    images = {image.index: image for image in views(sets, [each.index for each in comparison.disagreements], _SIDE)}
    names = [result.name for result in comparison.sets]
    tiles = []
    for each in comparison.disagreements:
        image = images.get(each.index)
        overlays = image.overlays if image else (None,) * len(sets)
        tiles.append(
            {
                "key": each.key,
                "label": each.label or "no label",
                "kind": _kind(each, names),
                "original": _data_uri(image.original) if image else None,
                "views": [
                    {
                        "name": name,
                        "picture": None if picture is None else _data_uri(picture),
                        "verdict": str(each.verdicts[number]),
                        "wrong": each.right is not None and name not in each.right,
                        "text": _score_text(each, number),
                    }
                    for number, (name, picture) in enumerate(zip(names, overlays, strict=True))
                ],
            }
        )
    return tiles


def _score_text(image: Disagreement, number: int) -> str:
    return f"score {image.scores[number]:.4g}, higher than {100 * image.ranks[number]:.0f} % of the images"


def _kind(image: Disagreement, names: Sequence[str]) -> str:
    if image.right is None:
        return "verdicts differ" if len(set(image.verdicts)) > 1 else "ranks differ"
    if len(image.right) in (0, len(names)):
        return "ranks differ"
    return f"only {_join_names(image.right)} correct"


def _data_uri(picture: NDArray[np.uint8]) -> str:
    return as_data_uri(as_jpeg(picture, _QUALITY))
