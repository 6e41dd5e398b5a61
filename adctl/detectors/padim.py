"""PaDiM: a Gaussian over the patch features at each place of the image.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", 2021.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adctl.detectors.base import CostEstimate, Prediction
from adctl.detectors.components.anomaly_maps import GaussianBlur, to_rows, top_mean
from adctl.detectors.components.feature_buffer import CHUNK, FeatureBuffer, room
from adctl.detectors.feature_detector import FeatureConfig, FeatureDetector, random_orthogonal
from adctl.engine.phases import Observe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.engine.phases import Phase, Progress

_PLACES_AT_ONCE = 64
_TITLE = "patch distributions"


class PaDiMConfig(FeatureConfig):
    """Settings of PaDiM."""

    dimensions: int = Field(160, ge=2, description="Length that longer features are reduced to")
    covariance: Literal["full", "shared"] = Field(
        "full",
        description="One for each place, or shared directions with variances for each place: a small, fast model",
    )
    ridge: float = Field(0.003, gt=0, description="Share of the mean variance added to each covariance's diagonal")
    blur: float = Field(0.7, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest cells whose mean is the score")
    seed: int = Field(0, ge=0, description="Decides the projection")


class PaDiM(FeatureDetector):
    """Mahalanobis distance of each patch feature from the good ones at the same place.

    In place of the paper's random choice of channels the features go through a random semi-orthogonal
    projection, which loses less (Kim et al., "Semi-orthogonal Embedding for Efficient Unsupervised Anomaly
    Segmentation", 2021).

    With shared covariance all places have the same principal directions, of which the D with most variance are kept,
    and each place its own variances along them (common principal components: Flury 1984). A place then costs 2D
    numbers in the file instead of D + D^2.

    Attributes:
        projection: Tensor [C,D], orthonormal columns.
        mean: Tensor [P,D], P = h*w places.
        whitening: Tensor [P,D,D], or [P,D] with shared covariance; the distance is the norm of
            (feature - mean) times it.
    """

    Config: ClassVar[type[PaDiMConfig]] = PaDiMConfig
    fitted: ClassVar[tuple[str, ...]] = ("projection", "mean", "whitening")
    config: PaDiMConfig
    projection: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, config: PaDiMConfig) -> None:
        super().__init__(config)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0))
        self.blur = GaussianBlur(config.blur)
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None
        self._seen = FeatureBuffer()

    def phases(self) -> Sequence[Phase]:
        """One pass that sums features and their products, then the covariances; or one that gathers features."""
        if self.config.covariance == "shared":
            self._seen = FeatureBuffer()  # a fit that failed may have left some
            return (Observe(self.patches, self._seen.add, self._finish_shared, _TITLE),)
        projection = random_orthogonal(self.channels, self.dimensions, self.config.seed)
        self._fit_buffer("projection", projection.to(self.backbone.mean))
        return (Observe(self._places, self._absorb, self._finish, _TITLE),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,3,H,W]; maps have the cells of the backbone's finest level read."""
        distances = self.offsets(images).square().sum(2).sqrt().t()
        maps = self.blur(distances.reshape(images.shape[0], self.grid, self.grid))
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def forecast(self, images: int) -> CostEstimate:
        """A covariance a place, however many images; with shared covariance the features of all images."""
        places, dimensions = self.grid**2, self.dimensions
        if self.config.covariance == "shared":
            waiting, free = 2 * images * places * self.channels, room()
            flops = 4.0 * images * places * self.channels * (self.channels + dimensions)
            return CostEstimate(memory=min(waiting, free) + CHUNK, flops=flops, disk=max(0, waiting - free))
        return CostEstimate(memory=3 * 8 * places * dimensions**2, flops=4.0 * places * dimensions**3)

    def offsets(self, images: Tensor) -> Tensor:
        """How far from the mean of its place each feature lies in each direction, [P,B,D], in standard deviations."""
        offsets = self._places(images) - self.mean.unsqueeze(1)
        if self.config.covariance == "shared":
            return offsets * self.whitening.unsqueeze(1)
        return offsets @ self.whitening

    @property
    def dimensions(self) -> int:
        """D, the length of a projected feature."""
        return min(self.config.dimensions, self.channels)

    def _places(self, images: Tensor) -> Tensor:
        """Projected features [P,B,D], place by place."""
        patches = self.patches(images)
        # One product of all rows: place by place, an exported graph would hold the projection once for each place.
        rows = to_rows(patches) @ self.projection
        return rows.view(patches.shape[0], -1, rows.shape[1]).transpose(0, 1)

    def _absorb(self, places: Tensor) -> None:
        # float64 (on devices that have it), since a covariance is a small difference of large sums
        exact = places.double() if places.device.type != "mps" else places
        products = exact.transpose(1, 2) @ exact
        if self._sum is None or self._products is None:
            self._sum, self._products = exact.sum(1), products
        else:
            self._sum += exact.sum(1)
            self._products += products
        self._count += places.shape[1]

    def _finish(self, progress: Progress) -> None:
        assert self._sum is not None
        assert self._products is not None
        mean = self._sum / self._count
        covariance = self._products / self._count - mean.unsqueeze(2) * mean.unsqueeze(1)
        self._sum = self._products = None
        self._count = 0
        # Fewer images than dimensions leave a covariance singular: the paper, too, adds to its diagonal.
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        ridge = self.config.ridge * covariance.diagonal(dim1=1, dim2=2).mean() * identity
        whitening = torch.empty_like(covariance, dtype=torch.float32)
        for start in range(0, len(covariance), _PLACES_AT_ONCE):
            places = slice(start, start + _PLACES_AT_ONCE)
            whitening[places] = _whitening(covariance[places] + ridge)
            progress(start, len(covariance))
        self._fit_buffer("mean", mean.float())
        self._fit_buffer("whitening", whitening)

    def _finish_shared(self, progress: Progress) -> None:
        with closing(self._seen) as seen:
            device = self.backbone.mean.device
            exact = torch.float32 if device.type == "mps" else torch.float64
            mean, within = _pooled((_by_place(piece.to(device).float()).to(exact) for piece in seen), self.channels)
            progress(1, 2)
            variances, directions = torch.linalg.eigh(within)
            kept = directions.flip(1)[:, : self.dimensions]
            offset = (mean @ kept).unsqueeze(1)
            pieces = (_by_place(piece.to(device).float()).to(exact) @ kept - offset for piece in seen.drain())
            variance, count = 0, 0
            for piece in pieces:
                variance, count = variance + piece.square().sum(1), count + piece.shape[1]
            progress(2, 2)
        spread = (variance / count + self.config.ridge * variances.mean()).sqrt()
        self._fit_buffer("projection", kept.float())
        self._fit_buffer("mean", offset.squeeze(1).float())
        self._fit_buffer("whitening", (1 / spread).float())


def _by_place(features: Tensor) -> Tensor:
    """Features [B,C,h,w] to [P,B,C], place by place."""
    return features.flatten(2).permute(2, 0, 1)


def _pooled(pieces: Iterable[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """Mean at each place [P,C] and the covariance [C,C] around it, averaged over places, of pieces [P,n,C]."""
    total: Tensor | None = None
    products: Tensor | None = None
    count = 0
    for piece in pieces:
        rows = piece.reshape(-1, channels)
        total = piece.sum(1) if total is None else total + piece.sum(1)
        products = rows.t() @ rows if products is None else products + rows.t() @ rows
        count += piece.shape[1]
    assert total is not None
    assert products is not None
    mean = total / count
    return mean, (products / count - mean.t() @ mean) / len(mean)


def _whitening(covariance: Tensor) -> Tensor:
    """W with W W^T the inverse of each covariance [P,D,D]: the transposed inverse of its Cholesky factor."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.transpose(1, 2).float()
