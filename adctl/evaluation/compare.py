"""Comparison of several detectors on the same images: metrics with intervals, paired tests and disagreements.

It reads scored sets and computes metrics; it does not write pages or draw images.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.evaluation.pixels import measure_pixels
from adctl.metrics.comparison import Comparison, compare_image_metrics, compare_replicates, holm
from adctl.metrics.image import ImageMetrics, image_metrics, image_metrics_by_defect
from adctl.records import GOOD, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.evaluation.match_images import MatchedSets, SharedScores
    from adctl.evaluation.pixels import MeasuredPixels
    from adctl.metrics.bootstrap import Resampling
    from adctl.metrics.labels import Floats
    from adctl.metrics.pixel import PixelMetrics

_IMAGE, _PIXEL = "image_", "pixel_"
_MAX_DISAGREEMENTS = 30


@dataclass(frozen=True)
class ModelResult:
    """Metrics and details of one of the compared scored sets.

    Attributes:
        name: Short name of the set, unique in this comparison.
        folder: Folder of the scored set.
        arch: Detector name, or None if the set does not record it.
        model: Path of the model file, or None if the set does not record it.
        model_bytes: Size of the model file in bytes, or None if the file no longer exists.
        images_per_second: Scoring speed from disk to disk; None if the set does not record it.
        device: Device that computed the scores, or None if the set does not record it.
        threshold: Threshold of the verdicts, or None if the model was not calibrated.
        image: Image metrics over the shared images.
        pixel: Pixel metrics over the shared images, or None without anomaly maps or masks.
        by_defect: Image metrics of each defect type against all good images.
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
    by_defect: dict[str, ImageMetrics] = field(default_factory=dict)


@dataclass(frozen=True)
class CorrectCounts:
    """Numbers of labelled images with a correct verdict from each model of a pair.

    Attributes:
        both: Images with a correct verdict from both models.
        first: Images with a correct verdict from the first model only.
        second: Images with a correct verdict from the second model only.
        neither: Images with a wrong verdict from both models.
    """

    both: int
    first: int
    second: int
    neither: int


@dataclass(frozen=True)
class PairedComparison:
    """Statistical comparison of two of the scored sets.

    Attributes:
        first: Name of the first set.
        second: Name of the second set.
        metrics: Both values of each metric, their difference and its p-value; keys are the metric's name with the
            prefix `image_` or `pixel_`.
        corrected: P-value of each metric after Holm's correction over all pairs.
        judgements: Numbers of correct verdicts; None if a threshold is missing or no image has a label.
    """

    first: str
    second: str
    metrics: dict[str, Comparison]
    corrected: dict[str, float] = field(default_factory=dict)
    judgements: CorrectCounts | None = None


@dataclass(frozen=True)
class Disagreement:
    """Image that the sets rank or judge differently.

    Attributes:
        index: Position among the shared images.
        key: Key of the image.
        label: Label of the image, or None.
        scores: Raw score in each set.
        ranks: Share of the shared images that score lower, with half of the equal scores counted, in each set.
        verdicts: Verdict in each set.
        right: Names of the sets with the correct verdict; None without a label or if a set has no threshold.
        spread: Highest rank minus lowest rank.
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
    """Result of a comparison of scored sets.

    Attributes:
        images: Number of images that all sets have.
        good: Number of these images with the label good.
        defective: Number of these images with a defect label.
        sets: Result of each set, in the order given.
        pairs: Comparison of each pair of sets.
        disagreements: At most 30 disagreements: first those where only some sets reject the image, then by spread.
        notes: Remarks for the reader, in full sentences.
        resampling: Bootstrap settings of the intervals and tests.
    """

    images: int
    good: int
    defective: int
    sets: tuple[ModelResult, ...]
    pairs: tuple[PairedComparison, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]
    resampling: Resampling


def compare_sets(
    shared: MatchedSets, resampling: Resampling, pixel_size: int | tuple[int, int] | None = None
) -> SetComparison:
    """Compute the metrics of each set and test each pair of sets.

    Args:
        shared: Two or more sets reduced to the images that all of them have.
        resampling: Bootstrap settings for intervals and tests.
        pixel_size: Size at which pixels are evaluated; see `adctl.evaluation.pixels.measure_pixels`.

    Raises:
        DataError: Anomaly maps are damaged, or scores are not finite numbers.
    """
    sets = shared.sets
    names = set_names(sets)
    pixels = [measure_pixels(scores, resampling, pixel_size) for scores in sets]
    results = tuple(
        _model_result(name, scores, measured, resampling)
        for name, scores, measured in zip(names, sets, pixels, strict=True)
    )
    labels = [row.label for row in sets[0].rows]
    defective = sum(label not in (None, GOOD) for label in labels)
    pairs = _with_corrected_p_values(_compare_pairs(results, sets, pixels, resampling))
    return SetComparison(
        images=len(labels),
        good=labels.count(GOOD),
        defective=defective,
        sets=results,
        pairs=pairs,
        disagreements=_disagreements(names, sets),
        notes=(*shared.notes, *_notes(results, labels, pixels)),
        resampling=resampling,
    )


def set_names(sets: Sequence[SharedScores]) -> list[str]:
    """Return a short unique name for each set: its detector, or else its run, its folder or its path."""

    def model(scores: SharedScores) -> dict[str, Any]:
        value = scores.manifest.get("model")
        return value if isinstance(value, dict) else {}

    candidates: list[Callable[[SharedScores], str]] = [
        lambda scores: str(model(scores).get("arch") or ""),
        lambda scores: Path(str(model(scores).get("path") or "")).parent.name,
        lambda scores: scores.folder.name,
        lambda scores: str(scores.folder),
    ]
    for name_of in candidates:
        names = [name_of(scores) for scores in sets]
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"{number}: {scores.folder}" for number, scores in enumerate(sets, 1)]


def _model_result(name: str, scores: SharedScores, pixels: MeasuredPixels, resampling: Resampling) -> ModelResult:
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
        model_bytes=_file_size(model.get("path")),
        images_per_second=rows / seconds if rows and seconds else None,
        device=(manifest.get("runtime") or {}).get("device"),
        threshold=threshold,
        image=image_metrics(values, truth, threshold, resampling=resampling, names=keys),
        pixel=pixels.metrics,
        by_defect=image_metrics_by_defect(
            values, [row.label for row in scores.rows if row.label is not None], threshold, resampling=resampling
        ),
    )


def _labelled(scores: SharedScores) -> tuple[list[float], list[bool], list[str]]:
    rows = [row for row in scores.rows if row.label is not None]
    values = [row.score for row in rows if row.score is not None]
    return values, [row.label != GOOD for row in rows], [row.key for row in rows]


def _file_size(model: str | None) -> int | None:
    try:
        return None if model is None else Path(model).stat().st_size
    except OSError:
        return None


def _compare_pairs(
    results: Sequence[ModelResult],
    sets: Sequence[SharedScores],
    pixels: Sequence[MeasuredPixels],
    resampling: Resampling,
) -> list[PairedComparison]:
    replicates = [_pixel_replicates(measured, resampling) for measured in pixels]
    pairs = []
    for i, j in itertools.combinations(range(len(sets)), 2):
        metrics = _image_tests(sets[i], sets[j], resampling)
        metrics |= _pixel_tests(pixels[i], pixels[j], replicates[i], replicates[j], resampling)
        correct = _correct_counts(sets[i], sets[j])
        pairs.append(PairedComparison(results[i].name, results[j].name, metrics, judgements=correct))
    return pairs


def _image_tests(first: SharedScores, second: SharedScores, resampling: Resampling) -> dict[str, Comparison]:
    (first_scores, truth, keys), (second_scores, _, _) = _labelled(first), _labelled(second)
    if all(truth) or not any(truth):
        return {}
    both = first.calibration and second.calibration
    thresholds = (first.calibration.threshold, second.calibration.threshold) if both else None  # type: ignore[union-attr]
    comparisons = compare_image_metrics(
        first_scores, second_scores, truth, thresholds=thresholds, resampling=resampling, names=keys
    )
    return {_IMAGE + name: value for name, value in comparisons.items()}


def _pixel_replicates(measured: MeasuredPixels, resampling: Resampling) -> dict[str, Floats]:
    if measured.samples is None or measured.metrics is None:
        return {}
    return measured.samples.centred_replicates(measured.metrics, measured.samples.whole, resampling)


def _pixel_tests(
    first: MeasuredPixels,
    second: MeasuredPixels,
    first_replicates: dict[str, Floats],
    second_replicates: dict[str, Floats],
    resampling: Resampling,
) -> dict[str, Comparison]:
    if first.metrics is None or second.metrics is None or first.metrics.images != second.metrics.images:
        return {}
    points = [
        {name: float(getattr(metrics, name)) for name in replicates}
        for metrics, replicates in ((first.metrics, first_replicates), (second.metrics, second_replicates))
    ]
    comparisons = compare_replicates(points[0], points[1], first_replicates, second_replicates, resampling.level)
    return {_PIXEL + name: value for name, value in comparisons.items()}


def _with_corrected_p_values(pairs: Sequence[PairedComparison]) -> tuple[PairedComparison, ...]:
    """Fill in each pair's p-values corrected for the number of pairs."""
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


def _correct_counts(first: SharedScores, second: SharedScores) -> CorrectCounts | None:
    if first.calibration is None or second.calibration is None:
        return None
    outcomes = [
        (_is_correct(row.verdict, row.label), _is_correct(other.verdict, other.label))
        for row, other in zip(first.rows, second.rows, strict=True)
        if row.label is not None
    ]
    if not outcomes:
        return None
    return CorrectCounts(
        *(outcomes.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    )


def _is_correct(verdict: Verdict, label: str | None) -> bool:
    return (verdict is Verdict.REJECT) == (label != GOOD)


def _disagreements(names: Sequence[str], sets: Sequence[SharedScores]) -> tuple[Disagreement, ...]:
    from scipy import stats  # slow to import

    scores = np.array([[row.score for row in scored_set.rows] for scored_set in sets], np.float64)
    ranks = (stats.rankdata(scores, axis=1) - 0.5) / scores.shape[1]
    spreads = ranks.max(axis=0) - ranks.min(axis=0)
    calibrated = all(scored_set.calibration for scored_set in sets)
    images = []
    for index, rows in enumerate(zip(*(scored_set.rows for scored_set in sets), strict=True)):
        label = rows[0].label
        right = None
        if calibrated and label is not None:
            right = tuple(name for name, row in zip(names, rows, strict=True) if _is_correct(row.verdict, label))
        verdicts = tuple(row.verdict for row in rows)
        images.append(
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
    differing = [image for image in images if image.spread > 0 or len(set(image.verdicts)) > 1]
    # An image that only some models reject matters most in production, so these images come first.
    differing.sort(
        key=lambda image: (len({verdict is Verdict.REJECT for verdict in image.verdicts}) == 1, -image.spread)
    )
    return tuple(differing[:_MAX_DISAGREEMENTS])


def _notes(results: Sequence[ModelResult], labels: Sequence[str | None], pixels: Sequence[MeasuredPixels]) -> list[str]:
    known = [label for label in labels if label is not None]
    notes = []
    if not known:
        notes.append("No image has a label, so it is known where the models differ but not which one is correct.")
    elif GOOD not in known or set(known) == {GOOD}:
        notes.append("All labelled images are good or all are defective, so AUROC and similar metrics do not exist.")
    elif len(known) < len(labels):
        notes.append(f"Metrics use only the {len(known)} of {len(labels)} images that have a label.")
    uncalibrated = [result.name for result in results if result.threshold is None]
    if uncalibrated:
        notes.append(f"These models have no threshold, so they give no verdicts: {', '.join(uncalibrated)}.")
    if len({result.device for result in results}) > 1:
        notes.append("The sets were scored on different devices, so their speeds cannot be compared.")
    for result, measured in zip(results, pixels, strict=True):
        notes += [f"{result.name}: {note}" for note in measured.notes]
    return notes
