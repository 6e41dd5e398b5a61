"""Update of a model by reviewed images (`adctl train --update`): a candidate in a run of its own, compared before use.

Detectors with `update_phases` learn from the new images alone. Others are trained again on the old images, which must
still be there, and the new ones. New good images that are unlike all other good ones are set aside: they may be defects
that were called good. The candidate is calibrated on scores of good images that it did not learn from, and compared
with the present model on them and on the reviewed defects. With `recalibrate` it learns nothing: the new good images
set the threshold of the present detector, by a method that guarantees a rate of false alarms.

run/
  images.jsonl   manifest of the images that the candidate learned from or is calibrated on, and of the test images
  update.json    result of the update, with the comparison
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from adctl import __version__, files, run_folder
from adctl.data.datasets.layouts import Dataset
from adctl.data.loader import keep_images
from adctl.data.split import Split, split_good, training_digest
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.engine.device import DeviceChoice, choose_device
from adctl.engine.history import FitReport
from adctl.engine.trainer import FitJob, fit
from adctl.errors import DataError, UsageError
from adctl.evaluation.candidate import (
    CandidateComparison,
    compare_scores,
    pair_scores,
    scores_by_key,
)
from adctl.model_file import DIGEST_LENGTH, Training
from adctl.progress import SILENT, Reporter
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, collect
from adctl.scoring.tta import with_views
from adctl.tracking import record
from adctl.tracking.loggers.run_loggers import finished
from adctl.training import resume
from adctl.training.fitting import image_sources, new_detector
from adctl.training.new_images import Learner, Unlike, find_unlike
from adctl.training.plan import CALIBRATION_SHARE, TrainingPlan, fit_settings
from adctl.training.present_model import (
    CHANGEABLE_SETTINGS,
    OWN_SETTINGS,
    THRESHOLD_ALONE,
    UPDATE,
    WARM_ORIGIN,
    open_present,
    with_absolute_key,
    with_settings_of,
)
from adctl.training.reviews import Reviews, SetAside, UpdateResult, read_reviews, require_some
from adctl.training.single_run import Session, TrainResult, new_loggers, save_trained
from adctl.training.unlike_images import fit_reference
from adctl.training.update_calibration import UpdatedDetector, calibrate_update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adctl.config import LoadedSettings, TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.history import FitSettings
    from adctl.records import Calibration, Sample
    from adctl.training.present_model import PresentModel

log = logging.getLogger(__name__)

IMAGES = "images.jsonl"
_SCHEMA = "adctl.update/1"

_FEWEST_TO_SPLIT = 8
"""Number of new images below which none is held out."""

_WARM_SHARE = 1 / 3
"""Share of the usual epochs after a start from trained weights."""


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
    present = open_present(loaded.settings)
    if run is None:
        loaded = with_settings_of(present, loaded)
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
    for name in sorted(loaded.given - OWN_SETTINGS - CHANGEABLE_SETTINGS):
        if loaded.origins[name].startswith("--"):
            raise UsageError(
                f"--update keeps the settings of the model, so {loaded.origins[name]} cannot be given with it.",
                "Leave it out, or train a new model without --update.",
            )


def _with_absolute_keys(reviews: Reviews) -> Reviews:
    return replace(
        reviews,
        good=tuple(map(with_absolute_key, reviews.good)),
        defects=tuple(map(with_absolute_key, reviews.defects)),
        digests={with_absolute_key(sample).key: reviews.digests[sample.key] for sample in reviews.good},
    )


def _update(
    run: Path | None,
    loaded: LoadedSettings[TrainSettings],
    present: PresentModel,
    reviews: Reviews,
    reporter: Reporter,
) -> TrainResult:
    """Set aside doubtful images, then train into the folder of the run."""
    settings, device = loaded.settings, choose_device(loaded.settings.device, loaded.settings.gpu)
    own = Learner(present.detector, present.header, settings, device.device, reporter)
    runtime = with_views(TorchRuntime.of(own.detector, own.header, own.device), present.calibration.views)
    with reporter.stage("scoring with the present model"):
        scored = collect(runtime, reviews.good, batch_size=settings.batch_size, workers=settings.workers)
        before = scored.by_key() | scores_by_key(runtime, reviews.defects, settings.batch_size, settings.workers)
    reviews = _readable(reviews, before)
    require_some(reviews, present.model)
    learner = _judge(present, own, device)
    unlike = find_unlike(learner, reviews.good, _confirmed(settings, reviews.good)) if learner else Unlike(())
    reviews = replace(reviews, set_aside=(*reviews.set_aside, *unlike.set_aside))
    doubtful = {one.key for one in unlike.set_aside}
    learnable = tuple(sample for sample in reviews.good if sample.key not in doubtful)
    if not learnable:
        raise DataError(
            f"All {len(reviews.good)} new good images are unlike the good images that the model knows.",
            "Look at them; if they are good, add --trust-reviews, or --confirmed NAME for some of them.",
        )
    alone = learner is own
    split, new = _split(present, learnable, reviews.digests, settings, own if alone else None)

    with finished(new_loggers(settings)) as loggers:
        if run is not None:
            resume.check_data(run, split)
        with resume.opened_folder(run, loaded, split, present.header.training.category) as folder:
            plan = TrainingPlan(_dataset(present, split, folder), split, present.detector.config, device)
            files.write_text(folder / IMAGES, _manifest_text(split, present))
            session = Session.begin(folder, loaded, plan, loggers)
            if settings.recalibrate:
                candidate = _recalibrated(present, split, scored.without(doubtful), checked=learner is not None)
            elif alone:
                candidate = _learn_alone(own, unlike.learned, plan, new)
            else:
                candidate = _train_on_all(folder, loaded, present, plan, new, session, reporter)
            return _finish(folder, loaded, present, plan, candidate, reviews, before, session)


def _judge(present: PresentModel, own: Learner, device: DeviceChoice) -> Learner | None:
    """Return the learner that tells which new images are unlike all others.

    None is returned if it needs the old images, they are missing, and only a threshold is wanted.

    Raises:
        DataError: The old images are needed and missing.
    """
    if present.detector.update_phases(present.header.training.images):
        return own
    if present.split is not None:
        return _reference(present, own.settings, device, own.reporter)
    if own.settings.recalibrate:
        return None
    raise DataError(
        f"{present.header.arch} must be trained on the old and the new images. {present.missing}",
        "Restore the old images, or train a new model: adctl train --good DIR",
    )


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


def _reference(present: PresentModel, settings: TrainSettings, device: DeviceChoice, reporter: Reporter) -> Learner:
    """Return a PatchCore of the old images, which tells what is unlike them, for detectors that need them all."""
    assert present.split is not None
    plan = TrainingPlan(_dataset(present, present.split), present.split, present.detector.config, device)
    detector, header = fit_reference(settings, plan, reporter)
    return Learner(detector, header, replace(settings, arch=header.arch), device.device, reporter)


def _split(
    present: PresentModel,
    new: Sequence[Sample],
    digests: Mapping[str, str],
    settings: TrainSettings,
    learner: Learner | None,
) -> tuple[Split, Split]:
    """Return the split of all images, and that of the new ones; old images stay in their part.

    New images are held out, unless the learner can score those that it learned from as if it had not. Images that only
    set a threshold are in no part, so that a later candidate can learn from them.
    """
    own = {sample.key: digests[sample.key] for sample in new}
    train = tuple(sorted(new, key=lambda sample: sample.key))
    of_new = Split(train, (), (), own, settings.seed, 0.0, 0.0)
    if settings.recalibrate:
        return present.split or Split((), (), (), {}, settings.seed, 0.0, 0.0), of_new
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


def _dataset(present: PresentModel, split: Split, run: Path | None = None) -> Dataset:
    training = present.header.training
    return Dataset(
        training.dataset, training.category, (run or present.run) / IMAGES, "manifest",
        (*split.train, *split.validation, *split.calibration), present.test,
    )  # fmt: skip


def _manifest_text(split: Split, present: PresentModel) -> str:
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


def _recalibrated(present: PresentModel, split: Split, scores: CollectedScores, *, checked: bool) -> UpdatedDetector:
    """Return the present detector with its scores of the new images."""
    note = "The old images are missing: the new ones were not compared with them, and may be defects called good."
    views, notes = present.calibration.views, () if checked else (note,)
    return UpdatedDetector(THRESHOLD_ALONE, present.detector, FitReport(), (), split, scores, 0, views, notes)


def _learn_alone(
    learner: Learner,
    learned: Mapping[str, tuple[Detector, FitReport]],
    plan: TrainingPlan,
    new: Split,
) -> UpdatedDetector:
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
    return UpdatedDetector("new images alone", detector, report, new.train, plan.split, scores, len(folds))


def _train_on_all(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    present: PresentModel,
    plan: TrainingPlan,
    new: Split,
    session: Session,
    reporter: Reporter,
) -> UpdatedDetector:
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
    return UpdatedDetector("old and new images", detector, report, new.train, plan.split, scores, 0)


def _fit_settings(loaded: LoadedSettings[TrainSettings], detector: Detector) -> FitSettings:
    """Return the settings of the fit: a third of the epochs after a warm start, unless the user gave a number."""
    fitting = fit_settings(loaded.settings, type(detector), detector.config)
    if not detector.warm_start or loaded.origins["epochs"] != WARM_ORIGIN:
        return fitting
    epochs, steps = (math.ceil(_WARM_SHARE * value) for value in (fitting.epochs, fitting.min_steps))
    return replace(fitting, epochs=max(1, epochs), min_steps=steps)


def _finish(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    present: PresentModel,
    plan: TrainingPlan,
    candidate: UpdatedDetector,
    reviews: Reviews,
    before: Mapping[str, float],
    session: Session,
) -> TrainResult:
    """Calibrate and compare the candidate, and write its run."""
    settings = loaded.settings
    runtime = with_views(TorchRuntime.of(candidate.detector, present.header, plan.device.device), candidate.views)
    defects = scores_by_key(runtime, reviews.defects, settings.batch_size, settings.workers)
    doubtful = [one for one in reviews.good if one.key in _unlike(reviews)]
    doubts = collect(runtime, doubtful, batch_size=settings.batch_size, workers=settings.workers) if doubtful else None
    calibration, notes = calibrate_update(present, candidate, defects, doubts)
    model = run / run_folder.MODEL
    scores = before, {**candidate.scores.by_key(), **defects}
    comparison = _compare(present, (model, calibration), reviews, scores, out_of_fold=bool(candidate.folds))
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
        _held_out(candidate, reviews),
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


def _unlike(reviews: Reviews) -> set[str]:
    return {one.key for one in reviews.set_aside if one.reason == "unlike the others"}


def _held_out(candidate: UpdatedDetector, reviews: Reviews) -> int:
    """Return the number of new good images that set the threshold or chose the epoch, and were not learned from."""
    if candidate.way == THRESHOLD_ALONE:
        return len(candidate.scores.keys)
    return sum(one.key in reviews.digests for one in (*candidate.split.calibration, *candidate.split.validation))


def _compare(
    present: PresentModel,
    candidate: tuple[Path, Calibration],
    reviews: Reviews,
    scores: tuple[Mapping[str, float], Mapping[str, float]],
    *,
    out_of_fold: bool,
) -> CandidateComparison:
    """Compare on the new good images with scores of both, and on the defects."""
    unlike = _unlike(reviews)
    notes = [f"{len(unlike)} images that are unlike the others are not counted as good."] if unlike else []
    good = [sample for sample in reviews.good if sample.key not in unlike]
    return compare_scores(
        (present.model, present.calibration),
        candidate,
        pair_scores(good, *scores),
        pair_scores(reviews.defects, *scores),
        calibrated_on_them=True,
        out_of_fold=out_of_fold,
        notes=tuple(notes),
    )


def _training_record(present: PresentModel, candidate: UpdatedDetector) -> Training:
    """Return the record of all images that the candidate learned from."""
    before, new = present.header.training, candidate.new
    if not new:
        return before
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
