"""Bringing images to the values a network trained from scratch learns from easily.

`none` leaves [0, 1]; `imagenet` takes the mean and spread of ImageNet; `dataset` those of the good images;
numbers of one's own are a mean and a standard deviation, one for all channels or one each.

Knows images as tensors, nothing of any one detector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from adctl.engine.phases import Progress

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
Choice: TypeAlias = Literal["none", "imagenet", "dataset"] | Statistics

CENTRED: Statistics = ((0.5,), (0.5,))
"""Brings [0, 1] to [-1, 1]."""

_IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
_SMALLEST_STD = 1 / 255
"""One grey level: images that are all of one colour have no spread to divide by."""


def check_statistics(choice: Choice, channels: int) -> Choice:
    """Refuse numbers that cannot be a mean and a standard deviation of so many channels.

    Raises:
        ValueError: They cannot.
    """
    if isinstance(choice, str):
        return choice
    mean, std = choice
    if len(mean) != len(std) or len(mean) not in {1, channels}:
        raise ValueError(f"needs as many means as standard deviations, 1 or {channels} of each")
    if min(std) <= 0:
        raise ValueError("needs standard deviations above 0")
    return choice


class Normalisation(nn.Module):
    """(images - mean) / std, channel by channel.

    Args:
        choice: Where mean and standard deviation come from.
        channels: Of the images.

    Attributes:
        mean: Tensor [1,C,1,1].
        std: Tensor [1,C,1,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, choice: Choice, channels: int) -> None:
        super().__init__()
        self.observed = choice == "dataset"
        # What settings say is not stored again: only what was found out goes into the model file.
        for name, values in zip(("mean", "std"), _statistics(choice, channels), strict=True):
            buffer = torch.tensor(values).expand(channels).clone().view(1, channels, 1, 1)
            self.register_buffer(name, buffer, persistent=self.observed)
        self._count = 0
        self._sums: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0, 1] to normalised ones."""
        return (images - self.mean) / self.std

    def phases(self) -> tuple[Observe, ...]:
        """One pass over the good images, where their statistics are wanted."""
        return (Observe(_sums, self._absorb, self._finish, "normalisation"),) if self.observed else ()

    def _absorb(self, seen: tuple[Tensor, int]) -> None:
        sums, count = seen
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += count

    def _finish(self, progress: Progress) -> None:
        del progress
        assert self._sums is not None
        mean, square = self._sums / self._count
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_((square - mean.square()).clamp(min=0).sqrt().clamp(min=_SMALLEST_STD).view_as(self.std))
        self._sums, self._count = None, 0


def _sums(images: Tensor) -> tuple[Tensor, int]:
    """Sums of values and squares, [2,C], and how many values a channel has; on the CPU, in double precision."""
    exact = images.detach().cpu().double()
    return torch.stack([exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))]), images.numel() // images.shape[1]


def _statistics(choice: Choice, channels: int) -> Statistics:
    if not isinstance(choice, str):
        return choice
    # Of channels that are no colours, all that is known is the light that falls on them.
    return _IMAGENET.get(channels, _IMAGENET[1]) if choice == "imagenet" else ((0.0,), (1.0,))
