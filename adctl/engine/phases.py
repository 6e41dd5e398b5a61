"""Phases of fitting a detector, which the trainer runs in order.

A gradient-trained method is `[Optimize]`, a method that fits in one pass `[Observe]`, a student-teacher method
`[Observe, Optimize, Observe]`, and a method without training `[]`. This module does not know how phases are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LossTerms = dict[str, Tensor]
"""Loss terms by name, each a weighted scalar; the loss is their sum."""

Progress = Callable[[int, int], None]
"""Receiver of progress, called with (done, total)."""


def total(terms: LossTerms) -> Tensor:
    """Return the loss: the sum of the terms, a scalar."""
    return torch.stack(list(terms.values())).sum()


@dataclass(frozen=True)
class Observe:
    """One pass over images without gradients.

    Attributes:
        embed: Function from images [B,C,H,W] to the argument of `absorb`. It has no side effects, so a batch that runs
            out of memory can be repeated in smaller batches.
        absorb: Function that takes the result of `embed`, called in the order of the images.
        finish: Function called once after the last batch; it may take long and reports progress.
        title: Title of the phase, for progress bars and timings.
        held_out: Whether to use the held-out images that choose the best epoch; the training images if there are none.
    """

    embed: Callable[[Tensor], Any]
    absorb: Callable[[Any], None]
    finish: Callable[[Progress], None]
    title: str = "observing"
    held_out: bool = False


@dataclass(frozen=True)
class Batch:
    """Images of a gradient step, float32 in [0, 1].

    Attributes:
        images: Tensor [B,C,H,W], the augmented input of the network.
        clean: Tensor [B,C,H,W], the same without synthetic defects: the target of a reconstruction.
        defects: Tensor [B,H,W] of bool, the masks of synthetic or labelled defects, or None.
        keys: Identity of each image: within one fit, equal keys mean equal pixels. None for augmented images.
        labels: Tensor [B] of int64, the number of each image's kind; None if the images have no labels.
    """

    images: Tensor
    clean: Tensor
    defects: Tensor | None = None
    keys: tuple[str, ...] | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Explanation:
    """Pictures and numbers that a detector shows of B images beside their anomaly maps.

    Attributes:
        pictures: Tensors [B,C,H,W] in [0, 1] by title, such as reconstructions.
        values: Statistics [B] by name.
        words: Name of each learnt token, and the words nearest to it.
    """

    pictures: dict[str, Tensor]
    values: dict[str, Tensor] = field(default_factory=dict)
    words: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Critic:
    """Second network, trained against the first.

    Attributes:
        loss: Function that returns loss terms for the last batch of the phase's own loss.
        parameters: Parameters trained by this loss; the phase's own loss does not change them.
    """

    loss: Callable[[], LossTerms]
    parameters: Iterable[nn.Parameter]


@dataclass(frozen=True)
class Optimize:
    """Epochs of gradient steps.

    Attributes:
        loss: Function from a batch to loss terms, each a mean over the batch.
        parameters: Parameters to train.
        title: Title of the phase, for progress bars and timings.
        objective: Module that only the loss needs, or None: it is moved to the device with the detector and stored in
            checkpoints, but not in the model file. Its trainable parameters must be in `parameters`.
        critic: Second network, trained against the first, or None.
        start_epoch: Function called with (epoch, epochs) before each epoch, counted from 1, or None.
        preview: Function from images [B,C,H,W] to reconstructions [B,C,H,W] in [0, 1] or to other pictures of them, for
            the training log; or None.
        rate_scale: Function from a parameter to the factor of its learning rate, or None.
        monitored: Function called after each validation, that returns the number to minimise in place of the mean
            loss, or None.
    """

    loss: Callable[[Batch], LossTerms]
    parameters: Iterable[nn.Parameter]
    title: str = "training"
    objective: nn.Module | None = None
    critic: Critic | None = None
    start_epoch: Callable[[int, int], None] | None = None
    preview: Callable[[Tensor], Tensor | Explanation] | None = None
    rate_scale: Callable[[nn.Parameter], float] | None = None
    monitored: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        """Keep the parameters of an iterator, which can be read only once."""
        object.__setattr__(self, "parameters", tuple(self.parameters))

    def modules(self, detector: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules that a step runs and whose buffers it may change."""
        return (detector,) if self.objective is None else (detector, self.objective)


Phase = Observe | Optimize
