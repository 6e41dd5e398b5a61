"""Running a detector's phases: passes without gradients, and epochs of gradient steps under Lightning Fabric.

Knows phases, batches and devices; nothing of any one detector, of files or of the command line.
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
from adctl.engine.batching import BatchLimit, hold_buffers, largest_that_fits, to_input
from adctl.engine.checkpoints import load_weights
from adctl.engine.context import FitContext
from adctl.engine.gradient_loop import Optimization
from adctl.engine.history import FitReport
from adctl.engine.phases import Batch, Observe, total
from adctl.engine.precision import choose_precision

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
    """A fit as it is handed to each process.

    Attributes:
        detector: What is fitted; an `nn.Module` with `phases()`.
        train: Images to learn from, all good.
        validation: Held-out good images that choose the epoch of `Optimize` phases.
        plan: How.
        device: For a fit on one device.
        around: Who is told, and where checkpoints lie.
        resume: Whether to go on from the newest checkpoint, where there is one.
    """

    detector: Any
    train: Images
    validation: Images | None
    plan: FitSettings
    device: torch.device
    around: FitContext
    resume: bool = False


def seed_everything(seed: int) -> None:
    """Make initial weights and everything else random in torch reproducible."""
    torch.manual_seed(seed)


def fit(work: FitJob, devices: Devices | None = None) -> FitReport:
    """Run the detector's phases in order; it is left fitted, on the device, in evaluation mode.

    Args:
        work: What, on what and how.
        devices: Several that train together; None for the one of `work`.

    Raises:
        TrainingError: The loss is not finite, or memory runs out with a single image.
        ModelFileError: The checkpoint to go on from is damaged or of another network.
        ImageError: An image cannot be read.
    """
    several = devices is not None and devices.count > 1
    if not several and not distributed.launched_outside():
        return _fit(work, None)
    if devices is None:
        devices = distributed.Devices.single(work.device)
    precision, _ = choose_precision(work.plan.precision, work.device)
    fabric = distributed.make_fabric(devices, precision)
    if fabric.strategy.launcher is None:
        return _fit(work, fabric)
    state, report = distributed.run(fabric, _fit_apart, work)
    load_weights(work.detector.to(work.device), {name: torch.from_numpy(value) for name, value in state.items()})
    work.detector.eval()
    return FitReport.from_dict(report)


def _fit_apart(fabric: Fabric, work: FitJob) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """In a process of its own: fit, and hand the weights back."""
    if fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    # What came from the parent lies in memory that all processes share.
    work = replace(work, detector=copy.deepcopy(work.detector))
    report = _fit(work, fabric)
    # Arrays, as tensors would be handed over in memory that goes with this process.
    return {name: value.cpu().numpy() for name, value in work.detector.state_dict().items()}, report.to_dict()


def _fit(work: FitJob, fabric: Fabric | None) -> FitReport:
    detector, around = work.detector, _own_surroundings(work.around, fabric)
    device = work.device if fabric is None else fabric.device
    detector.to(device)
    detector.to(memory_format=torch.channels_last)
    report = FitReport()
    limit = BatchLimit(starting_batch_size(work.plan.batch_size, str(device)))
    snapshot = _newest(work)
    for number, phase in enumerate(detector.phases()):
        if snapshot is not None and number < snapshot.values["phase"]:
            continue
        start = time.perf_counter()
        if isinstance(phase, Observe):
            detector.eval()
            images = work.validation if phase.held_out and work.validation is not None else work.train
            _observe(phase, images, limit, device, around.reporter)
        else:
            _optimize(phase, number, replace(work, around=around), fabric, limit, report, snapshot)
            snapshot = None
        report.seconds[phase.title] = time.perf_counter() - start
    around.journal.close()
    report.batch_size = limit.size
    detector.eval()
    return report


def _own_surroundings(around: FitContext, fabric: Fabric | None) -> FitContext:
    """One process speaks and writes; the others only read checkpoints."""
    if fabric is None or fabric.is_global_zero:
        return around
    return FitContext(checkpoints=around.checkpoints, augment=around.augment)


def _newest(work: FitJob) -> Snapshot | None:
    folder = work.around.checkpoints
    if not work.resume or folder is None:
        return None
    path = folder.newest()
    if path is None:
        log.info("There is no checkpoint yet: training starts from its beginning.")
    return None if path is None else folder.read(path)


def _observe(phase: Observe, images: Images, limit: BatchLimit, device: torch.device, reporter: Reporter) -> None:
    done = 0
    with reporter.stage(phase.title, len(images)) as update, torch.inference_mode():
        for pixels in images.batches(limit.size):
            for embedded in limit.pieces(phase.embed, to_input(pixels, device)):
                phase.absorb(embedded)
            done += len(pixels)
            update(done, len(images))
    with reporter.stage(f"{phase.title}: finishing") as update, torch.inference_mode():
        phase.finish(update)


def _optimize(
    phase: Optimize,
    number: int,
    work: FitJob,
    fabric: Fabric | None,
    limit: BatchLimit,
    report: FitReport,
    snapshot: Snapshot | None,
) -> None:
    device = work.device if fabric is None else fabric.device
    precision, reason = choose_precision(work.plan.precision, device)
    report.precision = f"{precision} ({reason})"
    log.info("Arithmetic %s: %s.", precision, reason)
    if phase.objective is not None:
        phase.objective.to(device)
    fabric = fabric or distributed.make_fabric(distributed.Devices.single(device), precision)
    plan = _fit_batch(phase, work, limit, device)
    loop = Optimization(work.detector, phase, plan, fabric, limit, work.around, report)
    images = f"{report.global_batch_size} images a step"
    log.info("Batch size %d on each of %d device(s), %s.", limit.size, report.devices, images)
    loop.run(work.train, work.validation, number, snapshot)


def _fit_batch(phase: Optimize, work: FitJob, limit: BatchLimit, device: torch.device) -> FitSettings:
    """Lower an automatic batch size to what memory holds; more batches a step keep the step the same."""
    plan, detector = work.plan, work.detector
    if plan.batch_size != "auto":
        return plan
    wanted = min(limit.size, len(work.train))
    first = next(iter(work.train.batches(1)))
    modules = phase.modules(detector)
    put_back = hold_buffers(*modules)
    for module in modules:
        module.train()

    def step(size: int) -> None:
        images = to_input(np.repeat(first, size, axis=0), device)
        total(phase.loss(Batch(images, images))).backward()
        # AdamW keeps two numbers for each weight.
        _ = [torch.zeros_like(parameter) for parameter in detector.parameters() for _ in range(2)]

    size = largest_that_fits(step, wanted, device)
    for module in modules:
        module.zero_grad(set_to_none=True)
    put_back()
    if size == wanted:
        return plan
    times = math.ceil(limit.size / size)
    log.warning("Memory holds %d images at once, not %d: %d batches make a step.", size, limit.size, times)
    limit.size = size
    return replace(plan, accumulate=plan.accumulate * times)
