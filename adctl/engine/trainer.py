"""Running a detector's phases: passes without gradients, and epochs of gradient steps under Lightning Fabric.

Knows phases, batches and devices; nothing of any one detector, of files or of the command line.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adctl.engine.batching import BatchLimit, starting_batch_size
from adctl.engine.phases import Batch, Observe, Optimize
from adctl.errors import TrainingError
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.engine.device import DeviceChoice
    from adctl.engine.phases import Phase

log = logging.getLogger(__name__)


class Images(Protocol):
    """Images that can be gone through again and again."""

    def __len__(self) -> int: ...

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Pixels [B,H,W,C] of uint8."""
        ...


@dataclass(frozen=True)
class Plan:
    """How to fit.

    Attributes:
        epochs: Of each `Optimize` phase.
        learning_rate: Peak of AdamW's, warmed up over the first twentieth and then falling as a cosine.
        weight_decay: AdamW's.
        batch_size: Images at once, or `auto`.
        accumulate: Batches to one optimizer step.
        patience: Epochs without a better validation loss before stopping.
        precision: `auto`, `32`, `16` or `bf16`.
        seed: Decides the order of the images and everything else random.
        clip: Largest norm of the gradient.
    """

    epochs: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int | str = "auto"
    accumulate: int = 1
    patience: int = 20
    precision: str = "auto"
    seed: int = 0
    clip: float = 1.0


@dataclass(frozen=True)
class Epoch:
    """What happened in one epoch: mean losses over its images, by term, and the learning rate at its end."""

    number: int
    loss: float
    terms: dict[str, float]
    validation: float | None
    learning_rate: float
    seconds: float


@dataclass
class FitReport:
    """What fitting did.

    Attributes:
        history: One entry an epoch; empty for methods without gradient steps.
        best_epoch: The epoch whose weights were kept, or None.
        seconds: Of each phase, by its title.
        precision: The arithmetic of gradient steps and why, or None.
        batch_size: Images at once, after any fall-back.
    """

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    batch_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def to_input(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels [B,H,W,C] of uint8 to images [B,C,H,W] of float32 in [0, 1], channels last in memory."""
    images = torch.from_numpy(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def seed_everything(seed: int) -> None:
    """Make initial weights and everything else random in torch reproducible."""
    torch.manual_seed(seed)


def fit(
    detector: nn.Module,
    phases: Sequence[Phase],
    train: Images,
    validation: Images | None,
    plan: Plan,
    device: DeviceChoice,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Run the phases in order; the detector is left on the device, in evaluation mode.

    Args:
        detector: What is fitted; moved to the device.
        phases: The detector's.
        train: Images to learn from, all good.
        validation: Held-out good images that choose the epoch of `Optimize` phases.
        plan: How.
        device: Where.
        reporter: Told how far it is.

    Raises:
        TrainingError: The loss is not finite, or memory runs out with a single image.
        ImageError: An image cannot be read.
    """
    detector.to(device.device)
    detector.to(memory_format=torch.channels_last)
    report = FitReport()
    limit = BatchLimit(starting_batch_size(plan.batch_size, device.device))
    for phase in phases:
        start = time.perf_counter()
        if isinstance(phase, Observe):
            detector.eval()
            _observe(phase, train, limit, device.device, reporter)
        else:
            _Optimization(detector, phase, plan, device, limit, report).run(train, validation, reporter)
        report.seconds[phase.title] = time.perf_counter() - start
    report.batch_size = limit.size
    detector.eval()
    return report


def _observe(phase: Observe, train: Images, limit: BatchLimit, device: torch.device, reporter: Reporter) -> None:
    done = 0
    with reporter.stage(phase.title, len(train)) as update, torch.inference_mode():
        for pixels in train.batches(limit.size):
            for embedded in limit.pieces(phase.embed, to_input(pixels, device)):
                phase.absorb(embedded)
            done += len(pixels)
            update(done, len(train))
    with reporter.stage(f"{phase.title}: finishing") as update, torch.inference_mode():
        phase.finish(update)


class _Optimization:
    """One `Optimize` phase: its optimizer, its schedule and the best weights so far."""

    def __init__(
        self,
        detector: nn.Module,
        phase: Optimize,
        plan: Plan,
        device: DeviceChoice,
        limit: BatchLimit,
        report: FitReport,
    ) -> None:
        from lightning_fabric import Fabric

        self.detector = detector
        self.phase = phase
        self.plan = plan
        self.limit = limit
        self.report = report
        precision, reason = choose_precision(plan.precision, device.device)
        report.precision = f"{precision} ({reason})"
        index = device.device.index
        self.fabric = Fabric(
            accelerator=device.device.type,
            devices=1 if index is None else [index],
            precision=precision,  # type: ignore[arg-type]
        )
        self.parameters = list(phase.parameters)
        optimizer = torch.optim.AdamW(self.parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)
        self.device = device.device
        self.generator = np.random.default_rng(plan.seed)

    def run(self, train: Images, validation: Images | None, reporter: Reporter) -> None:
        steps = math.ceil(len(train) / (self.limit.size * self.plan.accumulate)) * self.plan.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, lambda step: cosine(step, steps))
        best, best_state, stale = math.inf, None, 0
        with reporter.stage(self.phase.title, self.plan.epochs) as update:
            for number in range(1, self.plan.epochs + 1):
                epoch = self._epoch(number, train, validation, schedule)
                self.report.history.append(epoch)
                watched = epoch.loss if epoch.validation is None else epoch.validation
                if watched < best:
                    best, stale, self.report.best_epoch = watched, 0, number
                    best_state = copy.deepcopy(self.detector.state_dict())
                else:
                    stale += 1
                log.debug("epoch %d: loss %.5f, validation %s", number, epoch.loss, epoch.validation)
                update(number, self.plan.epochs)
                if stale >= self.plan.patience:
                    log.info("Stopped after epoch %d: no better for %d epochs.", number, stale)
                    break
        assert best_state is not None
        self.detector.load_state_dict(best_state)

    def _epoch(
        self,
        number: int,
        train: Images,
        validation: Images | None,
        schedule: torch.optim.lr_scheduler.LambdaLR,
    ) -> Epoch:
        start = time.perf_counter()
        self.detector.train()
        order = self.generator.permutation(len(train)).tolist()
        group = self.limit.size * self.plan.accumulate
        sums: dict[str, float] = {}
        for first in range(0, len(order), group):
            self._step(train, order[first : first + group], number, sums)
            schedule.step()
        terms = {name: value / len(order) for name, value in sums.items()}
        return Epoch(
            number,
            sum(terms.values()),
            terms,
            self._validate(validation),
            float(schedule.get_last_lr()[0]),
            time.perf_counter() - start,
        )

    def _step(self, train: Images, chosen: list[int], number: int, sums: dict[str, float]) -> None:
        """One optimizer step over a group of batches; each image weighs the same however they are cut."""
        self.optimizer.zero_grad(set_to_none=True)
        for pixels in train.batches(self.limit.size, chosen):
            images = to_input(pixels, self.device)
            with self.fabric.autocast():
                terms = self.phase.loss(Batch(images, images))
                loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The loss became {loss.item()} in epoch {number}.",
                    "Lower --learning-rate, or use --precision 32.",
                )
            self.fabric.backward(loss * (len(pixels) / len(chosen)))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(pixels)
        self.fabric.clip_gradients(self.detector, self.optimizer, max_norm=self.plan.clip, error_if_nonfinite=False)
        self.optimizer.step()

    def _validate(self, validation: Images | None) -> float | None:
        if validation is None:
            return None
        self.detector.eval()
        total = 0.0
        with torch.inference_mode(), self.fabric.autocast():
            for pixels in validation.batches(self.limit.size):
                images = to_input(pixels, self.device)
                terms = self.phase.loss(Batch(images, images))
                total += float(torch.stack(list(terms.values())).sum()) * len(pixels)
        return total / len(validation)


def cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up over the first twentieth, then half a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Fabric's name of the arithmetic for gradient steps, and why."""
    named = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    if wanted != "auto":
        return named[wanted], "asked for by --precision"
    if device.type != "cuda":
        return "32-true", f"half precision gains nothing sure on {device.type}"
    if torch.cuda.is_bf16_supported():
        return "bf16-mixed", "this GPU has bfloat16, which needs no loss scaling"
    return "16-mixed", "this GPU has no bfloat16"
