"""A discriminator that learned to tell good features from spoilt ones, beside the distance from the good.

Liu et al., "SimpleNet: A Simple Network for Image Anomaly Detection and Localization", CVPR 2023: a feature adaptor,
Gaussian noise on good features, a discriminator that looks at one place at a time. As in Chen et al., "A Unified
Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and Localization" (GLASS), ECCV 2024,
half of the spoilt features come from images with painted defects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Prediction
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.engine.phases import Phase, Progress

_CELLS = 96
"""Of each image, and as many spoilt ones, a step learns from: neighbours say much the same."""
_COVERED = 0.3
"""Share of a cell under a painted defect from which on it counts as spoilt."""
_NOISE_RANGE = 2.0
"""Noise is drawn up to so many times weaker and stronger than the settings say."""
_SLOPE = 0.2


class SimpleNetConfig(PaDiMConfig):
    """Settings of features, distance and discriminator."""

    neighbourhood: int = Field(3, ge=1, le=9, description="Side of the window features are averaged over, odd")
    hidden: int = Field(128, ge=2, description="Width of the discriminator")
    noise: float = Field(0.4, gt=0, description="Noise on good features, in standard deviations of theirs")
    views: int = Field(1, ge=1, description="Defects painted on each image, at most one an epoch is learned from")
    verdict: float = Field(0.25, ge=0, description="Weight of the discriminator's map beside the distance's")


class SimpleNet(PaDiM):
    """Features standardised by the Gaussian of their place, and two opinions on them: how far, and spoilt or not.

    Three choices differ from the paper. Noise is added after features are whitened place by place, as it would
    otherwise teach no more than which channels vary little. The map is the sum of the discriminator's and of the
    logarithm of the distance, each standardised over good cells: the first knows what defects look like, the second
    does not need to. The score is the mean of the strangest cells, not of the strangest one.

    Attributes:
        scales: Tensor [2,2], means and standard deviations of both maps over good cells.
    """

    Config = SimpleNetConfig
    needs_validation = True
    config: SimpleNetConfig
    scales: Tensor

    def __init__(self, config: SimpleNetConfig) -> None:
        super().__init__(config)
        self.adaptor = nn.Linear(self.dimensions, self.dimensions)
        nn.init.eye_(self.adaptor.weight)
        nn.init.zeros_(self.adaptor.bias)
        self.discriminator = nn.Sequential(
            nn.Linear(self.dimensions, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(config.hidden, 1),
        )
        self.register_buffer("scales", torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        self._sums: list[Tensor] = []

    def phases(self) -> Sequence[Phase]:
        """The Gaussian of each place; epochs of the discriminator; the scales of both maps."""
        memory = FeatureCache()
        trained = [*self.adaptor.parameters(), *self.discriminator.parameters()]
        return (
            *super().phases(),
            Optimize(lambda batch: self._loss(batch, memory), trained, "discriminator"),
            Observe(self._moments, self._sums.append, self._scale, "scales of good maps"),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; maps have the cells of the backbone's finest level read."""
        mean, deviation = self.scales.view(2, 2, 1, 1)
        distance, verdict = (self._opinions(images) - mean) / deviation
        cells = (distance + self.config.verdict * verdict).reshape(images.shape[0], self.grid, self.grid)
        maps = self.blur(cells)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Few epochs, as the backbone's features do not change; batches of which each place sees enough."""
        del config
        return {"epochs": 20, "learning_rate": 2e-3, "batch_size": 16, "warmup": 0.1}

    def _opinions(self, images: Tensor) -> Tensor:
        """Logarithm of the distance and the discriminator's logit, [2,B,P]."""
        offsets = self.offsets(images).transpose(0, 1)
        distance = offsets.square().mean(2).clamp(min=1e-12).log() / 2
        return torch.stack([distance, self._verdict(offsets.flatten(0, 1)).view_as(distance)])

    def _verdict(self, rows: Tensor) -> Tensor:
        """Whitened features [n,D] to logits [n], higher where spoilt."""
        logits: Tensor = self.discriminator(self.adaptor(rows)).squeeze(1)
        return logits

    def _loss(self, batch: Batch, memory: FeatureCache) -> LossTerms:
        """Cross-entropy on good cells, the same with noise, and cells under painted defects."""
        good, spoilt = self._examples(batch, memory)
        features = self.adaptor(good)
        strength = self.config.noise * _NOISE_RANGE ** (2 * torch.rand(len(features), 1, device=features.device) - 1)
        noisy = features + strength * torch.randn_like(features)
        rows = torch.cat([features, noisy, self.adaptor(spoilt)])
        logits = self.discriminator(rows).squeeze(1)
        is_good, is_noisy, is_spoilt = logits.split([len(good), len(good), len(spoilt)])
        terms = {"good": F.softplus(is_good).mean(), "noise": F.softplus(-is_noisy).mean() / 2}
        # Where no defect could be painted, as on an image of one colour, there is nothing to add up.
        return {**terms, "painted": F.softplus(-is_spoilt).sum() / max(1, len(spoilt)) / 2}

    @torch.no_grad()
    def _examples(self, batch: Batch, memory: FeatureCache) -> tuple[Tensor, Tensor]:
        """Whitened features of some good cells and of some under painted defects, [n,D] each."""
        images, keys = batch.clean, batch.keys or [None] * len(batch.clean)
        good = memory(keys, lambda new: self.offsets(images[new]).transpose(0, 1)).to(images.device)
        if batch.defects is None:
            view = int(torch.randint(self.config.views, ()))
            names = None if batch.keys is None else [f"{key} view {view}" for key in batch.keys]
            spoilt = memory(names or keys, lambda new: self._painted(images, names, new)).to(images.device)
        else:
            spoilt = self._covered(batch.images, batch.defects)
        covered = spoilt[..., -1] > _COVERED
        return _some(good.flatten(0, 1), _CELLS * len(good)), _some(spoilt[covered][:, :-1], _CELLS * len(good))

    def _painted(self, images: Tensor, names: Sequence[str] | None, new: list[int]) -> Tensor:
        return self._covered(*paint_anomaly(images[new], None if names is None else [names[place] for place in new]))

    def _covered(self, images: Tensor, defects: Tensor) -> Tensor:
        """Whitened features, and last how much of the cell a mask [B,H,W] covers: [B,P,D+1]."""
        share = F.interpolate(defects.unsqueeze(1).float(), size=(self.grid, self.grid), mode="area")
        return torch.cat([self.offsets(images).transpose(0, 1), share.flatten(1).unsqueeze(2)], 2)

    def _moments(self, images: Tensor) -> Tensor:
        """Count, sum and sum of squares over good cells of both maps, [3,2]."""
        opinions = self._opinions(images).flatten(1).double().cpu()
        count = torch.full((2,), opinions.shape[1], dtype=torch.float64)
        return torch.stack([count, opinions.sum(1), opinions.square().sum(1)])

    def _scale(self, progress: Progress) -> None:
        del progress
        count, total, squares = torch.stack(self._sums).sum(0)
        self._sums.clear()
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        self.scales.copy_(torch.stack([mean, deviation]))


def _some(rows: Tensor, count: int) -> Tensor:
    """So many of some rows [n,D], drawn with replacement; none of none."""
    if not len(rows):
        return rows
    return rows[torch.randint(len(rows), (count,)).to(rows.device)]
