"""Samples to predictions through any runtime, in order, with flat memory: what calibrating and scoring share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.loader import LoadedImage, batch_images, network_inputs, stack_pixels, stream_images
from adctl.data.preprocess import map_to_image
from adctl.data.tiling import Stitcher, Tiling
from adctl.engine.batch_size import starting_batch_size
from adctl.records import CalibrationScores
from adctl.threads import map_ordered

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime, RuntimeOutput


@dataclass(frozen=True)
class PredictedImage:
    """One image and what the detector says of it.

    Attributes:
        item: The image as it was read, or why it could not be.
        score: Raw, float64; None for an unreadable image.
        anomaly_map: Array [h,w] of float32, raw, spanning the original image; None for an unreadable image.
    """

    item: LoadedImage
    score: float | None
    anomaly_map: NDArray[np.float32] | None

    @property
    def peak(self) -> float | None:
        """The highest value of the map; None for an unreadable image."""
        return None if self.anomaly_map is None else float(self.anomaly_map.max())


def predict(
    runtime: Runtime,
    samples: Sequence[Sample],
    *,
    batch_size: int | str = "auto",
    workers: int = 2,
    display: int | None = None,
) -> Generator[PredictedImage, None, None]:
    """Predict images in order; reading runs ahead in threads, and computing runs ahead of the caller.

    Args:
        runtime: The model.
        samples: The images.
        batch_size: Images at once; `auto` fits the device.
        workers: Threads that read.
        display: Also keep each image to look at, its longer side at most so many pixels.
    """
    size = starting_batch_size(batch_size, runtime.device)
    items = stream_images(samples, runtime.input, workers=workers, display=display, batch_size=size)
    if runtime.input.tiled:
        yield from (_predict_tiles(runtime, item, size) for item in items)
        return

    def score(group: list[LoadedImage]) -> tuple[list[LoadedImage], RuntimeOutput | None]:
        readable = [item for item in group if item.error is None]
        return group, runtime.predict(stack_pixels(readable)) if readable else None

    # In threads, so that the next group is at hand when one is done: the network never waits.
    callers = runtime.callers
    for group, scored in map_ordered(
        score, batch_images(items, size), workers=callers, ahead=callers, name="adctl-predict"
    ):
        rank = 0
        for item in group:
            if item.error is not None or scored is None:
                yield PredictedImage(item, None, None)
            else:
                yield _predicted(runtime.input, item, float(scored.scores[rank]), scored.maps[rank])
                rank += 1


def _predicted(spec: InputSpec, item: LoadedImage, score: float, values: NDArray[np.float32]) -> PredictedImage:
    return PredictedImage(item, score, map_to_image(values, spec, item.height, item.width))


def _predict_tiles(runtime: Runtime, item: LoadedImage, batch_size: int) -> PredictedImage:
    """Tile by tile, never more than a batch of them cut; see `Stitcher` for score and map."""
    if item.error is not None:
        return PredictedImage(item, None, None)
    stitcher = Stitcher(runtime.input, Tiling.for_image(runtime.input, item.height, item.width))
    tiles = network_inputs(item, runtime.input)
    while batch := list(itertools.islice(tiles, batch_size)):
        scored = runtime.predict(np.stack(batch))
        for score, values in zip(scored.scores, scored.maps, strict=True):
            stitcher.add(float(score), values)
    score, anomaly_map = stitcher.result()
    return PredictedImage(replace(item, whole=None), score, anomaly_map)


@dataclass(frozen=True)
class CollectedScores:
    """Raw scores of the images that could be read, and the highest value of each one's map.

    Attributes:
        scores: Array [n] of float64.
        peaks: Array [n] of float64.
        skipped: Messages of the images that could not be read.
    """

    scores: NDArray[np.float64]
    peaks: NDArray[np.float64]
    skipped: tuple[str, ...]


def collect(runtime: Runtime, samples: Sequence[Sample], *, batch_size: int | str, workers: int) -> CollectedScores:
    """Predict images and keep only their scores and the peaks of their maps."""
    scores, peaks, skipped = [], [], []
    for predicted in predict(runtime, samples, batch_size=batch_size, workers=workers):
        if predicted.score is None or predicted.peak is None:
            skipped.append(str(predicted.item.error))
            continue
        scores.append(predicted.score)
        peaks.append(predicted.peak)
    return CollectedScores(np.array(scores, np.float64), np.array(peaks, np.float64), tuple(skipped))


def calibration_scores_of(
    good: CollectedScores, defective: CollectedScores | None = None, *, folds: int = 0, views: tuple[str, ...] = ()
) -> CalibrationScores:
    """What thresholds are chosen from, as it is kept.

    Args:
        good: Of good images the model has not learned from.
        defective: Of labelled defective ones.
        folds: How many models the good scores come from; 0 for the one that is kept.
        views: Of test-time augmentation.
    """
    return CalibrationScores(
        good=tuple(sorted(good.scores.tolist())),
        peaks=tuple(sorted(good.peaks.tolist())),
        defective=() if defective is None else tuple(sorted(defective.scores.tolist())),
        folds=folds,
        views=views,
    )
