"""Plain data records shared by the packages of adctl: samples, scored images, calibrations."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GOOD = "good"
"""Label of an image without defects, as in MVTec AD."""


class Verdict(StrEnum):
    """Decision about one image."""

    GOOD = "good"
    WARN = "warn"
    REJECT = "reject"
    UNCALIBRATED = "uncalibrated"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file with its label and ground-truth mask, if known.

    Attributes:
        path: The image file.
        key: Name of the image within the dataset: a relative path with forward slashes, equal on every machine.
        label: `"good"`, the name of a defect type, or None if unknown.
        mask: Ground-truth mask file of a defective image (non-zero pixels are defect), or None.
        group: Item, position, lot or day that the image belongs to, or None; see `adctl.data.groups`.
    """

    path: Path
    key: str
    label: str | None = None
    mask: Path | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """Bounding box of an anomalous region, in pixels of the original image.

    Attributes:
        x: Left edge.
        y: Top edge.
        width: Width, at least 1.
        height: Height, at least 1.
        peak: Highest raw value of the anomaly map inside the box.
    """

    x: int
    y: int
    width: int
    height: int
    peak: float


def _require_ascending(name: str, values: Sequence[float]) -> None:
    if any(first > second for first, second in pairwise(values)):
        raise ValueError(f"its {name} are not ascending")


def _plain_box(box: Box) -> dict[str, Any]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "peak": box.peak}


@dataclass(frozen=True, slots=True)
class InputRange:
    """Usual values of one statistic of the images; see `adctl.data.input_stats`.

    Attributes:
        name: Name in `adctl.thresholds.drift.INPUTS`.
        first: First quartile.
        median: Median.
        third: Third quartile.
    """

    name: str
    first: float
    median: float
    third: float


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """Scores from which thresholds are computed; stored, so that thresholds can be recomputed without the images.

    Attributes:
        good: Raw scores of good images that the model was not trained on, ascending.
        peaks: Highest map value of each good image, ascending; empty if no maps were computed.
        defective: Raw scores of labelled defective images, ascending; empty if there are none.
        folds: Number of cross-fitting models that gave the good scores, each fitted without the images it scored; 0 if
            the final model scored held-out images.
        views: Views of test-time augmentation used for scoring; see `adctl.scoring.tta`.
        groups: Group of each good score; empty if the images have no groups.
        inputs: Usual values of the good images' statistics; empty if they are unknown or too few.
        contaminated: Largest share of defective images among the good ones, 0 to 1, if they are the first parts of a
            line and unlabelled; None for images that are known to be good.
        categories: Scores of each category, if the model learned from several.
        copies: Number of altered copies of a single image that gave the good scores, because the model learned from
            that image alone; they tell little about other good images. 0 for scores of different images.
    """

    good: tuple[float, ...]
    peaks: tuple[float, ...] = ()
    defective: tuple[float, ...] = ()
    folds: int = 0
    views: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    inputs: tuple[InputRange, ...] = ()
    contaminated: float | None = None
    categories: dict[str, CalibrationScores] = field(default_factory=dict)
    copies: int = 0

    def __post_init__(self) -> None:
        """Check that each score has a group, if any has one.

        Raises:
            ValueError: There are not as many groups as scores.
        """
        if self.groups and len(self.groups) != len(self.good):
            raise ValueError(f"it has {len(self.good)} good scores, but {len(self.groups)} groups")


@dataclass(frozen=True, slots=True)
class Tail:
    """Generalised Pareto tail fitted to the highest good scores.

    Attributes:
        start: Score at which the tail starts.
        scale: Scale parameter in score units; 0 if all good scores are equal.
        shape: Shape parameter: below 0 the tail is bounded, above 0 it is heavy.
        share: Share of the good scores above `start`, 0 to 1.
    """

    start: float
    scale: float
    shape: float
    share: float


@dataclass(frozen=True, slots=True)
class ProbabilityCurve:
    """Piecewise linear function from scores to anomaly probabilities; see `adctl.thresholds.decision`.

    Attributes:
        scores: Scores of the nodes, ascending.
        probabilities: Probability at each node, non-decreasing.
        tail: Tail model beyond the last node; None keeps the last probability.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    tail: Tail | None = None

    def __post_init__(self) -> None:
        """Check the nodes.

        Raises:
            ValueError: There are not as many probabilities as scores, or either is not ascending.
        """
        if len(self.scores) != len(self.probabilities):
            raise ValueError(f"it has {len(self.scores)} scores, but {len(self.probabilities)} probabilities")
        _require_ascending("scores", self.scores)
        _require_ascending("probabilities", (0.0, *self.probabilities, 1.0))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds that turn raw scores into verdicts; an image is rejected if its score is above `threshold`.

    Attributes:
        method: Name of the threshold method; see `adctl.thresholds.methods.METHODS`.
        threshold: Image threshold in raw score units.
        pixel_threshold: Threshold on map values that outlines anomalous regions, computed like `threshold` but from
            the highest map value of each good image. None if no maps were computed.
        level: Percentile (0-100), number of sigmas, target rate, precision or recall, or the F1 or cost reached.
        good_images: Number of held-out good images used.
        defect_images: Number of labelled defective images used.
        expected_false_alarm: Expected share of new good images above the threshold, 0 to 1.
        score_range: Lowest and highest good score, for display.
        promised_false_alarm: Upper bound on that share, averaged over calibration sets, that holds for exchangeable
            good images of any distribution; None if the method guarantees none. With scores out of fold it is the
            bound of `adctl.thresholds.conformal.cross_conformal_bound`, about twice the rate that is usual.
        warn_threshold: Scores above it and up to `threshold` give the verdict "warn"; None disables the verdict.
        warn_level: Level of `warn_threshold`, in the same method.
        evidence: Scores from which all of this was computed.
        probability: Function from scores to anomaly probabilities.
        false_alarm_interval: Interval that holds the share of new good images above the threshold with probability 0.9,
            by the smooth tail of the good scores; None in models of earlier versions.
        categories: Calibration of each category that has thresholds of its own, if the model learned from several.
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
    false_alarm_interval: tuple[float, float] | None = None
    categories: dict[str, Calibration] = field(default_factory=dict)

    @property
    def views(self) -> tuple[str, ...]:
        """Views of test-time augmentation; the thresholds are valid only for scores computed with them."""
        return self.evidence.views

    @property
    def false_alarm_range(self) -> str | None:
        """Interval of the share of false alarms in percent, such as `0.02 to 4 %`, or None."""
        if self.false_alarm_interval is None:
            return None
        low, high = (f"{round(100 * rate, 2):.1g}" for rate in self.false_alarm_interval)
        return f"{float(low):g} to {float(high):g} %"

    def verdict(self, score: float) -> Verdict:
        """Return the verdict for one raw score."""
        if score > self.threshold:
            return Verdict.REJECT
        if self.warn_threshold is not None and score > self.warn_threshold:
            return Verdict.WARN
        return Verdict.GOOD


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """Result of scoring one image.

    Attributes:
        path: The image file as it was found.
        key: Name of the image within the scored dataset or folder.
        label: Known label, or None.
        mask: Ground-truth mask file, or None.
        score: Raw score in float64; None if the image could not be read.
        threshold: Image threshold used for the verdict; None if the model is not calibrated.
        verdict: The decision.
        boxes: Anomalous regions, highest peak first; empty for images with the verdict "good".
        width: Width of the original image, pixels.
        height: Height of the original image, pixels.
        error: Reason why the image could not be scored, or None.
        p_value: Conformal p-value: at most this share of good images has such a high score; None if not calibrated.
        probability: Probability that the image is anomalous; see `adctl.thresholds.decision`. None if not calibrated.
        peak: Highest raw value of the anomaly map; None if the image could not be read.
        kind: Kind of defect by a classifier, `unknown` for none that it knows, or None if the image was not named.
        kind_probability: Probability of the most probable kind, 0 to 1, or None.
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
    kind: str | None = None
    kind_probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary with keys in the order of the attributes."""
        plain = {name: getattr(self, name) for name in ScoredImage.__slots__}  # `asdict` would copy every value
        return {**plain, "verdict": str(self.verdict), "boxes": tuple(map(_plain_box, self.boxes))}
