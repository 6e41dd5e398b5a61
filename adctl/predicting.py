"""Samples to predictions through any runtime, in order, with flat memory: what calibrating and scoring share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.data.loader import Loaded, groups, stack, stream
from adctl.engine.batching import starting_batch_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample
    from adctl.runtimes.contract import Runtime


@dataclass(frozen=True)
class Predicted:
    """One image and what the detector says of it.

    Attributes:
        item: The image as it was read, or why it could not be.
        score: Raw, float64; None for an unreadable image.
        anomaly_map: Array [h,w] of float32, raw; None for an unreadable image.
    """

    item: Loaded
    score: float | None
    anomaly_map: NDArray[np.float32] | None


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
    items = stream(samples, runtime.height, runtime.width, workers=workers, display=display)
    for group in groups(items, size):
        readable = [item for item in group if item.error is None]
        scored = runtime.predict(stack(readable)) if readable else None
        rank = 0
        for item in group:
            if item.error is not None or scored is None:
                yield Predicted(item, None, None)
            else:
                yield Predicted(item, float(scored.scores[rank]), scored.maps[rank])
                rank += 1


@dataclass(frozen=True)
class GoodScores:
    """Raw scores of readable images, and their map values.

    Attributes:
        scores: Array [n] of float64.
        cells: Array [n,h*w] of float32.
        skipped: Messages of the images that could not be read.
    """

    scores: NDArray[np.float64]
    cells: NDArray[np.float32]
    skipped: tuple[str, ...]


def collect(runtime: Runtime, samples: Sequence[Sample], *, batch_size: int | str, workers: int) -> GoodScores:
    """Predict images and keep only their scores and map values."""
    scores, cells, skipped = [], [], []
    for predicted in predict(runtime, samples, batch_size=batch_size, workers=workers):
        if predicted.score is None or predicted.anomaly_map is None:
            skipped.append(str(predicted.item.error))
            continue
        scores.append(predicted.score)
        cells.append(predicted.anomaly_map.ravel())
    gathered = np.stack(cells) if cells else np.empty((0, 0), np.float32)
    return GoodScores(np.array(scores, dtype=np.float64), gathered, tuple(skipped))
