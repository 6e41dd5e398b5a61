"""PatchCore: distance of each patch feature to its nearest neighbour in a coreset of good ones.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adctl.coreset import k_center_greedy
from adctl.detectors.contract import Forecast, Prediction
from adctl.detectors.features import FeatureConfig, FeatureDetector, random_orthogonal, to_rows
from adctl.engine.phases import Observe
from adctl.maps import top_mean
from adctl.neighbours import nearest_squared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase, Progress


_ROWS_AT_ONCE = 1 << 15


class PatchCoreConfig(FeatureConfig):
    """Settings of PatchCore."""

    coreset_ratio: float = Field(0.01, gt=0, le=1, description="Share of all patches kept in the memory bank")
    dimensions: int = Field(128, ge=2, description="Length whitened features are reduced to by a random projection")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest cells whose mean is the score")
    seed: int = Field(0, ge=0, description="Decides the projection and the first patch of the coreset")


class PatchCore(FeatureDetector):
    """A memory bank of good patch features; a map cell is the distance to the nearest of them.

    Three choices differ from the paper. Features are whitened, so that the distance does not rest on the few
    channels that vary most among good parts. A random orthogonal projection then shortens them, which keeps
    distances nearly (Johnson & Lindenstrauss 1984) and makes coreset and search several times cheaper. The
    image score is the mean of the strangest cells, where the paper re-weights the single strangest one (its
    equation 7): steadier on textured parts, and one reduction in an exported graph.

    Attributes:
        centre: Tensor [C], the mean patch feature.
        projection: Tensor [C,D], whitening and reduction in one.
        bank: Tensor [N,D], reduced features of good patches, in the order the coreset picked them.
    """

    Config = PatchCoreConfig
    fitted: ClassVar[tuple[str, ...]] = ("centre", "projection", "bank")
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    config: PatchCoreConfig
    centre: Tensor
    projection: Tensor
    bank: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0))
        self._seen: list[Tensor] = []

    def phases(self) -> Sequence[Phase]:
        """One pass that gathers every patch, then the whitening and the coreset."""
        return (Observe(self.patches, self._absorb, self._finish, "memory bank"),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,3,H,W]; maps have the cells of the backbone's finest level read."""
        patches = self.patches(images)
        batch, _, height, width = patches.shape
        distances = nearest_squared(self._reduce(to_rows(patches)), self.bank).sqrt()
        maps = distances.reshape(batch, height, width)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def forecast(self, images: int) -> Forecast:
        """All patches are held, in half precision whole and in single precision reduced."""
        patches = images * self.grid**2
        kept = max(1, round(self.config.coreset_ratio * patches))
        reduced = min(self.config.dimensions, self.channels)
        # Twice the half-precision rows: they are gathered in pieces and then joined.
        memory = patches * (2 * 2 * self.channels + 4 * reduced + 16)
        flops = 2.0 * patches * (kept * reduced + self.channels * (self.channels + reduced))
        return Forecast(memory=memory, flops=flops)

    def _reduce(self, rows: Tensor) -> Tensor:
        return (rows - self.centre) @ self.projection

    def _absorb(self, patches: Tensor) -> None:
        # Half precision halves what waits; the bank and all distances are single precision.
        self._seen.append(to_rows(patches).half())

    def _finish(self, progress: Progress) -> None:
        rows = torch.cat(self._seen)
        self._seen = []
        centre, covariance = _moments(rows)
        length = min(self.config.dimensions, rows.shape[1])
        reduction = random_orthogonal(rows.shape[1], length, self.config.seed).to(covariance)
        self._fit_buffer("centre", centre.float())
        self._fit_buffer("projection", (_whitening(covariance) @ reduction).float())
        reduced = torch.cat([self._reduce(block.float()) for block in rows.split(_ROWS_AT_ONCE)])
        del rows
        count = max(1, round(self.config.coreset_ratio * reduced.shape[0]))
        chosen = k_center_greedy(reduced, count, seed=self.config.seed, progress=progress)
        self._fit_buffer("bank", reduced[chosen])


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C,C] of rows [N,C], summed in double precision where the device has it."""
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    total = torch.zeros(rows.shape[1], dtype=exact, device=rows.device)
    for block in rows.split(_ROWS_AT_ONCE):
        total += block.sum(0, dtype=exact)
    mean = total / rows.shape[0]
    products = torch.zeros(rows.shape[1], rows.shape[1], dtype=exact, device=rows.device)
    for block in rows.split(_ROWS_AT_ONCE):
        centred = block.float() - mean.float()
        products += (centred.t() @ centred).to(exact)
    return mean, products / rows.shape[0]


def _whitening(covariance: Tensor) -> Tensor:
    """[C,C] matrix after which all directions vary alike; those of almost no variance are held back."""
    variances, directions = torch.linalg.eigh(covariance)
    whitening: Tensor = directions / (variances.clamp(min=0) + 0.01 * variances.mean()).sqrt()
    return whitening
