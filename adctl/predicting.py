"""Samples to predictions through any runtime, in order, with flat memory: what calibrating and scoring share."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.data.loader import Loaded, groups, pieces, stack, stream
from adctl.data.preprocess import onto_image, where_seen
from adctl.data.tiling import Stitcher, Tiling
from adctl.engine.batching import starting_batch_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.records import Sample
    from adctl.runtimes.contract import Runtime

_MOST_CELLS = 2**18
"""Of one image's map, kept for calibration: hundreds of stitched maps would not fit into memory."""


@dataclass(frozen=True)
class Predicted:
    """One image and what the detector says of it.

    Attributes:
        item: The image as it was read, or why it could not be.
        score: Raw, float64; None for an unreadable image.
        anomaly_map: Array [h,w] of float32, raw, spanning the original image; None for an unreadable image.
        cells: Its values where the detector looked: all but those outside a centre crop; None likewise.
    """

    item: Loaded
    score: float | None
    anomaly_map: NDArray[np.float32] | None
    cells: NDArray[np.float32] | None


def predict(
    runtime: Runtime,
    samples: Sequence[Sample],
    *,
    batch_size: int | str = "auto",
    workers: int = 2,
    display: int | None = None,
) -> Iterator[Predicted]:
    """Predict images in order; reading runs ahead in threads while the detector computes.

    Args:
        runtime: The model.
        samples: The images.
        batch_size: Images at once; `auto` fits the device.
        workers: Threads that read.
        display: Also keep each image to look at, its longer side at most so many pixels.
    """
    size = starting_batch_size(batch_size, torch.device(runtime.device))
    items = stream(samples, runtime.input, workers=workers, display=display)
    if runtime.input.tiled:
        yield from (_predict_tiles(runtime, item, size) for item in items)
        return
    for group in groups(items, size):
        readable = [item for item in group if item.error is None]
        scored = runtime.predict(stack(readable)) if readable else None
        rank = 0
        for item in group:
            if item.error is not None or scored is None:
                yield Predicted(item, None, None, None)
            else:
                yield _predicted(runtime.input, item, float(scored.scores[rank]), scored.maps[rank])
                rank += 1


def _predicted(spec: InputSpec, item: Loaded, score: float, values: NDArray[np.float32]) -> Predicted:
    anomaly_map = onto_image(values, spec, item.height, item.width)
    return Predicted(item, score, anomaly_map, where_seen(values, anomaly_map, spec, item.height, item.width))


def _predict_tiles(runtime: Runtime, item: Loaded, batch_size: int) -> Predicted:
    """Tile by tile, never more than a batch of them cut; see `Stitcher` for score and map."""
    if item.error is not None:
        return Predicted(item, None, None, None)
    stitcher = Stitcher(runtime.input, Tiling.of(runtime.input, item.height, item.width))
    tiles = pieces(item, runtime.input)
    while batch := list(itertools.islice(tiles, batch_size)):
        scored = runtime.predict(np.stack(batch))
        for score, values in zip(scored.scores, scored.maps, strict=True):
            stitcher.add(float(score), values)
    score, anomaly_map = stitcher.result()
    return Predicted(replace(item, whole=None), score, anomaly_map, anomaly_map)


@dataclass(frozen=True)
class GoodScores:
    """Raw scores of readable images, and their map values.

    Attributes:
        scores: Array [n] of float64.
        cells: Array [cells] of float32, of all images; of large maps only an even share.
        skipped: Messages of the images that could not be read.
    """

    scores: NDArray[np.float64]
    cells: NDArray[np.float32]
    skipped: tuple[str, ...]


def collect(runtime: Runtime, samples: Sequence[Sample], *, batch_size: int | str, workers: int) -> GoodScores:
    """Predict images and keep only their scores and map values."""
    scores, cells, skipped = [], [], []
    for predicted in predict(runtime, samples, batch_size=batch_size, workers=workers):
        if predicted.score is None or predicted.cells is None:
            skipped.append(str(predicted.item.error))
            continue
        scores.append(predicted.score)
        values = predicted.cells.ravel()
        cells.append(values[:: math.ceil(values.size / _MOST_CELLS)].copy())
    gathered = np.concatenate(cells) if cells else np.empty(0, np.float32)
    return GoodScores(np.array(scores, dtype=np.float64), gathered, tuple(skipped))
