"""Size of a network and its cost per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelSummary:
    """Size of a network.

    Attributes:
        layers: Number of modules with parameters of their own.
        parameters: Number of parameters.
        trainable: Number of trainable parameters.
        stored: Bytes of parameters and fitted statistics in the model file.
        flops: Floating-point operations per image, in matrix products, convolutions and attention.
    """

    layers: int
    parameters: int
    trainable: int
    stored: int
    flops: int


def summarise(network: nn.Module, image: Tensor) -> ModelSummary:
    """Count the parameters of a network, and its operations on one image [1,C,H,W]."""
    parameters = list(network.parameters())
    counter = FlopCounter()
    with torch.no_grad(), counter:
        network(image)
    return ModelSummary(
        layers=sum(1 for part in network.modules() if next(part.parameters(recurse=False), None) is not None),
        parameters=sum(one.numel() for one in parameters),
        trainable=sum(one.numel() for one in parameters if one.requires_grad),
        stored=sum(one.numel() * one.element_size() for one in network.state_dict().values()),
        flops=counter.total,
    )


class FlopCounter(TorchDispatchMode):
    """Context that counts floating-point operations as `torch.utils.flop_counter.FlopCounterMode` does.

    That one imports PyTorch's compiler, which takes as long as importing PyTorch.

    Attributes:
        total: Floating-point operations so far, with a multiply-add as two.
        operations: Calls of PyTorch's operations so far.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # slow to import

        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.operations = 0
        self._formulas: dict[Any, Any] = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation and add its cost."""
        del types
        kwargs = kwargs or {}
        formula = self._formulas.get(func.overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        self.operations += 1
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result
