"""Gradient training of one phase: epochs, validation, early stopping and the best weights.

All random numbers depend on the seed and the step only, so a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import operator
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from adctl.engine import distributed
from adctl.engine.batch_plan import BatchPlan, step_seed, training_length
from adctl.engine.batching import masks_of, to_input
from adctl.engine.checkpointing import Checkpointer, LoopState
from adctl.engine.context import labels_of
from adctl.engine.ema import ExponentialMovingAverage
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.gradient_step import GradientStep, new_optimizer
from adctl.engine.history import Epoch
from adctl.engine.lr_schedule import LearningRateSchedule
from adctl.engine.phases import Batch, Explanation, total
from adctl.engine.training_log import Preview
from adctl.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from adctl.engine.batching import BatchLimit
    from adctl.engine.checkpoints import Snapshot
    from adctl.engine.context import FitContext, Images
    from adctl.engine.history import FitReport, FitSettings
    from adctl.engine.phases import Optimize

log = logging.getLogger(__name__)

_PREVIEW_IMAGES = 4
_PREVIEWS = 10
"""Approximate number of previews in a training."""


class GradientLoop:
    """Runs one `Optimize` phase.

    Args:
        detector: The detector, on the device.
        phase: Its losses.
        settings: The settings.
        fabric: Precision and processes.
        limit: Largest batch that fits into memory.
        context: Checkpoints, log, augmentation and progress.
        report: Report to fill in.

    Raises:
        TrainingError: The phase has an adversarial loss, and the precision is float16.
    """

    def __init__(
        self,
        detector: nn.Module,
        phase: Optimize,
        settings: FitSettings,
        fabric: Fabric,
        limit: BatchLimit,
        context: FitContext,
        report: FitReport,
    ) -> None:
        self.detector, self.phase, self.settings = detector, phase, settings
        self.fabric, self.context, self.report = fabric, context, report
        parameters = list(phase.parameters)
        trained = {"optimizer": parameters}
        if phase.critic is not None:
            trained["critic"] = list(phase.critic.parameters)
        self.state = LoopState(
            detector=detector,
            objective=phase.objective,
            optimizers={name: new_optimizer(own, settings, fabric, phase.rate_scale) for name, own in trained.items()},
            scaler=getattr(fabric.strategy.precision, "scaler", None),
            average=ExponentialMovingAverage(parameters, settings.ema) if settings.ema else None,
            schedule=LearningRateSchedule(settings.schedule, warmup=settings.warmup),
            limit=limit,
            global_batch_size=limit.size * settings.accumulate * fabric.world_size,
            report=report,
        )
        if self.state.scaler is not None and phase.critic is not None:
            raise TrainingError(
                "Adversarial losses cannot be trained in float16.", "Use --precision 32, or bf16 if the GPU has it."
            )
        report.global_batch_size, report.devices = self.state.global_batch_size, fabric.world_size

    def run(self, train: Images, validation: Images | None, number: int, resumed: Snapshot | None) -> None:
        """Train from the start or from a checkpoint, and load the best weights into the detector.

        Args:
            train: Good images.
            validation: Held-out good images, or None.
            number: Number of the phase among the detector's phases, for checkpoints.
            resumed: Checkpoint to resume from, or None.

        Raises:
            TrainingError: The loss is not finite, or a single image does not fit into memory.
            ModelFileError: The checkpoint belongs to another network.
        """
        if resumed is not None:
            self.state.restore(resumed)
        self._plan(train)
        position = self.state.position
        self.step = GradientStep(self.phase, self.state, self.settings, self.fabric, self.context, train)
        self.checkpointer = Checkpointer(self.state, number, self.settings, self.context, self.fabric)
        with ExitStack() as stack:
            steps = self.batches.steps * self.epochs
            self.update = stack.enter_context(self.context.reporter.stage(self.phase.title, steps))
            if self.settings.gradient_checkpointing:
                self._checkpoint_activations(stack)
            while position.epoch <= self.epochs and not self._is_stale():
                epoch = self._epoch(train, validation)
                self._keep_best(epoch)
                self.context.training_log.epoch(self.report.history, self._preview(validation, epoch.number))
                self._after_epoch(epoch.number)
                position.next_epoch()
                self.checkpointer.epoch_done(epoch.number)
        self.report.best_epoch = position.best_epoch
        self.report.stopped_early = self._is_stale()
        self.detector.load_state_dict(self.state.best)

    def _plan(self, train: Images) -> None:
        self.batches = BatchPlan(
            len(train),
            self.state.global_batch_size,
            self.settings.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        self.epochs, self.patience = training_length(self.settings, self.batches.steps)
        self.state.schedule.steps = self.batches.steps * self.epochs

    def _epoch(self, train: Images, validation: Images | None) -> Epoch:
        """Train for one epoch, or its rest after a resume; validate; add the epoch to the history."""
        start = time.perf_counter()
        position = self.state.position
        if self.phase.start_epoch is not None:
            self.phase.start_epoch(position.epoch, self.epochs)
        self._train_mode(on=True)
        self._train_steps(train, start)
        seconds = position.seconds + time.perf_counter() - start
        images = self.batches.images_per_epoch
        terms = self._mean_terms(images)
        if self.fabric.world_size > 1:
            distributed.average_batch_statistics(self.fabric, self.detector)
        validation_loss = self._validate(validation)
        loss = sum(value for name, value in terms.items() if not name.startswith("critic/"))
        self.state.schedule.epoch_done(loss if validation_loss is None else validation_loss)
        epoch = Epoch(
            number=position.epoch,
            loss=loss,
            terms=terms,
            validation=validation_loss,
            learning_rate=self.settings.learning_rate * self.state.schedule.factor(position.step - 1),
            seconds=position.seconds + time.perf_counter() - start,
            images_per_second=images / max(seconds, 1e-9),
            memory=_memory(self.fabric.device),
        )
        self.report.history.append(epoch)
        return epoch

    def _train_steps(self, train: Images, epoch_start: float) -> None:
        position = self.state.position
        planned = self.batches.epoch(position.epoch)
        steps = planned[position.done :]
        seen = sum(len(step.indices) for step in planned[: position.done])
        order = [index for step in steps for index in step.indices]
        batches = train.batches(self.state.global_batch_size // self.fabric.world_size, order)
        for step, pixels in zip(steps, batches, strict=True):
            self.step(pixels, step)
            seen += len(pixels)
            loss = sum(value for name, value in position.sums.items() if not name.startswith("critic/")) / seen
            self.update(position.step, note=f"epoch {position.epoch} of {self.epochs}, loss {loss:.4g}")
            self.checkpointer.step_done(epoch_start)

    def _mean_terms(self, images: int) -> dict[str, float]:
        """Return the mean of each loss term over the epoch's images on all processes."""
        names = sorted(self.state.position.sums)
        sums = torch.tensor([self.state.position.sums[name] for name in names], dtype=torch.float64)
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums.to(self.fabric.device, torch.float32), reduce_op="sum")  # type: ignore[assignment]
        return {name: value / images for name, value in zip(names, sums.tolist(), strict=True)}

    def _validate(self, validation: Images | None) -> float | None:
        """Return the mean loss on the held-out images, by the averaged weights if there are any."""
        if validation is None:
            return None
        self._train_mode(on=False)
        torch.manual_seed(step_seed(self.settings.seed, 0, self.fabric.global_rank))  # the same in each epoch
        losses: list[torch.Tensor] = []
        counts: list[int] = []
        with self._averaged_weights(), torch.inference_mode(), self.fabric.autocast():
            for pixels in validation.batches(self.state.limit.size):
                images = to_input(pixels, self.fabric.device)
                places = range(sum(counts), sum(counts) + len(pixels))
                masks = masks_of(validation, places, self.fabric.device)
                labels = labels_of(validation, places, self.fabric.device)
                keys = tuple(f"validation {place}" for place in places)
                losses.append(total(self.phase.loss(Batch(images, images, masks, keys, labels))))
                counts.append(len(pixels))
        if self.phase.monitored is not None:
            return self.phase.monitored()
        values: list[float] = torch.stack(losses).tolist()
        return math.fsum(map(operator.mul, values, counts)) / len(validation)

    def _keep_best(self, epoch: Epoch) -> None:
        """Keep the weights if the monitored loss is the lowest so far: validation if there is one, else training."""
        position = self.state.position
        loss = epoch.loss if epoch.validation is None else epoch.validation
        log.debug("epoch %d: loss %.5f, validation %s", epoch.number, epoch.loss, epoch.validation)
        if loss < position.best or not self.state.best:
            position.best, position.best_epoch, position.stale = loss, epoch.number, 0
            with self._averaged_weights():
                weights = self.detector.state_dict()
                self.state.best = {name: value.detach().clone() for name, value in weights.items()}
            return
        position.stale += 1
        if self._is_stale():
            log.info("Stopped after epoch %d: no improvement for %d epochs.", epoch.number, position.stale)

    def _is_stale(self) -> bool:
        return self.state.position.stale >= self.patience

    def _preview(self, validation: Images | None, number: int) -> Preview | None:
        """Return pictures for the training log at the first epoch, the last and about `_PREVIEWS` in total."""
        is_due = number in (1, self.epochs) or number % max(1, self.epochs // _PREVIEWS) == 0
        if validation is None or not is_due or not self.context.training_log.wants_pictures:
            return None
        self._train_mode(on=False)
        images = to_input(next(iter(validation.batches(_PREVIEW_IMAGES))), self.fabric.device)
        with self._averaged_weights(), torch.inference_mode():
            shown = self.phase.preview(images) if self.phase.preview else None
            if isinstance(shown, Tensor):
                shown = Explanation({"reconstruction": shown})
            maps = getattr(self.detector(images), "maps", None)  # a classifier has none
            return None if maps is None else Preview(images, shown, maps)

    def _after_epoch(self, number: int) -> None:
        if self.context.after_epoch is not None:
            self._train_mode(on=False)
            with self._averaged_weights():
                self.context.after_epoch(self.detector, number, self.epochs)

    def _train_mode(self, *, on: bool) -> None:
        for module in self.phase.modules(self.detector):
            module.train(on)

    def _averaged_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self.state.average is None else self.state.average.applied()

    def _checkpoint_activations(self, stack: ExitStack) -> None:
        kinds = getattr(self.detector, "recomputed", ())
        if not kinds:
            raise TrainingError(
                f"{type(self.detector).__name__} does not support gradient checkpointing.",
                "Leave out --gradient-checkpointing.",
            )
        count = stack.enter_context(checkpoint_activations(self.detector, kinds))
        log.info("Gradient checkpointing: the activations of %d modules are recomputed.", count)


def _memory(device: torch.device) -> int:
    """Return the bytes that this process holds; on a GPU, the peak of allocated bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
