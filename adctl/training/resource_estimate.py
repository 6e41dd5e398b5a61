"""Estimated memory and time of a training, from measurements on one batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from adctl.data.images import image_size
from adctl.data.loader import load_image
from adctl.data.tiling import Tiling
from adctl.detectors.registry import detector_class
from adctl.engine.batch_size import starting_batch_size
from adctl.engine.batching import to_input
from adctl.engine.phases import Batch, Observe, total
from adctl.training.out_of_fold import count_refits
from adctl.training.plan import fit_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.phases import Phase
    from adctl.training.plan import TrainingPlan

_BASE_MEMORY = 600 * 2**20
"""Bytes of Python, torch and the other libraries, measured on Linux."""

_ACTIVATIONS = 400
"""Measured bytes of activations for each input pixel of a batch; three times as many with gradients."""


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimated resources of a training.

    Attributes:
        memory: Peak of memory, bytes.
        disk: Temporary files, bytes.
        available: Free memory now, bytes.
        seconds: Time until the model file is written.
        width: Width of the first image, pixels.
        height: Height of the first image, pixels.
    """

    memory: int
    disk: int
    available: int
    seconds: float
    width: int
    height: int


_AGAIN, _KEPT = 0.2, 8
"""Scores out of fold: time as a share of the pass over the images, and bytes kept for each pixel of the inputs."""


def estimate_resources(plan: TrainingPlan, settings: TrainSettings) -> ResourceEstimate:
    """Estimate the resources from the time of one batch and of reading one image.

    Args:
        plan: Plan of the training.
        settings: Settings of the training.
    """
    detector = detector_class(settings.arch)(plan.config).to(plan.device.device)
    size = detector.input
    batch = min(starting_batch_size(settings.batch_size, str(plan.device.device)), len(plan.split.train))
    images = to_input(np.zeros((batch, *size.shape), np.uint8), plan.device.device)
    sample = plan.split.train[0]
    width, height = image_size(sample.path)
    tiles = len(Tiling.for_image(size, height, width))
    read = _timed(lambda: load_image(sample, size)) / max(1, settings.workers) / tiles
    count, validation, held_out = (
        tiles * len(part) for part in (plan.split.train, plan.split.validation, plan.split.calibration)
    )
    cost = detector.estimate_cost(count)
    refits = count_refits(detector, plan.split)
    finish = cost.flops / _flops_per_second(plan.device.device)
    seconds = finish * (1 + max(0, refits - 1))  # `refits` times with all folds but one
    gradients = False
    epochs = fit_settings(settings, type(detector), plan.config).epochs
    for phase in detector.phases():
        one = _phase_seconds(detector, phase, images) / batch
        if isinstance(phase, Observe):
            again = held_out or (count if refits else _AGAIN * count)  # refitting, features are computed once more
            seconds += max(one, read) * ((validation if phase.held_out else count) + again)
        else:
            gradients = True
            seconds += one * (count + validation / 3) * epochs + read * count
    kept = 0 if held_out else min(_KEPT * count * size.height * size.width, psutil.virtual_memory().available // 2)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    activations = batch * size.height * size.width * _ACTIVATIONS * (3 if gradients else 1)
    return ResourceEstimate(
        memory=_BASE_MEMORY + weights * (5 if gradients else 2) + activations + cost.memory + kept,
        disk=cost.disk,
        available=psutil.virtual_memory().available,
        seconds=seconds,
        width=width,
        height=height,
    )


def _phase_seconds(detector: Detector, phase: Phase, images: torch.Tensor) -> float:
    """Return the seconds of one batch in a phase."""
    if isinstance(phase, Observe):
        detector.eval()
        with torch.inference_mode():
            return _timed(lambda: phase.embed(images))

    def step() -> None:
        total(phase.loss(Batch(images, images))).backward()

    detector.train()
    return _timed(step)


def _timed(function: Callable[[], object]) -> float:
    """Return the seconds of the second call; the first call includes one-time initialisation."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _flops_per_second(device: torch.device) -> float:
    """Return half the speed of a matrix product on this device, which searches and inverses reach."""
    square = torch.rand(1024, 1024, device=device)
    return 0.5 * 2 * 1024**3 / _timed(lambda: (square @ square).sum().item())
