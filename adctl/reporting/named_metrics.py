"""Metrics of an evaluation by flat names such as `image_auroc`, for gates and for CSV and JSON files.

A metric that does not exist has the value None and a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.metrics.table import IMAGE, PIXEL

if TYPE_CHECKING:
    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics

    Metrics = ImageMetrics | PixelMetrics


@dataclass(frozen=True)
class NamedMetric:
    """Metric of an evaluation.

    Attributes:
        name: Name such as `image_auroc`; for a defect type or size such as `image_recall.scratch`.
        value: Value, or None if it does not exist.
        interval: Confidence interval, or None.
        reason: Reason why the value does not exist; empty if it exists.
    """

    name: str
    value: float | None
    interval: Interval | None = None
    reason: str = ""


def named_metrics(evaluation: Evaluation) -> dict[str, NamedMetric]:
    """Return all metrics by name: of the whole set, of each defect type, and pixel metrics of each size of defect."""
    pixel, reason = evaluation.pixel, _no_pixel_reason(evaluation)
    metrics = [
        NamedMetric("images", evaluation.images),
        NamedMetric("unscored", evaluation.verdicts.get("error", 0)),
        *_all_of("image", evaluation.image),
        *_all_of("pixel", pixel, reason=reason),
    ]
    for kind, image in evaluation.by_defect.items():
        metrics += _all_of("image", image, part=kind)
    for parts in (pixel.by_defect, pixel.by_size) if pixel else ():
        for part, part_metrics in parts.items():
            metrics += _all_of("pixel", part_metrics, part=part)
    return {metric.name: metric for metric in metrics}


def _all_of(level: str, metrics: Metrics | None, *, part: str = "", reason: str = "") -> list[NamedMetric]:
    names = [one.name for one in (IMAGE if level == "image" else PIXEL)]
    suffix = f".{part}" if part else ""
    return [_named_metric(f"{level}_{name}{suffix}", name, metrics, reason) for name in names]


def _named_metric(full_name: str, name: str, metrics: Metrics | None, reason: str) -> NamedMetric:
    if metrics is None:
        return NamedMetric(full_name, None, reason=reason)
    value = getattr(metrics, name)
    if value is None or math.isnan(value):
        return NamedMetric(full_name, None, reason=metrics.missing.get(name, "it does not exist for these images"))
    return NamedMetric(full_name, value, metrics.intervals.get(name))


def _no_pixel_reason(evaluation: Evaluation) -> str:
    """Return the reason why there are no pixel metrics; empty if there are."""
    if evaluation.pixel is not None:
        return ""
    start = "No pixel metrics: "
    reasons = [note.removeprefix(start).rstrip(".") for note in evaluation.notes if note.startswith(start)]
    return reasons[0] if reasons else "there are no defective images with masks"
