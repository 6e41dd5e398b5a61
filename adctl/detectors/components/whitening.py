"""Whitening of a frozen backbone's features: zero mean, unit variance and no correlation over good images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.feature_statistics import RIDGE, Accumulator, CovarianceSums, principal_directions
from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.engine.phases import Progress


class Whitening(nn.Module):
    """(features - mean) times a whitening matrix, the same at each place.

    Args:
        channels: C, the channels of the features.
        kept: D, the number of principal directions to keep, largest variance first; None keeps all.

    Attributes:
        mean: Tensor [C].
        matrix: Tensor [D,C].
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int, kept: int | None = None) -> None:
        super().__init__()
        self.kept = min(kept or channels, channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels)[: self.kept].clone())

    def forward(self, features: Tensor) -> Tensor:
        """Whiten features [B,C,h,w] to [B,D,h,w]."""
        return F.conv2d(features - self.mean.view(1, -1, 1, 1), self.matrix[:, :, None, None])

    def fit(self, sums: CovarianceSums) -> None:
        """Compute mean and matrix from the sums over all features."""
        mean, covariance = sums.mean_and_covariance()
        variances, directions = principal_directions(covariance)
        scales = (variances.clamp(min=0) + RIDGE * variances.mean()).sqrt()
        self.mean.copy_(mean)
        self.matrix.copy_((directions / scales).T[: self.kept])


def whitening_phase(
    whitenings: Sequence[Whitening], embed: Callable[[Tensor], Sequence[Tensor]], title: str = "feature statistics"
) -> Observe:
    """Return the pass over good images that fits one whitening for each group of features.

    Args:
        whitenings: The whitenings.
        embed: Function from images [B,C,H,W] to the features of each group, [B,C,h,w].
        title: Title of the phase.
    """
    accumulators: list[Accumulator[CovarianceSums]] = [Accumulator() for _ in whitenings]

    def absorb(batch: Sequence[CovarianceSums]) -> None:
        for accumulator, sums in zip(accumulators, batch, strict=True):
            accumulator.add(sums)

    def finish(progress: Progress) -> None:
        for number, (whitening, accumulator) in enumerate(zip(whitenings, accumulators, strict=True), 1):
            whitening.fit(accumulator.take())
            progress(number, len(whitenings))

    return Observe(
        lambda images: [CovarianceSums.of(to_rows(group).cpu().double()) for group in embed(images)],
        absorb,
        finish,
        title,
    )
