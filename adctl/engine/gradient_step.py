"""One optimizer step: gradients in batches that fit into memory, clipping, and the update of weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adctl.engine import distributed
from adctl.engine.batch_plan import step_seed
from adctl.engine.batching import hold_buffers, is_out_of_memory, masks_of, to_input
from adctl.engine.context import labels_of
from adctl.engine.phases import Batch, total
from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from adctl.engine.batch_plan import StepImages
    from adctl.engine.checkpointing import LoopState
    from adctl.engine.context import FitContext, Images
    from adctl.engine.history import FitSettings
    from adctl.engine.phases import Optimize


@dataclass(frozen=True)
class _Terms:
    """Loss terms of one batch.

    Attributes:
        names: Their names.
        values: Their values, tensor [n].
        indices: Indices of the images.
    """

    names: tuple[str, ...]
    values: Tensor
    indices: list[int]


class GradientStep:
    """Runs the optimizer steps of one phase and adds their losses to the state's `position`.

    All random numbers of a step depend on the seed and the number of the step only. A step that runs out of memory is
    repeated in smaller batches and counts once.

    Args:
        phase: The losses.
        state: The state to advance.
        settings: The settings.
        fabric: Precision and processes.
        context: The context, with augmentation and checkpoints.
        images: The training images, for their names in error messages.
    """

    def __init__(
        self,
        phase: Optimize,
        state: LoopState,
        settings: FitSettings,
        fabric: Fabric,
        context: FitContext,
        images: Images,
    ) -> None:
        self.phase, self.state, self.settings = phase, state, settings
        self.fabric, self.context, self.images = fabric, context, images
        self.modules = phase.modules(state.detector)
        self.loss: Callable[[Batch], dict[str, Tensor]] = torch.compile(phase.loss) if settings.compile else phase.loss

    def __call__(self, pixels: NDArray[np.uint8], step: StepImages) -> None:
        """Run one step.

        Args:
            pixels: Array [B,H,W,C], the images of this process.
            step: Their indices, and the number of images on all processes.

        Raises:
            TrainingError: The loss or the gradient is not finite, or a single image does not fit into memory.
        """
        position, limit = self.state.position, self.state.limit
        self._set_learning_rate()
        while True:
            torch.manual_seed(step_seed(self.settings.seed, position.step + 1, self.fabric.global_rank))
            restore_buffers = hold_buffers(*self.modules)
            try:
                terms = self._compute_gradients(pixels, step)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                limit.halve(min(limit.size, len(pixels)), error)
            restore_buffers()
        norms = self._clip_gradients()
        for name, value in self._finite_sums(terms, norms).items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        self._update_weights()
        position.step += 1
        position.done += 1

    def _compute_gradients(self, pixels: NDArray[np.uint8], step: StepImages) -> list[_Terms]:
        """Add up gradients batch by batch; every image has the same weight, whatever the size of the batches.

        Returns:
            Loss terms of each batch.
        """
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        found = []
        for part in np.array_split(np.arange(len(pixels)), math.ceil(len(pixels) / self.state.limit.size)):
            indices = [step.indices[place] for place in part]
            terms = self._backward(self._batch(pixels[part], indices), len(part) / step.total)
            found.append(_Terms(tuple(terms), torch.stack([one.detach().float() for one in terms.values()]), indices))
        return found

    def _finite_sums(self, found: list[_Terms], norms: list[Tensor]) -> dict[str, float]:
        """Return the sum of each loss term over the images of the step.

        The host waits for a GPU here, and nowhere else in a step.

        Raises:
            TrainingError: A loss or the norm of the gradients is not finite.
        """
        counts = [len(terms.values) for terms in found]
        values = torch.cat([*(terms.values for terms in found), *(norm.float().view(1) for norm in norms)]).tolist()
        sums: dict[str, float] = {}
        for terms, end in zip(found, itertools.accumulate(counts), strict=True):
            own = dict(zip(terms.names, values[end - len(terms.names) : end], strict=True))
            self._require_finite(own, terms.indices)
            for name, value in own.items():
                sums[name] = sums.get(name, 0.0) + value * len(terms.indices)
        if not all(map(math.isfinite, values[sum(counts) :])):
            raise self._error("The gradient is not finite")
        return sums

    def _batch(self, pixels: NDArray[np.uint8], indices: list[int]) -> Batch:
        images = to_input(pixels, self.fabric.device)
        labels = labels_of(self.images, indices, self.fabric.device)
        if self.context.augment:
            return replace(self.context.augment(images), labels=labels)
        masks = masks_of(self.images, indices, self.fabric.device)
        return Batch(images, images, masks, tuple(f"train {index}" for index in indices), labels)

    def _backward(self, batch: Batch, weight: float) -> dict[str, Tensor]:
        """Add the gradients of one batch, and return its loss terms with those of the critic."""
        with self.fabric.autocast():
            terms = self.loss(batch)
        self.fabric.backward(total(terms) * weight)
        if self.phase.critic is None:
            return terms
        with self.fabric.autocast():
            critic_terms = self.phase.critic.loss()
        self.fabric.backward(total(critic_terms) * weight)
        return terms | {f"critic/{name}": value for name, value in critic_terms.items()}

    def _clip_gradients(self) -> list[Tensor]:
        """Sum the gradients of all processes and clip them; return the norms that must be finite."""
        norms = []
        for optimizer in self.state.optimizers.values():
            if self.fabric.world_size > 1:
                distributed.sum_gradients(
                    self.fabric, [one for group in optimizer.param_groups for one in group["params"]]
                )
            norm = self.fabric.clip_gradients(
                self.state.detector, optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
            )
            # The scaler of float16 leaves out a step whose gradients are not finite.
            if self.state.scaler is None and norm is not None:
                norms.append(norm)
        return norms

    def _update_weights(self) -> None:
        for optimizer in self.state.optimizers.values():
            optimizer.step()
        if self.state.average is not None:
            self.state.average.update()

    def _set_learning_rate(self) -> None:
        rate = self.settings.learning_rate * self.state.schedule.factor(self.state.position.step)
        for optimizer in self.state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)

    def _require_finite(self, terms: dict[str, float], indices: list[int]) -> None:
        bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            names = ", ".join(self.images.name(index) for index in indices)
            raise self._error(f"The loss is not finite ({', '.join(bad)}) on the batch of {names}")

    def _error(self, problem: str) -> TrainingError:
        position, folder = self.state.position, self.context.checkpoints
        newest = folder.newest() if folder else None
        return TrainingError(
            f"{problem}, in epoch {position.epoch}, step {position.step + 1}.",
            "Lower --learning-rate, or use --precision 32."
            + (f" The last good checkpoint is {newest}." if newest is not None else ""),
        )


def new_optimizer(
    parameters: list[nn.Parameter],
    settings: FitSettings,
    fabric: Fabric,
    rate_scale: Callable[[nn.Parameter], float] | None = None,
) -> Any:
    """Return AdamW with weight decay for matrices and kernels only: not for biases, norms and learned variances.

    Args:
        parameters: Parameters to train.
        settings: Learning rate and weight decay.
        fabric: Precision and processes.
        rate_scale: Function from a parameter to the factor of its learning rate; None gives all the same.
    """
    scales = [1.0 if rate_scale is None else rate_scale(parameter) for parameter in parameters]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for scale in dict.fromkeys(scales):
        groups[scale, True], groups[scale, False] = [], []  # matrices first, as in earlier checkpoints
    for parameter, scale in zip(parameters, scales, strict=True):
        groups[scale, parameter.ndim > 1].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": own, "rate_scale": scale, **({} if decays else {"weight_decay": 0.0})}
            for (scale, decays), own in groups.items()
            if own
        ],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        # Fused is faster. With float16 it would also unscale the gradients, which must happen before clipping.
        fused=fabric.device.type in ("cpu", "cuda") and getattr(fabric.strategy.precision, "scaler", None) is None,
    )
    return fabric.setup_optimizers(optimizer)
