"""Scoring images: read, predict, judge, write. An image that cannot be read is an error row; the rest go on."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from adctl import files, runs
from adctl.data.images import write_png
from adctl.data.layouts import list_images
from adctl.datasets import dataset_of_run
from adctl.errors import DataError, UsageError
from adctl.heatmaps import ColourScale, boxes_from_map, sheet
from adctl.predicting import Predicted, predict
from adctl.progress import SILENT, Reporter
from adctl.records import Box, Calibration, ScoredImage, Verdict
from adctl.runtimes.contract import open_runtime
from adctl.scores import ScoreWriter
from adctl.tta import parse_views, with_views

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import Loaded, ScoreSettings
    from adctl.data.layouts import Ignored
    from adctl.records import Sample
    from adctl.runtimes.contract import Runtime

log = logging.getLogger(__name__)

_DISPLAY = 1024


@dataclass(frozen=True)
class ScoreResult:
    """What scoring did.

    Attributes:
        model: The model file it took.
        folder: Where the results lie.
        counts: Images by verdict.
        ignored: Files that were passed over, with the reason.
        seconds: From the first image read to the last row written.
        device: Where it was computed.
        threshold: What the verdicts rest on, or None.
    """

    model: Path
    folder: Path
    counts: dict[str, int]
    ignored: tuple[tuple[str, str], ...]
    seconds: float
    device: str
    threshold: float | None

    @property
    def images_per_second(self) -> float:
        """From disk to disk."""
        return sum(self.counts.values()) / self.seconds


def score(loaded: Loaded[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
    """Score folders, files or globs with a model file.

    Args:
        loaded: The settings and their origins; both are kept in `scores.json`.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model, image or device.
        DataError: Not one image could be scored.
        OutputError: The results cannot be written; rows written before are kept.
    """
    settings = loaded.settings
    model = runs.find_model(settings.runs, settings.model)
    log.info("Model %s.", model)
    samples, ignored = _samples(settings.images, model)
    runtime = _open(model, settings)
    if runtime.header.calibration is None:
        log.warning("%s is not calibrated: its scores come without verdicts. Run 'adctl calibrate'.", model)
    folder = settings.out or runs.new_folder(model.parent / "scores")
    start = time.perf_counter()
    counts = _score_all(loaded, runtime, samples, folder, _manifest(loaded, model, runtime, ignored), reporter)
    if counts[Verdict.ERROR] == len(samples):
        raise DataError(
            f"None of the {len(samples)} images could be scored.",
            f"The reasons are in {folder / 'results.csv'}.",
        )
    if counts[Verdict.ERROR]:
        log.warning("%d images could not be scored; the reasons are in results.csv.", counts[Verdict.ERROR])
    runs.remember(settings.runs, "scores", folder)
    return ScoreResult(
        model=model,
        folder=folder,
        counts=counts,
        ignored=tuple((str(item.path), item.reason) for item in ignored),
        seconds=time.perf_counter() - start,
        device=runtime.device,
        threshold=runtime.header.calibration.threshold if runtime.header.calibration else None,
    )


def _open(model: Path, settings: ScoreSettings) -> Runtime:
    """The model, looking at the views its thresholds were chosen with."""
    runtime = open_runtime(model, settings.device, settings.gpu)
    calibration = runtime.header.calibration
    calibrated = calibration.views if calibration else ()
    views = calibrated if settings.tta is None else parse_views(settings.tta)
    if calibration and set(views) != set(calibrated):
        known = f"with the views {', '.join(calibrated)}" if calibrated else "without test-time augmentation"
        raise UsageError(
            f"The threshold of {model} was chosen {known}, so it says nothing about --tta {settings.tta}.",
            f"Run 'adctl calibrate --tta {settings.tta}' first; score then does the same by itself.",
        )
    return with_views(runtime, views)


def _score_all(
    loaded: Loaded[ScoreSettings],
    runtime: Runtime,
    samples: list[Sample],
    folder: Path,
    manifest: dict[str, Any],
    reporter: Reporter,
) -> dict[str, int]:
    settings = loaded.settings
    counts = {str(verdict): 0 for verdict in Verdict}
    wanted = settings.out is not None if settings.heatmaps is None else settings.heatmaps
    pictures = _Pictures(folder, runtime.header.calibration) if wanted else None
    predictions = predict(
        runtime,
        samples,
        batch_size=settings.batch_size,
        workers=settings.workers,
        display=_DISPLAY if wanted else None,
    )
    with (
        reporter.stage("scoring", len(samples)) as update,
        ScoreWriter(folder, manifest, runtime.header.calibration, keep_maps=settings.maps) as writer,
    ):
        for predicted in predictions:
            row = to_row(predicted, runtime.header.calibration)
            if pictures is not None:
                pictures.write(predicted, row)
            writer.add(row, predicted.anomaly_map)
            counts[row.verdict] += 1
            update(writer.rows, len(samples))
    return counts


def to_row(predicted: Predicted, calibration: Calibration | None) -> ScoredImage:
    """Judge one prediction."""
    item = predicted.item
    common: dict[str, Any] = {
        "path": str(item.sample.path),
        "key": item.sample.key,
        "label": item.sample.label,
        "mask": str(item.sample.mask) if item.sample.mask else None,
        "threshold": calibration.threshold if calibration else None,
    }
    if predicted.score is None or predicted.anomaly_map is None:
        return ScoredImage(**common, score=None, verdict=Verdict.ERROR, error=str(item.error))
    verdict = calibration.verdict(predicted.score) if calibration else Verdict.UNCALIBRATED
    boxes: tuple[Box, ...] = ()
    if calibration and calibration.pixel_threshold is not None and verdict is Verdict.ANOMALOUS:
        boxes = boxes_from_map(predicted.anomaly_map, calibration.pixel_threshold, item.width, item.height)
    return ScoredImage(
        **common, score=predicted.score, verdict=verdict, boxes=boxes, width=item.width, height=item.height
    )


class _Pictures:
    """Heatmap sheets, one an image, named like the image, all on one colour scale."""

    def __init__(self, folder: Path, calibration: Calibration | None) -> None:
        self._folder = folder
        self._calibration = calibration
        self._scale = ColourScale.from_calibration(calibration) if calibration else None
        self._names: set[PurePosixPath] = set()

    def write(self, predicted: Predicted, row: ScoredImage) -> None:
        """Write the picture of one scored image; unreadable ones have none."""
        display, anomaly_map = predicted.item.display, predicted.anomaly_map
        if display is None or anomaly_map is None or row.score is None:
            return
        picture = sheet(
            display,
            anomaly_map,
            self._scale or ColourScale.from_values(anomaly_map),
            row,
            contour_at=self._calibration.pixel_threshold if self._calibration else None,
        )
        write_png(self._folder / self._name(row.key), picture)

    def _name(self, key: str) -> PurePosixPath:
        name = PurePosixPath(key).with_suffix(".png")
        if name in self._names:  # a.jpg and a.png lie side by side
            name = PurePosixPath(key + ".png")
        self._names.add(name)
        return name


def _samples(images: tuple[str, ...], model: Path) -> tuple[list[Sample], list[Ignored]]:
    """What was named, or the test part of the data set the model was trained on."""
    if images:
        return list_images(images)
    dataset = dataset_of_run(model.parent)
    if dataset is None or not dataset.test:
        raise UsageError("Which images to score?", "Name folders, files or globs: adctl score FOLDER")
    log.info("Scoring the test images of %s.", dataset.root)
    return list(dataset.test), list(dataset.ignored)


def _manifest(loaded: Loaded[ScoreSettings], model: Path, runtime: Runtime, ignored: list[Ignored]) -> dict[str, Any]:
    header = runtime.header
    return {
        "started": runs.now(),
        "model": {
            "path": str(model),
            "sha256": files.sha256_file(model),
            "arch": header.arch,
            "config": header.config,
        },
        "dataset": {"name": header.training.dataset, "category": header.training.category},
        "runtime": {"name": runtime.name, "device": runtime.device},
        "ignored": [{"path": str(item.path), "reason": item.reason} for item in ignored],
        "settings": loaded.table(),
        "environment": runs.environment(),
    }
