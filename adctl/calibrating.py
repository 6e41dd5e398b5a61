"""Choosing a model's thresholds again: held-out good images (and labelled defects) to a new model file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adctl import calibration, files, runs
from adctl.data.layouts import list_images
from adctl.data.split import Split
from adctl.datasets import dataset_of_run
from adctl.errors import DataError, UsageError
from adctl.model_file import read_header, recalibrate
from adctl.predicting import GoodScores, collect
from adctl.progress import SILENT, Reporter
from adctl.runtimes.contract import open_runtime
from adctl.training import DIGEST_LENGTH
from adctl.tta import parse_views, with_views

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import CalibrateSettings, Loaded
    from adctl.records import Calibration, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateResult:
    """What calibrating made.

    Attributes:
        source: The model file it started from.
        model: The calibrated model file.
        calibration: The thresholds and what they rest on.
        previous: The thresholds before, or None.
        note: What the user should know of them, or None.
    """

    source: Path
    model: Path
    calibration: Calibration
    previous: Calibration | None
    note: str | None


def calibrate(loaded: Loaded[CalibrateSettings], reporter: Reporter = SILENT) -> CalibrateResult:
    """Choose thresholds from images the model did not learn from, and write them into a model file.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: The model or the images do not exist, or flags contradict each other.
        DataError: Too few usable images.
        OutputError: The model file cannot be written.
    """
    settings = loaded.settings
    if settings.in_place and settings.out is not None:
        raise UsageError("--in-place and --out contradict each other.", "Give one of them.")
    if settings.method == "f1" and settings.defects is None:
        raise UsageError("--method f1 needs labelled defective images.", "Name their folder with --defects DIR.")
    source = runs.find_model(settings.runs, settings.model)
    header = read_header(source)
    good = _good_samples(settings, source, set(header.training.image_digests))
    defects = list_images((str(settings.defects),))[0] if settings.defects else []
    views = parse_views(settings.tta) if settings.tta else ()
    runtime = with_views(open_runtime(source, settings.device, settings.gpu), views)

    def scores_of(samples: list[Sample], title: str) -> GoodScores:
        with reporter.stage(title):
            found = collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)
        for message in found.skipped:
            log.warning("%s", message)
        return found

    good_scores = scores_of(good, "scoring good images")
    chosen, note = calibration.calibrate(
        settings.method,
        good_scores.scores,
        good_scores.cells,
        percentile=settings.percentile,
        false_alarm=settings.false_alarm,
        defective=scores_of(defects, "scoring defective images").scores if defects else None,
    )
    chosen = replace(chosen, views=views)
    if note:
        log.warning("%s", note)
    target = source if settings.in_place else settings.out or source.with_name(_name(chosen))
    if target == source and not settings.in_place:
        raise UsageError(f"--out {target} is the model itself.", "Give another file, or say --in-place.")
    recalibrate(source, target, chosen)
    runs.remember(settings.runs, "model", target)
    return CalibrateResult(source, target, chosen, header.calibration, note)


def _name(chosen: Calibration) -> str:
    return f"model-{chosen.method}-{chosen.level:g}.safetensors" if chosen.method != "f1" else "model-f1.safetensors"


def _good_samples(settings: CalibrateSettings, model: Path, learned: set[str]) -> list[Sample]:
    """Good images the model has not seen: those named, or those held out when it was trained."""
    if settings.good is None:
        return held_out(model)
    samples, _ = list_images((str(settings.good),))
    fresh = [
        sample
        for sample in samples
        if sample.label in (None, "good") and files.sha256_file(sample.path)[:DIGEST_LENGTH] not in learned
    ]
    if len(fresh) < len(samples):
        log.warning(
            "Left out %d of %d images: the model learned from them, or they are not good.",
            len(samples) - len(fresh),
            len(samples),
        )
    if not fresh:
        raise DataError(
            f"All images in {settings.good} were used to train this model, so their scores say nothing.",
            "Give good images that it has not seen.",
        )
    return fresh


def held_out(model: Path) -> list[Sample]:
    """The good images set aside for calibration when a model was trained.

    Raises:
        UsageError: The model file lies outside its run.
        DataError: The run's record of them is damaged.
    """
    path = model.parent / runs.SPLIT
    dataset = dataset_of_run(model.parent)
    if dataset is None or not path.is_file():
        raise UsageError(
            f"{model} lies outside its run, so its held-out good images are not known.",
            "Name good images that it has not seen with --good DIR.",
        )
    try:
        split = Split.from_dict(json.loads(path.read_text(encoding="utf-8")), dataset.train)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Name good images with --good DIR.") from error
    return list(split.calibration)
