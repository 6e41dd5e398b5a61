"""Prediction of images with any runtime, in order and with constant memory, for calibration and scoring."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl.data import reading_processes
from adctl.data.input_stats import measure_input
from adctl.data.loader import LoadedImage, batch_images, network_inputs, stack_pixels, stream_images
from adctl.data.preprocess import map_to_image
from adctl.data.tiling import Stitcher, Tiling
from adctl.engine.batch_size import starting_batch_size
from adctl.records import CalibrationScores
from adctl.scoring.naming import NamingRuntime
from adctl.threads import map_ordered
from adctl.thresholds.drift import input_ranges

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.scoring.naming import DefectName

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictedImage:
    """Detector output for one image.

    Attributes:
        item: The loaded image, or the error that says why it cannot be read.
        score: Raw score; None for an unreadable image.
        anomaly_map: Raw anomaly map [h,w] of float32 that covers the original image; None for an unreadable image.
        inputs: Statistics of the image, as from `measure_input`; empty for an unreadable image.
        name: Name of the defect by a classifier; None if the image was not named.
    """

    item: LoadedImage
    score: float | None
    anomaly_map: NDArray[np.float32] | None
    inputs: tuple[float, ...] = ()
    name: DefectName | None = None

    @property
    def peak(self) -> float | None:
        """Highest value of the anomaly map; None for an unreadable image."""
        return None if self.anomaly_map is None else float(self.anomaly_map.max())


def predict(
    runtime: Runtime,
    samples: Sequence[Sample],
    *,
    batch_size: int | str = "auto",
    workers: int = 2,
    display: int | None = None,
) -> Generator[PredictedImage, None, None]:
    """Yield the prediction of each image, in order; threads read and compute in advance.

    Args:
        runtime: Runtime that holds the model.
        samples: Images to predict.
        batch_size: Number of images in a batch; `auto` chooses it for the device.
        workers: Number of threads that read images.
        display: Longest side in pixels of an additional copy of each image for display; None keeps no copy.
    """
    size = starting_batch_size(batch_size, runtime.device)
    items = _read(runtime, samples, workers, display, size)
    if runtime.input.tiled:
        yield from (_predict_tiles(runtime, item, size) for item in items)
        return
    # Threads prepare the next batch while the network computes, so that the network does not wait.
    callers, batches = runtime.callers, batch_images(items, size)
    for group in map_ordered(
        lambda group: predict_loaded(runtime, group, size),
        batches,
        workers=callers,
        ahead=callers,
        name="adctl-predict",
    ):
        yield from group


def _read(
    runtime: Runtime, samples: Sequence[Sample], workers: int, display: int | None, size: int
) -> Iterator[LoadedImage]:
    """Read images by processes where the network is faster than this process can read, or else by threads."""
    of_gpu = runtime.device.startswith("cuda") and display is None
    if of_gpu and reading_processes.are_worthwhile(samples, runtime.input, workers):
        return reading_processes.read_in_processes(samples, runtime.input, workers=workers, batch_size=size)
    return stream_images(samples, runtime.input, workers=workers, display=display, batch_size=size)


def predict_loaded(runtime: Runtime, items: Sequence[LoadedImage], batch_size: int) -> list[PredictedImage]:
    """Predict images that are already read, in order: as one batch, or tile by tile.

    Args:
        runtime: Runtime that holds the model.
        items: Images; those that could not be read get no score.
        batch_size: Number of tiles in a batch.
    """
    if runtime.input.tiled:
        return [_predict_tiles(runtime, item, batch_size) for item in items]
    readable = [item for item in items if item.error is None]
    if not readable:
        return [PredictedImage(item, None, None) for item in items]
    inputs = [measure_input(item) if item.inputs is None else item.inputs for item in readable]
    output = runtime.predict(stack_pixels(readable))
    results = iter(zip(output.scores, output.maps, inputs, _names(runtime, readable, output.scores), strict=True))
    return [
        PredictedImage(item, None, None) if item.error is not None else _whole(runtime, item, *next(results))
        for item in items
    ]


def _names(
    runtime: Runtime, items: Sequence[LoadedImage], scores: Sequence[float] | NDArray[np.float64]
) -> list[DefectName | None]:
    return runtime.names(items, scores) if isinstance(runtime, NamingRuntime) else [None] * len(items)


def _whole(
    runtime: Runtime,
    item: LoadedImage,
    score: np.float64,
    values: NDArray[np.float32],
    inputs: tuple[float, ...],
    name: DefectName | None,
) -> PredictedImage:
    anomaly_map = map_to_image(values, runtime.input, item.height, item.width)
    return PredictedImage(item, float(score), anomaly_map, inputs, name)


def _predict_tiles(runtime: Runtime, item: LoadedImage, batch_size: int) -> PredictedImage:
    """Predict an image tile by tile, with one batch of tiles in memory; `Stitcher` joins the scores and maps."""
    if item.error is not None:
        return PredictedImage(item, None, None)
    inputs = measure_input(item)
    stitcher = Stitcher(runtime.input, Tiling.for_image(runtime.input, item.height, item.width))
    tiles = network_inputs(item, runtime.input)
    while batch := list(itertools.islice(tiles, batch_size)):
        output = runtime.predict(np.stack(batch))
        for score, values in zip(output.scores, output.maps, strict=True):
            stitcher.add(float(score), values)
    score, anomaly_map = stitcher.result()
    (name,) = _names(runtime, [item], [score])
    return PredictedImage(replace(item, whole=None), score, anomaly_map, inputs, name)


@dataclass(frozen=True)
class CollectedScores:
    """Raw scores and highest map values of all readable images.

    Attributes:
        keys: Keys of the images.
        scores: Raw scores [n] of float64.
        peaks: Highest value of each anomaly map [n], float64.
        inputs: Statistics of each image [n,k], float64, as from `measure_input`.
        groups: Group of each image; an image without a group has its key.
    """

    keys: tuple[str, ...]
    scores: NDArray[np.float64]
    peaks: NDArray[np.float64]
    inputs: NDArray[np.float64]
    groups: tuple[str, ...] = ()

    def by_key(self) -> dict[str, float]:
        """Return the score of each image by its key."""
        return dict(zip(self.keys, self.scores.tolist(), strict=True))

    def of_category(self, name: str) -> CollectedScores:
        """Return the scores of the images whose keys start with the name of a category."""
        return self._of_rows([row for row, key in enumerate(self.keys) if key.partition("/")[0] == name])

    def without(self, keys: Collection[str]) -> CollectedScores:
        """Return the scores of the other images."""
        return self._of_rows([row for row, key in enumerate(self.keys) if key not in keys])

    def _of_rows(self, rows: list[int]) -> CollectedScores:
        return CollectedScores(
            tuple(self.keys[row] for row in rows),
            self.scores[rows],
            self.peaks[rows],
            self.inputs[rows],
            tuple(self.groups[row] for row in rows) if self.groups else (),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[CollectedScores]) -> CollectedScores:
        """Return the scores of all parts in one record."""
        return cls(
            tuple(key for part in parts for key in part.keys),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.peaks for part in parts]),
            np.concatenate([part.inputs for part in parts]),
            tuple(group for part in parts for group in part.groups),
        )


def collect(runtime: Runtime, samples: Sequence[Sample], *, batch_size: int | str, workers: int) -> CollectedScores:
    """Predict images and keep only their scores, the highest values of their anomaly maps, and their statistics.

    Unreadable images are logged and left out.
    """
    keys, scores, peaks, inputs = [], [], [], []
    for predicted in predict(runtime, samples, batch_size=batch_size, workers=workers):
        if predicted.score is None or predicted.peak is None:
            log.warning("%s", predicted.item.error)
            continue
        keys.append(predicted.item.sample.key)
        scores.append(predicted.score)
        peaks.append(predicted.peak)
        inputs.append(predicted.inputs)
    table = np.array(inputs, np.float64).reshape(len(inputs), -1)
    group_of = {sample.key: sample.group or sample.key for sample in samples}
    groups = tuple(group_of[key] for key in keys)
    return CollectedScores(tuple(keys), np.array(scores, np.float64), np.array(peaks, np.float64), table, groups)


def calibration_scores_of(
    good: CollectedScores,
    defective: CollectedScores | None = None,
    *,
    folds: int = 0,
    views: tuple[str, ...] = (),
    by_category: bool = False,
) -> CalibrationScores:
    """Sort scores into the record that a calibration stores.

    Args:
        good: Scores of good images that the model was not trained on.
        defective: Scores of labelled defective images.
        folds: Number of cross-validation models that gave the good scores; 0 if the saved model gave them.
        views: Views of test-time augmentation used for these scores.
        by_category: Whether the keys start with the name of a category whose scores are kept by themselves too.
    """
    names = sorted({key.partition("/")[0] for key in good.keys}) if by_category else []
    order = np.argsort(good.scores, kind="stable")
    grouped = good.groups not in ((), good.keys)
    return CalibrationScores(
        good=tuple(good.scores[order].tolist()),
        peaks=tuple(sorted(good.peaks.tolist())),
        defective=() if defective is None else tuple(sorted(defective.scores.tolist())),
        folds=folds,
        views=views,
        groups=tuple(good.groups[place] for place in order) if grouped else (),
        inputs=input_ranges(good.inputs),
        categories={name: calibration_scores_of(good.of_category(name), folds=folds, views=views) for name in names},
    )
