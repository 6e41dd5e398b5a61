"""Several detectors on the same images: metrics with intervals, paired tests, and where they disagree.

Knows scored sets and metrics, nothing of pages or pictures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from adctl.evaluation.pixels import measure_pixels
from adctl.metrics.comparison import Comparison, compare_image_metrics, compare_replicates, holm
from adctl.metrics.image import ImageMetrics, image_metrics
from adctl.records import GOOD, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.evaluation.match_images import Shared, SharedScores
    from adctl.evaluation.pixels import MeasuredPixels
    from adctl.metrics.bootstrap import Resampling
    from adctl.metrics.labels import Floats
    from adctl.metrics.pixel import PixelMetrics

_IMAGE, _PIXEL = "image_", "pixel_"
_LISTED = 30
"""Disagreements that are kept."""


@dataclass(frozen=True)
class ModelResult:
    """One scored set among those compared.

    Attributes:
        name: What it is called here, different from all others.
        folder: Of the scores.
        arch: The detector, or None where the set does not say.
        model: The model file, or None likewise.
        model_bytes: Of that file; None where it has gone.
        images_per_second: From disk to disk when it was scored; None where that was not recorded, or shared features.
        device: Where it was computed, or None.
        threshold: Of its verdicts, or None.
        image: Metrics over the shared images.
        pixel: Likewise of its maps; None where there are no maps or no masks.
    """

    name: str
    folder: Path
    arch: str | None
    model: str | None
    model_bytes: int | None
    images_per_second: float | None
    device: str | None
    threshold: float | None
    image: ImageMetrics
    pixel: PixelMetrics | None


@dataclass(frozen=True)
class CorrectCounts:
    """Labelled images by who judged them rightly.

    Attributes:
        both: Both did.
        first: Only the first.
        second: Only the second.
        neither: Neither.
    """

    both: int
    first: int
    second: int
    neither: int


@dataclass(frozen=True)
class PairedComparison:
    """Two of the sets.

    Attributes:
        first: Name.
        second: Name.
        metrics: By `image_` or `pixel_` and the metric's name: both values, the difference and its p-value.
        corrected: P-values after Holm's correction over all pairs, each metric for itself.
        judgements: Who judged rightly; None where a threshold is missing or no image has a label.
    """

    first: str
    second: str
    metrics: dict[str, Comparison]
    corrected: dict[str, float] = field(default_factory=dict)
    judgements: CorrectCounts | None = None


@dataclass(frozen=True)
class Disagreement:
    """An image that the sets see differently.

    Attributes:
        index: Among the shared images.
        key: The image.
        label: Or None.
        scores: Raw, one a set.
        ranks: The share of the shared images that score lower, half of the equal ones counted; one a set.
        verdicts: One a set.
        right: Names of the sets that judged it rightly; None where that is not known.
        spread: The highest rank less the lowest.
    """

    index: int
    key: str
    label: str | None
    scores: tuple[float, ...]
    ranks: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    right: tuple[str, ...] | None
    spread: float


@dataclass(frozen=True)
class SetComparison:
    """What comparing scored sets found.

    Attributes:
        images: Shared by all.
        good: Of them labelled good.
        defective: Of them labelled otherwise.
        sets: In the order given.
        pairs: Each two of them.
        disagreements: The strongest first, different verdicts before all others.
        notes: What to know, in sentences.
        resampling: What intervals and bootstrap tests rest on.
    """

    images: int
    good: int
    defective: int
    sets: tuple[ModelResult, ...]
    pairs: tuple[PairedComparison, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]
    resampling: Resampling


def compare_sets(shared: Shared, resampling: Resampling) -> SetComparison:
    """Measure each set and test each two of them on the images they share.

    Args:
        shared: Two sets or more, brought to the same images.
        resampling: For intervals and tests.

    Raises:
        DataError: Maps are damaged or scores are no finite numbers.
    """
    sets = shared.sets
    names = set_names(sets)
    pixels = [measure_pixels(one, resampling) for one in sets]
    contestants = tuple(
        _contestant(name, one, measured, resampling) for name, one, measured in zip(names, sets, pixels, strict=True)
    )
    labels = [row.label for row in sets[0].rows]
    defective = sum(label not in (None, GOOD) for label in labels)
    pairs = _corrected(_pairs(contestants, sets, pixels, resampling))
    return SetComparison(
        images=len(labels),
        good=labels.count(GOOD),
        defective=defective,
        sets=contestants,
        pairs=pairs,
        disagreements=_disagreements(names, sets),
        notes=(*shared.notes, *_notes(contestants, labels, pixels)),
        resampling=resampling,
    )


def set_names(sets: Sequence[SharedScores]) -> list[str]:
    """Short names, all different: the detectors, else the runs, else the folders."""

    def model(one: SharedScores) -> dict[str, Any]:
        value = one.manifest.get("model")
        return value if isinstance(value, dict) else {}

    ways: list[Callable[[SharedScores], str]] = [
        lambda one: str(model(one).get("arch") or ""),
        lambda one: Path(str(model(one).get("path") or "")).parent.name,
        lambda one: one.folder.name,
        lambda one: str(one.folder),
    ]
    for way in ways:
        names = [way(one) for one in sets]
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"{number}: {one.folder}" for number, one in enumerate(sets, 1)]


def _contestant(name: str, scores: SharedScores, pixels: MeasuredPixels, resampling: Resampling) -> ModelResult:
    values, truth, keys = _labelled(scores)
    threshold = scores.calibration.threshold if scores.calibration else None
    manifest = scores.manifest
    model: dict[str, Any] = manifest.get("model") or {}
    seconds, rows = manifest.get("seconds"), manifest.get("rows")
    return ModelResult(
        name=name,
        folder=scores.folder,
        arch=model.get("arch"),
        model=model.get("path"),
        model_bytes=_size(model.get("path")),
        images_per_second=rows / seconds if rows and seconds else None,
        device=(manifest.get("runtime") or {}).get("device"),
        threshold=threshold,
        image=image_metrics(values, truth, threshold, resampling=resampling, names=keys),
        pixel=pixels.metrics,
    )


def _labelled(scores: SharedScores) -> tuple[list[float], list[bool], list[str]]:
    rows = [row for row in scores.rows if row.label is not None]
    values = [row.score for row in rows if row.score is not None]
    return values, [row.label != GOOD for row in rows], [row.key for row in rows]


def _size(model: str | None) -> int | None:
    try:
        return None if model is None else Path(model).stat().st_size
    except OSError:
        return None


def _pairs(
    contestants: Sequence[ModelResult],
    sets: Sequence[SharedScores],
    pixels: Sequence[MeasuredPixels],
    resampling: Resampling,
) -> list[PairedComparison]:
    drawn = [_drawn(measured, resampling) for measured in pixels]
    found = []
    for one, two in itertools.combinations(range(len(sets)), 2):
        metrics = _image_tests(sets[one], sets[two], resampling)
        metrics |= _pixel_tests(pixels[one], pixels[two], drawn[one], drawn[two], resampling)
        judged = _judgements(sets[one], sets[two])
        found.append(PairedComparison(contestants[one].name, contestants[two].name, metrics, judgements=judged))
    return found


def _image_tests(first: SharedScores, second: SharedScores, resampling: Resampling) -> dict[str, Comparison]:
    (one, truth, keys), (two, _, _) = _labelled(first), _labelled(second)
    if all(truth) or not any(truth):
        return {}
    both = first.calibration and second.calibration
    thresholds = (first.calibration.threshold, second.calibration.threshold) if both else None  # type: ignore[union-attr]
    found = compare_image_metrics(one, two, truth, thresholds=thresholds, resampling=resampling, names=keys)
    return {_IMAGE + name: value for name, value in found.items()}


def _drawn(measured: MeasuredPixels, resampling: Resampling) -> dict[str, Floats]:
    if measured.samples is None or measured.metrics is None:
        return {}
    return measured.samples.centred_replicates(measured.metrics, measured.samples.whole, resampling)


def _pixel_tests(
    first: MeasuredPixels,
    second: MeasuredPixels,
    first_drawn: dict[str, Floats],
    second_drawn: dict[str, Floats],
    resampling: Resampling,
) -> dict[str, Comparison]:
    one, two = first.metrics, second.metrics
    if one is None or two is None or one.images != two.images:
        return {}
    points = [
        {name: float(getattr(metrics, name)) for name in drawn}
        for metrics, drawn in ((one, first_drawn), (two, second_drawn))
    ]
    found = compare_replicates(points[0], points[1], first_drawn, second_drawn, resampling.level)
    return {_PIXEL + name: value for name, value in found.items()}


def _corrected(pairs: Sequence[PairedComparison]) -> tuple[PairedComparison, ...]:
    """The same pairs with p-values corrected for the number of pairs."""
    names = dict.fromkeys(name for pair in pairs for name in pair.metrics)
    for name in names:
        tested = [
            (pair, value)
            for pair in pairs
            if name in pair.metrics and (value := pair.metrics[name].p_value) is not None
        ]
        for (pair, _), value in zip(tested, holm([value for _, value in tested]), strict=True):
            pair.corrected[name] = value
    return tuple(pairs)


def _judgements(first: SharedScores, second: SharedScores) -> CorrectCounts | None:
    if first.calibration is None or second.calibration is None:
        return None
    outcomes = [
        (_is_right(one.verdict, one.label), _is_right(two.verdict, two.label))
        for one, two in zip(first.rows, second.rows, strict=True)
        if one.label is not None
    ]
    if not outcomes:
        return None
    return CorrectCounts(
        *(outcomes.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    )


def _is_right(verdict: Verdict, label: str | None) -> bool:
    return (verdict is Verdict.REJECT) == (label != GOOD)


def _disagreements(names: Sequence[str], sets: Sequence[SharedScores]) -> tuple[Disagreement, ...]:
    scores = np.array([[row.score for row in one.rows] for one in sets], np.float64)
    ranks = (stats.rankdata(scores, axis=1) - 0.5) / scores.shape[1]
    spreads = ranks.max(axis=0) - ranks.min(axis=0)
    calibrated = all(one.calibration for one in sets)
    found = []
    for index, rows in enumerate(zip(*(one.rows for one in sets), strict=True)):
        label = rows[0].label
        right = None
        if calibrated and label is not None:
            right = tuple(name for name, row in zip(names, rows, strict=True) if _is_right(row.verdict, label))
        verdicts = tuple(row.verdict for row in rows)
        found.append(
            Disagreement(
                index=index,
                key=rows[0].key,
                label=label,
                scores=tuple(float(value) for value in scores[:, index]),
                ranks=tuple(float(value) for value in ranks[:, index]),
                verdicts=verdicts,
                right=right,
                spread=float(spreads[index]),
            )
        )
    differing = [one for one in found if one.spread > 0 or len(set(one.verdicts)) > 1]
    # What is rejected by some and not by others matters on the line, however the scores lie.
    differing.sort(key=lambda one: (len({verdict is Verdict.REJECT for verdict in one.verdicts}) == 1, -one.spread))
    return tuple(differing[:_LISTED])


def _notes(
    contestants: Sequence[ModelResult], labels: Sequence[str | None], pixels: Sequence[MeasuredPixels]
) -> list[str]:
    known = [label for label in labels if label is not None]
    notes = []
    if not known:
        notes.append("No image has a label: where the sets differ is shown, not which of them is right.")
    elif GOOD not in known or set(known) == {GOOD}:
        notes.append("Only good or only defective images have labels, so rankings cannot be compared.")
    elif len(known) < len(labels):
        notes.append(f"Metrics rest on the {len(known)} of {len(labels)} images that have a label.")
    bare = [one.name for one in contestants if one.threshold is None]
    if bare:
        notes.append(f"Without a threshold, so without verdicts: {', '.join(bare)}.")
    if len({one.device for one in contestants}) > 1:
        notes.append("The sets were scored on different devices, so their speeds do not compare.")
    for one, measured in zip(contestants, pixels, strict=True):
        notes += [f"{one.name}: {note}" for note in measured.notes]
    return notes
