"""Features of a frozen backbone brought to zero mean, unit variance and no correlation over good images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import to_rows
from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.engine.phases import Progress

_RIDGE = 0.01
"""Share of the mean variance added to each direction's: those of almost no variance are held back."""


class Whitening(nn.Module):
    """(features - mean) times a whitening matrix, at each place alike.

    Args:
        channels: C, of the features.
        kept: D, directions of most variance that are kept; None keeps all.

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
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B,C,h,w] to whitened ones [B,D,h,w]."""
        return F.conv2d(features - self.mean.view(1, -1, 1, 1), self.matrix[:, :, None, None])

    def absorb(self, seen: tuple[int, Tensor, Tensor]) -> None:
        """Take what `_sums` gave of some images."""
        count, total, products = seen
        self._count += count
        self._sum += total
        self._products += products

    def finish(self) -> None:
        """Find mean and matrix."""
        mean = self._sum / self._count
        covariance = self._products / self._count - mean.outer(mean)
        variances, directions = torch.linalg.eigh(covariance)
        scales = (variances.clamp(min=0) + _RIDGE * variances.mean()).sqrt()
        matrix = (directions / scales).T.flip(0)[: self.kept]
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        self._count = 0
        self._sum.zero_()
        self._products.zero_()


def observe(
    whitenings: Sequence[Whitening], embed: Callable[[Tensor], Sequence[Tensor]], title: str = "feature statistics"
) -> Observe:
    """The pass over good images that fits some whitenings.

    Args:
        whitenings: One for each kind of features.
        embed: Images [B,C,H,W] to the features of each kind, [B,C,h,w].
        title: What to call it while it runs.
    """

    def absorb(seen: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        for whitening, sums in zip(whitenings, seen, strict=True):
            whitening.absorb(sums)

    def finish(progress: Progress) -> None:
        for done, whitening in enumerate(whitenings):
            whitening.finish()
            progress(done + 1, len(whitenings))

    return Observe(lambda images: [_sums(features) for features in embed(images)], absorb, finish, title)


def _sums(features: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many rows, their sum [C] and their summed outer products [C,C]; on the CPU, in double precision."""
    rows = to_rows(features).cpu().double()
    return len(rows), rows.sum(0), rows.T @ rows
