"""The plain records that travel between the parts of adctl.

Images, masks and maps are numpy arrays: H x W pixels of an image, h x w cells of an anomaly map.
Knows nothing of files formats, networks or the command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "good"
"""The label of an image without defect, as in MVTec AD."""


class Verdict(StrEnum):
    """What was decided about one image."""

    NORMAL = "normal"
    ANOMALOUS = "anomalous"
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


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns raw scores into verdicts: an image is anomalous when its score is above `threshold`.

    Attributes:
        method: How the threshold was chosen: `percentile`, `false-alarm` or `f1`.
        threshold: In the detector's own score units.
        pixel_threshold: For map values: outlines regions in anomalous images; None when no maps were looked at.
        level: The percentile (0-100), or the target false-alarm rate (0-1), or the F1 reached.
        good_images: How many held-out good images it rests on.
        defect_images: How many labelled defective images it rests on.
        expected_false_alarm: The share of new good images expected above the threshold.
        score_range: Lowest and highest good score seen, for display.
        views: Of test-time augmentation, under which alone the thresholds hold; see `adctl.tta`.
    """

    method: str
    threshold: float
    pixel_threshold: float | None
    level: float
    good_images: int
    defect_images: int
    expected_false_alarm: float
    score_range: tuple[float, float]
    views: tuple[str, ...] = ()

    def verdict(self, score: float) -> Verdict:
        """Judge one raw score."""
        return Verdict.ANOMALOUS if score > self.threshold else Verdict.NORMAL

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Calibration:
        """Rebuild from `asdict`."""
        return cls(**{**value, "score_range": tuple(value["score_range"]), "views": tuple(value.get("views", ()))})


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
        boxes: Anomalous regions, strongest first; empty for normal images.
        width: Of the original image, pixels.
        height: Of the original image, pixels.
        error: Why the image could not be scored, or None.
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

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary, keys in the order of the attributes."""
        return {**asdict(self), "verdict": str(self.verdict)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ScoredImage:
        """Rebuild from `to_dict`."""
        boxes = tuple(Box(**box) for box in value["boxes"])
        return cls(**{**value, "verdict": Verdict(value["verdict"]), "boxes": boxes})
