"""What fitting a detector consists of: phases, run in order by the trainer.

A gradient-trained method is `[Optimize]`, a fit-once method `[Observe]`, a student-teacher method
`[Observe, Optimize, Observe]`, and a training-free one has none. Knows nothing of how phases are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LossTerms = dict[str, Tensor]
"""Named scalar loss terms, already weighted; their sum is what is minimised."""

Progress = Callable[[int, int], None]
"""Told (done, total) now and then."""


@dataclass(frozen=True)
class Observe:
    """One pass over the training images without gradients.

    Attributes:
        embed: Images [B,C,H,W] to whatever `absorb` takes. Pure, so that it can be tried again with a
            smaller batch when memory runs out, without absorbing anything twice.
        absorb: Takes what `embed` gave, in the order of the images.
        finish: Called once after the last batch; may take long and reports (done, total).
        title: What to call it while it runs.
    """

    embed: Callable[[Tensor], Any]
    absorb: Callable[[Any], None]
    finish: Callable[[Progress], None]
    title: str = "observing"


@dataclass(frozen=True)
class Optimize:
    """Epochs of gradient steps.

    Attributes:
        loss: Images [B,C,H,W] to named scalar loss terms (means over the batch).
        parameters: What is trained.
        title: What to call it while it runs.
    """

    loss: Callable[[Tensor], LossTerms]
    parameters: Iterable[nn.Parameter]
    title: str = "training"


Phase = Observe | Optimize
