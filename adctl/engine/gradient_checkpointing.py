"""Gradient checkpointing: activations of chosen modules are computed again instead of kept.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Less memory for about a third more time.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


@contextmanager
def recomputing(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[int]:
    """Recompute activations of all modules of the given kinds inside `module`; gives how many there are."""
    chosen = [part for part in module.modules() if isinstance(part, kinds)]
    for part in chosen:
        # An attribute of the instance hides the method of its class until it is deleted.
        part.forward = _recomputed(part, part.forward)
    try:
        yield len(chosen)
    finally:
        for part in chosen:
            del part.forward


def _recomputed(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if not part.training:
            return forward(*arguments)
        return checkpoint(
            forward, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), _norms_at_rest(part))
        )

    return call


@contextmanager
def _norms_at_rest(module: nn.Module) -> Iterator[None]:
    """The second forward pass must not count in the running statistics again."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
