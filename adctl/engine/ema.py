"""Exponential moving average of weights (Polyak and Juditsky 1992), by `torch.optim.swa_utils.AveragedModel`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Tensors = tuple[Tensor, ...] | list[Tensor]


class ExponentialMovingAverage(AveragedModel):
    """Exponential moving average of parameters; buffers are not averaged.

    Args:
        parameters: Parameters to average.
        decay: Weight of the previous average in each update, in (0, 1). The first updates use a lower one, which
            grows with their number, so that the random initial weights fade quickly.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        def update(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
            count = int(updates)
            get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, values, updates)

        super().__init__(nn.ParameterList(parameters), multi_avg_fn=update)
        self.n_averaged.fill_(1)  # the initial weights are the first average
        self.sources = list(parameters)

    def update(self) -> None:
        """Update the average with the current parameters."""
        self.update_parameters(nn.ParameterList(self.sources))

    @torch.no_grad()
    def restore(self, averages: Sequence[Tensor], updates: int) -> None:
        """Set the averages and the number of updates from a checkpoint."""
        self.n_averaged.fill_(updates + 1)
        for parameter, average in zip(self.parameters(), averages, strict=True):
            parameter.copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for source, average in zip(self.sources, self.parameters(), strict=True):
            held = source.detach().clone()
            source.copy_(average)
            average.copy_(held)
