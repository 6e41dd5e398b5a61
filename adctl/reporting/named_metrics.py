"""The figures of an evaluation under flat names, such as `image_auroc`: for gates and for tables that machines read.

A figure that does not exist is None, and the reason is kept beside it. Knows evaluations, nothing of files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics

    Metrics = ImageMetrics | PixelMetrics

IMAGE = (
    *("auroc", "average_precision", "f1_max", "fpr_at_95_tpr", "f1", "precision", "recall"),
    *("false_alarm_rate", "accuracy", "balanced_accuracy", "tp", "fp", "tn", "fn"),
)
PIXEL = (
    *("auroc", "average_precision", "aupro", "aupro_05", "f1_max", "iou", "dice"),
    *("precision", "recall", "region_overlap", "region_iou"),
)


@dataclass(frozen=True)
class NamedMetric:
    """One number of an evaluation.

    Attributes:
        name: `image_auroc`, `pixel_aupro`; with a part `image_recall.scratch`.
        value: None where it does not exist.
        interval: With the confidence asked for; None where there is none.
        reason: Why it does not exist; empty where it does.
    """

    name: str
    value: float | None
    interval: Interval | None = None
    reason: str = ""


def named_metrics(evaluation: Evaluation) -> dict[str, NamedMetric]:
    """Every figure by name: of the whole set, by defect type, and of pixels by size of defect."""
    pixel, absent = evaluation.pixel, _no_pixels(evaluation)
    found = [
        NamedMetric("images", evaluation.images),
        NamedMetric("unscored", evaluation.verdicts.get("error", 0)),
        *_of(IMAGE, "image", evaluation.image),
        *_of(PIXEL, "pixel", pixel, reason=absent),
    ]
    for kind, image in evaluation.by_defect.items():
        found += _of(IMAGE, "image", image, part=kind)
    for parts in (pixel.by_defect, pixel.by_size) if pixel else ():
        for part, metrics in parts.items():
            found += _of(PIXEL, "pixel", metrics, part=part)
    return {figure.name: figure for figure in found}


def _of(
    names: tuple[str, ...], level: str, metrics: Metrics | None, *, part: str = "", reason: str = ""
) -> list[NamedMetric]:
    ending = f".{part}" if part else ""
    return [_figure(f"{level}_{name}{ending}", name, metrics, reason) for name in names]


def _figure(shown: str, name: str, metrics: Metrics | None, reason: str) -> NamedMetric:
    if metrics is None:
        return NamedMetric(shown, None, reason=reason)
    value = getattr(metrics, name)
    if value is None or math.isnan(value):
        return NamedMetric(shown, None, reason=metrics.missing.get(name, "it does not exist for these images"))
    return NamedMetric(shown, value, metrics.intervals.get(name))


def _no_pixels(evaluation: Evaluation) -> str:
    """Why there are no pixel metrics at all."""
    if evaluation.pixel is not None:
        return ""
    start = "No pixel metrics: "
    told = [note.removeprefix(start).rstrip(".") for note in evaluation.notes if note.startswith(start)]
    return told[0] if told else "there are no defective images with masks"
