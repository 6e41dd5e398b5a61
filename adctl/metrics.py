"""The field's metrics, for images and for pixels. Arrays only: no files, no detectors.

Scores rank as they are, in float64, never clamped or normalised. A metric that does not exist (only one class is
present, or there is no threshold) is None, and `missing` says why. Pixel metrics stream: however many maps, a
meter holds a few histograms, and states how far its AUROC can be off.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from adctl.errors import DataError
from adctl.records import GOOD

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CURVE_POINTS = 500
_PRO_LIMITS = (0.30, 0.05)


@dataclass(frozen=True)
class Curve:
    """Points of a curve, each at one threshold.

    Attributes:
        x: Array [n].
        y: Array [n].
        thresholds: Array [n].
    """

    x: Floats
    y: Floats
    thresholds: Floats

    def to_dict(self) -> dict[str, list[float | None]]:
        """JSON-safe; infinite thresholds become None."""
        columns = {"x": self.x, "y": self.y, "thresholds": self.thresholds}
        return {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in columns.items()}


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of image scores; an image is called anomalous when its score is above the threshold.

    Attributes:
        good: Number of good images.
        defective: Number of defective images.
        auroc: Area under the ROC curve.
        average_precision: Mean precision over recall (sum of precision times the step in recall).
        f1_max: The highest F1 over all thresholds.
        f1_max_threshold: Where it is reached.
        fpr_at_95_tpr: Share of false alarms at the highest threshold that finds 95 % of the defects.
        threshold: The threshold the following rest on.
        accuracy: Share judged rightly.
        balanced_accuracy: Mean of the shares judged rightly in either class.
        precision: Share of the alarms that are defects.
        recall: Share of the defects that are found.
        f1: Harmonic mean of the two.
        false_alarm_rate: Share of good images called anomalous.
        tp: Defects found.
        fp: False alarms.
        tn: Good images passed.
        fn: Defects missed.
        missing: For each metric that does not exist, why.
    """

    good: int
    defective: int
    auroc: float | None = None
    average_precision: float | None = None
    f1_max: float | None = None
    f1_max_threshold: float | None = None
    fpr_at_95_tpr: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    false_alarm_rate: float | None = None
    tp: int | None = None
    fp: int | None = None
    tn: int | None = None
    fn: int | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """False-alarm rate (x) and recall (y) over all thresholds; both classes must be present."""
    values, truth = _checked(scores, labels)
    fpr, tpr, thresholds = sk.roc_curve(truth, values)
    return Curve(fpr, tpr, thresholds)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Recall (x) and precision (y) over all thresholds; some image must be defective."""
    values, truth = _checked(scores, labels)
    precision, recall, thresholds = sk.precision_recall_curve(truth, values)
    return Curve(recall, precision, np.append(thresholds, np.inf))


def image_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float | None = None) -> ImageMetrics:
    """All image metrics.

    Args:
        scores: Raw scores [n].
        labels: True where defective [n].
        threshold: Above it an image is called anomalous; None leaves out what rests on it.

    Raises:
        DataError: A score is not a finite number.
    """
    values, truth = _checked(scores, labels)
    good, defective = int((~truth).sum()), int(truth.sum())
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if good and defective:
        found |= _ranking(values, truth)
    else:
        reason = f"there are no {'good' if not good else 'defective'} images"
        missing |= dict.fromkeys(("auroc", "average_precision", "f1_max", "f1_max_threshold", "fpr_at_95_tpr"), reason)
    if threshold is None:
        rest = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "false_alarm_rate", "tp", "fp", "tn", "fn")
        missing |= dict.fromkeys(rest, "there is no threshold")
    else:
        judged, reasons = _judged(values > threshold, truth)
        found |= {"threshold": threshold, **judged}
        missing |= reasons
    return ImageMetrics(good, defective, **found, missing=missing)


def image_metrics_by_defect(
    scores: ArrayLike, labels: Sequence[str], threshold: float | None = None
) -> dict[str, ImageMetrics]:
    """Image metrics of each defect type against all good images."""
    values, names = np.asarray(scores, np.float64), np.asarray(labels)
    good = names == GOOD
    chosen = {name: good | (names == name) for name in sorted(set(labels) - {GOOD})}
    return {name: image_metrics(values[rows], names[rows] != GOOD, threshold) for name, rows in chosen.items()}


def _ranking(values: Floats, truth: Bools) -> dict[str, float]:
    precision, recall, thresholds = sk.precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = int(f1[:-1].argmax())
    fpr, tpr, _ = sk.roc_curve(truth, values, drop_intermediate=False)
    return {
        "auroc": float(sk.roc_auc_score(truth, values)),
        "average_precision": float(sk.average_precision_score(truth, values)),
        "f1_max": float(f1[best]),
        "f1_max_threshold": float(thresholds[best]),
        "fpr_at_95_tpr": float(fpr[int(np.argmax(tpr >= 0.95))]),
    }


def _judged(alarms: Bools, truth: Bools) -> tuple[dict[str, Any], dict[str, str]]:
    tp, fp = int((alarms & truth).sum()), int((alarms & ~truth).sum())
    fn, tn = int((~alarms & truth).sum()), int((~alarms & ~truth).sum())
    recall, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    values: dict[str, Any] = {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "accuracy": _share(tp + tn, len(truth)),
        "precision": _share(tp, tp + fp),
        "recall": recall,
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "false_alarm_rate": _share(fp, fp + tn),
        "balanced_accuracy": None if recall is None or specificity is None else (recall + specificity) / 2,
    }
    reasons = {"precision": "there are no alarms", "f1": "there are neither defects nor alarms"}
    absent = "there are no defective images" if not truth.any() else "there are no good images"
    return values, {name: reasons.get(name, absent) for name, value in values.items() if value is None}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise DataError(f"{broken} of {len(values)} scores are not finite numbers.", "Score again, or train again.")
    return values, truth


@dataclass(frozen=True)
class PixelMetrics:
    """Metrics of map values over all pixels; a pixel is called anomalous when its value is above the threshold.

    Attributes:
        images: Number of maps.
        auroc: Area under the pixel ROC curve.
        auroc_error: The most it can be off because values were binned.
        average_precision: Of pixels.
        aupro: Per-region overlap integrated over false-positive rates up to 0.30, divided by 0.30
            (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2).
        aupro_05: The same up to 0.05.
        f1_max: The highest pixel F1, which is the highest Dice, over all thresholds.
        f1_max_threshold: Where it is reached.
        threshold: The threshold the following rest on.
        iou: Intersection over union of the pixels called anomalous and those that are.
        dice: 2 intersection / (both sums).
        precision: Share of the called pixels that are defect.
        recall: Share of the defect's pixels that are called.
        by_defect: The same for each defect type, against the pixels of good images and of its own.
        missing: For each metric that does not exist, why.
    """

    images: int
    auroc: float | None = None
    auroc_error: float | None = None
    average_precision: float | None = None
    aupro: float | None = None
    aupro_05: float | None = None
    f1_max: float | None = None
    f1_max_threshold: float | None = None
    threshold: float | None = None
    iou: float | None = None
    dice: float | None = None
    precision: float | None = None
    recall: float | None = None
    by_defect: dict[str, PixelMetrics] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


@dataclass
class _Histograms:
    """Counts over the bins of map values: normal pixels, defective ones, and these weighted by region."""

    normal: Floats
    defective: Floats
    regions: Floats
    region_count: int = 0
    images: int = 0

    @classmethod
    def empty(cls, bins: int) -> _Histograms:
        return cls(np.zeros(bins), np.zeros(bins), np.zeros(bins))

    def __add__(self, other: _Histograms) -> _Histograms:
        return _Histograms(
            self.normal + other.normal,
            self.defective + other.defective,
            self.regions + other.regions,
            self.region_count + other.region_count,
            self.images + other.images,
        )


class PixelMeter:
    """Gathers maps one at a time and computes pixel metrics from histograms; memory does not grow with maps.

    Args:
        low: A value no map goes below.
        high: A value no map goes above.
        bins: Steps between the two.
    """

    def __init__(self, low: float, high: float, bins: int = 65_536) -> None:
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(f"low and high must be finite and in order. Got {low} and {high} instead.")
        self.low, self.high, self.bins = low, high, bins
        self._by_label: defaultdict[str, _Histograms] = defaultdict(lambda: _Histograms.empty(bins))

    def add(self, anomaly_map: NDArray[Any], mask: Bools | None = None, defect: str | None = None) -> None:
        """Take one map.

        Args:
            anomaly_map: Array [H,W].
            mask: Array [H,W], true where defective; None for an image without defect.
            defect: Its kind; None for an image without defect.
        """
        bins = self._binned(np.asarray(anomaly_map))
        held = self._by_label[GOOD if defect is None else defect]
        held.images += 1
        if mask is None or not mask.any():
            held.normal += np.bincount(bins.ravel(), minlength=self.bins)
            return
        if mask.shape != bins.shape:
            raise ValueError(f"map and mask must have one shape. Got {bins.shape} and {mask.shape} instead.")
        held.normal += np.bincount(bins[~mask], minlength=self.bins)
        inside = bins[mask]
        held.defective += np.bincount(inside, minlength=self.bins)
        count, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        weights = 1.0 / statistics[:, cv2.CC_STAT_AREA]
        held.regions += np.bincount(inside, weights=weights[regions[mask]], minlength=self.bins)
        held.region_count += count - 1

    def result(self, threshold: float | None = None) -> PixelMetrics:
        """All metrics of the maps so far.

        Args:
            threshold: Above it a pixel is called anomalous; None leaves out what rests on it.
        """
        kinds = sorted(set(self._by_label) - {GOOD})
        by_defect = {kind: self._metrics(self._of(GOOD, kind), threshold, {}) for kind in kinds}
        return self._metrics(self._of(GOOD, *kinds), threshold, by_defect)

    def curves(self) -> dict[str, Curve]:
        """ROC, precision-recall and per-region-overlap curves, thinned to a few hundred points; empty without both classes."""
        held = self._of(*self._by_label)
        if not held.normal.sum() or not held.defective.sum():
            return {}
        fpr, tpr, pro, precision = _rates(held)
        thresholds = self._edges()[::-1]
        keep = _thin(fpr, tpr)
        return {
            "roc": Curve(fpr[keep], tpr[keep], thresholds[keep]),
            "pr": Curve(tpr[keep], precision[keep], thresholds[keep]),
            "pro": Curve(fpr[keep], pro[keep], thresholds[keep]),
        }

    def _binned(self, values: NDArray[Any]) -> NDArray[np.int64]:
        width = self.high - self.low
        slack = 1e-4 * max(abs(self.low), abs(self.high), 1e-12)
        if values.min() < self.low - slack or values.max() > self.high + slack or not np.isfinite(values).all():
            raise ValueError(f"map values must lie between {self.low} and {self.high}.")
        if width == 0:
            return np.zeros(values.shape, np.int64)
        scaled = (values - np.float32(self.low)) * np.float32(self.bins / width)
        return np.clip(scaled, 0, self.bins - 1).astype(np.int64)

    def _edges(self) -> Floats:
        return np.linspace(self.low, self.high, self.bins + 1)

    def _of(self, *labels: str) -> _Histograms:
        total = _Histograms.empty(self.bins)
        for label in labels:
            if label in self._by_label:
                total = total + self._by_label[label]
        return total

    def _metrics(
        self, held: _Histograms, threshold: float | None, by_defect: dict[str, PixelMetrics]
    ) -> PixelMetrics:
        normal, defective = held.normal.sum(), held.defective.sum()
        if not normal or not defective:
            reason = f"there are no {'normal' if not normal else 'defective'} pixels"
            names = ("auroc", "average_precision", "aupro", "aupro_05", "f1_max", "iou", "dice", "precision", "recall")
            return PixelMetrics(held.images, by_defect=by_defect, missing=dict.fromkeys(names, reason))
        fpr, tpr, pro, precision = _rates(held)
        f1 = 2 * precision * tpr / np.maximum(precision + tpr, 1e-300)
        best = int(f1.argmax())
        found: dict[str, Any] = {
            "auroc": float(np.trapezoid(tpr, fpr)),
            "auroc_error": float(0.5 * (held.normal / normal) @ (held.defective / defective)),
            "average_precision": float(np.diff(tpr) @ precision[1:]),
            "aupro": _area_up_to(fpr, pro, _PRO_LIMITS[0]),
            "aupro_05": _area_up_to(fpr, pro, _PRO_LIMITS[1]),
            "f1_max": float(f1[best]),
            "f1_max_threshold": float(self._edges()[::-1][best]),
        }
        missing: dict[str, str] = {}
        if threshold is None:
            missing = dict.fromkeys(("iou", "dice", "precision", "recall"), "there is no pixel threshold")
        else:
            found |= {"threshold": threshold, **self._at(held, threshold)}
            missing = {"precision": "no pixel is called anomalous"} if found["precision"] is None else {}
        return PixelMetrics(held.images, **found, by_defect=by_defect, missing=missing)

    def _at(self, held: _Histograms, threshold: float) -> dict[str, float | None]:
        width = self.high - self.low
        first = 0 if width == 0 else int(np.clip(np.ceil((threshold - self.low) / width * self.bins), 0, self.bins))
        if width == 0 and threshold >= self.high:
            first = self.bins
        hit, false = held.defective[first:].sum(), held.normal[first:].sum()
        total = held.defective.sum()
        return {
            "iou": float(hit / (total + false)),
            "dice": float(2 * hit / (total + hit + false)),
            "precision": _share(float(hit), float(hit + false)),
            "recall": float(hit / total),
        }


def aupro_exact(maps: Sequence[NDArray[Any]], masks: Sequence[Bools], fpr_limit: float = 0.3) -> float:
    """AUPRO by sorting every pixel: the reference for small sets.

    Args:
        maps: Anomaly maps [H,W].
        masks: True where defective [H,W].
        fpr_limit: Where the integration over the false-positive rate ends.
    """
    values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    weights, region_count = [], 0
    for mask in masks:
        count, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        share = 1.0 / statistics[:, cv2.CC_STAT_AREA]
        share[0] = 0.0
        weights.append(share[regions].ravel())
        region_count += count - 1
    overlap = np.concatenate(weights)
    normal = np.concatenate([~mask.ravel() for mask in masks])
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    fpr = np.append(0.0, np.cumsum(normal[order])[last] / normal.sum())
    pro = np.append(0.0, np.cumsum(overlap[order])[last] / region_count)
    return _area_up_to(fpr, pro, fpr_limit)


def _rates(held: _Histograms) -> tuple[Floats, Floats, Floats, Floats]:
    """Over thresholds from high to low: false-positive rate, recall, mean region overlap, precision; each [bins + 1]."""
    false, true, overlap = (
        np.append(0.0, np.cumsum(histogram[::-1])) for histogram in (held.normal, held.defective, held.regions)
    )
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    return false / false[-1], true / true[-1], overlap / held.region_count, precision


def _area_up_to(fpr: Floats, overlap: Floats, limit: float) -> float:
    """Area under the curve for rates up to `limit`, divided by it; the last piece is cut by interpolation."""
    inside = fpr <= limit
    at_limit = np.interp(limit, fpr, overlap)
    x, y = np.append(fpr[inside], limit), np.append(overlap[inside], at_limit)
    return float(np.trapezoid(y, x) / limit)


def _thin(fpr: Floats, tpr: Floats) -> NDArray[np.int64]:
    """Indices of a few hundred points, evenly spread along the curve."""
    along = fpr + tpr
    wanted = np.searchsorted(along, np.linspace(0, 2, _CURVE_POINTS))
    return np.unique(np.clip(np.append(wanted, [0, len(along) - 1]), 0, len(along) - 1))
