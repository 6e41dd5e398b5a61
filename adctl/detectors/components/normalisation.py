"""Normalisation of images for networks that are trained from scratch.

`none` keeps [0, 1]; `imagenet` uses the mean and standard deviation of ImageNet; `dataset` those of the good images;
a pair of lists gives means and standard deviations, one number for all channels or one for each.

This module knows images as tensors and no detector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adctl.detectors.components.feature_statistics import Accumulator, VarianceSums
from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from adctl.engine.phases import Progress

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
Choice: TypeAlias = Literal["none", "imagenet", "dataset"] | Statistics

CENTRED: Statistics = ((0.5,), (0.5,))
"""Maps [0, 1] to [-1, 1]."""

_IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
_SMALLEST_STD = 1 / 255
"""One grey level; for images of a single colour, whose standard deviation is zero."""


def check_statistics(choice: Choice, channels: int) -> Choice:
    """Check that given means and standard deviations fit the number of channels, and return them.

    Raises:
        ValueError: They do not fit.
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
        choice: Source of mean and standard deviation.
        channels: Channels of the images.

    Attributes:
        mean: Tensor [1,C,1,1].
        std: Tensor [1,C,1,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, choice: Choice, channels: int) -> None:
        super().__init__()
        self.observed = choice == "dataset"
        # Values from the settings are not stored again: the model file holds fitted values only.
        for name, values in zip(("mean", "std"), _statistics(choice, channels), strict=True):
            buffer = torch.tensor(values).expand(channels).clone().view(1, channels, 1, 1)
            self.register_buffer(name, buffer, persistent=self.observed)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images [B,C,H,W] in [0, 1]."""
        return (images - self.mean) / self.std

    def phases(self) -> tuple[Observe, ...]:
        """Return the pass over the good images that computes their statistics, if they are used."""
        if not self.observed:
            return ()
        sums: Accumulator[VarianceSums] = Accumulator()

        def finish(progress: Progress) -> None:
            del progress
            mean, variance = sums.take().mean_and_variance()
            self.mean.copy_(mean.view_as(self.mean))
            self.std.copy_(variance.sqrt().clamp(min=_SMALLEST_STD).view_as(self.std))

        return (Observe(lambda images: VarianceSums.of(images, (0, 2, 3)), sums.add, finish, "normalisation"),)


def _statistics(choice: Choice, channels: int) -> Statistics:
    if not isinstance(choice, str):
        return choice
    # Images with other channels than colour use the statistics of grey images.
    return _IMAGENET.get(channels, _IMAGENET[1]) if choice == "imagenet" else ((0.0,), (1.0,))
