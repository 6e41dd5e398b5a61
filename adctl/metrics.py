"""The field's metrics, for images and for pixels. Arrays only: no files, no detectors.

Scores rank as they are, in float64, never clamped or normalised. A metric that does not exist (only one class is
present, or there is no threshold) is None, and `missing` says why. Pixel metrics stream: however many maps, a
meter holds a few histograms, and states how far its AUROC can be off.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from adctl.errors import DataError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CURVE_POINTS = 500
_PRO_LIMIT, _STRICT_PRO_LIMIT = 0.30, 0.05
_HIGH_RECALL = 0.95
# Enlarging a float32 map may leave its range by a few units in the last place (6e-8 of the value each).
_SLACK = 1e-6

_RANKING = ("auroc", "average_precision", "f1_max", "f1_max_threshold", "fpr_at_95_tpr")
_JUDGED = (
    *("accuracy", "balanced_accuracy", "precision", "recall", "f1", "false_alarm_rate"),
    *("tp", "fp", "tn", "fn"),
)
_PIXEL_RANKING = (
    *("auroc", "auroc_error", "average_precision", "aupro", "aupro_error", "aupro_05"),
    *("f1_max", "f1_max_threshold"),
)
_PIXEL_JUDGED = ("iou", "dice", "precision", "recall")


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
        return {name: [_finite(float(v)) for v in values] for name, values in columns.items()}


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of image scores; an image is called anomalous when its score is above the threshold.

    Attributes:
        good: Number of good images.
        defective: Number of defective images.
        auroc: Area under the ROC curve.
        average_precision: Mean precision over recall (sum of precision times the step in recall).
        f1_max: The highest F1 over all thresholds.
        f1_max_threshold: Above it f1_max is reached: halfway between the two scores it parts.
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
        return {name: _finite(value) for name, value in asdict(self).items()}


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """False-alarm rate (x) and recall (y) over all thresholds, from none called anomalous to all.

    Args:
        scores: Raw scores [n].
        labels: True where defective [n].

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    values, truth = _checked(scores, labels)
    _refuse_one_class(truth)
    fpr, tpr, thresholds = sk.roc_curve(truth, values)
    return Curve(fpr, tpr, thresholds)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Recall (x) and precision (y) over all thresholds, from all called anomalous to none.

    Args:
        scores: Raw scores [n].
        labels: True where defective [n].

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    values, truth = _checked(scores, labels)
    _refuse_one_class(truth)
    precision, recall, thresholds = sk.precision_recall_curve(truth, values, drop_intermediate=True)
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
        missing |= dict.fromkeys(_RANKING, _absent(truth))
    if threshold is None:
        missing |= dict.fromkeys(_JUDGED, "there is no threshold")
    else:
        judged, reasons = _judged(values > threshold, truth)
        found |= {"threshold": threshold, **judged}
        missing |= reasons
    return ImageMetrics(good, defective, **found, missing=missing)


def image_metrics_by_defect(
    scores: ArrayLike, labels: Sequence[str], threshold: float | None = None
) -> dict[str, ImageMetrics]:
    """Image metrics of each defect type against all good images.

    Args:
        scores: Raw scores [n].
        labels: `"good"` or the defect type of each image [n].
        threshold: As for `image_metrics`.

    Raises:
        DataError: A score is not a finite number.
    """
    names = np.asarray(labels, np.str_)
    values, _ = _checked(scores, names != GOOD)
    good = names == GOOD
    chosen = {name: good | (names == name) for name in sorted(set(labels) - {GOOD})}
    return {name: image_metrics(values[rows], names[rows] != GOOD, threshold) for name, rows in chosen.items()}


def _ranking(values: Floats, truth: Bools) -> dict[str, float]:
    precision, recall, thresholds = sk.precision_recall_curve(truth, values)  # [k+1], [k+1], [k] ascending
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = int(f1[:-1].argmax())
    fpr, tpr, _ = sk.roc_curve(truth, values, drop_intermediate=False)
    return {
        "auroc": float(sk.roc_auc_score(truth, values)),
        "average_precision": float(sk.average_precision_score(truth, values)),
        "f1_max": float(f1[best]),
        "f1_max_threshold": _just_below(thresholds, best),
        "fpr_at_95_tpr": float(fpr[int(np.argmax(tpr >= _HIGH_RECALL))]),
    }


def _just_below(ascending: Floats, index: int) -> float:
    """What `ascending[index]` is above and its predecessor is not: scikit-learn calls at >=, adctl above."""
    value = float(ascending[index])
    if index == 0:
        return float(np.nextafter(value, -np.inf))
    before = float(ascending[index - 1])
    middle = before / 2 + value / 2
    return middle if before <= middle < value else before


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
    return values, {name: reasons.get(name, _absent(truth)) for name, value in values.items() if value is None}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _absent(truth: Bools) -> str:
    if not len(truth):
        return "there are no images"
    return "there are no good images" if truth.any() else "there are no defective images"


def _refuse_one_class(truth: Bools) -> None:
    if truth.all() or not truth.any():
        raise DataError(
            f"A curve needs good and defective images, but {_absent(truth)}.", "Add labelled images of both kinds."
        )


def _finite(value: Any) -> Any:
    """The value with every float in it that JSON cannot hold turned into None."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and labels must be of one length. Got {values.shape} and {truth.shape} instead.")
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
        auroc_error: The most it can be off because values were binned: half the share of pairs of a normal and a
            defective pixel that fell into one bin.
        average_precision: Of pixels.
        aupro: Per-region overlap integrated over false-positive rates up to 0.30, divided by 0.30
            (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, doi:10.1007/s11263-020-01400-4).
            Regions are 8-connected.
        aupro_error: The most it can be off because values were binned.
        aupro_05: The same as aupro up to 0.05.
        f1_max: The highest pixel F1, which is the highest Dice, over all thresholds.
        f1_max_threshold: Above it f1_max is reached, to the nearest bin.
        threshold: The threshold the following rest on, to the nearest bin: values in its own bin are not called.
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
    aupro_error: float | None = None
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
        return {name: _finite(value) for name, value in asdict(self).items()}


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

    Raises:
        ValueError: The bounds are not finite or not in order.
    """

    def __init__(self, low: float, high: float, bins: int = 65_536) -> None:
        if not (np.isfinite(high - low) and low <= high):
            raise ValueError(f"low and high must be finite and in order. Got {low} and {high} instead.")
        self.low, self.high, self.bins = low, high, bins
        # Under None: images with defects of a kind not named. They count in the whole and in no type.
        self._by_label: defaultdict[str | None, _Histograms] = defaultdict(lambda: _Histograms.empty(bins))

    def add(self, anomaly_map: NDArray[Any], mask: Bools | None = None, defect: str | None = None) -> None:
        """Take one map.

        Args:
            anomaly_map: Array [H,W].
            mask: Array [H,W], true where defective; None for an image without defect.
            defect: Its kind; None for an image without defect, or where the kind is not known.

        Raises:
            DataError: A value is not a finite number.
            ValueError: A value lies outside the meter's range, shapes differ, or mask and kind contradict each other.
        """
        bins = self._binned(np.asarray(anomaly_map))
        truth = np.zeros(bins.shape, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        if truth.shape != bins.shape:
            raise ValueError(f"map and mask must have one shape. Got {bins.shape} and {truth.shape} instead.")
        held = self._by_label[_label(defect, masked=mask is not None, defective=bool(truth.any()))]
        held.images += 1
        held.normal += np.bincount(bins.ravel(), minlength=self.bins)
        if truth.any():
            self._add_defective(held, bins[truth], truth)

    def _add_defective(self, held: _Histograms, inside: NDArray[np.intp], truth: Bools) -> None:
        count, regions, areas = _regions(truth)
        defective = np.bincount(inside, minlength=self.bins)
        held.normal -= defective
        held.defective += defective
        held.regions += np.bincount(inside, weights=(1.0 / areas)[regions[truth]], minlength=self.bins)
        held.region_count += count

    def result(self, threshold: float | None = None) -> PixelMetrics:
        """All metrics of the maps so far.

        Args:
            threshold: Above it a pixel is called anomalous; None leaves out what rests on it.
        """
        kinds = sorted(kind for kind in self._by_label if kind not in (GOOD, None))
        by_defect = {kind: self._metrics(self._of(GOOD, kind), threshold, {}) for kind in kinds}
        return self._metrics(self._of(*self._by_label), threshold, by_defect)

    def curves(self) -> dict[str, Curve]:
        """Curves `roc`, `pr` and `pro` (per-region overlap over false-positive rate), thinned to about 500 points.

        Empty where there are no normal or no defective pixels.
        """
        held = self._of(*self._by_label)
        if _absent_pixels(held):
            return {}
        fpr, tpr, pro, precision = _rates(held)
        thresholds = self._edges()[::-1]
        keep = _thin(fpr, tpr)
        return {
            "roc": Curve(fpr[keep], tpr[keep], thresholds[keep]),
            "pr": Curve(tpr[keep], precision[keep], thresholds[keep]),
            "pro": Curve(fpr[keep], pro[keep], thresholds[keep]),
        }

    def _binned(self, values: NDArray[Any]) -> NDArray[np.intp]:
        self._check(values)
        if self.low == self.high:
            return np.zeros(values.shape, np.intp)
        # In float64 whatever the map's type: a narrow range far from zero would collapse in float32.
        scaled = np.subtract(values, self.low, dtype=np.float64)
        scaled /= self.high - self.low
        scaled *= self.bins
        bins: NDArray[np.intp] = scaled.astype(np.intp)
        return np.clip(bins, 0, self.bins - 1, out=bins)

    def _check(self, values: NDArray[Any]) -> None:
        least, most = float(values.min()), float(values.max())
        if not np.isfinite(most - least):
            broken = int((~np.isfinite(values)).sum())
            raise DataError(
                f"{broken} of {values.size} map values are not finite numbers.", "Score again, or train again."
            )
        slack = _SLACK * max(abs(self.low), abs(self.high))
        if least < self.low - slack or most > self.high + slack:
            raise ValueError(f"map values must lie between {self.low} and {self.high}. Got {least} to {most} instead.")

    def _edges(self) -> Floats:
        return np.linspace(self.low, self.high, self.bins + 1)

    def _of(self, *labels: str | None) -> _Histograms:
        total = _Histograms.empty(self.bins)
        for label in labels:
            if label in self._by_label:
                total = total + self._by_label[label]
        return total

    def _metrics(self, held: _Histograms, threshold: float | None, by_defect: dict[str, PixelMetrics]) -> PixelMetrics:
        absent = _absent_pixels(held)
        if absent:
            missing = dict.fromkeys((*_PIXEL_RANKING, *_PIXEL_JUDGED), absent)
            return PixelMetrics(held.images, threshold=threshold, by_defect=by_defect, missing=missing)
        found = self._ranking(held)
        if threshold is None:
            missing = dict.fromkeys(_PIXEL_JUDGED, "there is no pixel threshold")
        else:
            found |= {"threshold": threshold, **self._at(held, threshold)}
            missing = {"precision": "no pixel is called anomalous"} if found["precision"] is None else {}
        return PixelMetrics(held.images, **found, by_defect=by_defect, missing=missing)

    def _ranking(self, held: _Histograms) -> dict[str, Any]:
        fpr, tpr, pro, precision = _rates(held)
        f1 = 2 * precision * tpr / np.maximum(precision + tpr, 1e-300)
        best = int(f1.argmax())
        return {
            "auroc": float(sk.auc(fpr, tpr)),
            "auroc_error": float(np.diff(fpr) @ np.diff(tpr) / 2),
            "average_precision": float(np.diff(tpr) @ precision[1:]),
            "aupro": _area_up_to(fpr, pro, _PRO_LIMIT),
            "aupro_error": _area_error(fpr, pro, _PRO_LIMIT),
            "aupro_05": _area_up_to(fpr, pro, _STRICT_PRO_LIMIT),
            "f1_max": float(f1[best]),
            # A bin holds its lower edge, so the threshold to be above stands just below that edge.
            "f1_max_threshold": float(np.nextafter(self._edges()[::-1][best], -np.inf)),
        }

    def _at(self, held: _Histograms, threshold: float) -> dict[str, float | None]:
        first = int(np.searchsorted(self._edges()[:-1], threshold, side="right"))
        hit, false, total = held.defective[first:].sum(), held.normal[first:].sum(), held.defective.sum()
        return {
            "iou": float(hit / (total + false)),
            "dice": float(2 * hit / (total + hit + false)),
            "precision": _share(float(hit), float(hit + false)),
            "recall": float(hit / total),
        }


def aupro_exact(maps: Sequence[NDArray[Any]], masks: Sequence[Bools], fpr_limit: float = 0.3) -> float:
    """AUPRO by sorting every pixel: the reference for small sets.

    Args:
        maps: Anomaly maps, each [H,W].
        masks: True where defective, each [H,W].
        fpr_limit: Where the integration over the false-positive rate ends, in (0, 1].

    Raises:
        DataError: A value is not a finite number, or no pixel is normal, or none defective.
    """
    values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    truth = np.concatenate([np.asarray(mask, np.bool_).ravel() for mask in masks])
    _checked(values, truth)
    if truth.all() or not truth.any():
        raise DataError("AUPRO needs normal and defective pixels.", "Add images with and without defects.")
    overlap, region_count = _overlaps(masks)
    order = np.argsort(-values, kind="stable")
    last_of_ties = np.append(np.diff(values[order]) != 0, True)
    false = np.cumsum(~truth[order])[last_of_ties]
    fpr = np.append(0.0, false / false[-1])
    pro = np.append(0.0, np.cumsum(overlap[order])[last_of_ties] / region_count)
    return _area_up_to(fpr, pro, fpr_limit)


def _overlaps(masks: Sequence[Bools]) -> tuple[Floats, int]:
    """What each pixel of all masks adds to the overlap with its region, and the number of regions."""
    shares, region_count = [], 0
    for mask in masks:
        count, regions, areas = _regions(np.asarray(mask, np.bool_))
        share = np.append(0.0, 1.0 / areas[1:])
        shares.append(share[regions].ravel())
        region_count += count
    return np.concatenate(shares), region_count


def _regions(truth: Bools) -> tuple[int, NDArray[np.int32], NDArray[np.float64]]:
    """8-connected regions: how many, the number of each pixel's (0 outside) [H,W], and their areas from number 0 on."""
    count, regions, statistics, _ = cv2.connectedComponentsWithStats(truth.astype(np.uint8), connectivity=8)
    return count - 1, np.asarray(regions, np.int32), np.maximum(statistics[:, cv2.CC_STAT_AREA], 1).astype(np.float64)


def _label(defect: str | None, *, masked: bool, defective: bool) -> str | None:
    """Under which label an image counts; what is called good must be so, and a defect needs its mask."""
    if defect in (None, GOOD):
        if defective and defect == GOOD:
            raise ValueError("a good image must have no defective pixels.")
        return None if defective else GOOD
    if not masked:
        raise ValueError(f"an image with a defect must come with its mask. Got '{defect}' and no mask instead.")
    return defect


def _absent_pixels(held: _Histograms) -> str:
    normal, defective = held.normal.any(), held.defective.any()
    if not normal and not defective:
        return "there are no maps"
    return "" if normal and defective else f"there are no {'defective' if normal else 'normal'} pixels"


def _rates(held: _Histograms) -> tuple[Floats, Floats, Floats, Floats]:
    """Over thresholds from high to low: false-positive rate, recall, region overlap, precision; each [bins + 1]."""
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
    return float(sk.auc(x, y) / limit)


def _area_error(fpr: Floats, overlap: Floats, limit: float) -> float:
    """The most `_area_up_to` can be off because only bin ends are known.

    Between two known points a rising curve stays in their rectangle. The chord halves it; where the limit cuts it,
    the whole of what is left counts.
    """
    width, height = np.diff(fpr), np.diff(overlap)
    whole = fpr[1:] <= limit
    cut = np.clip(limit - fpr[:-1], 0.0, width)
    return float(np.where(whole, width / 2, cut) @ height / limit)


def _thin(fpr: Floats, tpr: Floats) -> NDArray[np.int64]:
    """Indices of a few hundred points, evenly spread along the curve."""
    along = fpr + tpr
    wanted = np.searchsorted(along, np.linspace(0, 2, _CURVE_POINTS))
    return np.unique(np.clip(np.append(wanted, [0, len(along) - 1]), 0, len(along) - 1))
