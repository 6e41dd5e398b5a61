"""Parameters, memory and operations of a gradient step through a frozen base model, from the shapes of its tensors.

The tensors have no values (PyTorch's `FakeTensorMode`), so neither the weights nor the memory are needed. The precision
is half, as on a GPU: memory is that of the tensors alive at once, without the memory of CUDA itself.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adctl.detectors.prompt import PromptConfig, PromptDetector
from adctl.engine.batch_size import starting_batch_size
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.model_summary import FlopCounter
from adctl.training.plan import fit_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.config import TrainSettings
    from adctl.training.plan import TrainingPlan


@dataclass(frozen=True)
class StepCost:
    """Cost of a gradient step.

    Attributes:
        memory: Largest number of bytes of tensors that are alive at once, with the weights.
        flops: Floating-point operations, with a multiply-add as two.
    """

    memory: int
    flops: int


@dataclass(frozen=True)
class StepForecast:
    """Cost of the gradient steps of a training.

    Attributes:
        trained: Number of trained parameters.
        parameters: Number of all parameters.
        batch: Images of a step.
        encoding: A step that encodes its images: the first one with them.
        kept: A step on kept latents.
        recomputed: The same with gradient checkpointing.
    """

    trained: int
    parameters: int
    batch: int
    encoding: StepCost
    kept: StepCost
    recomputed: StepCost


def forecast_step(plan: TrainingPlan, settings: TrainSettings) -> StepForecast | None:
    """Forecast the gradient steps of a training; None if it has none through a base model.

    Raises:
        UsageError: The base is not on this machine, and its shapes are not known.
    """
    if not isinstance(plan.config, PromptConfig) or settings.epochs == 0:
        return None
    from torch._subclasses.fake_tensor import FakeTensorMode

    fit = fit_settings(settings, PromptDetector, plan.config)
    batch = starting_batch_size(fit.batch_size, "cpu")
    config = PromptDetector.by_shapes(plan.config)
    with FakeTensorMode():
        return step_costs(PromptDetector(config), batch)


def step_costs(detector: PromptDetector, batch: int) -> StepForecast:
    """Count the cost of steps of a detector, whose tensors may have values or not."""
    detector.train()
    encoding = _cost(detector, lambda: detector.encode_trial(1), backward=False)
    kept = _cost(detector, lambda: detector.trial_loss(batch))
    with checkpoint_activations(detector, detector.recomputed):
        recomputed = _cost(detector, lambda: detector.trial_loss(batch))
    first = StepCost(max(encoding.memory, kept.memory), batch * encoding.flops + kept.flops)
    trained = sum(one.numel() for one in detector.parameters() if one.requires_grad)
    everything = sum(one.numel() for one in detector.parameters())
    return StepForecast(trained, everything, batch, first, kept, recomputed)


def _cost(detector: PromptDetector, compute: Callable[[], Tensor], *, backward: bool = True) -> StepCost:
    with _Meter() as meter:
        meter.add([*detector.parameters(), *detector.buffers()])
        with torch.autocast("cpu", torch.bfloat16):
            value = compute()
        if backward:
            value.backward()
    for one in detector.parameters():
        one.grad = None
    return StepCost(meter.peak, meter.total)


class _Meter(FlopCounter):
    """Context that counts operations, and the bytes of the tensors that are alive.

    Attributes:
        peak: Largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, and add its cost and the memory of its results."""
        if func.namespace == "prim":  # questions about a tensor
            return func(*args, **(kwargs or {}))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.add(result)
        return result

    def add(self, tensors: Any) -> None:
        """Count the memory of tensors until it is freed."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = None
                self._alive += storage.nbytes()
                self.peak = max(self.peak, self._alive)
                weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self._alive -= size
