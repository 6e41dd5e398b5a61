"""One self-contained HTML page of a comparison: metrics side by side, tests, curves, and where the sets disagree.

Knows comparisons and pictures, computes no metric of its own but the curves it draws.
"""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING, Any

import cv2

from adctl import __version__, files
from adctl.metrics.curves import precision_recall_curve, roc_curve
from adctl.records import GOOD
from adctl.reporting.html_assets import embedded, plotly, template, text_of
from adctl.reporting.side_by_side import views

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.evaluation.compare import Disagreement, ModelResult, SetComparison
    from adctl.evaluation.match_images import SharedScores
    from adctl.metrics.comparison import Comparison

_SIDE = 220
_QUALITY = 80
_SIGNIFICANT = 0.05

SHOWN = {
    "image_auroc": "Image AUROC",
    "image_average_precision": "Image AP",
    "image_f1_max": "Best F1",
    "image_fpr_at_95_tpr": "FPR at 95 % TPR",
    "image_f1": "F1 at the threshold",
    "image_precision": "Precision",
    "image_recall": "Recall",
    "image_false_alarm_rate": "False-alarm rate",
    "image_balanced_accuracy": "Balanced accuracy",
    "pixel_auroc": "Pixel AUROC",
    "pixel_average_precision": "Pixel AP",
    "pixel_aupro": "AUPRO",
    "pixel_aupro_05": "AUPRO to FPR 0.05",
    "pixel_f1_max": "Best pixel F1",
    "pixel_iou": "Pixel IoU",
}
"""Metrics on the page, by the names they have in a comparison."""

_MAIN = ("image_auroc", "image_average_precision", "image_f1_max", "pixel_auroc", "pixel_aupro")
"""Those whose tests stand on the page at once; the others unfold."""

LOWER_IS_BETTER = ("image_fpr_at_95_tpr", "image_false_alarm_rate")


def write_comparison(
    sets: Sequence[SharedScores], comparison: SetComparison, target: Path, *, title: str | None = None
) -> Path:
    """Write the page.

    Args:
        sets: The shared scored sets.
        comparison: What was found of them.
        target: The HTML file.
        title: Its heading; the names of the sets unless given.

    Returns:
        The HTML file.

    Raises:
        OutputError: It cannot be written.
        DataError: The maps are damaged.
    """
    data = {"curves": _curves(sets, comparison), "names": [one.name for one in comparison.sets]}
    page = template("comparison.html").render(
        title=title or " · ".join(one.name for one in comparison.sets),
        comparison=comparison,
        summary=in_words(comparison),
        metrics=metric_rows(comparison),
        tests=_test_rows(comparison),
        level=100 * comparison.resampling.level,
        sets=[_set_row(one) for one in comparison.sets],
        curves=bool(data["curves"]),
        tiles=_tiles(sets, comparison),
        reproduce=shlex.join(["adctl", "report", *(str(one.folder) for one in comparison.sets)]),
        data=embedded(data),
        plotly=plotly(),
        style=text_of("page.css", "comparison.css"),
        script=text_of("comparison.js"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def in_words(comparison: SetComparison) -> str:
    """The outcome in a sentence or two: the best image AUROC, and whether the others differ from it beyond chance."""
    ranked = [one for one in comparison.sets if one.image.auroc is not None]
    if not ranked:
        count = sum(len(set(one.verdicts)) > 1 for one in comparison.disagreements)
        seen = f"{comparison.images} images seen by {len(comparison.sets)} models"
        return f"{seen}; verdicts differ on {count} of the {len(comparison.disagreements)} listed."
    best = max(ranked, key=lambda one: one.image.auroc or 0.0)
    text = f"On {comparison.images} images {best.name} ranks best, with an image AUROC of {best.image.auroc:.3f}."
    clear, unclear = _against(best.name, comparison)
    if clear:
        text += f" It is better than {_listed(clear)} beyond chance."
    if unclear:
        text += f" The difference from {_listed(unclear)} may be chance."
    return text


def _against(best: str, comparison: SetComparison) -> tuple[list[str], list[str]]:
    """The other sets with their p-values: those the best one beats beyond chance, and the rest."""
    clear: list[str] = []
    unclear: list[str] = []
    for pair in comparison.pairs:
        if best in (pair.first, pair.second) and "image_auroc" in pair.metrics:
            other = pair.second if pair.first == best else pair.first
            corrected = pair.corrected.get("image_auroc")
            beaten = corrected is not None and corrected < _SIGNIFICANT
            (clear if beaten else unclear).append(f"{other} (p {_p(corrected, equals=True)})")
    return clear, unclear


def metric_rows(comparison: SetComparison) -> list[dict[str, Any]]:
    """A row a metric: its name, and for each set the value, its interval, and whether it is the best."""
    rows = []
    for name, shown in SHOWN.items():
        cells = [_metric(one, name) for one in comparison.sets]
        values = [value for value, _ in cells if value is not None]
        if not values:
            continue
        best = min(values) if name in LOWER_IS_BETTER else max(values)
        rows.append(
            {
                "name": shown,
                "cells": [
                    {
                        "value": "–" if value is None else f"{value:.3f}",  # noqa: RUF001 - a dash in a cell
                        "range": "" if bounds is None else f"{bounds.low:.3f} to {bounds.high:.3f}",
                        "best": value == best and len(set(values)) > 1,
                    }
                    for value, bounds in cells
                ],
            }
        )
    return rows


def _metric(one: ModelResult, name: str) -> tuple[float | None, Any]:
    group, _, bare = name.partition("_")
    metrics = one.image if group == "image" else one.pixel
    return (None, None) if metrics is None else (getattr(metrics, bare), metrics.intervals.get(bare))


def _test_rows(comparison: SetComparison) -> list[dict[str, Any]]:
    return [
        {
            "pair": f"{pair.second} less {pair.first}",
            "metric": shown,
            "main": name in _MAIN,
            "difference": f"{pair.metrics[name].difference:+.3f}",
            "range": _range(pair.metrics[name]),
            "p": _p(pair.metrics[name].p_value),
            "corrected": _p(pair.corrected.get(name)),
            "significant": pair.corrected.get(name, 1.0) < _SIGNIFICANT,
            "method": {"delong": "DeLong", "bootstrap": "bootstrap"}[pair.metrics[name].method],
        }
        for pair in comparison.pairs
        for name, shown in SHOWN.items()
        if name in pair.metrics
    ]


def _range(one: Comparison) -> str:
    return one.reason if one.interval is None else f"{one.interval.low:+.3f} to {one.interval.high:+.3f}"


def _p(value: float | None, *, equals: bool = False) -> str:
    if value is None:
        return "not known" if equals else "–"  # noqa: RUF001 - a dash in a cell
    if value < 0.001:  # noqa: PLR2004 - three digits are shown
        return "< 0.001"
    return f"= {value:.3f}" if equals else f"{value:.3f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _set_row(one: ModelResult) -> list[tuple[str, str]]:
    lines = [
        ("Name", one.name),
        ("Detector", one.arch),
        ("Images a second", None if one.images_per_second is None else f"{one.images_per_second:.1f} on {one.device}"),
        ("Model file", None if one.model_bytes is None else f"{one.model_bytes / 2**20:.1f} MiB"),
        ("Threshold", None if one.threshold is None else f"{one.threshold:.6g}"),
        ("Model", one.model),
        ("Scores", str(one.folder)),
    ]
    return [(name, value or "not recorded") for name, value in lines]


def _curves(sets: Sequence[SharedScores], comparison: SetComparison) -> list[dict[str, Any]]:
    """ROC and precision-recall curve of each set; none without both classes."""
    if not comparison.good or not comparison.defective:
        return []
    found = []
    for one in sets:
        rows = [(row.score, row.label) for row in one.rows if row.score is not None and row.label is not None]
        values, truth = [score for score, _ in rows], [label != GOOD for _, label in rows]
        curves = {"roc": roc_curve(values, truth), "pr": precision_recall_curve(values, truth)}
        found.append({name: curve.to_dict() for name, curve in curves.items()})
    return found


def _tiles(sets: Sequence[SharedScores], comparison: SetComparison) -> list[dict[str, Any]]:
    seen = {one.index: one for one in views(sets, [each.index for each in comparison.disagreements], _SIDE)}
    names = [one.name for one in comparison.sets]
    tiles = []
    for each in comparison.disagreements:
        shown = seen.get(each.index)
        overlays = shown.overlays if shown else (None,) * len(sets)
        tiles.append(
            {
                "key": each.key,
                "label": each.label or "no label",
                "kind": _kind(each, names),
                "original": _data_uri(shown.original) if shown else None,
                "views": [
                    {
                        "name": name,
                        "picture": None if picture is None else _data_uri(picture),
                        "verdict": str(each.verdicts[number]),
                        "wrong": each.right is not None and name not in each.right,
                        "text": _placed(each, number),
                    }
                    for number, (name, picture) in enumerate(zip(names, overlays, strict=True))
                ],
            }
        )
    return tiles


def _placed(each: Disagreement, number: int) -> str:
    return f"score {each.scores[number]:.4g}, above {100 * each.ranks[number]:.0f} % of the images"


def _kind(each: Disagreement, names: Sequence[str]) -> str:
    if each.right is None:
        return "verdicts differ" if len(set(each.verdicts)) > 1 else "ranks differ"
    if len(each.right) in (0, len(names)):
        return "ranks differ"
    return f"only {_listed(each.right)} right"


def _data_uri(picture: NDArray[np.uint8]) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
