"""Update of a model by reviewed images (`adctl train --update`): a candidate in a run of its own, compared before use.

Detectors with `update_phases` learn from the new images alone. Others are trained again on the old images, which must
still be there, and the new ones. New good images that are unlike all other good ones are set aside: they may be defects
that were called good. The candidate is calibrated on scores of good images that it did not learn from, and compared
with the present model on them and on the reviewed defects.

run/
  images.jsonl   manifest of the images that the candidate learned from or is calibrated on, and of the test images
  update.json    result of the update, with the comparison
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl import __version__, files, run_folder
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.datasets.layouts import Dataset
from adctl.data.loader import keep_images
from adctl.data.split import Split, file_digest, split_good, training_digest
from adctl.datasets import dataset_of_run
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.engine.device import DeviceChoice, choose_device
from adctl.engine.trainer import FitJob, fit
from adctl.errors import AdctlError, DataError, UsageError
from adctl.evaluation.candidate import (
    CandidateComparison,
    compare_scores,
    pair_scores,
    rule_of,
    scores_by_key,
)
from adctl.model_file import DIGEST_LENGTH, SUFFIX, Training, load_model, run_of
from adctl.progress import SILENT, Reporter
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, calibration_scores_of, collect
from adctl.scoring.tta import with_views
from adctl.thresholds.contaminated import FEWEST_PARTS, defective_parts
from adctl.thresholds.methods import SUPERVISED, ThresholdRule, calibrate
from adctl.tracking import record
from adctl.tracking.loggers.run_loggers import finished
from adctl.tracking.models import find_model
from adctl.training import resume
from adctl.training.fitting import image_sources, new_detector
from adctl.training.new_images import Learner, find_unlike
from adctl.training.plan import CALIBRATION_SHARE, TrainingPlan, fit_settings
from adctl.training.reviews import Reviews, SetAside, UpdateResult, Way, read_reviews, require_some
from adctl.training.single_run import Session, TrainResult, new_loggers, save_trained
from adctl.training.unlike_images import fit_reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adctl.detectors.base import Detector
    from adctl.engine.history import FitReport, FitSettings
    from adctl.model_file import ModelHeader
    from adctl.records import Calibration, CalibrationScores, Sample

log = logging.getLogger(__name__)

IMAGES = "images.jsonl"
UPDATE = "update.json"
_SCHEMA = "adctl.update/1"

_FEWEST_TO_SPLIT = 8
"""Number of new images below which none is held out."""

_ENOUGH_SCORES = 99
"""Number of scores of new images that need no earlier scores beside them: it can promise 1 % false alarms."""

_WARM_SHARE = 1 / 3
"""Share of the usual epochs after a start from trained weights."""

_WARM_ORIGIN = "a third, from trained weights"

_OWN = frozenset(
    {
        "update", "good", "defects", "trust_reviews", "confirmed", "group", "name", "resume", "runs", "device", "gpu",
        "workers", "cache", "tensorboard", "log", "export", "fetch", "accept_license",
    }
)  # fmt: skip
"""Settings that come from this call only."""

_MAY_CHANGE = frozenset(
    {"epochs", "patience", "batch_size", "checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints"}
)
"""Settings of the present model's run that this call may change."""

_CLEARED: dict[str, Any] = {
    "data": None, "dataset": None, "category": None, "test": None, "masks": None, "folds": None, "fold": None,
    "seeds": (), "devices": None, "new_groups": False,
}  # fmt: skip
"""Settings of the present model's run that do not apply to an update."""


@dataclass(frozen=True)
class _Present:
    """Model to update.

    Attributes:
        model: Model file.
        run: Folder of its run.
        detector: The detector.
        header: Its header.
        split: Images of its training with absolute paths as keys; None if they are not all there.
        test: Test images of its dataset.
        missing: Reason why the images are unknown; empty if they are known.
    """

    model: Path
    run: Path
    detector: Detector
    header: ModelHeader
    split: Split | None
    test: tuple[Sample, ...]
    missing: str

    @property
    def known(self) -> set[str]:
        """Beginnings of the digests of all images that it knows."""
        held_out = () if self.split is None else self.split.digests.values()
        return {*self.header.training.image_digests, *(digest[:DIGEST_LENGTH] for digest in held_out)}


@dataclass(frozen=True)
class _Candidate:
    """Updated detector before it is saved.

    Attributes:
        way: See `UpdateResult`.
        detector: The detector.
        report: Report of its fit.
        new: New images that it learned from.
        split: All images that it learned from or is calibrated on.
        scores: Scores of good images that it did not learn from.
        folds: Number of detectors that gave them, each without the images it scored; 0 if the candidate gave them.
    """

    way: Way
    detector: Detector
    report: FitReport
    new: tuple[Sample, ...]
    split: Split
    scores: CollectedScores
    folds: int


def train_update(loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT) -> TrainResult:
    """Make a candidate from a model and reviewed images, in a new run, and compare the two.

    Args:
        loaded: The settings, with `update`, and `good` or, to continue, `resume`.
        reporter: Receiver of progress.

    Raises:
        UsageError: The model or a folder does not exist, or a setting contradicts the model.
        DataError: No image is left to learn from, or the old images are needed and not there.
        TrainingError: The loss is not finite, or memory is too small.
        OutputError: The run cannot be written.
    """
    run, loaded = resume.find_run(loaded)
    _check(loaded)
    present = _open_present(loaded.settings)
    if run is None:
        loaded = _with_settings_of(present, loaded)
    settings = loaded.settings
    assert settings.good is not None
    reviews = read_reviews(
        settings.good, settings.defects, present.known,
        group=settings.group, workers=settings.workers, reporter=reporter,
    )  # fmt: skip
    require_some(reviews, settings.good)
    with shared_features(), keep_images():
        return _update(run, loaded, present, _with_absolute_keys(reviews), reporter)


def _check(loaded: LoadedSettings[TrainSettings]) -> None:
    settings = loaded.settings
    if settings.good is None:
        raise UsageError("--update needs reviewed good images.", "Give their folder with --good DIR.")
    if settings.resume is not None:
        return
    for name in sorted(loaded.given - _OWN - _MAY_CHANGE):
        if loaded.origins[name].startswith("--"):
            raise UsageError(
                f"--update keeps the settings of the model, so {loaded.origins[name]} cannot be given with it.",
                "Leave it out, or train a new model without --update.",
            )


def _open_present(settings: TrainSettings) -> _Present:
    assert settings.update is not None
    model = find_model(settings.runs, settings.update).absolute()
    if model.suffix != SUFFIX:
        raise UsageError(f"{model} is an exported model.", "Update its model.safetensors, then export it again.")
    detector, header = load_model(model)
    run = run_of(model, settings.runs)
    try:
        split, test = _old_images(run)
    except AdctlError as error:
        return _Present(model, run, detector, header, None, (), error.message)
    return _Present(model, run, detector, header, split, test, "")


def _old_images(run: Path) -> tuple[Split, tuple[Sample, ...]]:
    """Return the images of a run, with absolute paths as keys, and its test images.

    Raises:
        AdctlError: Its dataset or images are missing, or images have changed.
    """
    dataset = dataset_of_run(run)
    if dataset is None:
        raise DataError(f"{run} is not the folder of a training run.")
    split = Split.read(run / run_folder.SPLIT, dataset.train, "Train again.")
    used = (*split.train, *split.validation, *split.calibration)
    changed = [sample.key for sample in used if file_digest(sample) != split.digests[sample.key]]
    if changed:
        raise DataError(f"Images of {run} have changed: {len(changed)}, such as {changed[0]}.")
    train, validation, calibration = (
        tuple(map(_absolute, part)) for part in (split.train, split.validation, split.calibration)
    )
    digests = {_absolute(sample).key: split.digests[sample.key] for sample in used}
    moved = replace(split, train=train, validation=validation, calibration=calibration, digests=digests)
    return moved, tuple(map(_absolute, dataset.test))


def _absolute(sample: Sample) -> Sample:
    return replace(sample, path=sample.path.absolute(), key=sample.path.absolute().as_posix().lstrip("/"))


def _with_absolute_keys(reviews: Reviews) -> Reviews:
    return replace(
        reviews,
        good=tuple(map(_absolute, reviews.good)),
        defects=tuple(map(_absolute, reviews.defects)),
        digests={_absolute(sample).key: reviews.digests[sample.key] for sample in reviews.good},
    )


def _with_settings_of(present: _Present, loaded: LoadedSettings[TrainSettings]) -> LoadedSettings[TrainSettings]:
    """Return the settings of the present model's run, with those of this call where they apply."""
    names = names_of(TrainSettings)
    base = LoadedSettings(TrainSettings(), dict.fromkeys(names, "default"))
    try:
        base = resume.load_settings(present.run, base)
    except AdctlError as error:
        log.debug("The settings of %s are unknown: %s", present.run, error.message)
    here = _OWN | (_MAY_CHANGE & loaded.given)
    fixed = {
        **_CLEARED,
        "update": present.model,
        "arch": present.header.arch,
        "image_size": present.detector.config.image_size,
    }
    values = {name: getattr(loaded.settings if name in here else base.settings, name) for name in names} | fixed
    origins = {name: (loaded if name in here else base).origins[name] for name in names}
    origins |= dict.fromkeys(_CLEARED, "default") | dict.fromkeys(("arch", "image_size"), "--update")
    if "epochs" not in here:
        origins["epochs"] = _WARM_ORIGIN
    return LoadedSettings(TrainSettings(**values), origins)


def _update(
    run: Path | None,
    loaded: LoadedSettings[TrainSettings],
    present: _Present,
    reviews: Reviews,
    reporter: Reporter,
) -> TrainResult:
    """Set aside doubtful images, then train into the folder of the run."""
    settings, device = loaded.settings, choose_device(loaded.settings.device, loaded.settings.gpu)
    if present.header.calibration is None:
        raise UsageError(f"{present.model} has no threshold.", "Calibrate it first: adctl calibrate --model")
    own = Learner(present.detector, present.header, settings, device.device, reporter)
    runtime = with_views(TorchRuntime.of(own.detector, own.header, own.device), present.header.calibration.views)
    with reporter.stage("scoring with the present model"):
        before = scores_by_key(runtime, (*reviews.good, *reviews.defects), settings.batch_size, settings.workers)
    reviews = _readable(reviews, before)
    require_some(reviews, present.model)
    alone = bool(present.detector.update_phases(present.header.training.images))
    if not alone and present.split is None:
        raise DataError(
            f"{present.header.arch} must be trained on the old and the new images. {present.missing}",
            "Restore the old images, or train a new model: adctl train --good DIR",
        )
    learner = own if alone else _reference(present, settings, device, reporter)
    unlike = find_unlike(learner, reviews.good, _confirmed(settings, reviews.good))
    reviews = replace(reviews, set_aside=(*reviews.set_aside, *unlike.set_aside))
    doubtful = {one.key for one in unlike.set_aside}
    learnable = tuple(sample for sample in reviews.good if sample.key not in doubtful)
    if not learnable:
        raise DataError(
            f"All {len(reviews.good)} new good images are unlike the good images that the model knows.",
            "Look at them; if they are good, add --trust-reviews, or --confirmed NAME for some of them.",
        )
    split, new = _split(present, learnable, reviews.digests, settings, own if alone else None)

    with finished(new_loggers(settings)) as loggers:
        if run is not None:
            resume.check_data(run, split)
        with resume.opened_folder(run, loaded, split, present.header.training.category) as folder:
            plan = TrainingPlan(_dataset(present, split, folder), split, present.detector.config, device)
            files.write_text(folder / IMAGES, _manifest_text(split, present))
            session = Session.begin(folder, loaded, plan, loggers)
            candidate = (
                _learn_alone(own, unlike.learned, plan, new)
                if alone
                else _train_on_all(folder, loaded, present, plan, new, session, reporter)
            )
            return _finish(folder, loaded, present, plan, candidate, reviews, before, session)


def _readable(reviews: Reviews, scored: Mapping[str, float]) -> Reviews:
    """Return the reviews without images that the model cannot score, such as those with other channels."""
    lost = [sample for sample in reviews.good if sample.key not in scored]
    aside = [SetAside(str(one.path), one.key, "unreadable", "The model cannot score it.") for one in lost]
    good, defects = (tuple(one for one in part if one.key in scored) for part in (reviews.good, reviews.defects))
    return replace(reviews, good=good, defects=defects, set_aside=(*reviews.set_aside, *aside))


def _confirmed(settings: TrainSettings, good: Sequence[Sample]) -> set[str]:
    """Return the keys of images that are good beyond doubt.

    Raises:
        UsageError: A confirmed image is not among the new good ones.
    """
    if settings.trust_reviews:
        return {sample.key for sample in good}
    assert settings.good is not None
    folder = settings.good.absolute()
    names: dict[str, str] = {}
    for sample in good:
        inside = [str(sample.path.relative_to(folder))] if sample.path.is_relative_to(folder) else []
        names |= dict.fromkeys((sample.path.name, str(sample.path), sample.key, *inside), sample.key)
    unknown = [name for name in settings.confirmed if name not in names]
    if unknown:
        raise UsageError(f"--confirmed {unknown[0]} is not a new image of --good.", "Give its name in that folder.")
    return {names[name] for name in settings.confirmed}


def _reference(present: _Present, settings: TrainSettings, device: DeviceChoice, reporter: Reporter) -> Learner:
    """Return a PatchCore of the old images, which tells what is unlike them, for detectors that need them all."""
    assert present.split is not None
    plan = TrainingPlan(_dataset(present, present.split), present.split, present.detector.config, device)
    detector, header = fit_reference(settings, plan, reporter)
    return Learner(detector, header, replace(settings, arch=header.arch), device.device, reporter)


def _split(
    present: _Present,
    new: Sequence[Sample],
    digests: Mapping[str, str],
    settings: TrainSettings,
    learner: Learner | None,
) -> tuple[Split, Split]:
    """Return the split of all images, and that of the new ones; old images stay in their part.

    New images are held out, unless the learner can score those that it learned from as if it had not.
    """
    own = {sample.key: digests[sample.key] for sample in new}
    train = tuple(sorted(new, key=lambda sample: sample.key))
    of_new = Split(train, (), (), own, settings.seed, 0.0, 0.0)
    held_out = learner is None or not learner.can_hold_out(of_new)
    if held_out and len(new) >= _FEWEST_TO_SPLIT:
        share = settings.validation_share if present.split is not None and present.split.validation else 0.0
        of_new = split_good(new, calibration=CALIBRATION_SHARE, validation=share, seed=settings.seed)
    if present.split is None:
        return of_new, of_new
    old = present.split
    train, validation, calibration = (
        tuple(sorted((*one, *two), key=lambda sample: sample.key))
        for one, two in (
            (old.train, of_new.train), (old.validation, of_new.validation), (old.calibration, of_new.calibration)
        )
    )  # fmt: skip
    digests = dict(sorted({**old.digests, **own}.items()))
    whole = replace(old, train=train, validation=validation, calibration=calibration, digests=digests)
    return whole, of_new


def _dataset(present: _Present, split: Split, run: Path | None = None) -> Dataset:
    training = present.header.training
    return Dataset(
        training.dataset, training.category, (run or present.run) / IMAGES, "manifest",
        (*split.train, *split.validation, *split.calibration), present.test,
    )  # fmt: skip


def _manifest_text(split: Split, present: _Present) -> str:
    """Return a manifest of the good images and the test images, with absolute paths, as JSON lines of any names."""
    good = sorted((*split.train, *split.validation, *split.calibration), key=lambda sample: sample.key)
    used = {sample.key for sample in good}
    lines = []
    for part, samples in (("train", good), ("test", [one for one in present.test if one.key not in used])):
        for one in samples:
            entry = {
                "path": str(one.path),
                "split": part,
                "label": "good" if part == "train" else one.label,
                "mask": None if one.mask is None else str(one.mask.absolute()),
                "category": present.header.training.category,
                "group": one.group,
            }
            lines.append(f"{json.dumps(entry)}\n")
    return "".join(lines)


def _learn_alone(
    learner: Learner,
    learned: Mapping[str, tuple[Detector, FitReport]],
    plan: TrainingPlan,
    new: Split,
) -> _Candidate:
    """Add the new images to the detector, and score them out of fold, or those that were held out."""
    key = "\n".join(sample.key for sample in new.train)
    detector, report = learned[key] if key in learned else learner.learn(new.train)
    parts = []
    folds = learner.units(detector, new)
    if folds:
        parts.append(learner.score_held_out(detector, new, folds))
    if plan.split.calibration:
        parts.append(learner.score(detector, plan.split.calibration, "calibrating"))
    if not parts:
        raise DataError(
            f"{len(new.train)} new images are too few: none can be held out for the threshold.",
            f"Review at least {_FEWEST_TO_SPLIT} good images.",
        )
    scores = CollectedScores.concatenate(parts)
    return _Candidate("new images alone", detector, report, new.train, plan.split, scores, len(folds))


def _train_on_all(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    present: _Present,
    plan: TrainingPlan,
    new: Split,
    session: Session,
    reporter: Reporter,
) -> _Candidate:
    """Train on the old and the new images, from the present weights where the detector allows it."""
    settings = loaded.settings
    detector, _ = new_detector(settings, plan.config)
    if detector.warm_start:
        detector.load_state({name: tensor.cpu() for name, tensor in present.detector.state_dict().items()})
    context = session.fit_context(run, settings, plan, reporter)
    fitting = _fit_settings(loaded, detector)
    sources = image_sources(settings, plan)
    job = FitJob(detector, *sources, fitting, plan.device.device, context, resume=settings.resume is not None)
    report = fit(job)
    with reporter.stage("calibrating"):
        runtime = TorchRuntime.of(detector, present.header, plan.device.device)
        scores = collect(runtime, plan.split.calibration, batch_size=settings.batch_size, workers=settings.workers)
    return _Candidate("old and new images", detector, report, new.train, plan.split, scores, 0)


def _fit_settings(loaded: LoadedSettings[TrainSettings], detector: Detector) -> FitSettings:
    """Return the settings of the fit: a third of the epochs after a warm start, unless the user gave a number."""
    fitting = fit_settings(loaded.settings, type(detector), detector.config)
    if not detector.warm_start or loaded.origins["epochs"] != _WARM_ORIGIN:
        return fitting
    epochs, steps = (math.ceil(_WARM_SHARE * value) for value in (fitting.epochs, fitting.min_steps))
    return replace(fitting, epochs=max(1, epochs), min_steps=steps)


def _finish(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    present: _Present,
    plan: TrainingPlan,
    candidate: _Candidate,
    reviews: Reviews,
    before: Mapping[str, float],
    session: Session,
) -> TrainResult:
    """Calibrate and compare the candidate, and write its run."""
    settings = loaded.settings
    runtime = TorchRuntime.of(candidate.detector, present.header, plan.device.device)
    defects = scores_by_key(runtime, reviews.defects, settings.batch_size, settings.workers)
    doubtful = [one for one in reviews.good if one.key not in candidate.split.digests]
    doubts = collect(runtime, doubtful, batch_size=settings.batch_size, workers=settings.workers) if doubtful else None
    calibration, notes = _calibration(present, candidate, defects, doubts)
    model = run / run_folder.MODEL
    scores = before, {**candidate.scores.by_key(), **defects}
    comparison = _compare(present, (model, calibration), reviews, scores, plan, out_of_fold=bool(candidate.folds))
    header = replace(
        present.header,
        training=_training_record(present, candidate),
        calibration=calibration,
        adctl_version=__version__,
    )
    update = UpdateResult(
        present.model,
        candidate.way,
        len(candidate.new),
        sum(sample.key in reviews.digests for sample in (*plan.split.calibration, *plan.split.validation)),
        reviews.set_aside,
        comparison,
        notes,
    )
    parent = {"run": present.run.name, "model": str(present.model), "sha256": files.sha256_file(present.model)}
    result = save_trained(run, candidate.detector, header, candidate.report, loaded, plan, session, parent=parent)
    files.write_json(run / UPDATE, {"schema": _SCHEMA, **_json_safe(asdict(update))})
    counts = {"learned": update.learned, "recommendation": comparison.recommendation}
    record.made(present.model, "update", model, facts=counts)
    return replace(result, update=update)


def _compare(
    present: _Present,
    candidate: tuple[Path, Calibration],
    reviews: Reviews,
    scores: tuple[Mapping[str, float], Mapping[str, float]],
    plan: TrainingPlan,
    *,
    out_of_fold: bool,
) -> CandidateComparison:
    """Compare on the new good images with scores of both, and on the defects."""
    doubtful = sum(one.reason == "unlike the others" for one in reviews.set_aside)
    notes = [f"{doubtful} images that are unlike the others are not counted as good."] if doubtful else []
    assert present.header.calibration is not None
    good = [sample for sample in reviews.good if sample.key in plan.split.digests]
    return compare_scores(
        (present.model, present.header.calibration),
        candidate,
        pair_scores(good, *scores),
        pair_scores(reviews.defects, *scores),
        calibrated_on_them=True,
        out_of_fold=out_of_fold,
        notes=tuple(notes),
    )


def _calibration(
    present: _Present, candidate: _Candidate, defects: Mapping[str, float], doubts: CollectedScores | None
) -> tuple[Calibration, tuple[str, ...]]:
    """Compute the candidate's calibration by the rule of the present one; see the notes for what it rests on."""
    known = present.header.calibration
    assert known is not None
    rule, note = rule_of(known, defects=bool(defects))
    notes = [note] if note else []
    if known.views:
        notes.append("The candidate is calibrated without the views of test-time augmentation of the present model.")
    scores, doubted = candidate.scores, 0
    if doubts is not None and len(doubts.keys) + len(scores.keys) >= FEWEST_PARTS:
        # Leaving out the highest scores would break the promise; the method for unlabelled parts allows for defects.
        scores, doubted = CollectedScores.concatenate([scores, doubts]), len(doubts.keys)
    evidence = calibration_scores_of(scores, folds=candidate.folds)
    if _needs_earlier_scores(present, candidate, len(evidence.good)):
        notes.append(_note_on_earlier_scores(candidate.detector, len(evidence.good), known.good_images))
        doubted += defective_parts(len(known.evidence.good), known.evidence.contaminated or 0.0)
        evidence = _pooled(evidence, known.evidence)
    if doubted:
        evidence = replace(evidence, contaminated=doubted / len(evidence.good), groups=())
        rule = rule if rule.method in ("smooth", "conformal") else ThresholdRule()
    elif rule.method in SUPERVISED or known.evidence.defective:
        evidence = replace(evidence, defective=tuple(sorted(defects.values())))
    calibration, of_rule = calibrate(rule, evidence)
    return calibration, (*notes, *of_rule)


def _needs_earlier_scores(present: _Present, candidate: _Candidate, count: int) -> bool:
    """Return whether the new scores are too few alone, and no earlier calibration image was scored again."""
    known = present.header.calibration
    assert known is not None
    earlier = set() if present.split is None else {sample.key for sample in present.split.calibration}
    return count < _ENOUGH_SCORES and not known.views and earlier.isdisjoint(candidate.scores.keys)


def _note_on_earlier_scores(detector: Detector, new: int, earlier: int) -> str:
    which = (
        "which are upper bounds: the rate of false alarms holds, and may be lower"
        if detector.update_lowers_scores
        else "which are those of the present model: the threshold is provisional"
    )
    return f"{new} scores of new images are few: the threshold also rests on {earlier} earlier scores, {which}."


def _pooled(new: CalibrationScores, earlier: CalibrationScores) -> CalibrationScores:
    """Return the scores of both; their groups are not comparable."""
    return replace(
        new,
        good=tuple(sorted((*new.good, *earlier.good))),
        peaks=tuple(sorted((*new.peaks, *earlier.peaks))),
        groups=(),
        folds=max(new.folds, earlier.folds),
        inputs=earlier.inputs or new.inputs,
    )


def _training_record(present: _Present, candidate: _Candidate) -> Training:
    """Return the record of all images that the candidate learned from."""
    before, new = present.header.training, candidate.new
    shortened = [candidate.split.digests[sample.key][:DIGEST_LENGTH] for sample in new]
    if present.split is None:  # the old images are known by the digest of their set only
        chained = {sample.key: candidate.split.digests[sample.key] for sample in new} | {"": before.digest}
        digest = training_digest([*new, replace(new[0], key="")], chained)
    else:
        digest = training_digest(candidate.split.train, candidate.split.digests)
    return replace(
        before,
        images=before.images + len(new),
        digest=digest,
        image_digests=tuple(sorted({*before.image_digests, *shortened})),
    )


def _json_safe(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=str)
