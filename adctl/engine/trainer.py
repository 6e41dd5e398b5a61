"""Fitting of a detector: its phases in order, on one device or several, under Lightning Fabric.

This module knows phases, batches and devices; it does not know detectors, files or the command line.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adctl.engine import distributed
from adctl.engine.batch_size import starting_batch_size
from adctl.engine.batching import BatchLimit, filling_batch_size, hold_buffers, largest_batch_size, to_input
from adctl.engine.checkpoints import load_weights
from adctl.engine.context import FitContext, labels_of
from adctl.engine.gradient_loop import GradientLoop
from adctl.engine.history import FitReport
from adctl.engine.phases import Batch, Observe, total
from adctl.engine.precision import choose_precision
from adctl.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from adctl.engine.checkpoints import Snapshot
    from adctl.engine.context import Images
    from adctl.engine.distributed import Devices
    from adctl.engine.history import FitSettings
    from adctl.engine.phases import Optimize
    from adctl.progress import Reporter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitJob:
    """Input of a fit; picklable, so that it can be sent to other processes.

    Attributes:
        detector: The detector to fit; an `nn.Module` with `phases()`.
        train: Training images, all good.
        validation: Held-out good images that choose the best epoch of `Optimize` phases, or None.
        settings: Settings of the fit.
        device: The device, for a fit on one device.
        context: Progress, log, checkpoints and augmentation.
        resume: Whether to resume from the newest checkpoint, if there is one.
        learned: Number of images that the detector has learned from, to which the training images are new; 0 fits it
            anew.
    """

    detector: Any
    train: Images
    validation: Images | None
    settings: FitSettings
    device: torch.device
    context: FitContext
    resume: bool = False
    learned: int = 0


_FIRST = 8
"""Images read at once to see whether they vary; most often the first are enough."""


def seed_everything(seed: int) -> None:
    """Seed torch, for reproducible initial weights."""
    torch.manual_seed(seed)


def fit(job: FitJob, devices: Devices | None = None) -> FitReport:
    """Run the phases of a detector in order, and leave it fitted, on the device, in evaluation mode.

    Args:
        job: Detector, images and settings.
        devices: Devices that train together, or None for the device of the job.

    Raises:
        TrainingError: The loss is not finite, a single image does not fit into memory, or the images do not vary.
        ModelFileError: The checkpoint is damaged or belongs to another network.
        ImageError: An image cannot be read.
    """
    _require_variation(job.train)
    try:
        return _fit_on(job, devices)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise TrainingError(
            f"The features of the training images do not vary enough: {error}.",
            "Use images that differ from one another, as photographs of different parts do.",
        ) from error


def _require_variation(images: Images) -> None:
    """Raise if each image has one colour only."""
    for pixels in images.batches(_FIRST):
        flat = pixels.reshape(len(pixels), -1, pixels.shape[-1])
        if (flat != flat[:, :1]).any():
            return
    raise TrainingError(
        f"The training images do not vary: each of the {len(images)} images has one colour only, such as all white.",
        "Check the camera, the exposure and the region of interest, and use images that show parts.",
    )


def _fit_on(job: FitJob, devices: Devices | None) -> FitReport:
    several = devices is not None and devices.count > 1
    if not several and not distributed.is_launched_externally():
        return _fit(job, None)
    if devices is None:
        devices = distributed.Devices.single(job.device)
    precision, _ = choose_precision(job.settings.precision, job.device)
    fabric = distributed.make_fabric(devices, precision)
    if fabric.strategy.launcher is None:
        return _fit(job, fabric)
    state, report = distributed.run(fabric, _fit_in_process, job)
    load_weights(job.detector.to(job.device), {name: torch.from_numpy(value) for name, value in state.items()})
    job.detector.eval()
    return FitReport.from_dict(report)


def _fit_in_process(fabric: Fabric, job: FitJob) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Fit in a process that `distributed.run` started, and return the weights and the report."""
    if fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    # The tensors from the parent lie in memory that all processes share.
    job = replace(job, detector=copy.deepcopy(job.detector))
    report = _fit(job, fabric)
    # Arrays, because the shared memory of returned tensors would be freed with this process.
    return {name: value.cpu().numpy() for name, value in job.detector.state_dict().items()}, report.to_dict()


def _fit(job: FitJob, fabric: Fabric | None) -> FitReport:
    job = replace(job, context=_context_of_process(job.context, fabric))
    detector, context = job.detector, job.context
    device = job.device if fabric is None else fabric.device
    detector.to(device)
    detector.to(memory_format=torch.channels_last)
    report = FitReport()
    limit = BatchLimit(starting_batch_size(job.settings.batch_size, str(device)))
    snapshot = _newest_snapshot(job)
    phases = detector.update_phases(job.learned) if job.learned else detector.phases()
    for number, phase in enumerate(phases):
        if snapshot is not None and number < snapshot.values["phase"]:
            continue
        start = time.perf_counter()
        if isinstance(phase, Observe):
            detector.eval()
            images = job.validation if phase.held_out and job.validation is not None else job.train
            _observe(phase, images, limit, device, context.reporter)
        elif job.settings.epochs:
            _optimize(phase, number, job, fabric, limit, report, snapshot)
            snapshot = None
        report.seconds[phase.title] = time.perf_counter() - start
    context.training_log.close()
    report.batch_size = limit.size
    detector.eval()
    return report


def _context_of_process(context: FitContext, fabric: Fabric | None) -> FitContext:
    """Return the context for this process: only the first process reports progress and writes the log."""
    if fabric is None or fabric.is_global_zero:
        return context
    return FitContext(checkpoints=context.checkpoints, augment=context.augment)


def _newest_snapshot(job: FitJob) -> Snapshot | None:
    folder = job.context.checkpoints
    if not job.resume or folder is None:
        return None
    path = folder.newest()
    if path is None:
        log.info("There is no checkpoint yet: the training starts from the beginning.")
    return None if path is None else folder.read(path)


def _observe(phase: Observe, images: Images, limit: BatchLimit, device: torch.device, reporter: Reporter) -> None:
    done = 0
    with reporter.stage(phase.title, len(images)) as update, torch.inference_mode():
        for pixels in images.batches(limit.size):
            for embedded in limit.run(phase.embed, to_input(pixels, device)):
                phase.absorb(embedded)
            done += len(pixels)
            update(done, len(images))
    with reporter.stage(f"{phase.title}: finishing") as update, torch.inference_mode():
        phase.finish(update)


def _optimize(
    phase: Optimize,
    number: int,
    job: FitJob,
    fabric: Fabric | None,
    limit: BatchLimit,
    report: FitReport,
    snapshot: Snapshot | None,
) -> None:
    device = job.device if fabric is None else fabric.device
    precision, reason = choose_precision(job.settings.precision, device)
    report.precision = f"{precision} ({reason})"
    log.debug("Precision %s: %s.", precision, reason)
    if phase.objective is not None:
        phase.objective.to(device)
    fabric = fabric or distributed.make_fabric(distributed.Devices.single(device), precision)
    settings = _fit_batch_size(phase, job, limit, device)
    loop = GradientLoop(job.detector, phase, settings, fabric, limit, job.context, report)
    images = f"{report.global_batch_size} images per step"
    log.debug("Batch size %d on each of %d device(s), %s.", limit.size, report.devices, images)
    loop.run(job.train, job.validation, number, snapshot)


def _fit_batch_size(phase: Optimize, job: FitJob, limit: BatchLimit, device: torch.device) -> FitSettings:
    """Lower an automatic batch size until it fits into memory; accumulate more batches, so that steps stay the same."""
    settings, detector = job.settings, job.detector
    if not isinstance(settings.batch_size, str):
        return settings
    fills = settings.batch_size == "max" and device.type == "cuda"
    wanted = len(job.train) if fills else min(limit.size, len(job.train))
    first = next(iter(job.train.batches(1)))
    modules = phase.modules(detector)
    restore_buffers = hold_buffers(*modules)
    for module in modules:
        module.train()

    def step(size: int) -> None:
        images = to_input(np.repeat(first, size, axis=0), device)
        labels = labels_of(job.train, [0] * size, device)
        total(phase.loss(Batch(images, images, labels=labels))).backward()
        # AdamW keeps two numbers for each weight.
        _ = [torch.zeros_like(parameter) for parameter in phase.parameters for _ in range(2)]

    size = (filling_batch_size if fills else largest_batch_size)(step, wanted, device)
    for module in modules:
        module.zero_grad(set_to_none=True)
    restore_buffers()
    if fills:
        log.info("Memory holds %d images at once.", size)
        limit.size = size
        return settings
    if size == wanted:
        return settings
    batches = math.ceil(limit.size / size)
    log.warning("Memory holds %d images at once, not %d: each step uses %d batches.", size, limit.size, batches)
    limit.size = size
    return replace(settings, accumulate=settings.accumulate * batches)
