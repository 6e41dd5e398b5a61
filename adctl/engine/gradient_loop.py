"""Epochs of gradient steps on one phase: order, accumulation, memory, checkpoints, the best weights.

Everything random in a step is drawn from the seed and the step's number, so that a training gone on from a
checkpoint does what the uninterrupted one would have done.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from adctl.engine import distributed
from adctl.engine.batching import hold_buffers, is_out_of_memory, to_input
from adctl.engine.checkpoints import Snapshot, load_weights
from adctl.engine.ema import ExponentialMovingAverage
from adctl.engine.gradient_checkpointing import recomputing
from adctl.engine.history import Epoch
from adctl.engine.lr_schedule import Schedule
from adctl.engine.phases import Batch, total
from adctl.engine.training_log import Preview
from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from adctl.engine.batching import BatchLimit
    from adctl.engine.context import FitContext, Images
    from adctl.engine.history import FitReport, FitSettings
    from adctl.engine.phases import Optimize

log = logging.getLogger(__name__)

_PREVIEWED = 4
_PREVIEWS = 10
"""Fixed validation images in the log, and how often in a training they are drawn."""


@dataclass
class Position:
    """How far a training is; JSON-safe, kept in checkpoints.

    Attributes:
        epoch: In progress, from 1.
        done: Steps done in it.
        step: Steps done in all.
        sums: Of the loss terms of this epoch's images so far, on this process.
        seconds: Spent in this epoch in earlier sittings.
        best: Lowest watched loss.
        best_epoch: Its epoch, 0 before the first.
        stale: Epochs since.
    """

    epoch: int = 1
    done: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: float = math.inf
    best_epoch: int = 0
    stale: int = 0

    def next_epoch(self) -> None:
        """Begin the next one."""
        self.epoch, self.done, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0


class Optimization:
    """One `Optimize` phase.

    Args:
        detector: What is trained, on the device.
        phase: Its losses.
        plan: How.
        fabric: Precision and processes.
        limit: How many images fit at once.
        around: Checkpoints, journal, augmentation, progress.
        report: Filled in.
    """

    def __init__(
        self,
        detector: nn.Module,
        phase: Optimize,
        plan: FitSettings,
        fabric: Fabric,
        limit: BatchLimit,
        around: FitContext,
        report: FitReport,
    ) -> None:
        self.detector, self.phase, self.plan = detector, phase, plan
        self.modules = phase.modules(detector)
        self.fabric, self.limit, self.around, self.report = fabric, limit, around, report
        parameters = list(phase.parameters)
        self.trained = {"optimizer": parameters}
        if phase.critic is not None:
            self.trained["critic"] = list(phase.critic.parameters)
        self.optimizers = {name: self._new_optimizer(own) for name, own in self.trained.items()}
        self.average = ExponentialMovingAverage(parameters, plan.ema) if plan.ema else None
        self.loss: Callable[[Batch], dict[str, Tensor]] = torch.compile(phase.loss) if plan.compile else phase.loss
        if self.scaler is not None and phase.critic is not None:
            raise TrainingError(
                "Adversarial losses do not go with float16.", "Use --precision 32, or bf16 where the GPU has it."
            )
        self.group = limit.size * plan.accumulate * fabric.world_size
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self.saved = time.monotonic()
        report.global_batch_size, report.devices = self.group, fabric.world_size

    def run(self, train: Images, validation: Images | None, number: int, resumed: Snapshot | None) -> None:
        """Train to the end, from the beginning or from a checkpoint; leaves the best weights in the detector.

        Args:
            train: Good images.
            validation: Held-out good images, or None.
            number: Of the phase, for checkpoints.
            resumed: To go on from.

        Raises:
            TrainingError: The loss is not finite, or not one image fits into memory.
        """
        if resumed is not None:
            self._restore(resumed)
        self._settle_length(len(self._cuts(len(train))))
        self.schedule = Schedule(self.plan.schedule, len(self._cuts(len(train))) * self.epochs, self.plan.warmup)
        if resumed is not None:
            self.schedule.restore(resumed.values["schedule"])
        self.number, self.names = number, train
        with ExitStack() as stack:
            update = stack.enter_context(self.around.reporter.stage(self.phase.title, self.epochs))
            if self.plan.gradient_checkpointing:
                self._recompute(stack)
            update(self.position.epoch - 1, self.epochs)
            while self.position.epoch <= self.epochs and not self._is_stale():
                epoch = self._epoch(train, validation)
                self._judge(epoch)
                self.around.journal.epoch(self.report.history, self._preview(validation, epoch.number))
                update(epoch.number, self.epochs)
                self.position.next_epoch()
                if epoch.number % self.plan.checkpoint_epochs == 0:
                    self._checkpoint()
        self.report.best_epoch = self.position.best_epoch
        self.report.stopped_early = self._is_stale()
        self.detector.load_state_dict(self.best)

    def _epoch(self, train: Images, validation: Images | None) -> Epoch:
        start = time.perf_counter()
        position = self.position
        if self.phase.start_epoch is not None:
            self.phase.start_epoch(position.epoch, self.epochs)
        self._train_mode(on=True)
        shares = self._shares(len(train))[position.done :]
        batches = train.batches(self.group // self.fabric.world_size, [index for _, own in shares for index in own])
        for (size, own), pixels in zip(shares, batches, strict=True):
            self._step(pixels, own, size)
            self._checkpoint_in_time(start)
        seconds = position.seconds + time.perf_counter() - start
        images = sum(stop - start for start, stop in self._cuts(len(train)))
        terms = self._mean_terms(images)
        if self.fabric.world_size > 1:
            distributed.agree_on_statistics(self.fabric, self.detector)
        checked = self._validate(validation)
        loss = sum(value for name, value in terms.items() if not name.startswith("critic/"))
        self.schedule.epoch_done(loss if checked is None else checked)
        epoch = Epoch(
            number=position.epoch,
            loss=loss,
            terms=terms,
            validation=checked,
            learning_rate=self.plan.learning_rate * self.schedule.factor(position.step - 1),
            seconds=position.seconds + time.perf_counter() - start,
            images_per_second=images / max(seconds, 1e-9),
            memory=_memory(self.fabric.device),
        )
        self.report.history.append(epoch)
        return epoch

    def _settle_length(self, steps: int) -> None:
        """How many epochs of so many steps there are, and how long a better one is waited for."""
        self.epochs = max(self.plan.epochs, math.ceil(self.plan.least_steps / steps))
        self.patience = math.ceil(self.plan.patience * self.epochs / self.plan.epochs)
        if self.epochs > self.plan.epochs:
            log.info("%d epochs, as %d steps each are few: %d in all.", self.epochs, steps, self.epochs * steps)

    def _cuts(self, images: int) -> list[tuple[int, int]]:
        """Where the order of an epoch is cut into steps."""
        cuts = [(start, min(start + self.group, images)) for start in range(0, images, self.group)]
        # There are no batch statistics of a single image; another one is left out in the next epoch.
        if len(cuts) > 1 and cuts[-1][1] - cuts[-1][0] < 2 * self.fabric.world_size:
            cuts.pop()
        return cuts

    def _shares(self, images: int) -> list[tuple[int, list[int]]]:
        """For each step its size over all processes, and this process's images."""
        order = np.random.default_rng((self.plan.seed, self.position.epoch)).permutation(images)
        rank, count = self.fabric.global_rank, self.fabric.world_size
        return [(stop - start, order[start:stop][rank::count].tolist()) for start, stop in self._cuts(images)]

    def _step(self, pixels: NDArray[np.uint8], own: list[int], size: int) -> None:
        """One optimizer step; when memory runs out it is done again in smaller batches, and counts once."""
        position = self.position
        self._set_learning_rate()
        while True:
            torch.manual_seed(self._seed(position.step + 1))
            put_back = hold_buffers(*self.modules)
            try:
                sums = self._gradients(pixels, own, size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.limit.halve(min(self.limit.size, len(pixels)), error)
            put_back()
        self._apply()
        for name, value in sums.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.step += 1
        position.done += 1

    def _gradients(self, pixels: NDArray[np.uint8], own: list[int], size: int) -> dict[str, float]:
        """Gradients of one step, piece by piece; each image weighs the same however they are cut.

        Returns:
            Sums of the loss terms over the images.
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for piece in np.array_split(np.arange(len(pixels)), math.ceil(len(pixels) / self.limit.size)):
            batch = self._batch(pixels[piece], [own[index] for index in piece])
            with self.fabric.autocast():
                terms = self.loss(batch)
            self._backward(terms, len(piece) / size)
            if self.phase.critic is not None:
                with self.fabric.autocast():
                    opposed = self.phase.critic.loss()
                self._backward(opposed, len(piece) / size)
                terms = terms | {f"critic/{name}": value for name, value in opposed.items()}
            values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
            self._require_finite(dict(zip(terms, values, strict=True)), [own[index] for index in piece])
            for name, value in zip(terms, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value * len(piece)
        return sums

    def _batch(self, pixels: NDArray[np.uint8], indices: list[int]) -> Batch:
        images = to_input(pixels, self.fabric.device)
        if self.around.augment:
            return self.around.augment(images)
        return Batch(images, images, keys=tuple(f"train {index}" for index in indices))

    def _backward(self, terms: dict[str, Tensor], share: float) -> None:
        self.fabric.backward(total(terms) * share)

    def _apply(self) -> None:
        for name, optimizer in self.optimizers.items():
            if self.fabric.world_size > 1:
                distributed.add_up(self.fabric, self.trained[name])
            norm = self.fabric.clip_gradients(
                self.detector, optimizer, max_norm=self.plan.clip, error_if_nonfinite=False
            )
            if self.scaler is None and norm is not None and not torch.isfinite(norm):
                raise self._broken("The gradient is not finite")
            optimizer.step()
        if self.average is not None:
            self.average.update()

    def _require_finite(self, terms: dict[str, float], images: list[int]) -> None:
        bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            names = ", ".join(self.names.name(index) for index in images)
            raise self._broken(f"The loss is not finite ({', '.join(bad)}) on the batch of {names}")

    def _broken(self, what: str) -> TrainingError:
        kept = self.around.checkpoints.newest() if self.around.checkpoints else None
        return TrainingError(
            f"{what}, in epoch {self.position.epoch}, step {self.position.step + 1}.",
            "Lower --learning-rate, or use --precision 32."
            + (f" The last good checkpoint is {kept}." if kept is not None else ""),
        )

    def _validate(self, validation: Images | None) -> float | None:
        if validation is None:
            return None
        self._train_mode(on=False)
        torch.manual_seed(self._seed(0))  # the same draws every time, where a loss has some
        summed, done = 0.0, 0
        with self._averaged(), torch.inference_mode(), self.fabric.autocast():
            for pixels in validation.batches(self.limit.size):
                images = to_input(pixels, self.fabric.device)
                keys = tuple(f"validation {done + place}" for place in range(len(pixels)))
                summed += float(total(self.phase.loss(Batch(images, images, keys=keys)))) * len(pixels)
                done += len(pixels)
        return summed / len(validation)

    def _judge(self, epoch: Epoch) -> None:
        position = self.position
        watched = epoch.loss if epoch.validation is None else epoch.validation
        log.debug("epoch %d: loss %.5f, validation %s", epoch.number, epoch.loss, epoch.validation)
        if watched < position.best or not self.best:
            position.best, position.best_epoch, position.stale = watched, epoch.number, 0
            with self._averaged():
                self.best = {name: value.detach().clone() for name, value in self.detector.state_dict().items()}
            return
        position.stale += 1
        if self._is_stale():
            log.info("Stopped after epoch %d: no better for %d epochs.", epoch.number, position.stale)

    def _is_stale(self) -> bool:
        return self.position.stale >= self.patience

    def _mean_terms(self, images: int) -> dict[str, float]:
        names = sorted(self.position.sums)
        sums = torch.tensor([self.position.sums[name] for name in names], dtype=torch.float64)
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums.to(self.fabric.device, torch.float32), reduce_op="sum")  # type: ignore[assignment]
        return {name: value / images for name, value in zip(names, sums.tolist(), strict=True)}

    def _preview(self, validation: Images | None, number: int) -> Preview | None:
        """Pictures for the journal, at the first epoch, the last and a few between."""
        every = max(1, self.epochs // _PREVIEWS)
        drawn = number in (1, self.epochs) or number % every == 0
        if validation is None or not drawn or not self.around.journal.wants_pictures:
            return None
        self._train_mode(on=False)
        pixels = next(iter(validation.batches(_PREVIEWED)))
        images = to_input(pixels, self.fabric.device)
        with self._averaged(), torch.inference_mode():
            rebuilt = self.phase.preview(images) if self.phase.preview else None
            return Preview(images, rebuilt, self.detector(images).maps)

    def _train_mode(self, *, on: bool) -> None:
        for module in self.modules:
            module.train(on)

    def _averaged(self) -> Any:
        return nullcontext() if self.average is None else self.average.applied()

    def _recompute(self, stack: ExitStack) -> None:
        kinds = getattr(self.detector, "recomputed", ())
        if not kinds:
            raise TrainingError(
                f"{type(self.detector).__name__} has no part whose activations could be recomputed.",
                "Leave out --gradient-checkpointing.",
            )
        count = stack.enter_context(recomputing(self.detector, kinds))
        log.info("Gradient checkpointing: activations of %d modules are computed twice.", count)

    def _new_optimizer(self, parameters: list[nn.Parameter]) -> Any:
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        # Biases, scales of norms and learned variances have no reason to be small.
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        # The fused step is faster; on a GPU it would unscale gradients itself, which clipping has to do first.
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.plan.learning_rate,
            weight_decay=self.plan.weight_decay,
            fused=self.fabric.device.type == "cpu",
        )
        return self.fabric.setup_optimizers(optimizer)

    def _set_learning_rate(self) -> None:
        rate = self.plan.learning_rate * self.schedule.factor(self.position.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _seed(self, step: int) -> int:
        return int(np.random.SeedSequence((self.plan.seed, step, self.fabric.global_rank)).generate_state(1)[0])

    @property
    def scaler(self) -> Any:
        """The loss scaler of float16 training, or None."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def _checkpoint_in_time(self, epoch_start: float) -> None:
        if time.monotonic() - self.saved >= 60 * self.plan.checkpoint_minutes:
            kept = self.position.seconds
            self.position.seconds += time.perf_counter() - epoch_start
            self._checkpoint()
            self.position.seconds = kept

    def _checkpoint(self) -> None:
        self.saved = time.monotonic()
        if self.around.checkpoints is None or not self.fabric.is_global_zero:
            return
        snapshot = Snapshot(
            values={
                "phase": self.number,
                "position": asdict(self.position),
                "history": [asdict(epoch) for epoch in self.report.history],
                "schedule": self.schedule.state(),
                "batch_size": self.limit.size,
                "group": self.group,
                "scaler": self.scaler.state_dict() if self.scaler is not None else None,
                "averaged": self.average.updates if self.average else 0,
            }
        )
        snapshot.put_tensors("weights", self.detector.state_dict())
        snapshot.put_tensors("best", self.best)
        if self.phase.objective is not None:
            snapshot.put_tensors("objective", self.phase.objective.state_dict())
        if self.average is not None:
            snapshot.put_tensors("average", {str(n): value for n, value in enumerate(self.average.state())})
        for name, optimizer in self.optimizers.items():
            snapshot.put_optimizer(name, optimizer.optimizer)
        self.around.checkpoints.write(self.position.step, snapshot)

    def _restore(self, snapshot: Snapshot) -> None:
        values = snapshot.values
        load_weights(self.detector, snapshot.get_tensors("weights"))
        if self.phase.objective is not None:
            load_weights(self.phase.objective, snapshot.get_tensors("objective"))
        self.best = {name: value.to(self.fabric.device) for name, value in snapshot.get_tensors("best").items()}
        if self.average is not None:
            kept = snapshot.get_tensors("average")
            self.average.restore([kept[str(n)] for n in range(len(kept))], values["averaged"])
        for name, optimizer in self.optimizers.items():
            snapshot.get_optimizer(name, optimizer.optimizer)
        if self.scaler is not None and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.position = Position(**values["position"])
        self.report.history[:] = [Epoch(**epoch) for epoch in values["history"]]
        self.report.resumed_at = self.position.step
        self.limit.size, self.group = min(self.limit.size, values["batch_size"]), values["group"]
        log.info("Going on from epoch %d, step %d.", self.position.epoch, self.position.step + 1)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
