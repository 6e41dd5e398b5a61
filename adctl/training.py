"""Training: data set and settings to one fitted, calibrated model file in a run folder of its own."""

from __future__ import annotations

import csv
import io
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from adctl import backbones, calibration, files, runs
from adctl.config import TrainSettings, flag_name
from adctl.data.loader import ImageSource
from adctl.data.split import Split, split_good, training_digest
from adctl.datasets import open_dataset
from adctl.detectors.registry import detector_class
from adctl.engine.device import DeviceChoice, choose_device
from adctl.engine.trainer import FitReport, Plan, fit, seed_everything
from adctl.errors import UsageError, unknown_name
from adctl.model_file import ModelHeader, Training, save_model
from adctl.predicting import collect
from adctl.progress import SILENT, Reporter
from adctl.runtimes.torch import TorchRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.backbones import PretrainedWeights
    from adctl.config import Loaded
    from adctl.data.layouts import Dataset
    from adctl.detectors.contract import Detector, DetectorConfig
    from adctl.records import Calibration

log = logging.getLogger(__name__)

DIGEST_LENGTH = 16
"""Hexadecimal digits kept of each training image's digest: enough to recognise it, small in the header."""


@dataclass(frozen=True)
class Understanding:
    """What training would do, before any of it is done.

    Attributes:
        dataset: The images and their layout.
        split: The good images to learn from, to validate and to calibrate on.
        config: The detector's settings.
        device: Where it would be computed, and why.
    """

    dataset: Dataset
    split: Split
    config: DetectorConfig
    device: DeviceChoice


@dataclass(frozen=True)
class TrainResult:
    """What training made.

    Attributes:
        run: The run's folder.
        model: The model file in it.
        sha256: Of the model file.
        arch: The detector.
        images: Good images learned from.
        calibration: The threshold and what it rests on.
        fit: History and timings.
        seconds: From the first image read to the model file written.
    """

    run: Path
    model: Path
    sha256: str
    arch: str
    images: int
    calibration: Calibration
    fit: FitReport
    seconds: float


def understand(settings: TrainSettings) -> Understanding:
    """Resolve data set, split, detector settings and device; read no image but to digest its bytes.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        DataError: The images cannot be used as they are.
    """
    cls = detector_class(settings.arch)
    config = detector_config(settings)
    device = choose_device(settings.device, settings.gpu)
    dataset = open_dataset(settings)
    validation = settings.validation_share if cls.needs_validation else 0.0
    split = split_good(dataset.train, calibration=settings.calibration_share, validation=validation, seed=settings.seed)
    return Understanding(dataset, split, config, device)


def effective(loaded: Loaded[TrainSettings]) -> dict[str, dict[str, Any]]:
    """Every setting, the detector's own included, with its value and where it came from; JSON-safe.

    Raises:
        UsageError: The detector or one of its options is unknown.
    """
    settings = loaded.settings
    config = detector_config(settings).model_dump(mode="json")
    table = {name: entry for name, entry in loaded.table().items() if name != "options"}
    for name, value in config.items():
        if name in settings.options:
            origin = loaded.origins["options"].replace("--options", f"--set {name}")
        elif table.get(name, {}).get("value") is not None:
            origin = table[name]["from"]
        else:
            origin = f"default of {settings.arch}"
        table[name] = {"value": value, "from": origin}
    return table


def detector_config(settings: TrainSettings) -> DetectorConfig:
    """The detector's own settings, from the flags that are named after them and from --set.

    Raises:
        UsageError: The detector has no such option, or a value is out of bounds.
    """
    cls = detector_class(settings.arch).Config
    flags = {"backbone": settings.backbone, "image_size": settings.image_size}
    given = {**{name: value for name, value in flags.items() if value is not None}, **settings.options}
    for name in given:
        if name not in cls.model_fields:
            raise unknown_name(f"option of {settings.arch}", name, cls.model_fields)
    if "seed" in cls.model_fields:
        given.setdefault("seed", settings.seed)
    try:
        return cls(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        flag = flag_name(name) if name in flags else f"--set {name}"
        raise UsageError(
            f"The setting {flag} of {settings.arch} is not valid: {first['msg']}. Got {first['input']!r} instead.",
            f"Its default is {cls.model_fields[name].default!r}." if name in cls.model_fields else "",
        ) from error


def train(loaded: Loaded[TrainSettings], reporter: Reporter = SILENT) -> TrainResult:
    """Fit a detector on good images, calibrate it on held-out ones, and write the model file.

    Args:
        loaded: The settings and their origins; both are kept in `run.json`.
        reporter: Told how far it is.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        DataError: The images cannot be used as they are.
        TrainingError: Fitting cannot go on.
        OutputError: The run cannot be written.
    """
    settings = loaded.settings
    plan = understand(settings)
    log.info("Device %s: %s.", plan.device.device, plan.device.reason)
    for note in plan.dataset.notes:
        log.info("%s", note)
    run = runs.new_folder(settings.runs, settings.arch, plan.dataset.category, name=settings.name)
    try:
        return _train_into(run, loaded, plan, reporter)
    except BaseException:
        _remove_if_empty(run)
        raise


def _train_into(run: Path, loaded: Loaded[TrainSettings], plan: Understanding, reporter: Reporter) -> TrainResult:
    settings = loaded.settings
    start = time.perf_counter()
    seed_everything(settings.seed)
    detector, weights = _new_detector(settings, plan.config)
    report = _fit(detector, settings, plan, reporter)
    header = ModelHeader(settings.arch, plan.config.model_dump(mode="json"), _training(plan, weights))
    header = header.calibrated(_first_calibration(detector, header, settings, plan, reporter))
    model = run / runs.MODEL
    save_model(model, detector, header)
    assert header.calibration is not None
    result = TrainResult(
        run=run,
        model=model,
        sha256=files.sha256_file(model),
        arch=settings.arch,
        images=len(plan.split.train),
        calibration=header.calibration,
        fit=report,
        seconds=time.perf_counter() - start,
    )
    _write_records(result, loaded, plan)
    runs.remember(settings.runs, "model", model)
    return result


def _new_detector(settings: TrainSettings, config: DetectorConfig) -> tuple[Detector, PretrainedWeights | None]:
    detector = detector_class(settings.arch)(config)
    name = detector.backbone_name
    if name is None:
        if settings.weights is not None:
            raise UsageError(f"{settings.arch} has no pretrained backbone for --weights.", "Leave the flag out.")
        return detector, None
    weights = backbones.find_weights(name, settings.weights)
    if weights is not None:
        detector.load_pretrained(weights.tensors)
    return detector, weights


def _fit(detector: Detector, settings: TrainSettings, plan: Understanding, reporter: Reporter) -> FitReport:
    phases = detector.to(plan.device.device).phases()
    size = detector.input

    def source(samples: Any, *, reuse: bool) -> ImageSource:
        return ImageSource(samples, size.height, size.width, workers=settings.workers, reuse=reuse)

    repeated = len(phases) > 1 or type(detector).needs_validation
    return fit(
        detector,
        phases,
        source(plan.split.train, reuse=repeated),
        source(plan.split.validation, reuse=True) if plan.split.validation else None,
        Plan(
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            patience=settings.patience,
            precision=settings.precision,
            seed=settings.seed,
        ),
        plan.device,
        reporter,
    )


def _first_calibration(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: Understanding, reporter: Reporter
) -> Calibration:
    """A model leaves training with a verdict; `adctl calibrate` chooses other thresholds later."""
    runtime = TorchRuntime.of(detector, header, plan.device.device)
    with reporter.stage("calibrating"):
        good = collect(runtime, plan.split.calibration, batch_size=settings.batch_size, workers=settings.workers)
    for message in good.skipped:
        log.warning("%s", message)
    chosen, note = calibration.calibrate("percentile", good.scores, good.cells)
    if note:
        log.info("%s", note)
    return chosen


def _training(plan: Understanding, weights: PretrainedWeights | None) -> Training:
    digests = sorted(plan.split.digests[sample.key][:DIGEST_LENGTH] for sample in plan.split.train)
    return Training(
        dataset=plan.dataset.name,
        category=plan.dataset.category,
        images=len(plan.split.train),
        digest=training_digest(plan.split.train, plan.split.digests),
        image_digests=tuple(digests),
        backbone_weights=None if weights is None else f"{weights.source} sha256:{weights.sha256}",
    )


def _write_records(result: TrainResult, loaded: Loaded[TrainSettings], plan: Understanding) -> None:
    files.write_json(result.run / runs.SPLIT, plan.split.to_dict())
    if result.fit.history:
        files.write_text(result.run / "history.csv", _history_csv(result.fit))
    settings = loaded.settings
    dataset = plan.dataset
    files.write_json(
        result.run / runs.RUN,
        {
            "schema": "adctl.run/1",
            "finished": runs.now(),
            "arch": settings.arch,
            "model": {"file": result.model.name, "sha256": result.sha256},
            "dataset": {
                "name": dataset.name,
                "category": dataset.category,
                "layout": dataset.layout,
                "root": str(dataset.root.absolute()),
                **{
                    name: str(path.absolute()) if (path := getattr(settings, name)) else None
                    for name in ("good", "test", "masks")
                },
                "training_digest": training_digest(plan.split.train, plan.split.digests),
            },
            "split": {name: len(getattr(plan.split, name)) for name in ("train", "validation", "calibration")},
            "config": plan.config.model_dump(mode="json"),
            "calibration": asdict(result.calibration),
            "settings": loaded.table(),
            "device": {"name": str(plan.device.device), "reason": plan.device.reason},
            "fit": {key: value for key, value in result.fit.to_dict().items() if key != "history"},
            "seconds": round(result.seconds, 3),
            "environment": runs.environment(),
        },
    )


def _history_csv(report: FitReport) -> str:
    out = io.StringIO()
    terms = sorted(report.history[0].terms)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["epoch", "loss", *terms, "validation", "learning_rate", "seconds"])
    for epoch in report.history:
        values = [epoch.terms[name] for name in terms]
        writer.writerow([epoch.number, epoch.loss, *values, epoch.validation, epoch.learning_rate, epoch.seconds])
    return out.getvalue()


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        log.debug("%s is kept: it holds files.", folder)
