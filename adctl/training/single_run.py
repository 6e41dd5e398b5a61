"""Single training run: from dataset and settings to a fitted, calibrated model file in a new run folder."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from adctl import files, run_folder
from adctl.data.datasets.remote import absolute_path
from adctl.data.loader import keep_images
from adctl.detectors.components.shared_feature_cache import shared_features, unshared
from adctl.detectors.registry import detector_class
from adctl.engine import distributed
from adctl.engine.checkpoints import FOLDER as CHECKPOINTS
from adctl.engine.checkpoints import CheckpointFolder
from adctl.engine.context import FitContext
from adctl.engine.energy import EnergyMeter
from adctl.engine.model_summary import ModelSummary, summarise
from adctl.model_file import ModelHeader, save_model
from adctl.progress import SILENT, Reporter
from adctl.tracking import record
from adctl.tracking.loggers.run_loggers import LoggedTrainingLog, Loggers, finished
from adctl.training import resume
from adctl.training.default_threshold import default_calibration, score_held_out
from adctl.training.fitting import augmentation_of, fit_detector, fit_new, image_sources, new_detector, torch_devices
from adctl.training.plan import plan_training, with_chosen_size
from adctl.training.unlike_images import leave_out_unlike

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adctl.config import LoadedSettings, TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.history import FitReport
    from adctl.records import Calibration, CalibrationScores
    from adctl.training.plan import TrainingPlan
    from adctl.training.reviews import SetAside, UpdateResult


log = logging.getLogger(__name__)

_CHECKPOINTS_IN_TRAINING = 2
"""Number of checkpoints during training: the newest, and one more in case its file is lost."""


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
        set_aside: Images that --contaminated left out as unlike all others, the most unlike first.
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
    set_aside: tuple[SetAside, ...] = ()
    update: UpdateResult | None = None


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
    if settings.contaminated is not None:
        plan = leave_out_unlike(settings, plan, reporter)
    if run is not None:
        resume.check_data(run, plan.split)
    if distributed.is_secondary_process():
        checkpoints = None if run is None else CheckpointFolder(run / CHECKPOINTS)
        context = FitContext(checkpoints=checkpoints, augment=augmentation_of(settings, plan.config))
        fit_detector(new_detector(settings, plan.config)[0], settings, plan, context, image_sources(settings, plan))
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
        detector, header, report = fit_new(settings, plan, context, images)
        if calibration_scores is None:
            calibration_scores = score_held_out(detector, header, settings, plan, reporter)
    header = header.with_calibration(default_calibration(settings, calibration_scores))
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
        session = cls(time.perf_counter(), EnergyMeter(torch_devices(loaded.settings, plan)), loggers)
        record.training_started(run)
        loggers.start(run, _parameters(loaded, plan))
        return session

    def fit_context(self, run: Path, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> FitContext:
        """Return progress, logs, checkpoints in the folder of the run, and augmentation of a fit."""
        checkpoints = CheckpointFolder(run / CHECKPOINTS, settings.keep_checkpoints or _CHECKPOINTS_IN_TRAINING)
        training_log = LoggedTrainingLog(run, self.loggers)
        return FitContext(reporter, training_log, checkpoints, augmentation_of(settings, plan.config))


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
        set_aside=plan.set_aside,
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
            **({"set_aside": [asdict(one) for one in result.set_aside]} if result.set_aside else {}),
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
