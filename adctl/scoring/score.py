"""Scoring images: read, predict, judge, write. An image that cannot be read is an error row; the rest go on.

Threads read ahead of the network and draw behind it; order is kept and what waits is bounded.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files, run_folder
from adctl.data.datasets.layouts import list_images
from adctl.datasets import dataset_of_run
from adctl.detectors.components.shared_feature_cache import sharing
from adctl.errors import DataError, UsageError
from adctl.model_file import tensors_digest
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD, Box, Calibration, ScoredImage, Verdict
from adctl.runtimes.loading import open_runtime
from adctl.scoring.heatmaps import LARGEST, ColourScale, boxes_from_map, sheet
from adctl.scoring.png import encode_png
from adctl.scoring.predict import PredictedImage, predict
from adctl.scoring.score_set import ScoreRow, ScoreSet, ScoreWriter
from adctl.scoring.tta import parse_views, with_views
from adctl.threads import map_ordered
from adctl.thresholds import drift
from adctl.thresholds.decision import DecisionRule

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.data.datasets.layouts import IgnoredPath
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.thresholds.drift import Drift

log = logging.getLogger(__name__)

_STRANGEST = 10


@dataclass(frozen=True)
class TopAnomaly:
    """One of the images that scored highest.

    Attributes:
        path: The image file.
        score: Raw.
        p_value: Conformal; None when not calibrated.
        probability: That it is anomalous; None likewise.
        verdict: The decision.
    """

    path: str
    score: float
    p_value: float | None
    probability: float | None
    verdict: Verdict


_WAITING = 16
"""Scored images that wait to be drawn at most; those cut into tiles, which have large maps, wait singly."""


@dataclass(frozen=True)
class ScoreResult:
    """The outcome of scoring: iterating gives the row of each image, and `len` their number.

        for row in result:
            print(row.path, row.score, row.verdict, row.map().max())

    Attributes:
        model: The model file it took.
        folder: Where the results lie.
        counts: Images by verdict.
        ignored: Files that were passed over, with the reason.
        seconds: From the first image read to the last row written.
        device: Where it was computed.
        threshold: What the verdicts rest on, or None.
        warn_threshold: The lower one, above which images are to be looked at, or None.
        drift: How the scores compare with those of the calibration; None without one.
        strangest: The ten images that scored highest.
    """

    model: Path
    folder: Path
    counts: dict[str, int]
    ignored: tuple[tuple[str, str], ...]
    seconds: float
    device: str
    threshold: float | None
    warn_threshold: float | None
    drift: Drift | None
    strangest: tuple[TopAnomaly, ...]

    @property
    def images_per_second(self) -> float:
        """From disk to disk."""
        return len(self) / self.seconds

    @cached_property
    def rows(self) -> tuple[ScoreRow, ...]:
        """The row of each image that was scored, in order, read from `folder`.

        Raises:
            DataError: The results are damaged.
        """
        if not len(self):
            return ()
        stored = ScoreSet.load(self.folder)
        # A watched folder goes on after the rows of earlier calls.
        first = len(stored.rows) - len(self)
        return tuple(ScoreRow.of(stored, number) for number in range(first, len(stored.rows)))

    def __iter__(self) -> Iterator[ScoreRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return sum(self.counts.values())


def score(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
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
    model = run_folder.find_model(settings.runs, settings.model)
    log.info("Model %s.", model)
    samples, ignored = _samples(settings.images, model)
    runtime = open_model(model, settings.device, settings.gpu, settings.runtime, settings.tta)
    calibration = runtime.header.calibration
    folder = settings.out or run_folder.new_folder(model.parent / "scores")
    manifest = manifest_of(loaded, model, runtime, ignored)
    start = time.perf_counter()
    tally = ScoreSummary(calibration)
    _score_all(loaded, runtime, samples, folder, manifest, tally, reporter)
    counts = tally.counts
    if counts[Verdict.ERROR] == len(samples):
        raise DataError(
            f"None of the {len(samples)} images could be scored.",
            f"The reasons are in {folder / 'results.csv'}.",
        )
    if counts[Verdict.ERROR]:
        log.warning("%d images could not be scored; the reasons are in results.csv.", counts[Verdict.ERROR])
    run_folder.set_last(settings.runs, "scores", folder)
    return result_of(model, folder, runtime, tally, start, ignored)


class ScoreSummary:
    """What is kept of each row while thousands go by: a count, a number for drift, and the strangest few."""

    def __init__(self, calibration: Calibration | None) -> None:
        self.counts = {str(verdict): 0 for verdict in Verdict}
        self._good = np.array(calibration.evidence.good if calibration else ())
        self._scores: list[float] = []
        self._highest: list[tuple[float, int, TopAnomaly]] = []

    def add(self, row: ScoredImage) -> None:
        """Take one row into account."""
        self.counts[row.verdict] += 1
        if row.score is None:
            return
        if row.label in (None, GOOD):  # known defects say nothing of drift
            self._scores.append(row.score)
        strange = TopAnomaly(row.path, row.score, row.p_value, row.probability, row.verdict)
        entry = (row.score, -sum(self.counts.values()), strange)  # the earlier of two alike
        (heapq.heappush if len(self._highest) < _STRANGEST else heapq.heappushpop)(self._highest, entry)

    def strangest(self) -> tuple[TopAnomaly, ...]:
        """Those that scored highest, the highest first."""
        return tuple(strange for *_, strange in sorted(self._highest, reverse=True))

    def drift(self) -> Drift | None:
        """How the scores compare with those of the calibration; None without one."""
        return drift.measure_drift(self._good, np.array(self._scores)) if len(self._good) else None


def result_of(
    model: Path,
    folder: Path,
    runtime: Runtime,
    tally: ScoreSummary,
    started: float,
    ignored: Sequence[IgnoredPath] = (),
) -> ScoreResult:
    """What was done, at its end; warns where the images have drifted.

    Args:
        model: The file scored with.
        folder: Where the results lie.
        runtime: The model.
        tally: Of the rows.
        started: When it began, by `time.perf_counter`.
        ignored: Files passed over.
    """
    found = tally.drift()
    if found is not None and found.drifted:
        log.warning("These images do not look like those of the calibration: %s", found.reason)
    calibration = runtime.header.calibration
    return ScoreResult(
        model=model,
        folder=folder,
        counts=tally.counts,
        ignored=tuple((str(item.path), item.reason) for item in ignored),
        seconds=time.perf_counter() - started,
        device=runtime.device,
        threshold=calibration.threshold if calibration else None,
        warn_threshold=calibration.warn_threshold if calibration else None,
        drift=found,
        strangest=tally.strangest(),
    )


def open_model(model: Path, device: str, gpu: int | None, runtime: str, tta: str | None = None) -> Runtime:
    """Open a model with the test-time augmentation that its thresholds were chosen with.

    Args:
        model: The model file.
        device: As for `open_runtime`.
        gpu: As for `open_runtime`.
        runtime: As for `open_runtime`.
        tta: The views that were asked for; None for those of the calibration.

    Raises:
        UsageError: There is no such device or view, or the thresholds were chosen with other views.
        ModelFileError: The file cannot be used.
    """
    opened = open_runtime(model, device, gpu, runtime)
    calibration = opened.header.calibration
    if calibration is None:
        log.warning("%s is not calibrated: its scores come without verdicts. Run 'adctl calibrate'.", model)
    calibrated = calibration.views if calibration else ()
    views = calibrated if tta is None else parse_views(tta)
    if calibration and set(views) != set(calibrated):
        known = f"with the views {', '.join(calibrated)}" if calibrated else "without test-time augmentation"
        raise UsageError(
            f"The threshold of {model} was chosen {known}, so it says nothing about --tta {tta}.",
            f"Run 'adctl calibrate --tta {tta}' first; score then does the same by itself.",
        )
    return with_views(opened, views)


def _score_all(
    loaded: LoadedSettings[ScoreSettings],
    runtime: Runtime,
    samples: list[Sample],
    folder: Path,
    manifest: dict[str, Any],
    tally: ScoreSummary,
    reporter: Reporter,
) -> None:
    settings, calibration = loaded.settings, runtime.header.calibration
    pictures = HeatmapWriter(folder, calibration, settings.draw) if wants_heatmaps(settings) else None
    if pictures is not None:
        pictures.spare(samples)
    start = time.perf_counter()
    with (
        reporter.stage("scoring", len(samples)) as update,
        ScoreWriter(folder, manifest, calibration, keep_maps=settings.maps) as writer,
        # Closed before the writer is: nothing is written into a closed file.
        closing(scored_rows(runtime, samples, settings, pictures, writer.add)) as rows,
    ):
        for done, row in enumerate(rows, 1):
            tally.add(row)
            update(done, len(samples))
        writer.note("seconds", None if sharing() else round(time.perf_counter() - start, 3))
        found = tally.drift()
        writer.note("drift", asdict(found) if found else None)


def wants_heatmaps(settings: ScoreSettings) -> bool:
    """Whether heatmaps are to be written."""
    return settings.out is not None if settings.heatmaps is None else settings.heatmaps


def scored_rows(
    runtime: Runtime,
    samples: Sequence[Sample],
    settings: ScoreSettings,
    pictures: HeatmapWriter | None,
    write: Callable[[ScoredImage, NDArray[np.float32] | None], None],
) -> Generator[ScoredImage, None, None]:
    """Rows in the order of the samples, each once it is written.

    Reading, computing and drawing overlap: threads read ahead of the network, and threads behind it judge images and
    draw their pictures; `write` is called in the thread of whoever takes the rows.

    Args:
        runtime: The model.
        samples: The images.
        settings: Batch size and threads.
        pictures: Where heatmaps go, or None.
        write: Takes a row and its map, which is None for an error row; an error it raises is raised here.
    """
    calibration = runtime.header.calibration
    judge = DecisionRule(calibration) if calibration else None

    def judged(job: tuple[PredictedImage, Path | None]) -> tuple[ScoredImage, NDArray[np.float32] | None]:
        predicted, place = job
        row = to_row(predicted, judge)
        if pictures is not None and place is not None:
            pictures.write(predicted, row, place)
        return row, None if row.verdict is Verdict.ERROR else predicted.anomaly_map

    predictions = predict(
        runtime,
        samples,
        batch_size=settings.batch_size,
        workers=settings.workers,
        display=None if pictures is None else LARGEST,
    )
    # Places are given in the order of the images, so that the same ones get the same names.
    jobs = ((predicted, pictures.place(predicted) if pictures else None) for predicted in predictions)
    waiting = 1 if runtime.input.tiled else _WAITING
    drawers = 0 if pictures is None else settings.workers
    for row, anomaly_map in map_ordered(judged, jobs, workers=drawers, ahead=waiting, name="adctl-draw"):
        write(row, anomaly_map)
        yield row


def to_row(predicted: PredictedImage, judge: DecisionRule | None) -> ScoredImage:
    """Judge one prediction; regions are outlined in images that are not judged good."""
    item, anomaly_map = predicted.item, predicted.anomaly_map
    calibration = judge.calibration if judge else None
    common: dict[str, Any] = {
        "path": str(item.sample.path),
        "key": item.sample.key,
        "label": item.sample.label,
        "mask": str(item.sample.mask) if item.sample.mask else None,
        "threshold": calibration.threshold if calibration else None,
    }
    if predicted.score is None or anomaly_map is None:
        return ScoredImage(**common, score=None, verdict=Verdict.ERROR, error=str(item.error))
    if not (math.isfinite(predicted.score) and np.isfinite(anomaly_map).all()):
        reason = f"The score {predicted.score} of {item.sample.path}, or its map, is no finite number."
        return ScoredImage(**common, score=None, verdict=Verdict.ERROR, error=reason)
    row = ScoredImage(
        **common,
        score=predicted.score,
        verdict=Verdict.UNCALIBRATED,
        width=item.width,
        height=item.height,
        peak=predicted.peak,
    )
    if judge is None or calibration is None:
        return row
    found = judge(predicted.score)
    boxes: tuple[Box, ...] = ()
    if found.verdict is not Verdict.GOOD and calibration.pixel_threshold is not None:
        boxes = boxes_from_map(anomaly_map, calibration.pixel_threshold, item.width, item.height)
    return replace(row, verdict=found.verdict, p_value=found.p_value, probability=found.probability, boxes=boxes)


class HeatmapWriter:
    """Heatmap sheets, one an image, named like the image, all on one colour scale."""

    def __init__(self, folder: Path, calibration: Calibration | None, draw: str) -> None:
        self._folder = folder
        self._contour_at = calibration.pixel_threshold if calibration and draw in ("contours", "both") else None
        self._boxes = draw in ("boxes", "both")
        self._scale = ColourScale.from_calibration(calibration) if calibration else None
        self._keys: dict[PurePosixPath, str] = {}

    def spare(self, samples: Sequence[Sample]) -> None:
        """See to it that no picture would take the place of an image.

        Raises:
            UsageError: One would.
        """
        real = cache(Path.resolve)  # of folders, which are few
        images = {real(sample.path.parent) / sample.path.name for sample in samples}
        for sample in samples:
            picture = self._folder / PurePosixPath(sample.key).with_suffix(".png")
            if real(picture.parent) / picture.name in images:
                raise UsageError(
                    f"The heatmap of {sample.path} would be written over an image in {self._folder}.",
                    "Choose another folder with --out, or --no-heatmaps.",
                )

    def place(self, predicted: PredictedImage) -> Path | None:
        """Where the picture of the next image goes; unreadable ones have none."""
        if predicted.item.display is None:
            return None
        key = predicted.item.sample.key
        name = PurePosixPath(key).with_suffix(".png")
        if self._keys.setdefault(name, key) != key:  # a.jpg and a.png lie side by side
            name = PurePosixPath(key + ".png")
        return self._folder / name

    def write(self, predicted: PredictedImage, row: ScoredImage, place: Path) -> None:
        """Write the picture of one scored image; may be called by several threads."""
        display, anomaly_map = predicted.item.display, predicted.anomaly_map
        if display is None or anomaly_map is None or row.score is None:
            return
        picture = sheet(
            display,
            anomaly_map,
            self._scale or ColourScale.from_values(anomaly_map),
            row if self._boxes else replace(row, boxes=()),
            contour_at=self._contour_at,
        )
        # Not flushed to disk: a picture can be drawn again.
        files.write_bytes(place, encode_png(picture), flush=False)


def _samples(images: tuple[str, ...], model: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """What was named, or the test part of the data set the model was trained on."""
    if images:
        return list_images(images)
    dataset = dataset_of_run(model.parent)
    if dataset is None or not dataset.test:
        raise UsageError("Which images to score?", "Name folders, files or globs: adctl score FOLDER")
    log.info("Scoring the test images of %s.", dataset.root)
    return list(dataset.test), list(dataset.ignored)


def manifest_of(
    loaded: LoadedSettings[ScoreSettings], model: Path, runtime: Runtime, ignored: Sequence[IgnoredPath] = ()
) -> dict[str, Any]:
    """What is known of a scoring before its first row: model, digests, settings and where each came from."""
    header = runtime.header
    return {
        "started": run_folder.timestamp(),
        "model": {
            "path": str(model),
            "sha256": files.sha256_file(model),
            "tensors_sha256": tensors_digest(model),
            "arch": header.arch,
            "config": header.config,
        },
        "dataset": {"name": header.training.dataset, "category": header.training.category},
        "views": list(runtime.header.calibration.views) if runtime.header.calibration else [],
        "runtime": {"name": runtime.name, "device": runtime.device},
        "ignored": [{"path": str(item.path), "reason": item.reason} for item in ignored],
        "settings": loaded.table(),
        "environment": run_folder.environment(),
    }
