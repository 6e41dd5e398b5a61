"""The plain records that travel between the parts of adctl.

Images, masks and maps are numpy arrays: H x W pixels of an image, h x w cells of an anomaly map.
Knows nothing of files formats, networks or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "good"
"""The label of an image without defect, as in MVTec AD."""


class Verdict(StrEnum):
    """What was decided about one image."""

    GOOD = "good"
    WARN = "warn"
    REJECT = "reject"
    UNCALIBRATED = "uncalibrated"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and what is known of it.

    Attributes:
        path: The image file.
        key: Its name within the data set: a relative path with forward slashes, the same on every machine.
        label: `"good"`, the name of a defect type, or None when not known.
        mask: The ground-truth mask of a defective image (non-zero pixels are defect), or None.
    """

    path: Path
    key: str
    label: str | None = None
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle around an anomalous region, in pixels of the original image.

    Attributes:
        x: Left edge.
        y: Top edge.
        width: Width, at least 1.
        height: Height, at least 1.
        peak: The highest value of the anomaly map inside, uncalibrated.
    """

    x: int
    y: int
    width: int
    height: int
    peak: float


def _plain_box(box: Box) -> dict[str, Any]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "peak": box.peak}


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """The scores that thresholds are chosen from: with them they can be chosen again without the images.

    Attributes:
        good: Raw scores of good images the model has not learned from, ascending.
        peaks: The highest map value of each of them, ascending; empty when no maps were looked at.
        defective: Raw scores of labelled defective images, ascending; empty when there are none.
        folds: The good scores come from so many models, each fitted without the images it scores; 0 where they come
            from the one model and images held out from it.
        views: Of test-time augmentation, under which they were scored; see `adctl.scoring.tta`.
    """

    good: tuple[float, ...]
    peaks: tuple[float, ...] = ()
    defective: tuple[float, ...] = ()
    folds: int = 0
    views: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> CalibrationScores:
        """Rebuild from `asdict`."""
        lists = {name: tuple(value[name]) for name in ("good", "peaks", "defective", "views")}
        return cls(**lists, folds=value["folds"])


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised Pareto tail of good scores.

    Attributes:
        start: Where it starts.
        scale: Its scale, in score units; 0 where all good scores are the same.
        shape: Below 0 it ends somewhere, above 0 it is heavy.
        share: Of the good scores above its start.
    """

    start: float
    scale: float
    shape: float
    share: float


@dataclass(frozen=True, slots=True)
class ProbabilityCurve:
    """Scores to anomaly probabilities; see `adctl.thresholds.decision`.

    Attributes:
        scores: Ascending.
        probabilities: At each of them, never falling; straight lines between.
        tail: What goes on beyond the last of them, or None where the last holds on.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    tail: Tail | None = None

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ProbabilityCurve:
        """Rebuild from `asdict`."""
        tail = Tail(**value["tail"]) if value["tail"] else None
        return cls(tuple(value["scores"]), tuple(value["probabilities"]), tail)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns raw scores into verdicts: an image is rejected when its score is above `threshold`.

    Attributes:
        method: How the threshold was chosen; see `adctl.thresholds.methods.METHODS`.
        threshold: In the detector's own score units.
        pixel_threshold: For map values, outlines regions; chosen like `threshold` on the highest value of each good
            image's map. None when no maps were looked at.
        level: The percentile (0-100), number of sigmas, target rate, precision or recall, or the F1 or cost reached.
        good_images: How many held-out good images it rests on.
        defect_images: How many labelled defective images it rests on.
        expected_false_alarm: The share of new good images expected above the threshold.
        score_range: Lowest and highest good score seen, for display.
        promised_false_alarm: A bound on that share, on average over calibration sets, that holds for exchangeable
            good images whatever their distribution; None where the method promises nothing.
        warn_threshold: Above it and up to `threshold` an image is one to look at; None without.
        warn_level: Of that threshold, by the same method.
        evidence: The scores all of this rests on.
        probability: Scores to anomaly probabilities.
    """

    method: str
    threshold: float
    pixel_threshold: float | None
    level: float
    good_images: int
    defect_images: int
    expected_false_alarm: float
    score_range: tuple[float, float]
    promised_false_alarm: float | None = None
    warn_threshold: float | None = None
    warn_level: float | None = None
    evidence: CalibrationScores = CalibrationScores(())
    probability: ProbabilityCurve = ProbabilityCurve((), ())

    @property
    def views(self) -> tuple[str, ...]:
        """Of test-time augmentation, under which alone the thresholds hold."""
        return self.evidence.views

    def verdict(self, score: float) -> Verdict:
        """Judge one raw score."""
        if score > self.threshold:
            return Verdict.REJECT
        if self.warn_threshold is not None and score > self.warn_threshold:
            return Verdict.WARN
        return Verdict.GOOD

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Calibration:
        """Rebuild from `asdict`."""
        rebuilt = {
            "score_range": tuple(value["score_range"]),
            "evidence": CalibrationScores.from_dict(value["evidence"]),
            "probability": ProbabilityCurve.from_dict(value["probability"]),
        }
        return cls(**{**value, **rebuilt})


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One row of results.

    Attributes:
        path: The image file as it was found.
        key: Its name within the data set or folder scored.
        label: What it is known to be, or None.
        mask: Its ground-truth mask, or None.
        score: The raw score in float64, or None where the image could not be read.
        threshold: The threshold the verdict rests on, or None when the model is not calibrated.
        verdict: The decision.
        boxes: Anomalous regions, strongest first; empty for images judged good.
        width: Of the original image, pixels.
        height: Of the original image, pixels.
        error: Why the image could not be scored, or None.
        p_value: Conformal: of good images at most such a share looks as strange; None when not calibrated.
        probability: That it is anomalous, 0 to 1; see `adctl.thresholds.decision`; None likewise.
        peak: The highest value of its anomaly map, raw; None where it could not be read.
    """

    path: str
    key: str
    label: str | None
    mask: str | None
    score: float | None
    threshold: float | None
    verdict: Verdict
    boxes: tuple[Box, ...] = ()
    width: int | None = None
    height: int | None = None
    error: str | None = None
    p_value: float | None = None
    probability: float | None = None
    peak: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary, keys in the order of the attributes."""
        plain = {name: getattr(self, name) for name in self.__slots__}  # `asdict` would copy every value
        return {**plain, "verdict": str(self.verdict), "boxes": tuple(map(_plain_box, self.boxes))}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ScoredImage:
        """Rebuild from `to_dict`."""
        boxes = tuple(Box(**box) for box in value["boxes"])
        return cls(**{**value, "verdict": Verdict(value["verdict"]), "boxes": boxes})
