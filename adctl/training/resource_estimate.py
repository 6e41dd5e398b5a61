"""How much memory and time training will take, measured on one batch before it starts."""

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
from adctl.training.single_run import fit_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.phases import Phase
    from adctl.training.single_run import TrainingPlan

_BASE_MEMORY = 600 * 2**20
"""Of Python, torch and the libraries, bytes, as measured on Linux."""

_ACTIVATIONS = 400
"""Bytes a batch takes for each input pixel on the way through a network, as measured; thrice with gradients."""


@dataclass(frozen=True)
class ResourceEstimate:
    """What training will take.

    Attributes:
        memory: Bytes at the peak.
        disk: Bytes of temporary files.
        available: Bytes that are free now.
        seconds: Until the model file is written.
        width: Of the first image, pixels.
        height: Of the first image, pixels.
    """

    memory: int
    disk: int
    available: int
    seconds: float
    width: int
    height: int


def estimate_resources(plan: TrainingPlan, settings: TrainSettings) -> ResourceEstimate:
    """Time one batch and one image file, and scale up.

    Args:
        plan: What training would do.
        settings: Its settings.
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
    further = detector.estimate_cost(count)
    seconds = further.flops / _flops_per_second(plan.device.device)
    gradients = False
    epochs = fit_settings(settings, type(detector), plan.config).epochs
    for phase in detector.phases():
        one = _phase_seconds(detector, phase, images) / batch
        if isinstance(phase, Observe):
            seconds += max(one, read) * ((validation if phase.held_out else count) + held_out)
        else:
            gradients = True
            seconds += one * (count + validation / 3) * epochs + read * count
    weights = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    activations = batch * size.height * size.width * _ACTIVATIONS * (3 if gradients else 1)
    return ResourceEstimate(
        memory=_BASE_MEMORY + weights * (5 if gradients else 2) + activations + further.memory,
        disk=further.disk,
        available=psutil.virtual_memory().available,
        seconds=seconds,
        width=width,
        height=height,
    )


def _phase_seconds(detector: Detector, phase: Phase, images: torch.Tensor) -> float:
    """Seconds of one batch through a phase."""
    if isinstance(phase, Observe):
        detector.eval()
        with torch.inference_mode():
            return _timed(lambda: phase.embed(images))

    def step() -> None:
        total(phase.loss(Batch(images, images))).backward()

    detector.train()
    return _timed(step)


def _timed(function: Callable[[], object]) -> float:
    """Seconds of the second call: the first one also pays for what is set up once."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _flops_per_second(device: torch.device) -> float:
    """What this device reaches in a matrix product; searches and inverses reach about half of it."""
    square = torch.rand(1024, 1024, device=device)
    return 0.5 * 2 * 1024**3 / _timed(lambda: (square @ square).sum().item())
