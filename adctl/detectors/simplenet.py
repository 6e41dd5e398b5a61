"""SimpleNet: a discriminator trained on normal against corrupted features, combined with PaDiM's distance.

Liu et al., "SimpleNet: A Simple Network for Image Anomaly Detection and Localization", CVPR 2023: a feature adaptor,
Gaussian noise on good features, and a discriminator for single places. As in Chen et al., "A Unified Anomaly Synthesis
Strategy with Gradient Ascent for Industrial Anomaly Detection and Localization" (GLASS), ECCV 2024, half of the
corrupted features come from images with synthetic defects. Known defects are learned beside them, as in Rolih et al.,
"SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface Defect Detection", ICPR
2024; the distance, which knows none of them, keeps its part of the score.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Prediction, Search, require_positive
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.feature_statistics import Accumulator, VarianceSums
from adctl.detectors.components.known_defects import defect_cells
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.detectors.feature_detector import Images
    from adctl.engine.phases import Phase, Progress

_CELLS = 96
"""Good cells per image in a step, and as many corrupted ones; all cells would add little, as neighbours are similar."""
_COVERED = 0.3
"""Fraction of a cell that a synthetic defect must cover for the cell to count as defective."""
_NOISE_RANGE = 2.0
"""Maximum factor by which the noise is weaker or stronger than `noise` in the settings."""
_SLOPE = 0.2


class SimpleNetConfig(PaDiMConfig):
    """Settings of features, distance and discriminator."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        **PaDiMConfig.search_ranges,
        "noise": Search(0.1, 1, log=True),
        "verdict": Search(0, 1),
    }

    neighbourhood: int = Field(3, ge=1, le=9, description=PaDiMConfig.model_fields["neighbourhood"].description)
    hidden: int = Field(128, ge=2, description="Width of the discriminator")
    noise: float = Field(0.4, gt=0, description="Noise on good features, in standard deviations of the features")
    views: int = Field(1, ge=1, description="Different synthetic defects for each image; each epoch uses one of them")
    verdict: float = Field(0.25, ge=0, description="Weight of the discriminator's map, that of the distance being 1")


class SimpleNet(PaDiM):
    """Features whitened by the Gaussian of their place, scored by their distance and by a discriminator.

    Three choices differ from the paper. Noise is added after the features are whitened at each place; otherwise the
    discriminator would only learn which channels vary little. The map is the sum of the discriminator's logit and the
    logarithm of the distance, each standardised over good cells. The score is the mean of the highest cells instead of
    the maximum.

    Attributes:
        scales: Tensor [2,2], means and standard deviations of both maps over good cells.
    """

    Config = SimpleNetConfig
    needs_validation = True
    warm_start = True
    largest_auto_side = None
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
        self._known: list[Tensor] | None = None

    def phases(self) -> Sequence[Phase]:
        """Return the phases: the Gaussian of each place, the discriminator, and the scales of both maps."""
        cache, self._known = FeatureCache(), None
        trained = [*self.adaptor.parameters(), *self.discriminator.parameters()]
        sums: Accumulator[VarianceSums] = Accumulator()
        return (
            *super().phases(),
            Optimize(lambda batch: self._loss(batch, cache), trained, "discriminator"),
            Observe(
                lambda images: VarianceSums.of(self._raw_maps(images).flatten(1), (1,)),
                sums.add,
                lambda progress: self._fit_scales(sums.take(), progress),
                "scales of good maps",
            ),
        )

    def _learn_weights(self) -> None:
        """Leave the distance as it is: the discriminator learns from known defects."""

    def update_phases(self, images: int) -> Sequence[Phase]:
        """Return no phases: the discriminator must see the old images too."""
        del images
        return ()

    def forward(self, images: Images) -> Prediction:
        """Score images [B,C,H,W]; the maps have the cells of the finest level of the backbone."""
        mean, deviation = self.scales.view(2, 2, 1, 1)
        distance, logit = (self._raw_maps(images) - mean) / deviation
        cells = (distance + self.config.verdict * logit).reshape(distance.shape[0], *self.grid)
        maps = self.blur(cells)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    @classmethod
    def masks_margin(cls, config: DetectorConfig) -> bool:
        """Return False: the discriminator learns from all cells."""
        del config
        return False

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return few epochs, because the features do not change, and batches with enough cells of each place."""
        del config
        return {"epochs": 20, "learning_rate": 2e-3, "batch_size": 16, "warmup": 0.1}

    def check_state(self) -> None:
        """Check the statistics of PaDiM, and that the standard deviations of both maps are positive.

        Raises:
            ModelFileError: A shape contradicts the settings, or a deviation is not positive.
        """
        super().check_state()
        require_positive("scales", self._require_state("scales", 2, 2)[1])

    def _raw_maps(self, images: Images) -> Tensor:
        """Return the logarithm of the distance and the discriminator's logit, [2,B,P]."""
        features = self.whitened(images).transpose(0, 1)
        distance = features.square().mean(2).clamp(min=1e-12).log() / 2
        return torch.stack([distance, self._logits(features.flatten(0, 1)).view_as(distance)])

    def _logits(self, rows: Tensor) -> Tensor:
        """Return logits [n] of whitened features [n,D], higher for corrupted features."""
        logits: Tensor = self.discriminator(self.adaptor(rows)).squeeze(1)
        return logits

    def _loss(self, batch: Batch, cache: FeatureCache) -> LossTerms:
        """Return the cross-entropy on good cells, on the same cells with noise, and on cells with defects."""
        good, defective = self._examples(batch, cache)
        features = self.adaptor(good)
        strength = self.config.noise * _NOISE_RANGE ** (2 * torch.rand(len(features), 1, device=features.device) - 1)
        noisy = features + strength * torch.randn_like(features)
        known = self._known_cells(len(good))
        rows = torch.cat([features, noisy, self.adaptor(defective), self.adaptor(known)])
        logits = self.discriminator(rows).squeeze(1)
        of_good, of_noisy, of_defective, of_known = logits.split([len(good), len(good), len(defective), len(known)])
        terms = {"good": F.softplus(of_good).mean(), "noise": F.softplus(-of_noisy).mean() / 2}
        if len(known):
            terms["known"] = F.softplus(-of_known).mean() / 2
        # There may be no defective cell, because images of a single colour get no synthetic defects.
        return {**terms, "painted": F.softplus(-of_defective).sum() / max(1, len(defective)) / 2}

    @torch.no_grad()
    def _known_cells(self, count: int) -> Tensor:
        """Return whitened features [n,D] of random cells of known defects, as many of each image; none without any."""
        if self.known_defects is None:
            return self.mean.new_empty(0, self.dimensions)
        if self._known is None:
            found = []
            for images, masks in self.known_defects.batches(self.backbone.mean.device):
                features = self.whitened(images).transpose(0, 1)
                cells = defect_cells(masks, features.square().sum(2).unflatten(1, self.grid)).flatten(1)
                found += [rows[chosen] for rows, chosen in zip(features, cells, strict=True)]
            self._known = found
        each = max(1, count // len(self._known))
        return torch.cat([_sample(rows, each) for rows in self._known])

    @torch.no_grad()
    def _examples(self, batch: Batch, cache: FeatureCache) -> tuple[Tensor, Tensor]:
        """Return whitened features [n,D] of random good cells, and of random cells with synthetic defects."""
        images, keys = batch.clean, batch.keys or [None] * len(batch.clean)
        good = cache(keys, lambda new: self.whitened(images[new]).transpose(0, 1)).to(images.device)
        if batch.defects is None:
            view = int(torch.randint(self.config.views, ()))
            names = None if batch.keys is None else [f"{key} view {view}" for key in batch.keys]
            painted = cache(names or keys, lambda new: self._painted(images, names, new)).to(images.device)
        else:
            painted = self._with_coverage(batch.images, batch.defects)
        covered = painted[..., -1] > _COVERED
        return _sample(good.flatten(0, 1), _CELLS * len(good)), _sample(painted[covered][:, :-1], _CELLS * len(good))

    def _painted(self, images: Tensor, names: Sequence[str] | None, new: list[int]) -> Tensor:
        keys = None if names is None else [names[place] for place in new]
        return self._with_coverage(*paint_anomaly(images[new], keys))

    def _with_coverage(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return whitened features with the fraction of the cell that the masks [B,H,W] cover appended, [B,P,D+1]."""
        coverage = F.interpolate(masks.unsqueeze(1).float(), size=self.grid, mode="area")
        return torch.cat([self.whitened(images).transpose(0, 1), coverage.flatten(1).unsqueeze(2)], 2)

    def _fit_scales(self, sums: VarianceSums, progress: Progress) -> None:
        del progress
        mean, variance = sums.mean_and_variance()
        self.scales.copy_(torch.stack([mean, variance.clamp(min=1e-12).sqrt()]))


def _sample(rows: Tensor, count: int) -> Tensor:
    """Draw rows [n,D] with replacement; return none if there are none."""
    if not len(rows):
        return rows
    return rows[torch.randint(len(rows), (count,)).to(rows.device)]
