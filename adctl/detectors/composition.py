"""Composition: which classes of patches an image holds, and how many of each, beside a PatchCore.

It finds missing, surplus, swapped and miscounted parts, whose patches are all normal. Histograms of patch classes
follow ComAD (Liu et al., "Component-aware Anomaly Detection Framework for Adjustable and Logical Industrial Visual
Inspection", 2023) and PSAD (Kim et al., "Few Shot Part Segmentation Reveals Compositional Logic for Industrial Anomaly
Detection", AAAI 2024), here without segmentation, labels and downloads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import CostEstimate, Prediction, Search
from adctl.detectors.components.coreset import k_center_greedy
from adctl.detectors.components.feature_maps import resize_grid, stack_levels
from adctl.detectors.feature_detector import Images, SharedImages
from adctl.detectors.patchcore import PatchCore, PatchCoreConfig
from adctl.engine.phases import Observe
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase, Progress

log = logging.getLogger(__name__)

_FEWEST_IMAGES = 8
_FOLDS = 5
_SAMPLED = 20_000
"""Number of cells, over all images, that classes are learnt from."""
_CORESET = 2_000
"""Number of them that Lloyd's algorithm sees: rare classes count as much as the floor."""
_LLOYD_STEPS = 10
_EXCHANGES = 8
_LEAST_NOTICED = 0.75
"""AUROC of exchanged windows in good images below which the composition tells nothing."""
_SMALLEST_DEVIATION = 1e-6


class CompositionConfig(PatchCoreConfig):
    """Settings of the composition detector."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        **PatchCoreConfig.search_ranges,
        "classes": Search(16, 128, log=True, whole=True),
    }

    rotations: int = Field(1, ge=1, le=1, description="Rotated copies would change what an image holds")
    foreground: Literal[False] = Field(False, description="The background that a missing part leaves counts too")
    classes: int = Field(64, ge=2, le=1024, description="Number of classes of patches")
    parts: int = Field(
        2, ge=1, le=8, description="Rows and columns of regions whose composition counts besides the whole; 1 for none"
    )


class Composition(PatchCore):
    """PatchCore, and Gaussians of the shares of patch classes in the whole image and in regions of it.

    Cells of the backbone's finest level are softly assigned to classes (k-means over a coreset). The distance of the
    shares of an image, or of a region, is that of Mahalanobis with a Ledoit-Wolf covariance. The anomaly score is the
    largest of all standardised distances, PatchCore's score among them; mean and deviation are those of held-out good
    images. A cell's part in a distance D is its class's part in the gradient, so that the mean over the cells is D.
    Features are not whitened before the classes are learnt: their large directions separate the parts.

    Attributes:
        middle: Tensor [C], the mean feature of all cells.
        centres: Tensor [K,C], the classes.
        temperature: Scalar tensor of the assignment, a squared distance.
        usual: Tensor [R,K], the mean shares of the whole image and of its regions.
        whitening: Tensor [R,K,K]; the distance is the norm of (shares - usual) times this matrix.
        offset: Tensor [R+1], the mean distance of held-out good images, PatchCore's score first.
        deviation: Tensor [R+1], its standard deviation.
    """

    Config: ClassVar[type[CompositionConfig]] = CompositionConfig
    update_lowers_scores: ClassVar[bool] = False
    takes_defects: ClassVar[bool] = False
    fitted: ClassVar[tuple[str, ...]] = (
        *PatchCore.fitted,
        *("middle", "centres", "temperature", "usual", "whitening", "offset", "deviation"),
    )
    config: CompositionConfig
    middle: Tensor
    centres: Tensor
    temperature: Tensor
    usual: Tensor
    whitening: Tensor
    offset: Tensor
    deviation: Tensor
    windows: Tensor

    def __init__(self, config: CompositionConfig) -> None:
        super().__init__(config)
        stride = min(self.backbone.strides)
        self.fine = (-(-config.sides[0] // stride), -(-config.sides[1] // stride))
        self.register_buffer("windows", _windows(*self.fine, config.parts), persistent=False)
        self._cells: list[Tensor] = []
        self._shares: Tensor = torch.empty(0)

    def phases(self) -> Sequence[Phase]:
        """Return the pass that fits PatchCore and learns classes, and the pass that measures compositions."""
        (bank,) = super().phases()
        assert isinstance(bank, Observe)
        self._cells = []
        observed = _Observed()
        return (
            Observe(self._first, self._learn, self._finish_classes, "memory bank and classes"),
            Observe(
                self._second,
                lambda batch: self._measure(observed, *batch),
                lambda _: self._conclude(observed),
                "composition",
            ),
        )

    def update_phases(self, images: int) -> Sequence[Phase]:
        """Return no phases: the distribution of the shares is that of all images."""
        del images
        return ()

    def forward(self, images: Images) -> Prediction:
        """Score images [B,3,H,W]; the maps have the rows and columns of `grid`."""
        shared = self._shared(images)
        assigned, weights = self._assigned(shared.levels), self._weights(shared.images)
        return self._joined(self.patches(shared), self.inside(images), assigned, weights)

    def held_out(self, images: Images, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the detector fitted on all others would, nearly; classes and scales stay.

        Args:
            images: Images [B,3,H,W].
            numbers: Their positions among the training images.
            together: Number of consecutive images that are left out together.
        """
        shared = self._shared(images)
        patches, assigned, weights = self.patches(shared), self._assigned(shared.levels), self._weights(shared.images)
        weights, inside = weights.expand(len(patches), -1, -1), self.inside(images)
        parts = [slice(start, start + together) for start in range(0, len(numbers), together)]
        predictions = []
        for part in parts:
            cells = None if inside is None else inside[part]
            others = self._without(patches[part], numbers[part], cells)
            assert isinstance(others, Composition)
            predictions.append(others._joined(patches[part], cells, assigned[part], weights[part]))  # noqa: SLF001
        scores, maps = zip(*predictions, strict=True)
        return Prediction(torch.cat(scores), torch.cat(maps))

    def _without(self, patches: Tensor, numbers: Sequence[int], inside: Tensor | None = None) -> PatchCore:
        without = super()._without(patches, numbers, inside)
        if len(self._shares):
            kept = torch.ones(len(self._shares), dtype=torch.bool)
            kept[torch.tensor(numbers)] = False
            usual, whitening = _gaussians(self._shares[kept])
            without._buffers |= {"usual": usual.to(self.usual), "whitening": whitening.to(self.usual)}  # noqa: SLF001
        return without

    def estimate_cost(self, images: int) -> CostEstimate:
        """Estimate the cost of fitting: that of PatchCore, and of learning classes."""
        bank = super().estimate_cost(images)
        channels, cells = sum(self.backbone.channels), min(_SAMPLED, images * self.fine[0] * self.fine[1])
        learning = 2.0 * cells * channels * (_CORESET + _LLOYD_STEPS * self.config.classes)
        regions = 1 + self.config.parts**2 * (self.config.parts > 1)
        shares = 4 * images * self.config.classes * (2 * regions + 1)
        return replace(bank, memory=bank.memory + 4 * cells * channels + shares, flops=bank.flops + learning)

    def check_state(self) -> None:
        """Check the shapes of classes and distributions, and that deviations and temperature are positive.

        Raises:
            ModelFileError: A shape contradicts the settings, or a divisor is not positive.
        """
        super().check_state()
        channels, regions = sum(self.backbone.channels), self.windows.shape[0]
        self._require_state("middle", channels)
        classes = self._require_state("centres", None, channels).shape[0]
        self._require_state("temperature", positive=True)
        self._require_state("usual", regions, classes)
        self._require_state("whitening", regions, classes, classes)
        self._require_state("offset", regions + 1)
        self._require_state("deviation", regions + 1, positive=True)

    @property
    def can_recentre(self) -> bool:
        """False: classes do not follow a shift of the features."""
        return False

    def _shared(self, images: Images) -> SharedImages:
        """Return images with the levels of the backbone, which patches and fine cells share."""
        return images if isinstance(images, SharedImages) else SharedImages(images, self._levels(images))

    def _weights(self, images: Tensor) -> Tensor:
        """Return the weight of each cell in each region, [1,R,P] or [B,R,P]; cells outside the image have none."""
        if images.shape[1] == self.config.channels:
            return self.windows.unsqueeze(0)
        mask = F.adaptive_avg_pool2d(images[:, -1:], self.fine).flatten(2)
        weighted = self.windows * (mask + (mask.sum(2, keepdim=True) == 0))
        return weighted / weighted.sum(2, keepdim=True).clamp(min=_SMALLEST_DEVIATION)

    def _assigned(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the memberships [B,P,K] of the cells in the classes; they sum to 1 over the classes.

        The squared length of a feature is the same for all classes, so the logits are linear in the feature.
        """
        fine = stack_levels(levels) - self.middle.view(1, -1, 1, 1)
        bias = -self.centres.square().sum(1) / self.temperature
        logits = F.conv2d(fine, (2 * self.centres / self.temperature)[:, :, None, None], bias)
        return logits.flatten(2).transpose(1, 2).softmax(2)

    def _joined(self, patches: Tensor, inside: Tensor | None, assigned: Tensor, weights: Tensor) -> Prediction:
        """Return scores and maps of both detectors together.

        Args:
            patches: PatchCore's features [B,C,h,w].
            inside: Mask [B,h,w] of the cells inside the image, or None.
            assigned: Memberships [B,P,K] of the fine cells.
            weights: Weights [1,R,P] or [B,R,P] of the fine cells in the regions.
        """
        plain = self._compare(patches, inside)
        offset, deviation = self.offset, self.deviation
        scores, maps = (plain.scores - offset[0]) / deviation[0], (plain.maps - offset[0]) / deviation[0]
        shares = weights @ assigned
        whitened = ((shares - self.usual).unsqueeze(2) @ self.whitening).squeeze(2)
        distances = (whitened * whitened).sum(2).clamp(min=_SMALLEST_DEVIATION).sqrt()
        standard = (distances - offset[1:]) / deviation[1:]
        slopes = ((whitened / distances.unsqueeze(2)).unsqueeze(2) @ self.whitening.transpose(1, 2)).squeeze(2)
        parts = assigned @ slopes.transpose(1, 2) - (self.usual * slopes).sum(2).unsqueeze(1)
        parts = parts.transpose(1, 2) * (weights > 0)
        largest = parts.amax(2, keepdim=True).clamp(min=_SMALLEST_DEVIATION)
        logical = (parts / largest * standard.clamp(min=0).unsqueeze(2)).amax(1).unflatten(1, self.fine)
        coarse = resize_grid(logical.unsqueeze(1), self.grid).squeeze(1)
        return Prediction(torch.maximum(scores, standard.amax(1)), torch.maximum(maps, coarse))

    def _first(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return PatchCore's features of images, and the features of their fine cells, [B,C,P]."""
        shared, inside = self._shared(images), self.inside(images)
        patches = self.patches(shared)
        if inside is not None:
            patches = torch.cat([patches, inside.unsqueeze(1).to(patches.dtype)], 1)
        return patches, stack_levels(shared.levels)

    def _learn(self, batch: tuple[Tensor, Tensor]) -> None:
        """Store PatchCore's features, and a random sample of the fine cells."""
        self._absorb(batch[0])
        for one in batch[1]:
            rows = one.flatten(1).t()
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(self._cells)))
            self._cells.append(rows[drawn[:_SAMPLED].to(rows.device)].half().cpu())
            if sum(map(len, self._cells)) > 2 * _SAMPLED:  # each image keeps the same number
                each = max(1, _SAMPLED // len(self._cells))
                self._cells = [cells[:each].clone() for cells in self._cells]

    def _finish_classes(self, progress: Progress) -> None:
        if len(self._cells) < _FEWEST_IMAGES:
            raise UsageError(
                f"A composition needs at least {_FEWEST_IMAGES} good images, to learn how their parts vary. "
                f"There are {len(self._cells)}.",
                "Add good images, or train with --arch patchcore, which also learns from a few.",
            )
        self._finish(progress)
        each = max(1, _SAMPLED // len(self._cells))
        rows = torch.cat([cells[:each] for cells in self._cells]).float().to(self.backbone.mean.device)
        self._cells = []
        middle = rows.mean(0)
        rows = rows - middle
        core = rows[k_center_greedy(rows, min(_CORESET, len(rows)), seed=self.config.seed)]
        # The first centres of a greedy selection are far apart; Lloyd's steps move them into the middle of a class.
        centres = _lloyd(core, core[: min(self.config.classes, len(core))])
        self._fit_buffer("middle", middle)
        self._fit_buffer("centres", centres)
        typical = torch.cdist(rows, centres).square().amin(1).mean()
        self._fit_buffer("temperature", typical.clamp(min=_SMALLEST_DEVIATION))

    def _second(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return PatchCore's features of images, the mask of the cells inside, memberships, and weights."""
        shared = self._shared(images)
        return self.patches(shared), self.inside(images), self._assigned(shared.levels), self._weights(shared.images)

    def _measure(
        self, observed: _Observed, patches: Tensor, inside: Tensor | None, assigned: Tensor, weights: Tensor
    ) -> None:
        """Add held-out scores of PatchCore, shares, and shares after an exchange of windows, of a batch."""
        weights = weights.expand(len(patches), -1, -1)
        for one in range(len(patches)):
            number, own = len(observed.scores), patches[one : one + 1]
            mask = None if inside is None else inside[one : one + 1]
            plain = PatchCore._without(self, own, [number], mask)  # noqa: SLF001 - of the same class
            observed.scores.append(plain._compare(own, mask).scores.cpu())  # noqa: SLF001 - of the same class
            observed.shares.append((weights[one] @ assigned[one]).cpu())
            cells = assigned[one].unflatten(0, self.fine)
            observed.exchanged.append((weights[one] @ _exchange(cells, number).flatten(0, 1)).cpu())

    def _conclude(self, observed: _Observed) -> None:
        """Fit the distributions, and standardise distances by those of held-out images."""
        shares, exchanged = torch.stack(observed.shares), torch.stack(observed.exchanged)
        usual, whitening = _gaussians(shares)
        folds = torch.arange(len(shares)) % _FOLDS
        held_out, noticed = torch.empty(shares.shape[:2]), torch.empty(shares.shape[:2])
        for fold in range(_FOLDS):
            others, own = _gaussians(shares[folds != fold]), folds == fold
            held_out[own], noticed[own] = _distances(shares[own], *others), _distances(exchanged[own], *others)
        good = torch.cat([torch.cat(observed.scores).unsqueeze(1), held_out], 1)
        values = {"usual": usual, "whitening": whitening, "offset": good.mean(0)}
        # Deviations are at least a hundredth of the mean: identical images have none.
        values["deviation"] = torch.maximum(good.std(0), 0.01 * good.mean(0)).clamp(min=_SMALLEST_DEVIATION)
        for name, value in values.items():
            self._fit_buffer(name, value.to(self.centres))
        self._shares = shares
        standard = [(one - values["offset"][1:]) / values["deviation"][1:] for one in (held_out, noticed)]
        _warn_without_composition(*(one.amax(1) for one in standard))


class _Observed:
    """Measurements of the good images, in their order.

    Attributes:
        scores: PatchCore's score of each, tensor [1].
        shares: Shares of the classes in the regions, [R,K].
        exchanged: The same after one window has been copied to another place.
    """

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.exchanged: list[Tensor] = []


def _windows(rows: int, columns: int, parts: int) -> Tensor:
    """Return the weights [R,P] of the cells in the whole grid and in parts x parts regions of it; rows sum to 1."""
    cells = torch.arange(rows * columns).view(rows, columns)
    regions = [cells]
    if parts > 1:
        strips = cells.tensor_split(parts, 0)
        regions += [region for strip in strips for region in strip.tensor_split(parts, 1) if region.numel()]
    weights = torch.zeros(len(regions), rows * columns)
    for weight, region in zip(weights, regions, strict=True):
        weight[region.flatten()] = 1 / region.numel()
    return weights


def _lloyd(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the centres [K,C] after a few steps of Lloyd's algorithm on rows [N,C]; empty classes stay."""
    for _ in range(_LLOYD_STEPS):
        nearest = torch.cdist(rows, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def _gaussians(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [R,K] and whitening matrix [R,K,K] of shares [N,R,K], by Ledoit-Wolf covariances."""
    from sklearn.covariance import ledoit_wolf

    means, matrices = [], []
    for region in shares.double().unbind(1):
        covariance = torch.from_numpy(ledoit_wolf(region.numpy())[0])
        variances, directions = torch.linalg.eigh(covariance)
        floor = variances.max().clamp(min=_SMALLEST_DEVIATION**2) * _SMALLEST_DEVIATION
        matrices.append(directions / variances.clamp(min=floor).sqrt())
        means.append(region.mean(0))
    return torch.stack(means).float(), torch.stack(matrices).float()


def _distances(shares: Tensor, usual: Tensor, whitening: Tensor) -> Tensor:
    """Return the distances [N,R] of shares [N,R,K]."""
    distances: Tensor = torch.linalg.vector_norm(torch.einsum("nrk,rkd->nrd", shares - usual, whitening), dim=2)
    return distances


def _exchange(cells: Tensor, seed: int) -> Tensor:
    """Return memberships [h,w,K] with one window replaced by another, the least similar of a few random pairs."""
    generator = torch.Generator().manual_seed(seed)
    side = max(1, min(cells.shape[:2]) // 5)
    limits = [length - side + 1 for length in cells.shape[:2]]
    best, largest = cells, -1.0
    for _ in range(_EXCHANGES):
        (top, other_top), (left, other_left) = (
            torch.randint(limit, (2,), generator=generator).tolist() for limit in limits
        )
        source = cells[top : top + side, left : left + side]
        target = cells[other_top : other_top + side, other_left : other_left + side]
        difference = float((source.sum((0, 1)) - target.sum((0, 1))).abs().sum())
        if difference > largest:
            largest, best = difference, cells.clone()
            best[other_top : other_top + side, other_left : other_left + side] = source
    return best


def _warn_without_composition(good: Tensor, exchanged: Tensor) -> None:
    """Warn if exchanging windows of good images hardly raises their distance [N] above that of good ones [N]."""
    noticed = float((exchanged.unsqueeze(1) > good).float().mean())
    log.debug("Exchanged windows of good images are told from good images with an AUROC of %.3f.", noticed)
    if noticed < _LEAST_NOTICED:
        log.warning(
            "These images have no composition that can be learnt: a part-sized window can be exchanged for another "
            "without notice (AUROC %.2f). Their parts vary too much, or they have none, as textures. "
            "Use --arch patchcore, which is faster, or add good images.",
            noticed,
        )
