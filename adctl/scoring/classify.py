"""Scoring by a classifier: read, classify, decide and write. An unreadable image gives a row with an error.

The results are `predictions.json` and `predictions.csv`, see `adctl.classification.predictions`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files, run_folder
from adctl.classification.decision import decide
from adctl.classification.predictions import (
    ERROR,
    JOURNAL,
    PREDICTIONS,
    TABLE,
    PredictedKind,
    PredictionSet,
    PredictionWriter,
    UnknownShares,
    predicted_kinds,
)
from adctl.data.colours import warn_of_colours
from adctl.data.datasets.ground_truth import GOOD_NAMES
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import batch_images, stack_pixels, stream_images
from adctl.engine.batch_size import starting_batch_size
from adctl.errors import DataError, UsageError
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD, Sample
from adctl.runtimes.classifier import ClassifierRuntime, open_classifier
from adctl.scoring.manifest import job_digest, opening_entries
from adctl.scoring.score_set import folder_lock
from adctl.scoring.tta import VIEWS, parse_views, require_square
from adctl.threads import map_ordered
from adctl.tracking import record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.data.datasets.layouts import IgnoredPath
    from adctl.data.loader import LoadedImage
    from adctl.metrics.classification import ClassificationMetrics
    from adctl.runtimes.classifier import Floats

log = logging.getLogger(__name__)

_NOT_FOR_CLASSIFIERS = (
    *("watch", "watch_for", "watch_idle", "commission", "contaminated", "ray", "heatmaps", "draw", "maps"),
    "precision",
    "source",
    "sink",
)


@dataclass(frozen=True)
class KindsResult:
    """Result of scoring by a classifier: iterate over it for the row of each image; `len` gives their number.

    Attributes:
        model: Model file.
        folder: Folder of the results.
        counts: Number of images with each name: the kinds, `unknown`, and `error` for unreadable ones.
        ignored: Path of each skipped file, with the reason.
        seconds: Time from the first image read to the results written.
        device: Device that computed.
        views: Views of test-time augmentation, besides the image itself.
        metrics: Metrics on the images whose label is a kind of the training; None if there are none.
        unknown: Shares called unknown; None without such images.
        report: Report of these predictions, if one was written.
    """

    model: Path
    folder: Path
    counts: dict[str, int]
    ignored: tuple[tuple[str, str], ...]
    seconds: float
    device: str
    views: tuple[str, ...]
    metrics: ClassificationMetrics | None
    unknown: UnknownShares | None
    report: Path | None = None

    @property
    def rows(self) -> tuple[PredictedKind, ...]:
        """Row of each image, in order, read from `folder`.

        Raises:
            DataError: The results are damaged.
        """
        return PredictionSet.load(self.folder).rows

    def __iter__(self) -> Iterator[PredictedKind]:
        return iter(self.rows)

    def __len__(self) -> int:
        return sum(self.counts.values())


def classify_images(loaded: LoadedSettings[ScoreSettings], model: Path, reporter: Reporter = SILENT) -> KindsResult:
    """Name the kind of each image with a classifier, and write the predictions.

    Images below a folder that is named like a kind are labelled images; with labels there are metrics.

    Args:
        loaded: Settings and their origins.
        model: Model file or exported file of a classifier.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A setting is only for detectors, or the device or an image does not exist.
        DataError: No image could be read.
        ModelFileError: The model cannot be used.
        OutputError: The results cannot be written.
    """
    settings = loaded.settings
    for name in _NOT_FOR_CLASSIFIERS:
        if loaded.origins.get(name, "").startswith("--"):
            raise UsageError(f"{flag_name(name)} belongs to detectors, and {model} is a classifier.", "Leave it out.")
    folder = settings.out or run_folder.new_folder(model.parent / "scores")
    targets = [folder / name for name in (PREDICTIONS, TABLE, JOURNAL)]
    files.require_replaceable(targets, overwrite=settings.overwrite, claimed=list(filter(files.is_ours, targets)))
    with reporter.stage("opening the model"):
        runtime = open_classifier(model, settings.device, settings.gpu, settings.runtime)
    views = () if settings.tta in (None, "none") else parse_views(str(settings.tta))
    samples, ignored = _images(settings, model, runtime.header.classes)
    warn_of_colours(samples)
    start = time.perf_counter()
    manifest = opening_entries(loaded, model, runtime, {"name": runtime.header.dataset}, views, ignored)
    if settings.out is not None:
        manifest["job"] = job_digest(manifest, samples)
    predictions = _name_all(settings, with_views(runtime, views), samples, folder, manifest, reporter)
    run_folder.set_last(settings.runs, "scores", folder)
    counts = predictions.counts()
    if counts.get(ERROR):
        log.warning("Images that could not be read: %d. The reasons are in the results.", counts[ERROR])
    record.made(model, "scores", folder, facts=counts)
    return KindsResult(
        model=model,
        folder=folder,
        counts=counts,
        ignored=tuple((str(one.path), one.reason) for one in ignored),
        seconds=time.perf_counter() - start,
        device=runtime.device,
        views=views,
        metrics=predictions.metrics(),
        unknown=predictions.unknown(),
    )


def _name_all(
    settings: ScoreSettings,
    runtime: ClassifierRuntime,
    samples: Sequence[Sample],
    folder: Path,
    manifest: dict[str, Any],
    reporter: Reporter,
) -> PredictionSet:
    """Name the images that an interrupted call has not, and write the predictions.

    Raises:
        UsageError: Another process writes into the folder.
        DataError: No image could be read.
        OutputError: The results cannot be written; rows written before the error are kept.
    """
    files.make_folder(folder)
    header = runtime.header
    with folder_lock(folder), PredictionWriter(folder, header.classes, header.decision, manifest) as writer:
        done = len(writer.rows)
        if done:
            log.info("Continuing: %d of %d images were scored before.", done, len(samples))
        with reporter.stage("naming images", len(samples)) as update:
            for rows in _predict(runtime, samples[done:], settings.batch_size, settings.workers):
                writer.add(rows)
                update(len(writer.rows), len(samples))
        if all(row.error is not None for row in writer.rows):
            reason = f"The first reason: {writer.rows[0].error}"
            raise DataError(f"None of the {len(samples)} images could be read.", reason)
        return writer.finish()


def predict_rows(
    runtime: ClassifierRuntime, samples: Sequence[Sample], batch_size: int | str, workers: int, reporter: Reporter
) -> tuple[PredictedKind, ...]:
    """Return the row of each image, in order; threads read and compute in advance.

    Args:
        runtime: The classifier.
        samples: The images.
        batch_size: Number of images in a batch, or `auto`.
        workers: Number of threads that read images.
        reporter: Receiver of progress reports.
    """
    found: list[PredictedKind] = []
    with reporter.stage("naming images", len(samples)) as update:
        for rows in _predict(runtime, samples, batch_size, workers):
            found += rows
            update(len(found), len(samples))
    return tuple(found)


def _predict(
    runtime: ClassifierRuntime, samples: Sequence[Sample], batch_size: int | str, workers: int
) -> Iterator[list[PredictedKind]]:
    """Yield the rows of each batch, in order."""
    size = starting_batch_size(batch_size, runtime.device)
    batches = batch_images(stream_images(samples, runtime.input, workers=workers, batch_size=size), size)
    return map_ordered(
        lambda items: _rows(runtime, items),
        batches,
        workers=runtime.callers,
        ahead=runtime.callers,
        name="adctl-predict",
    )


def _rows(runtime: ClassifierRuntime, items: Sequence[LoadedImage]) -> list[PredictedKind]:
    """Return the rows of images that are already read."""
    readable = [item for item in items if item.error is None]
    named: Iterator[PredictedKind] = iter(())
    if readable:
        logits, distances = runtime.predict(stack_pixels(readable))
        finite = np.isfinite(logits).all(1) & np.isfinite(distances)
        logits, distances = np.where(finite[:, None], logits, 0), np.where(finite, distances, 0)
        decided = decide(runtime.header.decision, logits, distances)
        rows = predicted_kinds([one.sample for one in readable], decided, distances, runtime.header.classes)
        named = (
            row if known else _failed(one.sample, f"The prediction for {one.sample.path} is not a finite number.")
            for one, row, known in zip(readable, rows, finite, strict=True)
        )
    return [next(named) if item.error is None else _failed(item.sample, str(item.error)) for item in items]


def _failed(sample: Sample, reason: str) -> PredictedKind:
    """Return the row of an image without a prediction."""
    return PredictedKind(str(sample.path), sample.key, sample.label, error=reason)


def with_views(runtime: ClassifierRuntime, views: Sequence[str]) -> ClassifierRuntime:
    """Return a runtime that averages logits and distances over the image and its views.

    Args:
        runtime: The classifier.
        views: Names from `adctl.scoring.tta.VIEWS`.

    Raises:
        UsageError: A view needs square images.
    """
    if not views:
        return runtime
    require_square(tuple(views), runtime.input.height, runtime.input.width)

    def predict(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        seen = [pixels, *(np.ascontiguousarray(VIEWS[name].apply(pixels)) for name in views)]
        logits, distances = zip(*map(runtime.predict, seen), strict=True)
        return np.mean(logits, axis=0), np.mean(distances, axis=0)

    return replace(runtime, predict=predict)


def _images(settings: ScoreSettings, model: Path, classes: Sequence[str]) -> tuple[list[Sample], Sequence[IgnoredPath]]:
    """Return the named images, or else the test images of the classifier's run."""
    if settings.images:
        samples, ignored = list_images(settings.images)
        return _labelled(samples, classes), ignored
    return images_of_run(model), ()


def images_of_run(model: Path) -> list[Sample]:
    """Return the test images of a classifier's run.

    Raises:
        UsageError: The model lies in no run.
        DataError: The predictions of the run are damaged.
    """
    if not (model.parent / PREDICTIONS).is_file():
        raise UsageError(
            f"No images were given, and {model.parent} has no predictions of test images.", "Name folders or files."
        )
    return [Sample(Path(row.path), row.key, row.label) for row in PredictionSet.load(model.parent).rows]


def _labelled(samples: Sequence[Sample], classes: Sequence[str]) -> list[Sample]:
    """Return images with the names of their folders as labels, if any folder is named like a kind."""
    names = {sample.path.parent: sample.path.parent.name for sample in samples}
    labels = {folder: GOOD if name.casefold() in GOOD_NAMES else name for folder, name in names.items()}
    if not set(labels.values()) & set(classes):
        return list(samples)
    return [
        sample if sample.label is not None else replace(sample, label=labels[sample.path.parent]) for sample in samples
    ]
