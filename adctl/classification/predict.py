"""Prediction of images by a classifier: logits and distances, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.data.loader import ImageSource
from adctl.engine.batch_size import starting_batch_size
from adctl.engine.batching import BatchLimit, to_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.classification.classifier import Classifier
    from adctl.progress import Reporter
    from adctl.records import Sample

    Floats = NDArray[np.float64]


def predict_images(
    classifier: Classifier,
    samples: Sequence[Sample],
    device: torch.device,
    reporter: Reporter,
    *,
    batch_size: int | str = "auto",
    workers: int = 2,
    mirrored: bool = False,
) -> tuple[Floats, Floats]:
    """Return logits [N,K] and distances [N] of images, in order.

    Args:
        classifier: Fitted classifier on the device, in evaluation mode.
        samples: The images.
        device: Device that computes.
        reporter: Receiver of progress.
        batch_size: Images in a batch, or `auto`.
        workers: Threads that read images.
        mirrored: Whether to average over the image and its mirror image.

    Raises:
        ImageError: An image cannot be read.
    """
    source = ImageSource(samples, classifier.input, workers=workers, reuse=False)
    logits, distances, done = [], [], 0
    with reporter.stage("naming test images", len(samples)) as update:
        for pixels in source.batches(starting_batch_size(batch_size, str(device))):
            values, far = classify_pixels(classifier, pixels, device)
            if mirrored:
                others = classify_pixels(classifier, np.ascontiguousarray(pixels[:, :, ::-1]), device)
                values, far = (values + others[0]) / 2, (far + others[1]) / 2
            logits.append(values)
            distances.append(far)
            done += len(pixels)
            update(done, len(samples))
    if not logits:
        return np.zeros((0, classifier.kinds)), np.zeros(0)
    return np.concatenate(logits), np.concatenate(distances)


def classify_pixels(classifier: Classifier, pixels: NDArray[np.uint8], device: torch.device) -> tuple[Floats, Floats]:
    """Return logits [B,K] and distances [B] of network inputs [B,H,W,C], uint8."""
    with torch.inference_mode():
        parts = list(BatchLimit(1 << 30).run(classifier, to_input(pixels, device)))
    logits = torch.cat([part.logits for part in parts]).double().cpu().numpy()
    return logits, torch.cat([part.distance for part in parts]).double().cpu().numpy()
