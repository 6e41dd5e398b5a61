"""The table of metrics: the name, function and labels of each, and where it is shown.

A new metric is one row here and one field of `ImageMetrics` or `PixelMetrics`. Tables on the terminal, reports,
comparisons, gates, cross-validations and grids read the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from typing import TYPE_CHECKING, Generic, TypeVar

from adctl.metrics import ranking
from adctl.metrics.ranking import PRO_LIMIT, STRICT_PRO_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adctl.metrics.labels import Floats
    from adctl.metrics.pixel_counts import PixelCounts

C = TypeVar("C")


class Place(Flag):
    """Places that show a metric."""

    TERMINAL = auto()
    """Table of `adctl report` on a terminal."""
    COMPARISON = auto()
    """Comparison of several scored sets, all metrics."""
    HEADLINE = auto()
    """Comparison of several scored sets, tests that are visible at once."""
    TRAINING = auto()
    """Tables of cross-validations and grids."""


@dataclass(frozen=True)
class CardText:
    """Texts of a metric in a report.

    Attributes:
        group: Group of metrics that it belongs to.
        name: Name within the group.
        meaning: Explanation in a few words.
    """

    group: str
    name: str
    meaning: str


@dataclass(frozen=True)
class ImageCounts:
    """Counts that image metrics are computed from; the leading axis is that of the resamplings.

    Attributes:
        normal: Good images at each distinct score, ascending [b,k].
        defective: Defective images at each distinct score [b,k].
        tp: Defects found at the threshold [b].
        fp: False alarms at the threshold [b].
        tn: Good images passed at the threshold [b].
        fn: Defects missed at the threshold [b].
    """

    normal: Floats
    defective: Floats
    tp: Floats
    fp: Floats
    tn: Floats
    fn: Floats

    @property
    def recall(self) -> Floats:
        """Share of the defects that are found [b]."""
        return ranking.ratio(self.tp, self.tp + self.fn)

    @property
    def false_alarm_rate(self) -> Floats:
        """Share of the good images that are false alarms [b]."""
        return ranking.ratio(self.fp, self.fp + self.tn)

    @property
    def specificity(self) -> Floats:
        """Share of the good images that pass [b]."""
        return ranking.ratio(self.tn, self.tn + self.fp)


@dataclass(frozen=True)
class Metric(Generic[C]):
    """A metric of image scores or of map pixels.

    Attributes:
        name: Field of `ImageMetrics` or `PixelMetrics`, and key in JSON.
        label: Text that names it in tables.
        function: Function from counts to values, one for each resampling.
        at_threshold: Whether it depends on the threshold.
        higher_is_better: Whether a higher value is better.
        is_count: Whether it is a number of images.
        share: Counts of `ImageCounts` whose sum is divided by the sum of others; None if it is no share of images.
        undefined: Reason why it may not exist although there are both classes and a threshold.
        max_error: Function from binned counts to the largest error; None for a metric that binning leaves exact.
        places: Places that show it.
        card: Texts in a report; None if a report leaves it out.
        column: Shorter label for the tables of cross-validations and grids.
    """

    name: str
    label: str
    function: Callable[[C], Floats]
    at_threshold: bool = False
    higher_is_better: bool = True
    is_count: bool = False
    share: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    undefined: str = ""
    max_error: Callable[[C], Floats] | None = None
    places: Place = Place.TERMINAL
    card: CardText | None = None
    column: str = ""


_SHOWN = Place.TERMINAL | Place.COMPARISON
_EVERYWHERE = _SHOWN | Place.HEADLINE | Place.TRAINING
_NOWHERE = Place(0)
_RANKED = "Ranking of images"
_VERDICTS = "Verdicts at the calibrated threshold"
_PIXELS = "Pixels"

IMAGE: tuple[Metric[ImageCounts], ...] = (
    Metric(
        "auroc",
        "image AUROC",
        lambda c: ranking.auroc(c.normal, c.defective),
        places=_EVERYWHERE,
        card=CardText(_RANKED, "AUROC", "probability that a defective image scores higher than a good one"),
    ),
    Metric(
        "average_precision",
        "image AP",
        lambda c: ranking.average_precision(c.normal, c.defective),
        places=_EVERYWHERE,
        card=CardText(_RANKED, "Average precision", "mean precision over all values of recall"),
    ),
    Metric(
        "f1_max",
        "best F1",
        lambda c: ranking.f1_by_level(c.normal, c.defective).max(axis=-1),
        places=_EVERYWHERE,
        card=CardText(_RANKED, "Best F1", "highest F1 of all thresholds on these images"),
    ),
    Metric(
        "fpr_at_95_tpr",
        "FPR at 95 % TPR",
        lambda c: ranking.fpr_at_tpr(c.normal, c.defective),
        higher_is_better=False,
        places=_SHOWN,
        card=CardText(_RANKED, "FPR at 95 % TPR", "false-alarm rate if 95 % of the defects are found"),
    ),
    Metric(
        "f1",
        "F1 at threshold",
        lambda c: ranking.ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn),
        at_threshold=True,
        undefined="there are neither defects nor alarms",
        places=_SHOWN | Place.TRAINING,
        card=CardText(_VERDICTS, "F1", "harmonic mean of precision and recall"),
        column="F1",
    ),
    Metric(
        "precision",
        "precision",
        lambda c: ranking.ratio(c.tp, c.tp + c.fp),
        at_threshold=True,
        share=(("tp",), ("tp", "fp")),
        undefined="there are no alarms",
        places=_SHOWN,
        card=CardText(_VERDICTS, "Precision", "share of rejected images that are defective"),
    ),
    Metric(
        "recall",
        "recall",
        lambda c: c.recall,
        at_threshold=True,
        share=(("tp",), ("tp", "fn")),
        places=_SHOWN,
        card=CardText(_VERDICTS, "Recall", "share of defective images that are rejected"),
    ),
    Metric(
        "false_alarm_rate",
        "false-alarm rate",
        lambda c: c.false_alarm_rate,
        at_threshold=True,
        share=(("fp",), ("fp", "tn")),
        higher_is_better=False,
        places=_SHOWN,
        card=CardText(_VERDICTS, "False-alarm rate", "share of good images that are rejected"),
    ),
    Metric(
        "accuracy",
        "accuracy",
        lambda c: ranking.ratio(c.tp + c.tn, c.tp + c.fp + c.tn + c.fn),
        at_threshold=True,
        share=(("tp", "tn"), ("tp", "fp", "tn", "fn")),
    ),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        lambda c: (c.recall + c.specificity) / 2,
        at_threshold=True,
        places=_SHOWN,
    ),
    Metric("tp", "defects found", lambda c: c.tp, at_threshold=True, is_count=True, places=_NOWHERE),
    Metric("fp", "false alarms", lambda c: c.fp, at_threshold=True, is_count=True, places=_NOWHERE),
    Metric("tn", "good images passed", lambda c: c.tn, at_threshold=True, is_count=True, places=_NOWHERE),
    Metric("fn", "defects missed", lambda c: c.fn, at_threshold=True, is_count=True, places=_NOWHERE),
)

PIXEL: tuple[Metric[PixelCounts], ...] = (
    Metric(
        "auroc",
        "pixel AUROC",
        lambda c: ranking.auroc(c.normal, c.defective),
        max_error=lambda c: ranking.auroc_error(c.normal, c.defective),
        places=_EVERYWHERE,
        card=CardText(_PIXELS, "AUROC", "AUROC over all pixels"),
    ),
    Metric(
        "average_precision",
        "pixel AP",
        lambda c: ranking.average_precision(c.normal, c.defective),
        max_error=lambda c: ranking.average_precision_error(c.normal, c.defective),
        places=_SHOWN,
        card=CardText(_PIXELS, "Average precision", "average precision over all pixels"),
    ),
    Metric(
        "aupro",
        "AUPRO",
        lambda c: ranking.aupro(c.normal, c.overlap, c.regions, PRO_LIMIT),
        max_error=lambda c: ranking.aupro_error(c.normal, c.overlap, c.regions, PRO_LIMIT),
        places=_EVERYWHERE,
        card=CardText(_PIXELS, "AUPRO", "mean overlap with each defect, up to a false-positive rate of 30 %"),
    ),
    Metric(
        "aupro_05",
        "AUPRO to FPR 0.05",
        lambda c: ranking.aupro(c.normal, c.overlap, c.regions, STRICT_PRO_LIMIT),
        max_error=lambda c: ranking.aupro_error(c.normal, c.overlap, c.regions, STRICT_PRO_LIMIT),
        places=_SHOWN,
    ),
    Metric(
        "f1_max",
        "best pixel F1",
        lambda c: ranking.f1_by_level(c.normal, c.defective).max(axis=-1),
        max_error=lambda c: ranking.f1_max_error(c.normal, c.defective),
        places=_SHOWN,
    ),
    Metric(
        "iou",
        "pixel IoU",
        lambda c: ranking.ratio(c.true_positives, c.defects + c.false_positives),
        at_threshold=True,
        places=_SHOWN,
        card=CardText(_PIXELS, "IoU", "intersection over union at the pixel threshold"),
    ),
    Metric(
        "dice",
        "pixel Dice",
        lambda c: ranking.ratio(2 * c.true_positives, c.defects + c.true_positives + c.false_positives),
        at_threshold=True,
        card=CardText(_PIXELS, "Dice", "F1 of the pixels at the pixel threshold"),
    ),
    Metric(
        "precision",
        "pixel precision",
        lambda c: ranking.ratio(c.true_positives, c.true_positives + c.false_positives),
        at_threshold=True,
        undefined="no pixel is above the threshold",
        places=_NOWHERE,
    ),
    Metric(
        "recall",
        "pixel recall",
        lambda c: ranking.ratio(c.true_positives, c.defects),
        at_threshold=True,
        places=_NOWHERE,
    ),
    Metric(
        "region_overlap",
        "region overlap",
        lambda c: ranking.ratio(c.region_overlap, c.regions),
        at_threshold=True,
    ),
    Metric("region_iou", "region IoU", lambda c: ranking.ratio(c.region_iou, c.regions), at_threshold=True),
)

METRICS: dict[str, Metric[ImageCounts] | Metric[PixelCounts]] = {
    **{f"image_{metric.name}": metric for metric in IMAGE},
    **{f"pixel_{metric.name}": metric for metric in PIXEL},
}
"""All metrics by their flat names, as in gates and tables for machines."""


def values_of(metrics: Iterable[Metric[C]], counts: C, *, at_threshold: bool) -> dict[str, Floats]:
    """Return the values of the metrics that depend on the threshold, or of those that do not, by name."""
    return {metric.name: metric.function(counts) for metric in metrics if metric.at_threshold == at_threshold}


def error_bounds(counts: PixelCounts) -> dict[str, float]:
    """Return the largest possible error of each ranking metric of pixels if levels are bins."""
    return {metric.name: float(metric.max_error(counts)) for metric in PIXEL if metric.max_error is not None}


def names_of(metrics: Iterable[Metric[C]], *, at_threshold: bool) -> tuple[str, ...]:
    """Return the names of the metrics that depend on the threshold, or of those that do not."""
    return tuple(metric.name for metric in metrics if metric.at_threshold == at_threshold)


def shown_in(place: Place) -> dict[str, Metric[ImageCounts] | Metric[PixelCounts]]:
    """Return the metrics that a place shows, by their flat names."""
    return {name: metric for name, metric in METRICS.items() if place in metric.places}
