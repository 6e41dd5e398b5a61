"""Comparison of a candidate model with the present one before it is accepted: verdicts on reviewed images.

Good images give the false alarms, reviewed defects the recall, each with an exact binomial interval and a paired exact
test. Images that a model learned from say nothing about it: they are left out, or scored by the candidate out of fold,
and each is then judged by a threshold that was computed without its own score.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from adctl.data.datasets.layouts import list_images
from adctl.errors import AdctlError, DataError, UsageError
from adctl.metrics.bootstrap import exact_interval
from adctl.metrics.comparison import mcnemar
from adctl.model_file import read_header
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD, Calibration, CalibrationScores, Sample, Verdict
from adctl.runtimes.loading import open_runtime
from adctl.scoring.predict import collect
from adctl.scoring.tta import with_views
from adctl.thresholds import contaminated, new_groups
from adctl.thresholds.methods import SUPERVISED, UNSUPERVISED, ThresholdRule, calibrate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.metrics.labels import Floats
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

LEVEL = 0.95
"""Confidence level of the intervals."""

SIGNIFICANT = 0.05
"""Largest p-value that counts as evidence of a difference."""

_FOLDS = 10
"""Parts of the good images; those of a part are judged by a threshold from the scores of the others."""

_FEWEST = 20
"""Fewest scores for a threshold of its own; with fewer, the candidate's threshold judges."""

_RATES = ("smooth", "tail", "conformal", contaminated.METHOD, new_groups.METHOD)
"""Threshold methods whose level is a rate of false alarms."""

Advice = Literal["accept", "no evidence of a difference", "do not accept"]


@dataclass(frozen=True)
class Share:
    """Share of images with an exact binomial interval.

    Attributes:
        count: Number of rejected images.
        total: Number of images.
        share: Their ratio.
        low: Lower end of the interval, at `LEVEL`.
        high: Upper end.
    """

    count: int
    total: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, rejected: Sequence[bool]) -> Share | None:
        """Return the share of rejected images; None without images."""
        if not rejected:
            return None
        interval = exact_interval(sum(rejected), len(rejected), LEVEL)
        return cls(sum(rejected), len(rejected), sum(rejected) / len(rejected), interval.low, interval.high)

    def __str__(self) -> str:
        return (
            f"{self.count} of {self.total}, {100 * self.share:.3g} % ({100 * self.low:.2g} to {100 * self.high:.3g} %)"
        )


@dataclass(frozen=True)
class ComparedModel:
    """Threshold of a model with its promised and measured rates.

    Attributes:
        name: `present`, `recalibrated` (the present model with a threshold from the reviewed good images) or
            `candidate`.
        model: Model file; the present one for `recalibrated`.
        threshold: Image threshold, in raw scores of the model.
        method: Method of the threshold.
        expected_false_alarm: Expected share of false alarms, by its calibration.
        promised_false_alarm: Guaranteed share; None if its method guarantees none.
        false_alarms: Measured share of rejected good images; None without good images.
        recall: Measured share of rejected defects; None without defects.
    """

    name: str
    model: Path
    threshold: float
    method: str
    expected_false_alarm: float
    promised_false_alarm: float | None
    false_alarms: Share | None
    recall: Share | None


@dataclass(frozen=True)
class PairedTest:
    """Paired exact test of the candidate against the present model on the same images.

    Attributes:
        better: Number of images that only the candidate judges right.
        worse: Number of images that only the present model judges right.
        p_value: Two-sided p-value of McNemar's exact test; 1 without images.
    """

    better: int
    worse: int
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p_value <= SIGNIFICANT


@dataclass(frozen=True)
class ChangedVerdict:
    """Image on which the two models disagree.

    Attributes:
        path: The image file.
        key: Name of the image in its folder.
        label: `good`, or the kind of the defect.
        before: Verdict of the present model.
        after: Verdict of the candidate.
        score_before: Score of the present model.
        score_after: Score of the candidate.
    """

    path: str
    key: str
    label: str
    before: Verdict
    after: Verdict
    score_before: float
    score_after: float


@dataclass(frozen=True)
class CandidateComparison:
    """Comparison of a candidate with the present model.

    Attributes:
        models: The present model, the same recalibrated if that was possible, and the candidate.
        out_of_fold: Whether the candidate's scores of good images are out of fold.
        false_alarms: Paired test on the good images.
        recall: Paired test on the defects.
        changed: Images whose verdict changes, defects first.
        recommendation: `accept`, `no evidence of a difference` or `do not accept`.
        reason: Reason for it, one sentence.
        notes: Remarks on the images.
    """

    models: tuple[ComparedModel, ...]
    out_of_fold: bool
    false_alarms: PairedTest
    recall: PairedTest
    changed: tuple[ChangedVerdict, ...]
    recommendation: Advice
    reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredImages:
    """Images with the scores of both models.

    Attributes:
        samples: The images.
        present: Scores of the present model [n].
        candidate: Scores of the candidate [n].
    """

    samples: tuple[Sample, ...]
    present: Floats
    candidate: Floats


def compare_candidate(
    present: Path,
    candidate: Path,
    good: Path | Sequence[Sample] | None,
    defects: Path | Sequence[Sample] | None = None,
    *,
    device: str = "auto",
    gpu: int | None = None,
    batch_size: int | str = "auto",
    workers: int = 2,
    reporter: Reporter = SILENT,
) -> CandidateComparison:
    """Compare two model files on reviewed images; good images that one of them learned from are left out.

    Args:
        present: Model file in use.
        candidate: Model file that may replace it.
        good: Reviewed good images: a folder or samples.
        defects: Reviewed defects: a folder, with one folder for each kind, or samples.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
        batch_size: Images in one batch.
        workers: Threads that read images.
        reporter: Receiver of progress.

    Raises:
        UsageError: A folder does not exist, or a model has no threshold.
        DataError: No image is left to compare.
    """
    headers = [read_header(model) for model in (present, candidate)]
    listed = [sample for sample in _samples(good, GOOD) if sample.label in (None, GOOD)]
    unseen = [one for one in listed if not any(header.training.was_trained_on(one.path) for header in headers)]
    notes = [f"{len(listed) - len(unseen)} good images are left out: a model learned from them."]
    calibrations = [header.calibration for header in headers]
    parts: list[tuple[dict[str, float], dict[str, float]]] = []
    found = unseen, _samples(defects, None)
    for model, calibration in zip((present, candidate), calibrations, strict=True):
        if calibration is None:
            raise UsageError(f"{model} has no threshold.", "Calibrate it first: adctl calibrate --model")
        runtime = with_views(open_runtime(model, device, gpu), calibration.views)
        with reporter.stage(f"scoring with {model.parent.name}"):
            good_scores, defect_scores = (scores_by_key(runtime, part, batch_size, workers) for part in found)
        parts.append((good_scores, defect_scores))
    before, after = (one for one in calibrations if one is not None)
    return compare_scores(
        (present, before),
        (candidate, after),
        pair_scores(found[0], parts[0][0], parts[1][0]),
        pair_scores(found[1], parts[0][1], parts[1][1]),
        notes=tuple(notes) if len(unseen) < len(listed) else (),
    )


def scores_by_key(runtime: Runtime, samples: Sequence[Sample], batch_size: int | str, workers: int) -> dict[str, float]:
    """Score images; unreadable ones are logged and left out."""
    if not samples:
        return {}
    return collect(runtime, samples, batch_size=batch_size, workers=workers).by_key()


def pair_scores(
    samples: Sequence[Sample], present: Mapping[str, float], candidate: Mapping[str, float]
) -> ScoredImages:
    """Return the images that both models scored, with their scores by key."""
    both = tuple(sample for sample in samples if sample.key in present and sample.key in candidate)
    first, second = (np.array([scores[one.key] for one in both]) for scores in (present, candidate))
    return ScoredImages(both, first, second)


def compare_scores(
    present: tuple[Path, Calibration],
    candidate: tuple[Path, Calibration],
    good: ScoredImages,
    defects: ScoredImages,
    *,
    calibrated_on_them: bool = False,
    out_of_fold: bool = False,
    notes: tuple[str, ...] = (),
) -> CandidateComparison:
    """Compare the verdicts of two models by the scores of the same images.

    Args:
        present: Model file in use, and its calibration.
        candidate: Model file that may replace it, and its calibration.
        good: Good images that neither learned from, or with the candidate's scores out of fold.
        defects: Reviewed defects.
        calibrated_on_them: Whether the candidate was calibrated on these good images: each is then judged by a
            threshold without its score.
        out_of_fold: Whether the candidate's scores of the good images are out of fold.
        notes: Remarks to add.

    Raises:
        DataError: There are no images.
    """
    if not good.samples and not defects.samples:
        raise DataError("There is no image to compare the models on.", "Give reviewed good images and defects.")
    thresholds = _thresholds_without(candidate[1], good.candidate) if calibrated_on_them else None
    before = _verdicts(present[1], good.present), _verdicts(present[1], defects.present)
    after = _verdicts(candidate[1], good.candidate, thresholds), _verdicts(candidate[1], defects.candidate)
    tests = _paired(before[0], after[0], good=True), _paired(before[1], after[1], good=False)
    models = [
        _compared("present", *present, *before),
        *(() if np.array_equal(good.present, good.candidate) else _recalibrated(present, good, defects)),
        _compared("candidate", *candidate, *after),
    ]
    changed = (*_changes(defects, before[1], after[1]), *_changes(good, before[0], after[0]))
    advice, reason = _advise(*tests, has_defects=bool(defects.samples))
    return CandidateComparison(tuple(models), out_of_fold, *tests, changed, advice, reason, notes)


def rule_of(calibration: Calibration | None, *, defects: bool = False) -> tuple[ThresholdRule, str | None]:
    """Return the rule of a calibration for new scores, and a note if it cannot be applied to them.

    Args:
        calibration: Calibration of the present model; None for an uncalibrated one.
        defects: Whether there are scores of defects.
    """
    if calibration is None:
        return ThresholdRule(), None
    method, level, warn = calibration.method, calibration.level, calibration.warn_level
    if method in UNSUPERVISED or (method in SUPERVISED and method not in ("f1", "cost") and defects):
        return ThresholdRule(method, level, warn), None
    if method == "f1" and defects:
        return ThresholdRule(method), None
    note = f"The threshold method {method} of the present model cannot be repeated: the default sets the threshold."
    return ThresholdRule(), None if method == "trimmed" else note


def promising_rule(calibration: Calibration) -> ThresholdRule:
    """Return the rule that guarantees the rate of a calibration, or the usual one if its level is no rate."""
    if calibration.method not in _RATES:
        return ThresholdRule("conformal")
    return ThresholdRule("conformal", calibration.level, calibration.warn_level)


def _samples(given: Path | Sequence[Sample] | None, label: str | None) -> list[Sample]:
    """Return the images of a folder, with a label or, if None, that of their folder."""
    if given is None:
        return []
    if not isinstance(given, Path):
        return list(given)
    found, _ = list_images((given,))
    return [replace(sample, label=label or kind_of(sample)) for sample in found]


def kind_of(sample: Sample) -> str:
    """Return the kind of a defect: the folder of the image, or `defect`."""
    return sample.key.rpartition("/")[0].rpartition("/")[2] or "defect"


def _verdicts(calibration: Calibration, scores: Floats, thresholds: Floats | None = None) -> list[Verdict]:
    """Return the verdicts, optionally with a rejection threshold for each image."""
    if thresholds is None:
        return [calibration.verdict(score) for score in scores.tolist()]
    return [
        replace(calibration, threshold=threshold).verdict(score)
        for score, threshold in zip(scores.tolist(), thresholds.tolist(), strict=True)
    ]


def _thresholds_without(calibration: Calibration, scores: Floats) -> Floats:
    """Return for each image [n] the threshold from the calibration scores without those of its part of the images."""
    thresholds = np.full(len(scores), calibration.threshold)
    if len(scores) < _FEWEST:
        return thresholds
    part = np.random.default_rng(0).permutation(len(scores)) % _FOLDS
    rule = replace(rule_of(calibration, defects=bool(calibration.evidence.defective))[0], warn=None)
    for number in range(_FOLDS):
        left_out = Counter(scores[part == number].tolist())
        others = tuple(sorted((Counter(calibration.evidence.good) - left_out).elements()))
        try:
            evidence = replace(calibration.evidence, good=others, groups=())
            thresholds[part == number] = calibrate(rule, evidence)[0].threshold
        except AdctlError as error:
            log.debug("A part of the images is judged by the threshold of all: %s", error.message)
    return thresholds


def _recalibrated(
    present: tuple[Path, Calibration], good: ScoredImages, defects: ScoredImages
) -> tuple[ComparedModel, ...]:
    """Return the present model with a threshold from the reviewed good images; nothing with too few of them."""
    model, calibration = present
    if len(good.samples) < _FEWEST:
        return ()
    rule, _ = rule_of(calibration, defects=bool(calibration.evidence.defective))
    evidence = CalibrationScores(
        tuple(sorted(good.present.tolist())), defective=calibration.evidence.defective, views=calibration.views
    )
    try:
        changed = calibrate(rule, evidence)[0]
    except AdctlError as error:
        log.debug("The present model cannot be recalibrated: %s", error.message)
        return ()
    verdicts = _verdicts(changed, good.present, _thresholds_without(changed, good.present))
    return (_compared("recalibrated", model, changed, verdicts, _verdicts(changed, defects.present)),)


def _compared(
    name: str, model: Path, calibration: Calibration, good: Sequence[Verdict], defects: Sequence[Verdict]
) -> ComparedModel:
    shares = [Share.of([one is Verdict.REJECT for one in verdicts]) for verdicts in (good, defects)]
    return ComparedModel(
        name,
        model,
        calibration.threshold,
        calibration.method,
        calibration.expected_false_alarm,
        calibration.promised_false_alarm,
        *shares,
    )


def _paired(before: Sequence[Verdict], after: Sequence[Verdict], *, good: bool) -> PairedTest:
    right = [[(one is Verdict.REJECT) != good for one in verdicts] for verdicts in (before, after)]
    better = sum(second and not first for first, second in zip(*right, strict=True))
    worse = sum(first and not second for first, second in zip(*right, strict=True))
    return PairedTest(better, worse, mcnemar(worse, better))


def _changes(images: ScoredImages, before: Sequence[Verdict], after: Sequence[Verdict]) -> tuple[ChangedVerdict, ...]:
    rows = zip(images.samples, before, after, images.present.tolist(), images.candidate.tolist(), strict=True)
    return tuple(
        ChangedVerdict(str(sample.path), sample.key, sample.label or GOOD, first, second, old, new)
        for sample, first, second, old, new in rows
        if first is not second
    )


def _advise(false_alarms: PairedTest, recall: PairedTest, *, has_defects: bool) -> tuple[Advice, str]:
    """Return the recommendation with its reason; a missed defect weighs more than a false alarm."""
    lost = recall.worse - recall.better
    if lost > 0 and recall.significant:
        return "do not accept", f"Recall falls: {recall.worse} defects that were found are missed ({_p(recall)})."
    if false_alarms.worse > false_alarms.better and false_alarms.significant:
        risen = false_alarms.worse - false_alarms.better
        return "do not accept", f"False alarms rise by {risen} good images ({_p(false_alarms)})."
    if not has_defects:
        return "no evidence of a difference", "There are no reviewed defects, so that nothing is known about recall."
    if lost > 0:
        return "no evidence of a difference", (
            f"{recall.worse} defects that were found are missed, {recall.better} others found "
            f"({_p(recall)}): look at them."
        )
    gains = _gains(false_alarms, recall)
    if gains is not None:
        return "accept", gains
    return (
        "no evidence of a difference",
        f"The verdicts differ no more than by chance: false alarms {_p(false_alarms)}, recall {_p(recall)}.",
    )


def _gains(false_alarms: PairedTest, recall: PairedTest) -> str | None:
    """Return what gets better by more than chance; None if nothing does."""
    fewer, more = false_alarms.better - false_alarms.worse, recall.better - recall.worse
    alarms, found = fewer > 0 and false_alarms.significant, more > 0 and recall.significant
    if alarms and found:
        return (
            f"There are {fewer} fewer false alarms ({_p(false_alarms)}) and {more} more defects found ({_p(recall)}), "
            "and nothing gets worse by more than chance."
        )
    if alarms:
        return f"There are {fewer} fewer false alarms ({_p(false_alarms)}), and nothing gets worse by more than chance."
    if found:
        return f"There are {more} more defects found ({_p(recall)}), and nothing gets worse by more than chance."
    return None


def _p(test: PairedTest) -> str:
    return f"p = {test.p_value:.2g}"
