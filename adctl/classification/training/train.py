"""Training of a classifier: from settings and labelled images to a tested model file in a new run folder."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from adctl import files, run_folder
from adctl.choices import BALANCES
from adctl.classification.classifier import Classifier
from adctl.classification.config import ClassifierConfig
from adctl.classification.dataset import LabelledDataset, check_contents, digests_of, label_of, open_labelled, without
from adctl.classification.header import ARCH
from adctl.classification.heads import check_head
from adctl.classification.model_file import save_classifier
from adctl.classification.predictions import PredictionSet
from adctl.classification.split import LabelledSplit, hold_out
from adctl.classification.training.fitting import ClassifierPlan, FittedClassifier, fit_classifier
from adctl.classification.training.results import (
    ClassifierResult,
    TestOutcome,
    evaluate_outcome,
    write_results,
)
from adctl.data.roi import encode_region
from adctl.data.split import training_digest
from adctl.detectors.components import backbones
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.engine.checkpoints import FOLDER as CHECKPOINTS
from adctl.engine.checkpoints import CheckpointFolder
from adctl.engine.context import FitContext
from adctl.engine.device import choose_device
from adctl.errors import ImageError, OutputError, UsageError, unknown_name
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.reporting.classifier_report import REPORT, write_page
from adctl.runtimes.classifier import runtime_of
from adctl.scoring.classify import predict_rows
from adctl.tracking import record
from adctl.tracking.loggers.run_loggers import LoggedTrainingLog, Loggers, finished
from adctl.training import resume
from adctl.training.augmentation import Augmentation
from adctl.training.image_shape import choose_size

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import LoadedSettings, TrainSettings
    from adctl.records import Sample

log = logging.getLogger(__name__)

_NOT_FOR_CLASSIFIERS = (
    *("arch", "new_groups", "contaminated", "update", "defects", "confirmed", "trust_reviews", "synthetic", "error"),
    *("loss", "noise_level", "fold", "ray", "ray_cpus", "ray_gpu"),
)
"""Settings of detectors."""

_ONLY_TUNED = ("augment", "epochs", "learning_rate", "weight_decay", "schedule", "warmup", "validation_share")
"""Settings that need a backbone that is trained."""

_CALIBRATION_SHARE = 0.2


@dataclass(frozen=True)
class _Prepared:
    """Plan with what the test needs: its images, those of kinds that were left out, and notes."""

    plan: ClassifierPlan
    unseen: tuple[Sample, ...]
    notes: tuple[str, ...]
    root: Path


def train_classifier(
    loaded: LoadedSettings[TrainSettings],
    reporter: Reporter = SILENT,
    *,
    group: str | None = None,
    failed_loggers: set[str] | None = None,
) -> ClassifierResult:
    """Train a classifier, test it once, and write model, metrics, predictions, charts and page into a run.

    With `folds`, out-of-fold predictions of the training images are made too, and the models of the folds are
    combined.

    Args:
        loaded: The settings with their origins.
        reporter: Receiver of progress.
        group: Name of the grid that the run belongs to, for its loggers.
        failed_loggers: Names of loggers that failed in earlier runs of the grid; changed in place.

    Raises:
        UsageError: A name is unknown, or settings contradict each other.
        DataError: The images or their labels cannot be used.
        TrainingError: The loss is not finite, or memory is too small.
        OutputError: The run cannot be written.
    """
    run, loaded = resume.find_run(loaded)
    prepared = prepare(loaded)
    settings = loaded.settings
    if run is not None:
        resume.check_data(run, prepared.plan.split)  # type: ignore[arg-type]
    names = settings.loggers(epochs=prepared.plan.config.fine_tune != "none")
    loggers = Loggers(names, group, failed_loggers)
    opened = resume.opened_folder(run, loaded, prepared.plan.split, prepared.plan.dataset)  # type: ignore[arg-type]
    with opened as folder, finished(loggers) as own, shared_features() if settings.folds else nullcontext():
        return _train_into(folder, loaded, prepared, own, reporter)


def prepare(loaded: LoadedSettings[TrainSettings]) -> _Prepared:
    """Resolve data, split, settings of the classifier and device.

    Raises:
        UsageError: A name is unknown, or settings contradict each other.
        DataError: The images or their labels cannot be used.
    """
    settings = loaded.settings
    config = check_classifier(loaded)
    dataset = open_labelled(settings)
    digests = digests_of((*dataset.train, *dataset.test))
    unseen: tuple[Sample, ...] = ()
    if config.leave_out:
        dataset, unseen = without(dataset, config.leave_out)
    check_contents(dataset, digests)
    if settings.image_size == "auto" and "image_size" not in settings.options:
        chosen = choose_size(Classifier, config, dataset.train)  # type: ignore[arg-type]
        log.info("Image size %s", chosen)
        config = ClassifierConfig(**{**config.model_dump(), "image_size": chosen.config.image_size})
    split = _split(settings, config, dataset, digests)
    plan = ClassifierPlan(
        config, dataset.classes, split, choose_device(settings.device, settings.gpu).device, dataset.name
    )
    return _Prepared(plan, unseen, dataset.notes, dataset.root)


def classifier_config(settings: TrainSettings) -> ClassifierConfig:
    """Return the settings of the classifier, from the flags with the same names and from --set.

    Raises:
        UsageError: The classifier does not have an option, or a value is not valid.
    """
    flags = {name: getattr(settings, name) for name in ("backbone", "image_size", "roi", "seed")}
    given = {**{name: value for name, value in flags.items() if value not in (None, "auto")}, **settings.options}
    for name in given:
        if name not in ClassifierConfig.model_fields:
            raise unknown_name("option of a classifier", name, ClassifierConfig.model_fields)
    if isinstance(given.get("leave_out"), str):
        given["leave_out"] = [given["leave_out"]]
    if "roi" in given:
        given["roi"] = encode_region(str(given["roi"]))
    # Later fields are checked against earlier ones.
    try:
        return ClassifierConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"The setting --set {name} of a classifier is not valid: {reason}. Got {first['input']!r} instead.",
            f"Its default is {ClassifierConfig.model_fields[name].default!r}.",
        ) from error


def effective_settings(loaded: LoadedSettings[TrainSettings]) -> dict[str, dict[str, Any]]:
    """Return all settings, those of the classifier included, with values and origins; JSON-safe.

    Raises:
        UsageError: An option of the classifier is unknown.
    """
    table = {name: entry for name, entry in loaded.table().items() if name != "options"}
    for name, value in classifier_config(loaded.settings).model_dump(mode="json").items():
        origin = table[name]["from"] if table.get(name, {}).get("value") is not None else "default"
        if name in loaded.settings.options:
            origin = loaded.origins["options"].replace("--options", f"--set {name}")
        table[name] = {"value": value, "from": origin}
    return table


def check_classifier(loaded: LoadedSettings[TrainSettings]) -> ClassifierConfig:
    """Check the settings of a classifier without its images, and return the settings of the network.

    Raises:
        UsageError: A name is unknown, or settings contradict each other.
    """
    settings = loaded.settings
    config = classifier_config(settings)
    if settings.balance not in BALANCES:
        raise unknown_name("treatment of rare kinds", settings.balance, BALANCES)
    backbones.size_step(config.backbone)  # raises if timm has no such model
    tuned = config.fine_tune != "none"
    for name, origin in loaded.origins.items():
        if not origin.startswith("--"):
            continue
        if name in _NOT_FOR_CLASSIFIERS:
            raise UsageError(f"{flag_name(name)} belongs to detectors, not to --task classify.", "Leave it out.")
        if name in _ONLY_TUNED and not tuned:
            raise UsageError(
                f"{flag_name(name)} has no effect on a frozen backbone.",
                "Leave it out, or train the backbone too with --set fine_tune=last.",
            )
    if settings.category is not None and "," in settings.category:
        raise UsageError("A classifier is trained on one category.", "Give one --category, or none.")
    check_head(
        config,
        gamma=settings.focal_gamma if settings.balance == "focal" else 0.0,
        smoothing=settings.label_smoothing,
        mixing=settings.mixup_alpha > 0 or settings.cutmix_alpha > 0,
    )
    return config


def _split(
    settings: TrainSettings, config: ClassifierConfig, dataset: LabelledDataset, digests: dict[str, str]
) -> LabelledSplit:
    train, test = dataset.train, dataset.test
    if not test:
        train, test = hold_out(train, digests, settings.test_share, settings.seed)
    calibration: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    if config.fine_tune != "none":
        share = settings.calibration_share or _CALIBRATION_SHARE
        train, calibration = hold_out(train, digests, share, settings.seed + 1)
        train, validation = hold_out(train, digests, settings.validation_share, settings.seed + 2)
    keys = {sample.key for part in (train, validation, calibration, test) for sample in part}
    return LabelledSplit(
        train, validation, calibration, test, {key: digests[key] for key in sorted(keys)}, settings.seed
    )


def _train_into(
    run: Path, loaded: LoadedSettings[TrainSettings], prepared: _Prepared, loggers: Loggers, reporter: Reporter
) -> ClassifierResult:
    start = time.perf_counter()
    settings, plan = loaded.settings, prepared.plan
    record.training_started(run)
    loggers.start(run, {"arch": ARCH, **plan.config.model_dump(mode="json")})
    context = FitContext(
        reporter,
        LoggedTrainingLog(run, loggers),
        CheckpointFolder(run / CHECKPOINTS, settings.keep_checkpoints or 2),
        _augmentation(settings, plan.config),
    )
    fitted = fit_classifier(settings, plan, context)
    trained_seconds = time.perf_counter() - start
    outcome = _test(loaded, prepared, fitted, reporter)
    folds = None
    if settings.folds is not None:
        from adctl.classification.training.cross_validation import cross_validate

        folds = cross_validate(run, settings, plan, reporter)
    model = run / run_folder.MODEL
    save_classifier(model, fitted.classifier, fitted.header)
    outcome.predictions.manifest["model"] |= {"path": str(model), "sha256": files.sha256_file(model)}
    result = ClassifierResult(
        run=run,
        model=model,
        classes=plan.classes,
        counts=fitted.header.counts,
        images=len(plan.split.train),
        test_images=len(plan.split.test),
        decision=fitted.header.decision,
        metrics=outcome.metrics,
        unknown=outcome.unknown,
        fit=fitted.report,
        seconds=trained_seconds,
        folds=folds,
        notes=prepared.notes,
    )
    _write_manifest(run, loaded, prepared, result)
    try:
        write_results(run, result, outcome)
        with reporter.stage("writing the report"):
            write_page(outcome.predictions, run / REPORT, fitted.classifier, plan.device)
    except OutputError as error:  # the model is complete
        log.warning("%s", error.message)
    CheckpointFolder(run / CHECKPOINTS).clear(settings.keep_checkpoints)
    record.training_finished(run)
    numbers = {name: value for name, value in outcome.metrics.overall.items() if value is not None}
    loggers.log_result(run, model, fitted.report.history, {"seconds": trained_seconds, **numbers})
    return result


def _test(
    loaded: LoadedSettings[TrainSettings],
    prepared: _Prepared,
    fitted: FittedClassifier,
    reporter: Reporter,
) -> TestOutcome:
    """Name the test images, and the images of kinds that were left out."""
    plan, settings, header = prepared.plan, loaded.settings, fitted.header
    runtime = runtime_of(fitted.classifier, header, plan.device)
    samples = (*plan.split.test, *prepared.unseen)
    rows = predict_rows(runtime, samples, settings.batch_size, settings.workers, reporter)
    for row in rows:
        if row.error is not None:
            log.warning("%s It is left out of the test.", row.error)
    manifest = {
        "started": run_folder.timestamp(),
        "model": {"arch": ARCH, "config": header.config},
        "dataset": {"name": plan.dataset},
        "runtime": {"name": runtime.name, "device": runtime.device},
        "settings": loaded.table(),
        "environment": run_folder.environment(),
    }
    predictions = PredictionSet(plan.classes, header.decision, rows, manifest)
    if not predictions.known:
        raise ImageError("None of the test images can be read.", str(rows[0].error))
    return evaluate_outcome(predictions)


def _augmentation(settings: TrainSettings, config: ClassifierConfig) -> Augmentation | None:
    if settings.augment == "none":
        return None
    augmentation = Augmentation(settings.augment, library=settings.augmentation_library, custom=settings.augmentations)
    height, width = config.sides
    augmentation(torch.zeros(2, config.channels, height, width))  # raises errors before training starts
    return augmentation


def _write_manifest(
    run: Path, loaded: LoadedSettings[TrainSettings], prepared: _Prepared, result: ClassifierResult
) -> None:
    plan = prepared.plan
    parts = ("train", "validation", "calibration", "test")
    split: dict[str, Any] = {name: len(getattr(plan.split, name)) for name in parts}
    files.write_json(
        run / run_folder.RUN,
        {
            "schema": "adctl.run/1",
            "task": "classify",
            "finished": run_folder.timestamp(),
            "arch": ARCH,
            "model": {"file": result.model.name, "sha256": files.sha256_file(result.model)},
            "dataset": {
                "name": plan.dataset,
                "category": plan.dataset,
                "layout": "labelled",
                "root": str(prepared.root.absolute()),
                "group": loaded.settings.group,
                "training_digest": training_digest(plan.split.train, plan.split.digests),
            },
            "classes": dict(zip(plan.classes, result.counts, strict=True)),
            "split": split,
            "config": plan.config.model_dump(mode="json"),
            "decision": asdict(result.decision),
            "settings": loaded.table(),
            "device": {"name": str(plan.device), "reason": ""},
            "fit": {key: value for key, value in result.fit.to_dict().items() if key != "history"},
            "seconds": round(result.seconds, 3),
            "environment": run_folder.environment(),
        },
    )


@dataclass(frozen=True)
class ClassifierForecast:
    """Forecast of a training.

    Attributes:
        dataset: Name of the dataset.
        images: Images of each kind in each part of the split.
        config: Settings of the classifier.
        device: Device that computes.
    """

    dataset: str
    images: dict[str, dict[str, int]]
    config: dict[str, Any]
    device: str


def forecast(loaded: LoadedSettings[TrainSettings]) -> ClassifierForecast:
    """Return what a training would do; images are read for their digests only.

    Raises:
        AdctlError: As for `prepare`.
    """
    plan = prepare(loaded).plan
    counts = {
        name: Counter(label_of(sample) for sample in getattr(plan.split, name))
        for name in ("train", "validation", "calibration", "test")
    }
    images = {name: dict(sorted(own.items())) for name, own in counts.items()}
    return ClassifierForecast(plan.dataset, images, plan.config.model_dump(mode="json"), str(plan.device))
