"""What fitting a detector consists of: phases, run in order by the trainer.

A gradient-trained method is `[Optimize]`, a fit-once method `[Observe]`, a student-teacher method
`[Observe, Optimize, Observe]`, and a training-free one has none. Knows nothing of how phases are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LossTerms = dict[str, Tensor]
"""Named scalar loss terms, already weighted; their sum is what is minimised."""

Progress = Callable[[int, int], None]
"""Told (done, total) now and then."""


def total(terms: LossTerms) -> Tensor:
    """The scalar that is minimised."""
    return torch.stack(list(terms.values())).sum()


@dataclass(frozen=True)
class Observe:
    """One pass over images without gradients: those learned from, or those held out.

    Attributes:
        embed: Images [B,C,H,W] to whatever `absorb` takes. Pure, so that it can be tried again with a
            smaller batch when memory runs out, without absorbing anything twice.
        absorb: Takes what `embed` gave, in the order of the images.
        finish: Called once after the last batch; may take long and reports (done, total).
        title: What to call it while it runs.
        held_out: Whether to go through the held-out images that choose the epoch; where there are none, through
            those learned from.
    """

    embed: Callable[[Tensor], Any]
    absorb: Callable[[Any], None]
    finish: Callable[[Progress], None]
    title: str = "observing"
    held_out: bool = False


@dataclass(frozen=True)
class Batch:
    """B images of a gradient step, float32 in [0, 1].

    Attributes:
        images: Tensor [B,C,H,W], what the network sees, augmented.
        clean: Tensor [B,C,H,W], the same without synthetic defects: what a reconstruction should be.
        defects: Tensor [B,H,W] of bool, where synthetic defects were painted; None where none are.
        keys: Of the images, where they are as they were read: in one fit the same key is the same image. None where
            they were varied.
    """

    images: Tensor
    clean: Tensor
    defects: Tensor | None = None
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Critic:
    """A second network trained against the first.

    Attributes:
        loss: Named scalar loss terms, on what the phase's loss saw last.
        parameters: What is trained by it; the phase's own loss leaves them alone.
    """

    loss: Callable[[], LossTerms]
    parameters: Iterable[nn.Parameter]


@dataclass(frozen=True)
class Optimize:
    """Epochs of gradient steps.

    Attributes:
        loss: A batch to named scalar loss terms (means over the batch).
        parameters: What is trained.
        title: What to call it while it runs.
        objective: What the loss needs during training only: moved to the device with the detector, kept in
            checkpoints, never in the model file. Its trainable parameters are among `parameters`.
        critic: A second network trained against the first, or None.
        start_epoch: Told (epoch, epochs) before each epoch, counted from 1.
        preview: Images [B,C,H,W] to pictures [B,C,H,W] in [0, 1] beside them in the training log, or None.
    """

    loss: Callable[[Batch], LossTerms]
    parameters: Iterable[nn.Parameter]
    title: str = "training"
    objective: nn.Module | None = None
    critic: Critic | None = None
    start_epoch: Callable[[int, int], None] | None = None
    preview: Callable[[Tensor], Tensor] | None = None

    def modules(self, detector: nn.Module) -> tuple[nn.Module, ...]:
        """What a step runs, and may change buffers of."""
        return (detector,) if self.objective is None else (detector, self.objective)


Phase = Observe | Optimize
