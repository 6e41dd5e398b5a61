"""Scoring of images: read, predict, apply the threshold and write. An unreadable image gives an error row.

Threads read images before the network needs them and draw heatmaps after it. The order is kept, and a limited number
of images waits in memory.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import time
from collections import Counter, deque
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from adctl import files, run_folder
from adctl.data.colours import warn_of_colours
from adctl.data.datasets.layouts import list_images
from adctl.data.datasets.remote import is_remote
from adctl.data.depth import warn_of_depth
from adctl.datasets import dataset_of_run
from adctl.detectors.components.shared_feature_cache import sharing
from adctl.errors import DataError, UsageError
from adctl.model_file import run_of
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD, Box, Calibration, ScoredImage, Verdict
from adctl.runtimes.loading import open_runtime
from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.heatmaps import LARGEST, boxes_from_map, heatmap_picture
from adctl.scoring.manifest import job_digest, opening_entries
from adctl.scoring.map_file import MAPS
from adctl.scoring.naming import NamingRuntime, classifier_facts, with_classifier
from adctl.scoring.png import encode_png
from adctl.scoring.predict import PredictedImage, predict
from adctl.scoring.score_set import CSV, JSONL, MANIFEST, ScoreRow, ScoreSet, ScoreWriter, claimed_files, folder_lock
from adctl.scoring.tta import parse_views, with_views
from adctl.threads import map_ordered
from adctl.thresholds import drift
from adctl.thresholds.decision import DecisionRule
from adctl.tracking import record
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.data.datasets.layouts import IgnoredPath
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.sinks.delivery import SinkStatus
    from adctl.thresholds.drift import Drift

log = logging.getLogger(__name__)

_MAX_TOP = 10

OnCluster: TypeAlias = (
    "Callable[[ScoreSettings, Path, list[Sample], dict[str, Any], Calibration | None, Reporter], ScoreSummary]"
)
"""Function that scores images on a cluster and writes the results."""


@dataclass(frozen=True)
class TopAnomaly:
    """Image among those with the highest scores.

    Attributes:
        path: Image file.
        score: Raw score.
        p_value: Conformal p-value; None if the model is not calibrated.
        probability: Probability that the image is anomalous; None if the model is not calibrated.
        verdict: Verdict on the image.
        kind: Kind of defect by the classifier; None if the image was not named.
    """

    path: str
    score: float
    p_value: float | None
    probability: float | None
    verdict: Verdict
    kind: str | None = None


DRIFTED = "These images differ from the images used for the calibration:"
_UNKNOWN_INPUTS = (math.nan,) * len(drift.INPUTS)

_MAX_WAITING = 16
"""Largest number of scored images that wait to be drawn; images cut into tiles have large maps and wait one by one."""


@dataclass(frozen=True)
class ScoreResult:
    """Result of scoring: iterate over it for the row of each image; `len` gives their number.

        for row in result:
            print(row.path, row.score, row.verdict, row.map().max())

    Attributes:
        model: Model file.
        folder: Folder of the results.
        counts: Number of images with each verdict.
        ignored: Path of each skipped file, with the reason.
        seconds: Time from the first image read to the last row written.
        device: Device that computed the scores.
        threshold: Threshold of the verdicts, or None if the model is not calibrated.
        warn_threshold: Lower threshold, above which a person should check the image, or None.
        method: Method and level of the threshold, such as "conformal 0.02", or None.
        drift: Comparison of the scores with those of the calibration, or None without calibration.
        strangest: The ten images with the highest scores, the highest first.
        report: Report of these scores, if one was written.
        sinks: State of each sink at the end.
        classifier: Model file of the classifier, or None.
        kinds: Number of images with each name that the classifier gave, the most frequent first.
    """

    model: Path
    folder: Path
    counts: dict[str, int]
    ignored: tuple[tuple[str, str], ...]
    seconds: float
    device: str
    threshold: float | None
    warn_threshold: float | None
    method: str | None
    drift: Drift | None
    strangest: tuple[TopAnomaly, ...]
    report: Path | None = None
    sinks: tuple[SinkStatus, ...] = ()
    classifier: Path | None = None
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Scoring speed, including reading the images and writing the results."""
        return len(self) / self.seconds

    @cached_property
    def rows(self) -> tuple[ScoreRow, ...]:
        """Row of each scored image, in order, read from `folder`.

        Raises:
            DataError: The results are damaged.
        """
        if not len(self):
            return ()
        stored = ScoreSet.load(self.folder)
        # With a watched folder, rows of earlier calls come first.
        first = len(stored.rows) - len(self)
        return tuple(ScoreRow.of(stored, number) for number in range(first, len(stored.rows)))

    def __iter__(self) -> Iterator[ScoreRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return sum(self.counts.values())


def score(
    loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT, on_cluster: OnCluster | None = None
) -> ScoreResult:
    """Score folders, files or globs with a model file.

    If the output folder holds an incomplete set of the same call, only the missing images are scored.

    Args:
        loaded: Settings and their origins; both are saved in `scores.json`.
        reporter: Receiver of progress reports.
        on_cluster: Function that scores on a cluster instead of here; see `adctl.scoring.ray_score`.

    Raises:
        UsageError: The model, an image or the device does not exist, or a file of the user would be overwritten.
        DataError: No image could be scored.
        OutputError: The results cannot be written; rows written before the error are kept.
    """
    settings = loaded.settings
    require_no_sink(settings)
    model = find_model(settings.runs, settings.model)
    return score_samples(loaded, model, *_find_images(settings, model), reporter, on_cluster)


def require_no_sink(settings: ScoreSettings) -> None:
    """Raise if verdicts on images that are already there would go to sinks.

    Raises:
        UsageError: A sink is given.
    """
    if settings.sink:
        raise UsageError("--sink needs --source or --watch.", "Give one of them, or leave out --sink.")


def score_samples(
    loaded: LoadedSettings[ScoreSettings],
    model: Path,
    samples: list[Sample],
    ignored: list[IgnoredPath],
    reporter: Reporter = SILENT,
    on_cluster: OnCluster | None = None,
) -> ScoreResult:
    """Score images that are already found; see `score`.

    Args:
        loaded: Settings and their origins; both are saved in `scores.json`.
        model: Model file.
        samples: The images.
        ignored: Skipped files, for the record.
        reporter: Receiver of progress reports.
        on_cluster: Function that scores on a cluster instead of here.

    Raises:
        AdctlError: As from `score`.
    """
    settings = loaded.settings
    log.debug("Model %s.", model)
    if on_cluster is not None:
        _check_for_ray(settings)
    elif settings.out is not None:
        check_targets(settings, settings.out, samples)
    else:
        files.require_writable([model.parent / "scores" / "run"])
    with reporter.stage("opening the model"):
        runtime = open_for_scoring(model, settings)
    warn_of_depth(samples, runtime.input.bit_depth)
    warn_of_colours(samples)
    calibration = runtime.header.calibration
    folder = settings.out or run_folder.new_folder(model.parent / "scores")
    manifest = build_manifest(loaded, model, runtime, ignored)
    if groups := {sample.key: sample.group for sample in samples if sample.group is not None}:
        manifest["groups"] = groups
    if settings.out is not None:
        written = [wants_heatmaps(settings), settings.draw, settings.maps]
        manifest["job"] = job_digest(manifest, samples, written)
    start = time.perf_counter()
    if on_cluster is None:
        summary = ScoreSummary(calibration)
        _score_all(loaded, runtime, samples, folder, manifest, summary, reporter)
    else:
        summary = on_cluster(settings, model, samples, manifest, calibration, reporter)
    counts = summary.counts
    if counts[Verdict.ERROR] == len(samples):
        raise DataError(
            f"None of the {len(samples)} images could be scored.",
            f"The reasons are in the column 'error' of the results in {folder}.",
        )
    if counts[Verdict.ERROR]:
        log.warning("Images that could not be scored: %d. The reasons are in the results.", counts[Verdict.ERROR])
    if not is_remote(folder):
        run_folder.set_last(settings.runs, "scores", folder)
    record.made(model, "scores", folder, facts={str(verdict): count for verdict, count in counts.items() if count})
    result = build_result(model, folder, runtime, summary, start, ignored)
    if result.drift is not None and result.drift.drifted:
        log.warning("%s %s", DRIFTED, result.drift.reason)
    return result


def _check_for_ray(settings: ScoreSettings) -> None:
    """Raise if settings are given that scoring on a cluster lacks.

    Raises:
        UsageError: There is no place for the results, or heatmaps are wanted.
    """
    if settings.out is None:
        raise UsageError(
            "--ray needs a place for the results.", "Give --out: a folder that all nodes share, or s3://..."
        )
    if settings.heatmaps:
        raise UsageError("--ray writes no heatmaps.", "Leave --heatmaps out, and score single images without --ray.")


def check_targets(settings: ScoreSettings, folder: Path, samples: Sequence[Sample]) -> None:
    """Raise if results would be written over images, over files of the user, or outside the folder.

    Raises:
        UsageError: Such a file exists; the message names it. Or another process writes into the folder.
    """
    if folder.is_dir():
        with folder_lock(folder):  # taken again when the model is loaded
            pass
    own, old_heatmaps = claimed_files(folder)
    results = [folder / name for name in (MANIFEST, CSV, JSONL, *([MAPS] if settings.maps else []))]
    files.require_replaceable(results, overwrite=settings.overwrite, claimed=own)
    if not wants_heatmaps(settings):
        return
    names = HeatmapNames(folder)
    heatmaps = [names.path(sample.key) for sample in samples]
    resolve = cache(Path.resolve)  # only folders are resolved, and there are few of them
    images = {resolve(sample.path.parent) / sample.path.name for sample in samples}
    for sample, target in zip(samples, heatmaps, strict=True):
        place = resolve(target.parent)
        if place / target.name in images:
            raise UsageError(
                f"The heatmap of {sample.path} would be written over an image in {folder}.",
                "Choose another folder with --out, or write no heatmaps with --no-heatmaps.",
            )
        if not place.is_relative_to(resolve(folder)):
            raise UsageError(
                f"The heatmap of {sample.path} would be written outside {folder}, to {place}.",
                "Choose another folder with --out, which contains no links.",
            )
    claimed = old_heatmaps | {path for path in heatmaps if own and path.exists() and files.is_ours(path)}
    strict = [path for path in heatmaps if path not in claimed and os.path.lexists(path)]
    if strict and not settings.overwrite:
        files.refuse(strict)


class ScoreSummary:
    """Running summary of scored rows: verdict counts, the newest images for the drift test, and the highest scores.

    Args:
        calibration: Calibration of the model, or None.
        window: Number of images that the drift test looks back; None for all.
        significance: Largest p-value that counts as drift.
    """

    def __init__(
        self, calibration: Calibration | None, window: int | None = None, significance: float = drift.SIGNIFICANT
    ) -> None:
        self.counts = {str(verdict): 0 for verdict in Verdict}
        self.kinds: Counter[str] = Counter()
        self._calibration = calibration
        self._significance = significance
        self._recent: deque[tuple[float, bool, tuple[float, ...]]] = deque(maxlen=window)
        self._highest: list[tuple[float, int, TopAnomaly]] = []

    def add(self, row: ScoredImage, inputs: tuple[float, ...] = ()) -> None:
        """Add one row, with the statistics of its image if they are known."""
        self.counts[row.verdict] += 1
        if row.score is None:
            return
        if row.kind is not None:
            self.kinds[row.kind] += 1
        if row.label in (None, GOOD):  # known defects must not count as drift
            self._recent.append((row.score, row.verdict is Verdict.REJECT, inputs or _UNKNOWN_INPUTS))
        anomaly = TopAnomaly(row.path, row.score, row.p_value, row.probability, row.verdict, row.kind)
        entry = (row.score, -sum(self.counts.values()), anomaly)  # of two equal scores, the earlier image wins
        (heapq.heappush if len(self._highest) < _MAX_TOP else heapq.heappushpop)(self._highest, entry)

    def use(self, calibration: Calibration | None) -> None:
        """Compare with another calibration from now on."""
        self._calibration = calibration
        self._recent.clear()

    def top_anomalies(self) -> tuple[TopAnomaly, ...]:
        """Return the images with the highest scores, the highest first."""
        return tuple(anomaly for *_, anomaly in sorted(self._highest, reverse=True))

    def drift(self) -> Drift | None:
        """Compare the images with those of the calibration; return None without calibration or scores."""
        evidence = self._calibration.evidence if self._calibration else None
        if evidence is None or not evidence.good or evidence.copies or not self._recent:
            return None
        scores, rejected, inputs = zip(*self._recent, strict=True)
        return drift.measure_drift(
            np.array(evidence.good),
            np.array(scores),
            rejected=np.array(rejected),
            ranges=evidence.inputs,
            inputs=np.array(inputs),
            significance=self._significance,
        )


def build_result(
    model: Path,
    folder: Path,
    runtime: Runtime,
    summary: ScoreSummary,
    started: float,
    ignored: Sequence[IgnoredPath] = (),
) -> ScoreResult:
    """Build the result of a finished scoring.

    Args:
        model: Model file.
        folder: Folder of the results.
        runtime: Runtime that holds the model.
        summary: Summary of the scored rows.
        started: Start time, as given by `time.perf_counter`.
        ignored: Skipped files.
    """
    calibration = runtime.header.calibration
    return ScoreResult(
        model=model,
        folder=folder,
        counts=summary.counts,
        ignored=tuple((str(item.path), item.reason) for item in ignored),
        seconds=time.perf_counter() - started,
        device=runtime.device,
        threshold=calibration.threshold if calibration else None,
        warn_threshold=calibration.warn_threshold if calibration else None,
        method=f"{calibration.method} {calibration.level:.4g}" if calibration else None,
        drift=summary.drift(),
        strangest=summary.top_anomalies(),
        classifier=runtime.path if isinstance(runtime, NamingRuntime) else None,
        kinds=dict(summary.kinds.most_common()),
    )


def open_for_scoring(model: Path, settings: ScoreSettings) -> Runtime:
    """Open a model, and the classifier of the settings; see `open_model` and `with_classifier`.

    Raises:
        AdctlError: As from these two.
    """
    tta, precision = settings.tta, settings.precision
    runtime = open_model(model, settings.device, settings.gpu, settings.runtime, tta, precision)
    return with_classifier(runtime, model, settings)


def open_model(
    model: Path, device: str, gpu: int | None, runtime: str, tta: str | None = None, precision: str = "32"
) -> Runtime:
    """Open a model with the views of test-time augmentation that its thresholds were calibrated with.

    Args:
        model: Model file.
        device: Device, as for `open_runtime`.
        gpu: Number of a CUDA GPU, as for `open_runtime`.
        runtime: Name of the runtime, as for `open_runtime`.
        tta: Wanted views, separated by commas; None uses those of the calibration.
        precision: Precision of PyTorch on a CUDA GPU, as for `open_runtime`.

    Raises:
        UsageError: The device or a view does not exist, or the calibration used other views.
        ModelFileError: The model file cannot be used.
        DataError: The list of the run's calibrations is damaged.
    """
    run_folder.warn_of_newer(model)
    opened = open_runtime(model, device, gpu, runtime, precision)
    calibration = opened.header.calibration
    if calibration is None:
        log.warning("%s is not calibrated, so images get scores but no verdicts. Run 'adctl calibrate'.", model)
    calibrated = calibration.views if calibration else ()
    views = calibrated if tta is None else parse_views(tta)
    if calibration and set(views) != set(calibrated):
        known = f"with the views {', '.join(calibrated)}" if calibrated else "without test-time augmentation"
        raise UsageError(
            f"The threshold of {model} was calibrated {known}, so it is not valid with --tta {tta}.",
            f"Run 'adctl calibrate --tta {tta}' first; 'adctl score' then uses these views by default.",
        )
    return with_views(opened, views)


def _score_all(
    loaded: LoadedSettings[ScoreSettings],
    runtime: Runtime,
    samples: list[Sample],
    folder: Path,
    manifest: dict[str, Any],
    summary: ScoreSummary,
    reporter: Reporter,
) -> None:
    settings, calibration = loaded.settings, runtime.header.calibration
    names = HeatmapNames(folder)
    targets = {sample.key: names.path(sample.key) for sample in samples}
    heatmaps = HeatmapWriter(names, calibration, settings.draw) if wants_heatmaps(settings) else None
    start = time.perf_counter()
    with (
        reporter.stage("scoring", len(samples)) as update,
        ScoreWriter(
            folder,
            manifest,
            calibration,
            keep_maps=settings.maps,
            heatmaps=targets.values() if heatmaps else (),
            keep=lambda row: heatmaps is None or row.score is None or targets[row.key].is_file(),
        ) as writer,
    ):
        for row in writer.done:
            summary.add(row)
        if writer.rows:
            log.info("Continuing: %d of %d images were scored before.", writer.rows, len(samples))
        missing = samples[writer.rows :]
        # Closed before the writer, so that no thread writes into a closed file.

        def write(row: ScoredImage, anomaly_map: NDArray[np.float32] | None, inputs: tuple[float, ...]) -> None:
            writer.add(row, anomaly_map)
            summary.add(row, inputs)

        with closing(scored_rows(runtime, missing, settings, heatmaps, write)) as rows:
            for row in rows:
                if row.score is None and targets[row.key] in writer.old_heatmaps:
                    targets[row.key].unlink(missing_ok=True)
                update(writer.rows, len(samples))
        whole = not writer.done and not sharing()
        writer.note("seconds", round(time.perf_counter() - start, 3) if whole else None)
        drift_found = summary.drift()
        writer.note("drift", asdict(drift_found) if drift_found else None)


def wants_heatmaps(settings: ScoreSettings) -> bool:
    """Return whether heatmaps are wanted; by default they are with an output folder."""
    if settings.ray is not None:
        return False
    return settings.out is not None if settings.heatmaps is None else settings.heatmaps


def scored_rows(
    runtime: Runtime,
    samples: Sequence[Sample],
    settings: ScoreSettings,
    heatmaps: HeatmapWriter | None,
    write: Callable[[ScoredImage, NDArray[np.float32] | None, tuple[float, ...]], None],
) -> Generator[ScoredImage, None, None]:
    """Score the samples in order, and yield each row after it is written.

    Threads read images before the network needs them, and other threads apply the threshold and draw heatmaps after
    it. `write` runs in the thread of the caller.

    Args:
        runtime: Runtime that holds the model.
        samples: Images to score.
        settings: Batch size and number of threads.
        heatmaps: Writer of heatmaps, or None.
        write: Function that writes a row, and gets its anomaly map, None for an error row, and the statistics of its
            image; its errors are raised.
    """
    calibration = runtime.header.calibration
    rule = DecisionRule(calibration) if calibration else None

    def finish(
        job: tuple[PredictedImage, Path | None],
    ) -> tuple[ScoredImage, NDArray[np.float32] | None, tuple[float, ...]]:
        predicted, target = job
        row = to_row(predicted, rule)
        if heatmaps is not None and target is not None:
            heatmaps.write(predicted, row, target)
        return row, None if row.verdict is Verdict.ERROR else predicted.anomaly_map, predicted.inputs

    predictions = predict(
        runtime,
        samples,
        batch_size=settings.batch_size,
        workers=settings.workers,
        display=None if heatmaps is None else LARGEST,
    )
    # File names are assigned in the order of the images, so that a second run gives the same names.
    jobs = ((predicted, heatmaps.target(predicted) if heatmaps else None) for predicted in predictions)
    waiting = 1 if runtime.input.tiled else _MAX_WAITING
    workers = 0 if heatmaps is None else settings.workers
    for row, anomaly_map, inputs in map_ordered(finish, jobs, workers=workers, ahead=waiting, name="adctl-draw"):
        write(row, anomaly_map, inputs)
        yield row


def to_row(predicted: PredictedImage, rule: DecisionRule | None) -> ScoredImage:
    """Build the row of one prediction, with verdict and, unless the verdict is good, boxes around anomalous regions."""
    item, anomaly_map = predicted.item, predicted.anomaly_map
    rule = rule.for_image(item.sample.path) if rule else None
    calibration = rule.calibration if rule else None
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
        reason = f"The score ({predicted.score}) or the anomaly map of {item.sample.path} is not a finite number."
        return ScoredImage(**common, score=None, verdict=Verdict.ERROR, error=reason)
    row = ScoredImage(
        **common,
        score=predicted.score,
        verdict=Verdict.UNCALIBRATED,
        width=item.width,
        height=item.height,
        peak=predicted.peak,
        kind=predicted.name.kind if predicted.name else None,
        kind_probability=predicted.name.probability if predicted.name else None,
    )
    if rule is None or calibration is None:
        return row
    decision = rule(predicted.score)
    boxes: tuple[Box, ...] = ()
    if decision.verdict is not Verdict.GOOD and calibration.pixel_threshold is not None:
        boxes = boxes_from_map(anomaly_map, calibration.pixel_threshold, item.width, item.height)
    return replace(
        row, verdict=decision.verdict, p_value=decision.p_value, probability=decision.probability, boxes=boxes
    )


class HeatmapWriter:
    """Writer of one heatmap file per image, named like the image, all with the same colour scale.

    Args:
        names: File of each image.
        calibration: Calibration that fixes the colour scale, or None.
        draw: Marks of anomalous regions: `none`, `contours`, `boxes` or `both`.
        spare: Function that tells whether a file must not be replaced; its image then gets no heatmap.
    """

    def __init__(
        self,
        names: HeatmapNames,
        calibration: Calibration | None,
        draw: str,
        *,
        spare: Callable[[Path], bool] = lambda _: False,
    ) -> None:
        self._names = names
        self._spare = spare
        self._contour_at = calibration.pixel_threshold if calibration and draw in ("contours", "both") else None
        self._boxes = draw in ("boxes", "both")
        self._scale = ColourScale.from_calibration(calibration) if calibration else None

    def target(self, predicted: PredictedImage) -> Path | None:
        """Return the path of the image's heatmap, or None for an unreadable image."""
        if predicted.item.display is None:
            return None
        target = self._names.path(predicted.item.sample.key)
        return None if self._spare(target) else target

    def write(self, predicted: PredictedImage, row: ScoredImage, target: Path) -> None:
        """Write the heatmap of one scored image; several threads may call this at once."""
        display, anomaly_map = predicted.item.display, predicted.anomaly_map
        if display is None or anomaly_map is None or row.score is None:
            return
        picture = heatmap_picture(
            display,
            anomaly_map,
            self._scale or ColourScale.from_values(anomaly_map),
            row if self._boxes else replace(row, boxes=()),
            contour_at=self._contour_at,
        )
        # Not flushed to disk, because a lost heatmap can be drawn again.
        files.write_bytes(target, encode_png(picture), flush=False)


def _find_images(settings: ScoreSettings, model: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """Return the named images, or else the test images of the dataset that the model was trained on."""
    if settings.images:
        return list_images(settings.images)
    run = run_of(model, settings.runs)
    dataset = dataset_of_run(run)
    if dataset is None or not dataset.test:
        lacking = f"{model} lies in no run" if dataset is None else f"the run {run} has no test images"
        raise UsageError(
            f"No images to score were given, and {lacking}.", "Name folders, files or globs: adctl score FOLDER"
        )
    log.info("Scoring the test images of %s.", dataset.root)
    return list(dataset.test), list(dataset.ignored)


def build_manifest(
    loaded: LoadedSettings[ScoreSettings], model: Path, runtime: Runtime, ignored: Sequence[IgnoredPath] = ()
) -> dict[str, Any]:
    """Return the manifest entries known before scoring: model, digests, settings and their origins."""
    header = runtime.header
    dataset = {"name": header.training.dataset, "category": header.training.category}
    views = header.calibration.views if header.calibration else ()
    return opening_entries(loaded, model, runtime, dataset, views, ignored) | classifier_facts(runtime)
