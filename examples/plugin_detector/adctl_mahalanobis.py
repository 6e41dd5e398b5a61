"""Mahalanobis distance of patch features from one Gaussian, the same at all positions of the image.

Unlike PaDiM, it does not need aligned parts, and its model is small: a mean and a matrix of channels x channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adctl.detectors.base import Prediction
from adctl.detectors.feature_detector import FeatureConfig, FeatureDetector
from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.engine.phases import Phase


class MahalanobisConfig(FeatureConfig):
    """Settings of the detector, in addition to those of the backbone."""

    ridge: float = Field(0.01, gt=0, description="Share of the mean variance added to the covariance's diagonal")


class Mahalanobis(FeatureDetector):
    """Detector that scores each patch feature by its Mahalanobis distance from the features of good images.

    Attributes:
        mean: Mean feature [C].
        whitening: Matrix [C,C]; the distance is the norm of (feature - mean) @ whitening.
    """

    Config: ClassVar[type[MahalanobisConfig]] = MahalanobisConfig
    fitted: ClassVar[tuple[str, ...]] = ("mean", "whitening")
    config: MahalanobisConfig
    mean: Tensor
    whitening: Tensor

    def __init__(self, config: MahalanobisConfig) -> None:
        super().__init__(config)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0))

    def phases(self) -> Sequence[Phase]:
        """Return one pass over the images that sums the features and their products."""
        self._count = 0
        self._sum = torch.zeros(self.channels, dtype=torch.float64)
        self._products = torch.zeros(self.channels, self.channels, dtype=torch.float64)
        return (Observe(self.patches, self._absorb, self._finish, "feature statistics"),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W] by their largest distance; maps have one cell for each patch."""
        features = self.patches(images).permute(0, 2, 3, 1)
        maps = ((features - self.mean) @ self.whitening).square().sum(-1).sqrt()
        return Prediction(maps.flatten(1).amax(1), maps)

    def _absorb(self, features: Tensor) -> None:
        rows = features.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.t() @ rows

    def _finish(self, progress: Callable[[int, int], None]) -> None:
        mean = self._sum / self._count
        covariance = self._products / self._count - torch.outer(mean, mean)
        covariance += self.config.ridge * covariance.diagonal().mean() * torch.eye(len(mean))
        # If the covariance is L L^T, the inverse of L^T whitens: it converts offsets to standard deviations.
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).t()
        device = self.backbone.mean.device
        self._fit_buffer("mean", mean.float().to(device))
        self._fit_buffer("whitening", whitening.float().to(device))
        progress(1, 1)
