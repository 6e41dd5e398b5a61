"""Mean, variance and covariance of features, summed batch by batch; principal directions and smoothing over places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

RIDGE = 0.01
"""Fraction of the mean variance that is added to the variance of each direction, so that none is near zero."""

_SHRINKAGE = 0.1

_FEW_IMAGES = 5
"""Number of images of which the statistics of a place count as much as those of all places."""


class Sums(Protocol):
    """Sums over the images of a batch, to which those of another batch can be added."""

    def add(self, other: Self) -> None:
        """Add the sums of other images, in place."""
        ...


S = TypeVar("S", bound=Sums)


@dataclass
class VarianceSums:
    """Sums from which mean and variance follow.

    Attributes:
        count: Number of values.
        total: Sum of the values, tensor of float64.
        squares: Sum of their squares, tensor of float64.
    """

    count: int
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor, dims: tuple[int, ...] = (0,)) -> VarianceSums:
        """Sum values over some dimensions, on the CPU."""
        exact = values.detach().cpu().double()
        return cls(math.prod(values.shape[dim] for dim in dims), exact.sum(dims), exact.square().sum(dims))

    def add(self, other: VarianceSums) -> None:
        """Add the sums of other images, in place."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, both of float64."""
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


@dataclass
class CovarianceSums:
    """Sums from which mean and covariance of vectors follow, optionally for many places at once.

    Attributes:
        count: Number of vectors: the same at each place, or a tensor [...].
        total: Sum of the vectors, tensor [...,C].
        products: Sum of their outer products, tensor [...,C,C].
    """

    count: int | Tensor
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> CovarianceSums:
        """Sum vectors [...,n,C] over n, in their own precision; see `exact`."""
        return cls(vectors.shape[-2], vectors.sum(-2), vectors.mT @ vectors)

    @classmethod
    def from_mean(cls, count: int | Tensor, mean: Tensor, covariance: Tensor) -> CovarianceSums:
        """Return the sums of a number of vectors with this mean [...,C] and covariance [...,C,C]."""
        weight = torch.as_tensor(count, dtype=mean.dtype, device=mean.device)
        products = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return cls(count, weight.unsqueeze(-1) * mean, weight[..., None, None] * products)

    def add(self, other: CovarianceSums) -> None:
        """Add the sums of other images, in place."""
        self.count = self.count + other.count
        self.total += other.total
        self.products += other.products

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return mean [...,C] and covariance [...,C,C]."""
        count = torch.as_tensor(self.count, device=self.total.device)
        mean = self.total / count.unsqueeze(-1)
        return mean, self.products / count[..., None, None] - mean.unsqueeze(-1) * mean.unsqueeze(-2)


class Accumulator(Generic[S]):
    """Sum of the sums of all batches."""

    def __init__(self) -> None:
        self._sums: S | None = None

    def add(self, sums: S) -> None:
        """Add the sums of one batch."""
        if self._sums is None:
            self._sums = sums
        else:
            self._sums.add(sums)

    def take(self) -> S:
        """Return the sums of all batches, and start again without any."""
        sums, self._sums = self._sums, None
        assert sums is not None
        return sums


def summed(batches: Iterable[S]) -> S:
    """Return the sum of the sums of all batches."""
    accumulator: Accumulator[S] = Accumulator()
    for sums in batches:
        accumulator.add(sums)
    return accumulator.take()


def exact(values: Tensor) -> Tensor:
    """Convert to float64, or to float32 on devices without float64.

    A covariance is a small difference of large sums, for which float32 is often too coarse.
    """
    return values.float() if values.device.type == "mps" else values.double()


def principal_directions(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances [C] and the directions (columns of [C,C]) of a covariance [C,C], largest variance first."""
    variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.flip(1)


@dataclass(frozen=True)
class PlaceStatistics:
    """Mean and deviation of features at each place.

    Attributes:
        count: Number of images that have a cell there, tensor [h,w], or the number of all images.
        mean: Mean feature, tensor [C,h,w].
        deviation: Standard deviation, tensor [C,h,w].
    """

    count: Tensor | int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], device: torch.device, *, masked: bool = False) -> PlaceStatistics:
        """Compute the statistics of features.

        Args:
            batches: Features [B,C,h,w]; iterated two or three times.
            device: Device of the computation.
            masked: Whether the last channel is 1 where an image has a cell and 0 elsewhere.
        """
        if masked:
            return cls._of_masked(batches, device)
        count = sum(len(batch) for batch in batches)
        mean = sum(exact(batch.to(device)).sum(0) for batch in batches) / count
        variance = sum((exact(batch.to(device)) - mean).square().sum(0) for batch in batches) / count
        assert isinstance(mean, torch.Tensor)
        assert isinstance(variance, torch.Tensor)
        return cls(count, mean, variance.sqrt())

    @classmethod
    def _of_masked(cls, batches: Iterable[Tensor], device: torch.device) -> PlaceStatistics:
        count = torch.zeros(())
        mean, variance = count, count
        for values, inside in _masked(batches, device):
            count, mean = count + inside.sum((0, 1)), mean + (values * inside).sum(0)
        seen = count.clamp(min=1)
        mean = mean / seen
        for values, inside in _masked(batches, device):
            variance = variance + ((values - mean).square() * inside).sum(0)
        return cls(count, mean, (variance / seen).sqrt())

    def without(self, patches: Tensor, inside: Tensor | None = None) -> PlaceStatistics:
        """Return the statistics without the images of these features [B,C,h,w], whose cells are inside [B,h,w]."""
        if inside is None or isinstance(self.count, int):
            rest: Tensor | int = self.count - len(patches)
            offsets, divisor = exact(patches) - self.mean, rest
        else:
            rest = self.count - inside.sum(0)
            offsets, divisor = (exact(patches) - self.mean) * inside.unsqueeze(1), rest.clamp(min=1)
        shift = -offsets.sum(0) / divisor
        squares = self.count * self.deviation.square() - offsets.square().sum(0)
        return PlaceStatistics(rest, self.mean + shift, (squares / divisor - shift.square()).clamp(min=0).sqrt())

    def around(self, smallest: float, count: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and deviation around each place, tensors [C,h,w].

        Both are averages over 3 x 3 places, as in `smoothed`. Few images tell little about a single place: their
        deviation there is zero for one image, and too small for two. So of n images it has the weight n^2 / (n^2 + 25).
        The rest is the mean over all places, and the mean squared distance from it around the place.

        Args:
            smallest: Number added to the deviations.
            count: Number of images n, for all places or each; None takes that of the statistics.
        """
        mean, deviation = self.filled()
        counts = torch.as_tensor(self.count if count is None else count, dtype=mean.dtype, device=mean.device)
        weight = place_weight(counts)
        everywhere = mean.mean((1, 2), keepdim=True)
        total = _averaged(deviation.square() + (mean - everywhere).square())
        own = _averaged(deviation).square()
        return (
            everywhere + weight * (_averaged(mean) - everywhere),
            _shrunk((weight * own + (1 - weight) * total).sqrt(), smallest),
        )

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation; places without any image get those of all places together."""
        if isinstance(self.count, int):
            return self.mean, self.deviation
        everywhere, typical = (
            (values * self.count).sum((1, 2), keepdim=True) / self.count.sum() for values in (self.mean, self.deviation)
        )
        return torch.where(self.count > 0, self.mean, everywhere), torch.where(self.count > 0, self.deviation, typical)


def place_weight(count: Tensor | int) -> Tensor | float:
    """Return the weight of a place's own statistics of so many images, n^2 / (n^2 + 25)."""
    return count**2 / (count**2 + _FEW_IMAGES**2)


def _masked(batches: Iterable[Tensor], device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield features [B,C,h,w] and masks [B,1,h,w] of batches that have the mask as last channel."""
    for batch in batches:
        exactly = exact(batch.to(device))
        yield exactly[:, :-1], exactly[:, -1:]


def smoothed(mean: Tensor, deviation: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Average statistics [C,h,w] over 3 x 3 places, and shrink each deviation to the mean deviation of its channel.

    Without shrinkage, places that hardly vary in the training images would dominate the map.

    Args:
        mean: Mean at each place.
        deviation: Standard deviation at each place.
        smallest: Number added to the deviations.
    """
    return _averaged(mean), _shrunk(_averaged(deviation), smallest)


def _averaged(values: Tensor) -> Tensor:
    """Average values [C,h,w] over 3 x 3 places."""
    return F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)


def _shrunk(deviation: Tensor, smallest: float) -> Tensor:
    typical = deviation.mean((1, 2), keepdim=True)
    return (1 - _SHRINKAGE) * deviation + _SHRINKAGE * typical + smallest
