"""PaDiM: a Gaussian distribution of the patch features at each place of the image.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", 2021.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adctl.detectors.base import CostEstimate, Prediction, Search, require_positive
from adctl.detectors.components.anomaly_maps import GaussianBlur, smoothed_inside, top_mean
from adctl.detectors.components.feature_buffer import CHUNK, FeatureBuffer, room
from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.feature_statistics import (
    Accumulator,
    CovarianceSums,
    exact,
    principal_directions,
    summed,
)
from adctl.detectors.components.known_defects import defect_cells, direction_weights, image_spreads
from adctl.detectors.components.place_distributions import (
    FEWEST_IMAGES,
    FittedPlaces,
    squares_without,
    whitening_matrices,
    with_pooled_places,
)
from adctl.detectors.feature_detector import FeatureConfig, FeatureDetector
from adctl.engine.phases import Observe
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.detectors.feature_detector import BackboneOutline, Images
    from adctl.engine.phases import Phase, Progress

_PLACES_AT_ONCE = 64
_TITLE = "patch distributions"


class PaDiMConfig(FeatureConfig):
    """Settings of PaDiM."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "covariance": Search(choices=("full", "shared")),
        "dimensions": Search(40, 200, whole=True, step=20),
        "ridge": Search(0.0005, 0.1, log=True),
        "blur": Search(0, 2),
        "score_share": Search(0.001, 0.1, log=True),
    }

    dimensions: int = Field(160, ge=2, description="Length to which longer features are reduced")
    covariance: Literal["full", "shared"] = Field(
        "full",
        description="full: a covariance for each place; shared: the same directions for all places, with variances for "
        "each place, which makes the model small and fast",
    )
    ridge: float = Field(0.003, gt=0, description="Fraction of the mean variance added to each variance")
    blur: float = Field(0.7, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")
    seed: int = Field(0, ge=0, description="Seed of the random projection")


class PaDiM(FeatureDetector):
    """Mahalanobis distance of each patch feature to the distribution of good features at the same place.

    The paper selects channels at random; here the features pass through a random semi-orthogonal projection, which
    loses less (Kim et al., "Semi-orthogonal Embedding for Efficient Unsupervised Anomaly Segmentation", 2021).

    With shared covariance all places have the same principal directions, and each place has its own variances (common
    principal components: Flury 1984). The D directions with the largest variance are kept. A place then needs 2D
    numbers in the model file instead of D + D^2.

    Attributes:
        projection: Tensor [C,D] with orthonormal columns.
        mean: Tensor [P,D] for P = h*w places.
        whitening: Tensor [P,D,D], or [P,D] with shared covariance; the distance is the norm of (feature - mean) times
            this matrix.
        count: Tensor [P] of int64, the number of inputs that have a cell at each place; empty with shared covariance
            and in files of earlier versions.
        weights: Tensor [D], the weight of each direction's square, learnt from known defects; empty without any.
    """

    Config: ClassVar[type[PaDiMConfig]] = PaDiMConfig
    fitted: ClassVar[tuple[str, ...]] = ("projection", "mean", "whitening")
    takes_defects: ClassVar[bool] = True
    largest_auto_side: ClassVar[int | None] = 320  # the model grows with each cell
    config: PaDiMConfig
    projection: Tensor
    mean: Tensor
    whitening: Tensor
    count: Tensor
    weights: Tensor

    def __init__(self, config: PaDiMConfig, backbone: BackboneOutline | None = None) -> None:
        super().__init__(config, backbone)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("count", torch.empty(0, dtype=torch.int64))
        self.register_buffer("weights", torch.empty(0), persistent=False)
        self.blur = GaussianBlur(config.blur)
        self._fit: FittedPlaces | None = None

    def phases(self) -> Sequence[Phase]:
        """Return one pass that sums projected features, or collects features for a shared covariance."""
        if self.config.covariance == "shared":
            buffer = FeatureBuffer()
            return (Observe(self.patches, buffer.add, lambda progress: self._fit_shared(buffer, progress), _TITLE),)
        projection = _random_orthogonal(self.channels, self.dimensions, self.config.seed)
        self._fit_buffer("projection", projection.to(self.backbone.mean))
        return (self._sum_phase(lambda sums: sums),)

    def update_phases(self, images: int) -> Sequence[Phase]:
        """Return one pass that adds new images to the sums that mean and whitening stand for.

        The result equals a fit on all images, up to the single precision of the file. With masked margins, places that
        few images have keep none of their own sums, because the file holds the pooled distribution there. With shared
        covariance there is no such pass: the directions outside the kept ones are unknown.
        """
        if self.config.covariance == "shared":
            return ()
        return (self._sum_phase(lambda sums: summed((self._earlier_sums(images), sums))),)

    def _sum_phase(self, completed: Callable[[CovarianceSums], CovarianceSums]) -> Observe:
        """Return the pass that sums projected features; `completed` adds the sums of earlier images."""
        sums: Accumulator[CovarianceSums] = Accumulator()
        return Observe(
            lambda images: (self._projected(images), self.inside(images)),
            lambda batch: sums.add(_place_sums(*batch)),
            lambda progress: self._fit_full(completed(sums.take()), progress),
            _TITLE,
        )

    def _earlier_sums(self, images: int) -> CovarianceSums:
        """Return the sums of the images that mean and whitening were computed from.

        The whitening matrix W is upper triangular, so the covariance with the ridge on its diagonal is V^T V for the
        inverse V of W. The ridge is known, as it is a fraction of the mean variance.

        Raises:
            ModelFileError: The file does not hold the number of inputs at each place.
        """
        if not self.count.numel() and (self.input.tiled or self.input.masked):
            raise ModelFileError(
                "The model was written by an earlier adctl, without the number of inputs at each place.",
                "Train it again once: later models can be updated.",
            )
        whitening = exact(self.whitening)
        identity = torch.eye(whitening.shape[-1], dtype=whitening.dtype, device=whitening.device)
        covariance = torch.empty_like(whitening)
        for start in range(0, len(covariance), _PLACES_AT_ONCE):
            places = slice(start, start + _PLACES_AT_ONCE)
            inverse = torch.linalg.solve_triangular(whitening[places], identity, upper=True)
            covariance[places] = inverse.mT @ inverse
        share = self.config.ridge
        covariance -= share / (1 + share) * covariance.diagonal(dim1=1, dim2=2).mean() * identity
        if not self.input.masked:
            count = int(self.count[0]) if self.count.numel() else images
            return CovarianceSums.from_mean(count, exact(self.mean), covariance)
        known = torch.where(self.count < FEWEST_IMAGES * self.count.max(), 0, self.count)
        return CovarianceSums.from_mean(exact(known), exact(self.mean), covariance)

    def forward(self, images: Images) -> Prediction:
        """Score images [B,3,H,W]; the maps have the cells of the finest level of the backbone."""
        return self._predict(self._squares(self.whitened(images)), self.inside(images))

    def _squares(self, whitened: Tensor) -> Tensor:
        """Return the squared distances [P,B] of whitened features [P,B,D]."""
        squares = whitened.square()
        return squares @ self.weights if self.weights.numel() else squares.sum(2)

    def can_hold_out(self) -> bool:
        """Return whether `held_out` is available: directly after fitting a covariance for each place."""
        return self._fit is not None

    @classmethod
    def holds_out(cls, config: DetectorConfig) -> bool:
        """Return whether `held_out` will be available: for a covariance of each place.

        Directions that all places share are fitted to the image that would be left out, too: with 24 images, scores
        would be an eighth too low.
        """
        assert isinstance(config, PaDiMConfig)
        return config.covariance == "full"

    def held_out(self, images: Images, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the detector fitted on all others would, in closed form.

        Leaving out f of n images changes mean and covariance of a place by a matrix of rank f (Woodbury identity). The
        factor 1 / (1 - f / n) of the remaining covariance does not apply to the ridge; for it, the convex function of
        each eigenvalue is replaced by its chord. The distances are exact for f / n near 0 and otherwise a little too
        high: with one image left out, by up to 0.3 % for 20 images and 2 % for 8. With masked margins, n is the number
        of images that have a cell at the place; the pooled distribution is computed anew. Learnt
        weights change the distances by the same factor as those of the detector itself.

        Args:
            images: Images [B,3,H,W].
            numbers: Their positions among the training images; not used.
            together: Number of consecutive images that are left out together, one or at most a tenth of all.
        """
        del numbers
        assert self._fit is not None
        inside, features = self.inside(images), self._projected(images)
        cells = None if inside is None else inside.flatten(1).t()
        squares = squares_without(self._fit, self.mean, self.whitening, features, cells, together)
        if self.weights.numel():
            whitened = (features - self.mean.unsqueeze(1)) @ self.whitening
            squares = squares * self._squares(whitened) / whitened.square().sum(2).clamp(min=1e-12)
        return self._predict(squares.clamp(min=0).float(), inside)

    @classmethod
    def masks_margin(cls, config: DetectorConfig) -> bool:
        """Return whether each place has a covariance of its own, whose images are counted."""
        assert isinstance(config, PaDiMConfig)
        return config.covariance == "full"

    def estimate_cost(self, images: int) -> CostEstimate:
        """Estimate the cost: a covariance for each place, or with shared covariance the features of all images."""
        places, dimensions = self.places, self.dimensions
        if self.config.covariance == "shared":
            buffered, free = 2 * images * places * self.channels, room()
            flops = 4.0 * images * places * self.channels * (self.channels + dimensions)
            return CostEstimate(memory=min(buffered, free) + CHUNK, flops=flops, disk=max(0, buffered - free))
        return CostEstimate(memory=3 * 8 * places * dimensions**2, flops=4.0 * places * dimensions**3)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all weights and statistics; files of earlier versions have no `count`.

        Raises:
            ModelFileError: The tensors do not fit the detector.
        """
        count = tensors.get("count", torch.empty(0, dtype=torch.int64))
        self.register_buffer("count", torch.empty(count.shape, dtype=torch.int64))
        weights = tensors.get("weights", torch.empty(0))
        self.register_buffer("weights", torch.empty_like(weights), persistent="weights" in tensors)
        super().load_state({**tensors, "count": count})

    def check_state(self) -> None:
        """Check the shapes of projection, mean, whitening and count.

        Raises:
            ModelFileError: A shape contradicts the settings.
        """
        places, dimensions = self.places, self.dimensions
        self._require_state("projection", self.channels, dimensions)
        self._require_state("mean", places, dimensions)
        shared = self.config.covariance == "shared"
        self._require_state("whitening", places, dimensions, *(() if shared else (dimensions,)), positive=shared)
        if self.weights.numel():
            self._require_state("weights", dimensions, positive=True)
        if self.count.numel():
            self._require_state("count", places)
            require_positive("count", self.count, or_zero=True)

    def whitened(self, images: Images) -> Tensor:
        """Return the features [P,B,D] with zero mean and identity covariance at each place."""
        offsets = self._projected(images) - self.mean.unsqueeze(1)
        if self.config.covariance == "shared":
            return offsets * self.whitening.unsqueeze(1)
        return offsets @ self.whitening

    @property
    def can_recentre(self) -> bool:
        """True: features are compared with their mean at each place."""
        return True

    def place_features(self, images: Tensor) -> Tensor:
        """Return projected features [B,P,D]."""
        return self._projected(images).transpose(0, 1)

    def recentre(self, usual: Tensor) -> None:
        """Replace the mean [P,D] of each place."""
        self._fit_buffer("mean", usual)

    @property
    def dimensions(self) -> int:
        """D, the length of a projected feature."""
        return min(self.config.dimensions, self.channels)

    def _predict(self, squares: Tensor, inside: Tensor | None = None) -> Prediction:
        """Return maps and scores from the squared distances [P,B], of the cells inside the images [B,h,w]."""
        maps = smoothed_inside(self.blur, squares.sqrt().t().reshape(squares.shape[1], *self.grid), inside)
        return Prediction(top_mean(maps, self.config.score_share, inside), maps)

    def _projected(self, images: Images) -> Tensor:
        """Return projected features [P,B,D]."""
        patches = self.patches(images)
        # A single product over all rows: a product for each place would store the projection P times in a graph.
        rows = to_rows(patches) @ self.projection
        return rows.view(patches.shape[0], -1, rows.shape[1]).transpose(0, 1)

    def _fit_full(self, sums: CovarianceSums, progress: Progress) -> None:
        count = torch.as_tensor(sums.count, device=sums.total.device).round().long().expand(len(sums.total))
        with torch.inference_mode(mode=False):
            self.register_buffer("count", count.clone())
        mean, covariance, pooled = with_pooled_places(sums)
        # With fewer images than dimensions a covariance is singular; like the paper, add to its diagonal.
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        fit = FittedPlaces(count.double(), covariance.diagonal(dim1=1, dim2=2).mean(1), self.config.ridge, pooled)
        ridge = fit.ridge * identity
        whitening = torch.empty_like(covariance, dtype=torch.float32)
        for start in range(0, len(covariance), _PLACES_AT_ONCE):
            places = slice(start, start + _PLACES_AT_ONCE)
            whitening[places] = whitening_matrices(covariance[places] + ridge)
            progress(start, len(covariance))
        self._fit_buffer("mean", mean.float())
        self._fit_buffer("whitening", whitening)
        self._fit = fit
        self._learn_weights()

    @torch.no_grad()
    def _learn_weights(self) -> None:
        """Weigh the directions by the known defects, if there are any."""
        if self.known_defects is None:
            return
        spreads = []
        for images, masks in self.known_defects.batches(self.backbone.mean.device):
            squares = self.whitened(images).square().permute(1, 2, 0).unflatten(2, self.grid)  # [B,D,h,w]
            spreads.append(image_spreads(squares, defect_cells(masks, squares.sum(1))))
        with torch.inference_mode(mode=False):
            self.register_buffer("weights", direction_weights(torch.cat(spreads)).clone())

    def _fit_shared(self, buffer: FeatureBuffer, progress: Progress) -> None:
        device = self.backbone.mean.device
        with closing(buffer):
            sums = summed(_pooled_sums(_by_place(piece, device)) for piece in buffer)
            mean = sums.total / sums.count
            # The covariance within places: deviations from the mean of each place, averaged over the places.
            variances, directions = principal_directions((sums.products / sums.count - mean.t() @ mean) / len(mean))
            progress(1, 2)
            kept = directions[:, : self.dimensions]
            offset = (mean @ kept).unsqueeze(1)
            variance, count = torch.zeros_like(sums.total[:, : self.dimensions]), 0
            for piece in buffer.drain():
                deviations = _by_place(piece, device) @ kept - offset
                variance, count = variance + deviations.square().sum(1), count + deviations.shape[1]
            progress(2, 2)
        spread = (variance / count + self.config.ridge * variances.mean()).sqrt()
        self._fit_buffer("projection", kept.float())
        self._fit_buffer("mean", offset.squeeze(1).float())
        self._fit_buffer("whitening", (1 / spread).float())
        self._learn_weights()


def _place_sums(features: Tensor, inside: Tensor | None) -> CovarianceSums:
    """Return the sums of features [P,B,D] at each place, over the images that have a cell there: inside is [B,h,w]."""
    if inside is None:
        return CovarianceSums.of(exact(features))
    counted = exact(inside.flatten(1).t())
    sums = CovarianceSums.of(exact(features) * counted.unsqueeze(2))
    sums.count = counted.sum(1)
    return sums


def _by_place(features: Tensor, device: torch.device) -> Tensor:
    """Return features [B,C,h,w] as [P,B,C], in double precision if the device has it."""
    return exact(features.to(device).float()).flatten(2).permute(2, 0, 1)


def _pooled_sums(features: Tensor) -> CovarianceSums:
    """Return the sums of features [P,n,C]: totals [P,C] of each place, and products [C,C] over all places."""
    rows = features.reshape(-1, features.shape[2])
    return CovarianceSums(features.shape[1], features.sum(1), rows.t() @ rows)


def _random_orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """Return a random matrix [rows,columns] of float64 with orthonormal columns."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(drawn).Q
    return orthonormal
