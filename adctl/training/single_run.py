"""Single training run: from dataset and settings to a fitted, calibrated model file in a new run folder."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from adctl import files, run_folder
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.colours import warn_of_colours
from adctl.data.datasets.remote import absolute_path
from adctl.data.depth import warn_of_depth
from adctl.data.folds import split_fold
from adctl.data.groups import group_counts
from adctl.data.labelled import LabelledSource
from adctl.data.loader import ImageSource, keep_images
from adctl.data.preprocess import InputSpec
from adctl.data.roi import encode_region
from adctl.data.split import Split, split_good, training_digest
from adctl.datasets import open_dataset
from adctl.detectors.components import backbones
from adctl.detectors.components.shared_feature_cache import shared_features, unshared
from adctl.detectors.registry import detector_class, package_of
from adctl.engine import distributed
from adctl.engine.checkpoints import FOLDER as CHECKPOINTS
from adctl.engine.checkpoints import CheckpointFolder
from adctl.engine.context import FitContext
from adctl.engine.device import DeviceChoice, choose_device
from adctl.engine.energy import EnergyMeter
from adctl.engine.history import FitReport, FitSettings
from adctl.engine.model_summary import ModelSummary, summarise
from adctl.engine.trainer import FitJob, fit, seed_everything
from adctl.errors import UsageError, unknown_name
from adctl.model_file import DIGEST_LENGTH, ModelHeader, Training, save_model
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, calibration_scores_of, collect
from adctl.thresholds import new_groups
from adctl.thresholds.methods import ThresholdRule, calibrate
from adctl.tracking import record
from adctl.tracking.loggers.run_loggers import LoggedTrainingLog, Loggers, finished
from adctl.training import resume
from adctl.training.auxiliary import open_auxiliary
from adctl.training.image_shape import advise_on_small_defects, choose_size
from adctl.training.out_of_fold import (
    HeldOutRuntime,
    folds_to_refit,
    scores_by_refitting,
    scores_without_refitting,
    units_to_hold_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from adctl.data.datasets.layouts import Dataset
    from adctl.detectors.base import Detector, DetectorConfig
    from adctl.detectors.components.backbones import PretrainedWeights
    from adctl.records import Calibration, CalibrationScores, Sample
    from adctl.training.augmentation import Augmentation
    from adctl.training.auxiliary import AuxiliaryImages
    from adctl.training.image_shape import ChosenSize
    from adctl.training.reviews import UpdateResult

    AfterEpoch = Callable[[TorchRuntime, int, int], None]

log = logging.getLogger(__name__)

_CHECKPOINTS_IN_TRAINING = 2
"""Number of checkpoints during training: the newest, and one more in case its file is lost."""

NEW_GROUPS_RATE = 0.01
"""False-alarm rate of the threshold for a new group."""

_REFERENCE = "patchcore"
"""Detector that judges which images are unlike others, for detectors that must be trained to do so."""

_DETECTOR_FLAGS = ("backbone", "image_size", "roi", "loss", "error", "noise_level")
"""Settings of training that are options of some detectors."""

CALIBRATION_SHARE = 0.2
"""Share of good images held out for the threshold where fitting again is slow: gradient training, and tiles."""

_UNLEARNED_SHARE = 0.8
"""Share of good images for the threshold if none of them is learned from."""

_MIN_STEPS = 1000
"""Minimum optimizer steps when epochs are unset; with fewer, autoencoders underfit on small datasets."""

_DETECTOR_DEFAULTS = ("epochs", "learning_rate", "weight_decay", "schedule", "warmup", "batch_size")
"""Settings whose defaults depend on the detector."""


@dataclass(frozen=True)
class TrainingPlan:
    """Input of a training, resolved from its settings.

    Attributes:
        dataset: The images and their layout.
        split: Good images for training, validation and calibration.
        config: Settings of the detector.
        device: The device, with the reason of its choice.
        size: Size of the network's input that was chosen by the images; None if it was given.
        advice: Advice on the size if small defects may be missed, a sentence or two; None if there is none.
        auxiliary: Labelled images of other categories, or None.
    """

    dataset: Dataset
    split: Split
    config: DetectorConfig
    device: DeviceChoice
    size: ChosenSize | None = None
    advice: str | None = None
    auxiliary: AuxiliaryImages | None = None

    @property
    def learned(self) -> tuple[Sample, ...]:
        """Images of the training: good ones of the category, labelled ones of others, or both."""
        if self.auxiliary is None:
            return self.split.train
        return (*(self.split.train if self.auxiliary.with_good else ()), *self.auxiliary.train)

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """Images that choose the epoch, of the same kinds."""
        if self.auxiliary is None:
            return self.split.validation
        return (*(self.split.validation if self.auxiliary.with_good else ()), *self.auxiliary.validation)


@dataclass(frozen=True)
class TrainedExport:
    """Export at the end of a training, or the reason against it.

    Attributes:
        file: Exported file, which scoring uses by default; None if there is none.
        runtime: Name of the runtime that opens it, or would; None if no other runtime is installed.
        speedup: Speed relative to PyTorch on this machine: measured, or estimated if there is no file; None if unknown.
        seconds: Duration of the export, or its estimate if there is no file.
        reason: Reason why there is no file; empty if there is one.
        command: Command that makes up for it; empty if there is a file.
    """

    file: Path | None
    runtime: str | None
    speedup: float | None
    seconds: float
    reason: str
    command: str


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    Attributes:
        run: Folder of the run.
        model: Model file in that folder.
        sha256: Digest of the model file.
        arch: Name of the detector.
        images: Number of training images.
        calibration: The threshold and the scores it was computed from.
        fit: History and timings.
        seconds: Time from the first image to the model file.
        summary: Size of the network.
        export: Export for a faster runtime; None if it was not wanted.
        energy_j: Energy of the machine meanwhile, joules, other programs included; None if it does not tell.
        update: What was learned and how the model compares with the one that it updates; None for a new model.
    """

    run: Path
    model: Path
    sha256: str
    arch: str
    images: int
    calibration: Calibration
    fit: FitReport
    seconds: float
    summary: ModelSummary
    export: TrainedExport | None = None
    energy_j: float | None = None
    update: UpdateResult | None = None


def plan_training(settings: TrainSettings) -> TrainingPlan:
    """Resolve dataset, split, detector settings and device; image files are read for their digests only.

    Raises:
        UsageError: A name is unknown, a path does not exist, or settings contradict each other.
        DataError: The images cannot be used.
    """
    cls = detector_class(settings.arch)
    config = detector_config(settings)
    device = choose_device(settings.device, settings.gpu)
    dataset = open_dataset(settings)
    warn_of_depth(dataset.train, config.bit_depth)
    warn_of_colours(dataset.train)
    size = choose_size(cls, config, dataset.train) if _sized_by_images(settings) else None
    validation = settings.validation_share if cls.needs_validation else 0.0
    hold_out = cls.needs_validation or config.tile is not None
    split = _split(settings, dataset, validation, hold_out=hold_out, with_good=cls.learns_good(config))
    if settings.new_groups:
        _require_groups(settings, dataset, split)
    config = config if size is None else size.config
    auxiliary = _open_auxiliary(settings, cls, config, dataset)
    return TrainingPlan(dataset, split, config, device, size, advise_on_small_defects(config, dataset.train), auxiliary)


def _open_auxiliary(
    settings: TrainSettings, cls: type[Detector], config: DetectorConfig, dataset: Dataset
) -> AuxiliaryImages | None:
    """Open the labelled images of other categories, if there are any.

    Raises:
        UsageError: The detector learns from good images alone, or a setting does not go together with labels.
        DataError: The images cannot be used.
    """
    if settings.auxiliary is None:
        return None
    if not cls.takes_labels:
        raise UsageError(
            f"{settings.arch} learns from good images alone, without --auxiliary.",
            "Use --arch prompt, or leave it out.",
        )
    if settings.augment != "none" or settings.synthetic is not None or config.tile is not None:
        raise UsageError(
            "--auxiliary cannot be combined with --augment, --synthetic or tiles.",
            "Leave them out; --set learn_from=both adds painted defects.",
        )
    return open_auxiliary(
        settings.auxiliary,
        dataset,
        validation=settings.validation_share,
        seed=settings.seed,
        with_good=cls.learns_good(config),
    )


def _require_groups(settings: TrainSettings, dataset: Dataset, split: Split) -> None:
    """Raise if there are too few groups for a threshold for new groups."""
    if not group_counts(dataset.train):
        raise UsageError(
            "--new-groups needs groups, and the images have none.",
            "Say how to tell them with --group: folder, day, or a name pattern such as 'lot{group}_'.",
        )
    if settings.folds is None and len(group_counts(split.calibration)) == 1:
        raise UsageError(
            "--new-groups needs at least 2 groups for the threshold, and --calibration-share holds out only 1.",
            "Raise --calibration-share, or let each group be held out in turn with --folds.",
        )


def with_chosen_size(loaded: LoadedSettings[TrainSettings], plan: TrainingPlan) -> LoadedSettings[TrainSettings]:
    """Return the settings with the size that was chosen by the images, so that a stored run keeps it."""
    if plan.advice is not None:
        log.info("%s", plan.advice)
    if plan.size is None:
        return loaded
    log.info("Image size %s", plan.size)
    settings = replace(loaded.settings, image_size=plan.config.image_size)
    return LoadedSettings(settings, loaded.origins | {"image_size": "auto"})


def _sized_by_images(settings: TrainSettings) -> bool:
    return settings.image_size == "auto" and "image_size" not in settings.options


def _split(
    settings: TrainSettings, dataset: Dataset, validation: float, *, hold_out: bool, with_good: bool = True
) -> Split:
    if settings.folds is None:
        if settings.fold is not None:
            raise UsageError("--fold needs --folds, the number of folds.", "Give --folds too.")
        share = settings.calibration_share
        if share is None and settings.auxiliary is not None and not with_good:
            share = _UNLEARNED_SHARE
        if share is None:  # without one, images, or whole groups, are scored out of fold
            share = CALIBRATION_SHARE if hold_out else 0.0
        return split_good(dataset.train, calibration=share, validation=validation, seed=settings.seed)
    return split_fold(
        dataset.train,
        dataset.test,
        folds=settings.folds,
        fold=settings.fold,
        validation=validation,
        seed=settings.seed,
    )


def effective_settings(loaded: LoadedSettings[TrainSettings]) -> dict[str, dict[str, Any]]:
    """Return all settings, those of the detector included, with values and origins; JSON-safe.

    Raises:
        UsageError: The detector or one of its options is unknown.
    """
    settings = loaded.settings
    config = detector_config(settings)
    fitting = fit_settings(settings, detector_class(settings.arch), config)
    table = {name: entry for name, entry in loaded.table().items() if name != "options"}
    for name in _DETECTOR_DEFAULTS:
        if getattr(fitting, name) != getattr(settings, name):
            table[name] = {"value": getattr(fitting, name), "from": f"default of {settings.arch}"}
    for name, value in config.model_dump(mode="json").items():
        if name == "image_size" and _sized_by_images(settings):
            continue  # the images decide
        if name in settings.options:
            origin = loaded.origins["options"].replace("--options", f"--set {name}")
        elif table.get(name, {}).get("value") is not None:
            origin = table[name]["from"]
        else:
            origin = f"default of {settings.arch}"
        table[name] = {"value": value, "from": origin}
    return table


def detector_config(settings: TrainSettings) -> DetectorConfig:
    """Return the settings of the detector, from the flags with the same names and from --set.

    Raises:
        UsageError: The detector does not have an option, or a value is not valid.
    """
    cls = detector_class(settings.arch).Config
    flags = {name: getattr(settings, name) for name in _DETECTOR_FLAGS}
    given = {**{name: value for name, value in flags.items() if value not in (None, "auto")}, **settings.options}
    for name in given:
        if name not in cls.model_fields:
            raise unknown_name(f"option of {settings.arch}", name, cls.model_fields)
    if "roi" in given:
        given["roi"] = encode_region(str(given["roi"]))
    if "seed" in cls.model_fields:
        given.setdefault("seed", settings.seed)
    try:
        detector = detector_class(settings.arch)
        return detector.completed(
            _with_masked_margin(detector, cls(**given)),
            weights=settings.weights if detector.takes_base else None,
            epochs=settings.epochs,
            labelled=settings.auxiliary is not None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        flag = flag_name(name) if name in flags else f"--set {name}"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"The setting {flag} of {settings.arch} is not valid: {reason}. Got {first['input']!r} instead.",
            f"Its default is {cls.model_fields[name].default!r}." if name in cls.model_fields else "",
        ) from error


def _with_masked_margin(cls: type[Detector], config: DetectorConfig) -> DetectorConfig:
    """Return the settings, with masked margins if there are margins that the detector can mask."""
    if config.resize != "pad" or "margin" in config.model_fields_set or not cls.masks_margin(config):
        return config
    return type(config)(**{**config.model_dump(exclude_unset=True), "margin": "masked"})


def fit_settings(settings: TrainSettings, cls: type[Detector], config: DetectorConfig) -> FitSettings:
    """Return the settings of the fit: given values, else defaults of the detector, else general defaults."""
    shared = {field.name for field in fields(FitSettings)} & set(names_of(TrainSettings))
    defaults = cls.training_defaults(config)
    if settings.epochs == 0 and not cls.scores_untrained:
        raise UsageError(f"{settings.arch} cannot score untrained: --epochs must be at least 1.", "Leave it out.")
    values = {name: getattr(settings, name) for name in shared}
    for name in _DETECTOR_DEFAULTS:
        if values[name] in (None, "auto"):
            values[name] = defaults.get(name, getattr(FitSettings, name))
    if settings.epochs is None:
        values["min_steps"] = defaults.get("min_steps", _MIN_STEPS)
    return FitSettings(**values)


def train_once(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT, loggers: Loggers | None = None
) -> TrainResult | None:
    """Fit a detector on good images, calibrate it on held-out images, and write the model file.

    Args:
        loaded: The settings and their origins; both are stored in `run.json`.
        reporter: Receiver of progress.
        loggers: Loggers that the caller finishes after it has tested the model; None uses those of the settings.

    Returns:
        The result; None in secondary processes of a distributed training, which write nothing.

    Raises:
        UsageError: A name is unknown, a path does not exist, or settings contradict each other.
        DataError: The images cannot be used.
        TrainingError: The loss is not finite, or memory is too small.
        OutputError: The run cannot be written.
        MissingExtraError: The package of a logger is not installed.
    """
    run, loaded = resume.find_run(loaded)
    if loggers is not None:
        return _train_once(run, loaded, reporter, loggers)
    with finished(new_loggers(loaded.settings)) as own:
        return _train_once(run, loaded, reporter, own)


def new_loggers(settings: TrainSettings, group: str | None = None, failed: set[str] | None = None) -> Loggers:
    """Return the loggers of the settings for one run; see `Loggers`.

    Raises:
        MissingExtraError: The package of a logger is not installed.
    """
    epochs = detector_class(settings.arch).needs_validation
    return Loggers(settings.loggers(epochs=epochs), group, failed)


def _train_once(
    run: Path | None, loaded: LoadedSettings[TrainSettings], reporter: Reporter, loggers: Loggers
) -> TrainResult | None:
    """Train into a new folder, or into that of an interrupted run."""
    settings = loaded.settings
    with reporter.stage("reading the list of images"):
        plan = plan_training(settings)
    log.debug("Device %s: %s.", plan.device.device, plan.device.reason)
    for note in plan.dataset.notes:
        log.info("%s", note)
    loaded = with_chosen_size(loaded, plan)
    settings = loaded.settings
    if run is not None:
        resume.check_data(run, plan.split)
    if distributed.is_secondary_process():
        checkpoints = None if run is None else CheckpointFolder(run / CHECKPOINTS)
        context = FitContext(checkpoints=checkpoints, augment=_augmentation(settings, plan.config))
        _fit(new_detector(settings, plan.config)[0], settings, plan, context, image_sources(settings, plan))
        return None
    with resume.opened_folder(run, loaded, plan.split, plan.dataset.category) as folder:
        return train_into(folder, loaded, plan, reporter, loggers=loggers)


def train_into(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    plan: TrainingPlan,
    reporter: Reporter,
    calibration_scores: CalibrationScores | None = None,
    loggers: Loggers | None = None,
) -> TrainResult:
    """Train into the folder of a run, which already contains its settings.

    Args:
        run: Folder of the run.
        loaded: The settings and their origins.
        plan: The plan of these settings.
        reporter: Receiver of progress.
        calibration_scores: Scores for the calibration; None scores the calibration part of the plan's split or, if it
            is empty, the training images out of fold.
        loggers: Loggers, which the caller finishes; None logs to the folder only.

    Raises:
        TrainingError: The loss is not finite, or memory is too small.
        DataError: An image cannot be used.
        OutputError: The run cannot be written.
    """
    settings = loaded.settings
    session = Session.begin(run, loaded, plan, loggers or Loggers(()))
    out_of_fold = calibration_scores is None and not plan.split.calibration
    with _kept_in_memory() if out_of_fold else contextlib.nullcontext():
        images = image_sources(settings, plan)  # read while the rest is prepared
        context = session.fit_context(run, settings, plan, reporter)
        detector, header, report = _fit_new(settings, plan, context, images)
        if calibration_scores is None:
            score = _score_out_of_fold if out_of_fold else _score_calibration_images
            calibration_scores = score(detector, header, settings, plan, reporter)
    header = header.with_calibration(_default_calibration(settings, calibration_scores))
    return save_trained(run, detector, header, report, loaded, plan, session)


@dataclass(frozen=True)
class Session:
    """Clock, energy meter and loggers of a run, from its start to its model file.

    Attributes:
        start: Time of the start, as `time.perf_counter` gives it.
        meter: Meter of the energy.
        loggers: Loggers, which the caller finishes.
    """

    start: float
    meter: EnergyMeter
    loggers: Loggers

    @classmethod
    def begin(cls, run: Path, loaded: LoadedSettings[TrainSettings], plan: TrainingPlan, loggers: Loggers) -> Session:
        """Start clock, meter and loggers, and enter the run in the index."""
        session = cls(time.perf_counter(), EnergyMeter(_torch_devices(loaded.settings, plan)), loggers)
        record.training_started(run)
        loggers.start(run, _parameters(loaded, plan))
        return session

    def fit_context(self, run: Path, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> FitContext:
        """Return progress, logs, checkpoints in the folder of the run, and augmentation of a fit."""
        checkpoints = CheckpointFolder(run / CHECKPOINTS, settings.keep_checkpoints or _CHECKPOINTS_IN_TRAINING)
        training_log = LoggedTrainingLog(run, self.loggers)
        return FitContext(reporter, training_log, checkpoints, _augmentation(settings, plan.config))


def save_trained(
    run: Path,
    detector: Detector,
    header: ModelHeader,
    report: FitReport,
    loaded: LoadedSettings[TrainSettings],
    plan: TrainingPlan,
    session: Session,
    parent: dict[str, str] | None = None,
) -> TrainResult:
    """Write the model file and the manifest of a run, remove its checkpoints, and enter the run in the index.

    Args:
        run: Folder of the run.
        detector: Fitted detector.
        header: Its header, with the calibration.
        report: Report of the fit.
        loaded: The settings and their origins.
        plan: The plan of these settings.
        session: Clock, energy meter and loggers of the run.
        parent: Run, model file and digest of the model that was updated, or None.

    Raises:
        OutputError: A file cannot be written.
    """
    model = run / run_folder.MODEL
    save_model(model, detector, header)
    assert header.calibration is not None
    size = detector.input
    with unshared():
        zeros = torch.zeros(1, size.planes, size.height, size.width, device=plan.device.device)
        summary = summarise(detector, zeros)
    result = TrainResult(
        run=run,
        model=model,
        sha256=files.sha256_file(model),
        arch=header.arch,
        images=header.training.images,
        calibration=header.calibration,
        fit=report,
        seconds=time.perf_counter() - session.start,
        summary=summary,
        energy_j=session.meter.stop(),
    )
    _write_manifest(result, loaded, plan, header.training.digest, parent)
    run_folder.set_last(loaded.settings.runs, "model", model)
    CheckpointFolder(run / CHECKPOINTS).clear(loaded.settings.keep_checkpoints)
    record.training_finished(run)
    session.loggers.log_result(run, model, report.history, _numbers(result))
    return result


def _parameters(loaded: LoadedSettings[TrainSettings], plan: TrainingPlan) -> dict[str, Any]:
    """Return what a run depends on, for loggers: settings that differ from their defaults, data and configuration."""
    changed = {name: entry["value"] for name, entry in loaded.table().items() if entry["from"] != "default"}
    data = {"dataset": plan.dataset.name, "category": plan.dataset.category, "seed": loaded.settings.seed}
    return {"arch": loaded.settings.arch, **data, **changed, **plan.config.model_dump(mode="json")}


def _numbers(result: TrainResult) -> dict[str, float]:
    """Return the numbers of a run for loggers."""
    energy = {} if result.energy_j is None else {"energy_j": result.energy_j}
    threshold = float(result.calibration.threshold)
    return {"seconds": result.seconds, "images": float(result.images), "threshold": threshold, **energy}


@contextlib.contextmanager
def _kept_in_memory() -> Iterator[None]:
    """Keep decoded images and features of a frozen backbone, which scores out of fold use again."""
    with shared_features(), keep_images():
        yield


def refit(
    settings: TrainSettings,
    plan: TrainingPlan,
    samples: tuple[Sample, ...],
    reporter: Reporter = SILENT,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Detector, ModelHeader]:
    """Fit a new detector with the settings of a run on other good images; nothing is written.

    Args:
        settings: Settings of the run.
        plan: The plan of these settings; its validation images choose the best epoch.
        samples: Good images for training, all from the plan's split.
        reporter: Receiver of progress.
        after_epoch: Function called after each epoch with the detector as a runtime, the number of the epoch and the
            number of epochs; it may raise to end the fit. None for none.

    Returns:
        The detector, and its header without a calibration.

    Raises:
        TrainingError: The loss is not finite, or memory is too small.
    """
    context = FitContext(reporter, augment=_augmentation(settings, plan.config))
    part = replace(plan, split=replace(plan.split, train=samples))
    detector, header, _ = _fit_new(settings, part, context, image_sources(settings, part), after_epoch)
    return detector, header


def fit_reference(settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> tuple[Detector, ModelHeader]:
    """Fit a PatchCore to the training images of any detector, and calibrate it out of fold; nothing is written.

    Args:
        settings: Settings that compute: device, threads, batch size.
        plan: Plan of the other detector; size, channels and region of its input are kept, tiles and scales are not.
        reporter: Receiver of progress.

    Raises:
        TrainingError: Memory is too small.
    """
    shared = {"image_size", "channels", "resize", "bit_depth", "roi"}
    given = TrainSettings(arch=_REFERENCE, workers=settings.workers, batch_size=settings.batch_size)
    config = detector_class(_REFERENCE).Config(**plan.config.model_dump(include=shared))
    part = replace(plan, config=config, split=replace(plan.split, validation=(), calibration=()))
    detector, header, _ = _fit_new(given, part, FitContext(reporter), image_sources(given, part))
    scores = _score_out_of_fold(detector, header, given, part, reporter)
    return detector, header.with_calibration(_default_calibration(given, scores))


def _fit_new(
    settings: TrainSettings,
    plan: TrainingPlan,
    context: FitContext,
    images: tuple[ImageSource, ImageSource | None],
    after_epoch: AfterEpoch | None = None,
) -> tuple[Detector, ModelHeader, FitReport]:
    """Fit a new detector; return it with its header, which has no calibration, and the report."""
    with context.reporter.stage("building the network"):
        detector, weights = new_detector(settings, plan.config)
    header = ModelHeader(
        settings.arch,
        plan.config.model_dump(mode="json"),
        _training_record(plan, weights),
        package=package_of(settings.arch),
    )
    if after_epoch is not None:
        context = replace(context, after_epoch=_with_runtime(after_epoch, header, plan))
    return detector, header, _fit(detector, settings, plan, context, images)


def _with_runtime(
    after_epoch: AfterEpoch, header: ModelHeader, plan: TrainingPlan
) -> Callable[[Detector, int, int], None]:
    def call(detector: Detector, epoch: int, epochs: int) -> None:
        after_epoch(TorchRuntime.of(detector, header, plan.device.device), epoch, epochs)

    return call


def new_detector(settings: TrainSettings, config: DetectorConfig) -> tuple[Detector, PretrainedWeights | None]:
    """Create a detector with the pretrained weights of its backbone; return it with these weights, if any.

    Raises:
        UsageError: Weights are given for a detector without a backbone.
    """
    seed_everything(settings.seed)
    detector = detector_class(settings.arch)(config)
    name = detector.backbone_name
    if name is None:
        if settings.weights is not None and not detector.takes_base:
            raise UsageError(f"{settings.arch} has no pretrained backbone for --weights.", "Leave the flag out.")
        return detector, None
    weights = backbones.find_weights(name, settings.weights)
    if weights is not None:
        detector.load_pretrained(weights.tensors)
    return detector, weights


def image_sources(settings: TrainSettings, plan: TrainingPlan) -> tuple[ImageSource, ImageSource | None]:
    """Start to read the training images; return them and the validation images, None if there are none."""
    spec = InputSpec.from_config(plan.config.model_dump())

    kind = ImageSource if plan.auxiliary is None else LabelledSource

    def source(samples: Any, *, reuse: bool) -> ImageSource:
        return kind(samples, spec, workers=settings.workers, reuse=reuse, cache=settings.cache)

    repeated = detector_class(settings.arch).needs_validation
    train = source(plan.learned, reuse=repeated)
    if settings.devices is None:  # other processes read for themselves
        train.read_ahead()
    return train, source(plan.held_out, reuse=True) if plan.held_out else None


def _fit(
    detector: Detector,
    settings: TrainSettings,
    plan: TrainingPlan,
    context: FitContext,
    images: tuple[ImageSource, ImageSource | None],
) -> FitReport:
    job = FitJob(
        detector,
        *images,
        fit_settings(settings, type(detector), plan.config),
        plan.device.device,
        context,
        resume=settings.resume is not None,
    )
    return fit(job, _devices(settings, plan))


def _devices(settings: TrainSettings, plan: TrainingPlan) -> distributed.Devices | None:
    if settings.devices is None:
        return None
    return distributed.parse_devices(settings.devices, plan.device.device.type)


def _torch_devices(settings: TrainSettings, plan: TrainingPlan) -> list[torch.device]:
    several = _devices(settings, plan)
    if several is None:
        return [plan.device.device]
    return [torch.device(several.kind, number) for number in several.numbers]


def _augmentation(settings: TrainSettings, config: DetectorConfig) -> Augmentation | None:
    """Return the augmentation of training images, or None.

    Raises:
        UsageError: A custom transform is unknown or does not fit the images.
    """
    if settings.augment == "none" and settings.synthetic is None:
        return None
    from adctl.data.synthetic import parse_kinds
    from adctl.training.augmentation import Augmentation

    augmentation = Augmentation(
        settings.augment,
        library=settings.augmentation_library,
        custom=settings.augmentations,
        synthetic=parse_kinds(settings.synthetic) if settings.synthetic else None,
    )
    size = InputSpec.from_config(config.model_dump())
    augmentation(torch.zeros(2, size.channels, size.height, size.width))  # raises errors before training starts
    return augmentation


def _score_calibration_images(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> CalibrationScores:
    runtime = TorchRuntime.of(detector, header, plan.device.device)
    with reporter.stage("calibrating"):
        good = collect(runtime, plan.split.calibration, batch_size=settings.batch_size, workers=settings.workers)
    return calibration_scores_of(good)


def _score_out_of_fold(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> CalibrationScores:
    """Score each training image as a detector that did not learn from it would."""
    device, folds = plan.device.device, units_to_hold_out(detector, plan.split)
    if folds:
        runtime = HeldOutRuntime.of(detector, header, device)
        with shared_features() as features, features.uncounted():
            good = scores_without_refitting(runtime, plan.split, folds, reporter, settings.workers)
        return calibration_scores_of(good, folds=len(folds))

    def fit_others(samples: Sequence[Sample]) -> tuple[Detector, ModelHeader]:
        return refit(replace(settings, devices=None), plan, tuple(samples), reporter)

    def score_fold(fitted: Detector, its_header: ModelHeader, samples: Sequence[Sample]) -> CollectedScores:
        runtime = TorchRuntime.of(fitted, its_header, device)
        return collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)

    folds = folds_to_refit(plan.split)
    log.info(
        "For the threshold, the detector is fitted %d more times, each time without a part of the images: the training "
        "takes two to four times as long. --calibration-share %g holds out images instead.",
        len(folds),
        CALIBRATION_SHARE,
    )
    _warn_of_large_folds(folds)
    with shared_features() as features, features.uncounted():
        good = scores_by_refitting(plan.split.train, folds, fit_others, score_fold)
    return calibration_scores_of(good, folds=len(folds))


def _warn_of_large_folds(folds: Sequence[Sequence[Sample]]) -> None:
    """Warn if a fit without one of the folds learns from a minority of the images: groups are of very unequal size."""
    images, largest = sum(map(len, folds)), max(map(len, folds))
    if largest > images / 2:
        log.warning(
            "One group has %d of the %d images, so the threshold rests on a fit to the other %d: it is too high, and "
            "defects may pass. Give smaller groups, or leave out --group.",
            largest,
            images,
            images - largest,
        )


def _default_calibration(settings: TrainSettings, scores: CalibrationScores) -> Calibration:
    """Compute the calibration by the default rule; `adctl calibrate` applies other rules later."""
    # A fold may hold out a single group; the calibration of the whole cross-validation has all of them.
    for_groups = settings.new_groups and settings.fold is None
    rule = ThresholdRule(new_groups.METHOD, NEW_GROUPS_RATE) if for_groups else ThresholdRule()
    calibration, notes = calibrate(rule, scores)
    for note in notes:
        log.log(logging.WARNING if scores.groups else logging.INFO, "%s", note)
    return calibration


def _training_record(plan: TrainingPlan, weights: PretrainedWeights | None) -> Training:
    known = plan.split.digests | (plan.auxiliary.digests if plan.auxiliary else {})
    digests = sorted(known[sample.key][:DIGEST_LENGTH] for sample in plan.learned)
    return Training(
        dataset=plan.dataset.name,
        category=plan.dataset.category,
        images=len(plan.learned),
        digest=training_digest(plan.learned, known),
        image_digests=tuple(digests),
        backbone_weights=None if weights is None else f"{weights.source} sha256:{weights.sha256}",
    )


def _write_manifest(
    result: TrainResult,
    loaded: LoadedSettings[TrainSettings],
    plan: TrainingPlan,
    digest: str,
    parent: dict[str, str] | None,
) -> None:
    settings = loaded.settings
    dataset = plan.dataset
    files.write_json(
        result.run / run_folder.RUN,
        {
            "schema": "adctl.run/1",
            "finished": run_folder.timestamp(),
            "arch": settings.arch,
            "model": {"file": result.model.name, "sha256": result.sha256},
            "dataset": {
                "name": dataset.name,
                "category": dataset.category,
                "layout": dataset.layout,
                "root": str(dataset.root.absolute()),
                **{
                    name: absolute_path(path) if (path := getattr(settings, name)) else None
                    for name in ("good", "test", "masks")
                },
                "group": settings.group if parent is None else None,  # the manifest of an update names the groups
                "training_digest": digest,
                **({"categories": dataset.category.split("+")} if settings.one_model else {}),
            },
            **({"parent": parent} if parent else {}),
            "split": {name: len(getattr(plan.split, name)) for name in ("train", "validation", "calibration")},
            "config": plan.config.model_dump(mode="json"),
            "calibration": asdict(result.calibration),
            "settings": loaded.table(),
            "device": {"name": str(plan.device.device), "reason": plan.device.reason},
            "fit": {key: value for key, value in result.fit.to_dict().items() if key != "history"},
            "summary": asdict(result.summary),
            "seconds": round(result.seconds, 3),
            "energy_j": result.energy_j,
            "environment": run_folder.environment(),
        },
    )
