"""PatchCore: distance of each patch feature to its nearest neighbour in a coreset of good patch features.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import CostEstimate, Prediction, Search
from adctl.detectors.components.anomaly_maps import GaussianBlur, smoothed_inside, top_mean
from adctl.detectors.components.border_levels import MOST_IMAGES, border_levels
from adctl.detectors.components.coreset import k_center_greedy
from adctl.detectors.components.feature_buffer import CHUNK, FeatureBuffer, room
from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.feature_statistics import (
    RIDGE,
    CovarianceSums,
    PlaceStatistics,
    exact,
    place_weight,
    principal_directions,
    smoothed,
    summed,
)
from adctl.detectors.components.foreground import find_foreground, foreground_mask
from adctl.detectors.components.known_defects import (
    LARGEST_RAISE,
    defect_cells,
    defect_memory,
    harmless_raise,
    nearest_rows,
    raised,
)
from adctl.detectors.components.nearest_neighbours import (
    LARGEST_BANK_CODE,
    LARGEST_CODE,
    InvertedLists,
    minimum_over_bank,
    quantise_bank,
    to_codes,
)
from adctl.detectors.components.rotations import rotated_copies
from adctl.detectors.feature_detector import FeatureConfig, FeatureDetector
from adctl.engine.phases import Observe
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.detectors.feature_detector import BackboneOutline, Images
    from adctl.engine.phases import Phase, Progress

log = logging.getLogger(__name__)

_BYTES_PER_PATCH = 24
"""Measured bytes of distances and norms during coreset selection."""

_SMALLEST_DEVIATION = 1e-6

_GOOD_EXAMPLES = 60
"""Number of good images that known defects are compared with."""

_FEWEST_ROWS = 200
"""Rows of the smallest bank, unless the images have fewer patches: fewer rows find less, and more no more."""

_EARLIER = -1
"""Number of the image of rows of the bank that were there before an update."""


class PatchCoreConfig(FeatureConfig):
    """Settings of PatchCore."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "coreset_ratio": Search(0.002, 0.05, log=True),
        "dimensions": Search(32, 160, whole=True, step=16),
        "whitening": Search(0, 1),
        "blur": Search(0, 2),
        "score_share": Search(0.001, 0.1, log=True),
    }

    context: int = Field(3, ge=1, le=9, description=FeatureConfig.model_fields["context"].description)
    cell: float | None = Field(12, gt=0, description=FeatureConfig.model_fields["cell"].description)
    coreset_ratio: float = Field(
        0.01, gt=0, le=1, description="Fraction of all patches kept in the memory bank, but not fewer than 200"
    )
    dimensions: int = Field(80, ge=2, description="Number of principal directions of the features in the bank")
    whitening: float = Field(
        0.5, ge=0, le=1, description="Strength of whitening: 0 keeps the variances, 1 makes them equal"
    )
    remainder: float = Field(0.25, ge=0, description="Weight of the part of a feature outside the kept directions")
    blur: float = Field(0.5, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")
    rotations: int = Field(
        1,
        ge=1,
        le=36,
        description="Copies of each training image, rotated by equal angles of a full circle, that fill the bank; for "
        "a handful of images of parts that lie at any angle",
    )
    foreground: bool = Field(
        False,
        description="Leave out the background of an object in the middle of the images, as AnomalyDINO does; used only "
        "if the good images show such an object",
    )
    search: Literal["exact", "ivf"] = Field(
        "exact",
        description="Nearest-neighbour search: exact, or inverted lists (ivf), faster in large banks, not exportable",
    )
    probes: int = Field(
        8, ge=1, description="Number of lists that ivf searches, of about the square root of the bank's size"
    )
    seed: int = Field(0, ge=0, description="Seed of the first patch of the coreset")


class PatchCore(FeatureDetector):
    """Memory bank of good patch features; the value of a map cell is the distance to the nearest feature in the bank.

    Four choices differ from the paper:

    - Features are standardised by mean and deviation around their place in the image. This sharpens the distance for
      aligned parts and has little effect on unaligned ones.
    - The bank keeps the principal directions with the largest variance, partly whitened, so that the distance does not
      depend on a few directions.
    - The squared length of a feature outside these directions is added to the squared distance. This is the noise of
      Tipping & Bishop, "Probabilistic Principal Component Analysis", 1999: it approximates the distance in all
      directions at a fraction of the cost.
    - The image score is the mean of the highest cells of the smoothed map, instead of a re-weighted maximum
      (equation 7). It varies less on textured parts, and is a single reduction in an exported graph.

    Attributes:
        centre: Tensor [C,h,w], the mean feature around each place.
        spread: Tensor [C,h,w], the standard deviation around each place; of a handful of images, it is raised at the
            border by `border_levels`.
        directions: Tensor [C,D], orthonormal columns, largest variance first.
        scales: Tensor [D+1], the factor of the square in each direction, and of the remainder.
        step: Scalar tensor, the quantisation step of reduced features.
        bank: Tensor [N,D] of int8, the quantised reduced features of the coreset, in the order of selection.
        defects: Tensor [M,D] of int8, the quantised reduced features of known defects; empty without any.
        largest_raise: Scalar tensor, the factor of the distance of a cell that equals a known defect.
        foreground: Tensor [C+1], the direction of the features along which the object differs from the background, and
            the threshold; empty without a foreground.
    """

    Config: ClassVar[type[PatchCoreConfig]] = PatchCoreConfig
    update_lowers_scores: ClassVar[bool] = True
    fewest_images: ClassVar[int] = 1
    takes_defects: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("centre", "spread", "directions", "scales", "step", "bank")
    largest_auto_side = 384
    config: PatchCoreConfig
    centre: Tensor
    spread: Tensor
    directions: Tensor
    scales: Tensor
    step: Tensor
    bank: Tensor
    defects: Tensor
    largest_raise: Tensor
    foreground: Tensor

    def __init__(self, config: PatchCoreConfig, backbone: BackboneOutline | None = None) -> None:
        super().__init__(config, backbone)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0, dtype=torch.int8 if name == "bank" else torch.float32))
        self.register_buffer("defects", torch.empty(0, dtype=torch.int8), persistent=False)
        self.register_buffer("largest_raise", torch.tensor(LARGEST_RAISE), persistent=False)
        self.register_buffer("foreground", torch.empty(0), persistent=False)
        self.blur = GaussianBlur(config.blur)
        self._features = FeatureBuffer()
        self._lists: tuple[Tensor, InvertedLists] | None = None
        self._fit: _Fit | None = None

    def phases(self) -> Sequence[Phase]:
        """Return one pass that collects all patch features, and then computes statistics and coreset."""
        self._features = FeatureBuffer()  # a failed fit may have left features
        self.register_buffer("foreground", torch.empty(0), persistent=False)
        return (Observe(self._observed, self._absorb, self._finish, "memory bank"),)

    def update_phases(self, images: int) -> Sequence[Phase]:
        """Return one pass that adds patches of new images to the memory bank.

        Greedy selection goes on from the present bank, which grows by the fraction `coreset_ratio` of the new patches,
        as large as by a fit on all images. Statistics, directions and scales stay, so that the rows of the bank stay
        comparable and no score rises. The quantisation step grows only if a new feature is beyond its range.
        """
        del images
        self._features = FeatureBuffer()
        return (Observe(self._observed, self._absorb, self._extend, "memory bank"),)

    def forward(self, images: Images) -> Prediction:
        """Score images [B,3,H,W]; the maps have the rows and columns of `grid`."""
        patches = self.patches(images)
        return self._compare(patches, self._seen(patches, self.inside(images)))

    def _seen(self, patches: Tensor, inside: Tensor | None) -> Tensor | None:
        """Return the mask [B,h,w] of the cells that count; None if all do.

        Args:
            patches: Features [B,C,h,w].
            inside: Mask of the cells inside the images; None if all are.
        """
        if not self.foreground.numel():
            return inside
        mask = foreground_mask(patches, self.foreground)
        if inside is None:
            return mask
        both = mask & inside
        return both | (inside & ~both.flatten(1).any(1).view(-1, 1, 1))

    @property
    def _masks(self) -> bool:
        """Whether only some of the cells count, so that the buffer holds the mask of these as last channel."""
        return self.input.masked or bool(self.foreground.numel())

    def _compare(self, patches: Tensor, inside: Tensor | None = None) -> Prediction:
        """Return maps and scores from patch features [B,C,h,w], of the cells inside the images [B,h,w]."""
        standardised = self._standardised(patches)
        along = self._along(standardised)
        distances, to_defects = self._distances(standardised, along)
        if to_defects is not None:
            distances = raised(distances, to_defects, self.largest_raise)
        maps = smoothed_inside(self.blur, distances, inside)
        return Prediction(top_mean(maps, self.config.score_share, inside), maps)

    def _distances(self, standardised: Tensor, along: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the distances [B,h,w] to good features, and to those of known defects if there are any."""
        codes, own = self._codes(self._scaled(along))
        squares = own + self._minimum(codes) * self.step.square() + self._beyond(standardised, along)
        distances = squares.clamp(min=0).sqrt()  # rounding may give values below zero
        if not self.defects.numel():
            return distances, None
        to_defects = own + minimum_over_bank(codes, self.defects) * self.step.square()
        return distances, to_defects.clamp(min=0).sqrt()

    @classmethod
    def masks_margin(cls, config: DetectorConfig) -> bool:
        """Return True: neither statistics nor bank take features outside the image."""
        del config
        return True

    def can_hold_out(self) -> bool:
        """Return whether `held_out` is available: directly after fitting to unrotated images."""
        return self._fit is not None and self.holds_out(self.config)

    @classmethod
    def holds_out(cls, config: DetectorConfig) -> bool:
        """Return whether `held_out` will be available after fitting: to unrotated images."""
        assert isinstance(config, PatchCoreConfig)
        return config.rotations == 1

    def held_out(self, images: Images, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the detector fitted on all others would, nearly.

        The statistics around each place are those of the other images, and the bank has no features of these images.
        After an update, the training images are the new ones, which have no part in the statistics.
        The features that would have taken their places in the coreset are missing, so the scores are a little higher
        than those of fitted detectors: on `magnetic_tile`, by 1 % on average. Directions and scales stay.

        Args:
            images: Images [B,3,H,W].
            numbers: Their positions among the training images.
            together: Number of consecutive images that are left out together.
        """
        patches = self.patches(images)
        inside = self._seen(patches, self.inside(images))
        predictions = []
        for part in (slice(start, start + together) for start in range(0, len(numbers), together)):
            cells = None if inside is None else inside[part]
            others = self._without(patches[part], numbers[part], cells)
            predictions.append(others._compare(patches[part], cells))  # noqa: SLF001 - of the same class
        scores, maps = zip(*predictions, strict=True)
        return Prediction(torch.cat(scores), torch.cat(maps))

    def _without(self, patches: Tensor, numbers: Sequence[int], inside: Tensor | None = None) -> PatchCore:
        """Return a copy without what it learned from the images of these patches [B,C,h,w]; weights are shared.

        Args:
            patches: Features of the images.
            numbers: Their positions among the training images.
            inside: Mask [B,h,w] of the cells inside the images; None if all are.
        """
        assert self._fit is not None
        others = ~torch.isin(self._fit.images, torch.tensor(numbers, device=self._fit.images.device))
        if not bool(others.any()):  # a bank of a few rows, all of these images
            others = ~others
        others = others.to(self.bank.device)
        changed = {"bank": self.bank[others]}
        if self._fit.statistics is not None:
            statistics = self._fit.statistics.without(patches, inside)
            # With the weights of all images, so that the scale of the scores hardly changes.
            centre, spread = statistics.around(_SMALLEST_DEVIATION, self._fit.statistics.count)
            changed |= {"centre": centre.float(), "spread": (spread * self._fit.levels).float()}
        without = copy.copy(self)
        without._buffers = {**self._buffers, **changed}  # noqa: SLF001 - of the same class
        if self.config.search != "exact":
            without._lists = changed["bank"], self._lists_of_bank().kept(others)  # noqa: SLF001 - of the same class
        return without

    def estimate_cost(self, images: int) -> CostEstimate:
        """Estimate the cost of fitting: features are buffered in half precision, on disk if memory is too small."""
        patches = images * self.config.rotations * self.places
        kept = self._rows_of(patches)
        reduced = min(self.config.dimensions, self.channels)
        buffered, rows = 2 * patches * self.channels, 4 * patches * reduced
        held, free = max(buffered, rows), room()
        disk = 0 if held <= free else max(0, buffered - free) + rows
        flops = 2.0 * patches * (kept * reduced + self.channels * (self.channels + reduced))
        memory = min(held, free) + min(CHUNK, buffered) + _BYTES_PER_PATCH * patches + 4 * kept * reduced
        return CostEstimate(memory=memory, flops=flops, disk=disk, per_image=2.0 * self.places * kept * reduced)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all weights and statistics, and the known defects and the foreground if there are any.

        Raises:
            ModelFileError: The tensors do not fit the detector.
        """
        defects = tensors.get("defects", self.defects)
        self.register_buffer("defects", torch.empty_like(defects), persistent="defects" in tensors)
        # Files of earlier versions have known defects without a factor of their own.
        self.register_buffer("largest_raise", torch.tensor(LARGEST_RAISE), persistent="largest_raise" in tensors)
        foreground = tensors.get("foreground", torch.empty(0))
        self.register_buffer("foreground", torch.empty_like(foreground), persistent="foreground" in tensors)
        super().load_state(tensors)

    def check_state(self) -> None:
        """Check the shapes of the statistics and the bank, and that deviations and step are positive.

        Raises:
            ModelFileError: A shape contradicts the settings, or a divisor is not positive.
        """
        kept = min(self.config.dimensions, self.channels)
        self._require_state("centre", self.channels, *self.grid)
        self._require_state("spread", self.channels, *self.grid, positive=True)
        self._require_state("directions", self.channels, kept)
        self._require_state("scales", kept + 1)
        self._require_state("step", positive=True)
        self._require_state("bank", None, kept)
        if self.defects.numel():
            self._require_state("defects", None, kept)
            self._require_state("largest_raise", positive=True)
        if self.foreground.numel():
            self._require_state("foreground", self.channels + 1)

    @property
    def can_recentre(self) -> bool:
        """True: features are standardised at each place."""
        return True

    def place_features(self, images: Tensor) -> Tensor:
        """Return the features [B,C,h,w] before they are standardised."""
        return self.patches(images)

    def recentre(self, usual: Tensor) -> None:
        """Replace the centre [C,h,w] of each place."""
        self._fit_buffer("centre", smoothed(usual, self.spread, 0.0)[0])

    def reduced(self, patches: Tensor) -> Tensor:
        """Reduce features [B,C,h,w] to the vectors [B,D,h,w] that are compared with the bank."""
        return self._scaled(self._along(self._standardised(patches)))

    def check_exportable(self) -> None:
        """Check that the search is exact; inverted lists need loops that depend on the image.

        Raises:
            UsageError: The search uses inverted lists.
        """
        if self.config.search != "exact":
            raise UsageError(
                f"A PatchCore with search={self.config.search} cannot be exported: its search is not a fixed graph.",
                "Train with --set search=exact; a smaller coreset_ratio makes it faster.",
            )

    def _codes(self, reduced: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes q [B,D,h,w] of reduced features, and the part of their squared distances without the rows.

        A squared distance is that of the codes plus the squared errors of quantisation: from rounding, and from
        clipping features beyond the largest code. A clipped feature is at least twice as far from the origin as any
        row of the bank, so for the clipped part the bank is assumed to lie at the origin.
        """
        codes = to_codes(reduced, self.step)
        quantised = codes * self.step
        clipped = reduced.clamp(-LARGEST_CODE * self.step, LARGEST_CODE * self.step)
        # With r reduced, c clipped, q quantised: |q - b|^2 + |c - q|^2 + |r|^2 - |c|^2, without the terms in b.
        return codes, (reduced * reduced + 2 * quantised * (quantised - clipped)).sum(1)

    def _minimum(self, codes: Tensor) -> Tensor:
        """Return the minimum of |b|^2 - 2qb over the rows b of the bank for each cell's codes q, [B,h,w]."""
        if self.config.search == "exact":
            return minimum_over_bank(codes, self.bank)
        return self._lists_of_bank().minimum(to_rows(codes)).view(codes[:, 0].shape)

    def _lists_of_bank(self) -> InvertedLists:
        if self._lists is None or self._lists[0] is not self.bank:  # the bank was fitted, loaded or moved
            self._lists = self.bank, InvertedLists(self.bank.float(), self.config.probes)
        return self._lists[1]

    def _standardised(self, patches: Tensor) -> Tensor:
        """Standardise features [B,C,h,w] at each place."""
        return (patches - self.centre) / self.spread

    def _along(self, standardised: Tensor) -> Tensor:
        """Project standardised features [B,C,h,w] onto the kept directions, [B,D,h,w]."""
        return F.conv2d(standardised, self.directions.t()[:, :, None, None])

    def _beyond(self, standardised: Tensor, along: Tensor) -> Tensor:
        """Return the part [B,h,w] of squared distances that lies outside the kept directions."""
        return self.scales[-1] * (_square_length(standardised) - _square_length(along))

    def _scaled(self, along: Tensor) -> Tensor:
        return along * self.scales[:-1].sqrt().view(-1, 1, 1)

    def _observed(self, images: Images) -> Tensor:
        """Return patch features [B,C,h,w]; with the mask of the cells inside the image, if any, as last channel."""
        if self.config.rotations > 1:
            assert isinstance(images, Tensor)
            images = rotated_copies(images, self.config.rotations, self.config.channels)
        patches = self.patches(images)
        inside = self._seen(patches, self.inside(images))
        return patches if inside is None else torch.cat([patches, inside.unsqueeze(1).to(patches.dtype)], 1)

    def _inner(self, batch: Tensor, of: Tensor) -> Tensor:
        """Return the rows [n,D] of features [B,D,h,w] that are inside the images of a buffered batch."""
        rows = to_rows(of)
        return rows[to_rows(batch[:, -1:].to(of.device))[:, 0] > 0] if self._masks else rows

    def _absorb(self, patches: Tensor) -> None:
        # The buffer holds half precision; statistics, bank and distances use single precision or more.
        self._features.add(patches)

    def _finish(self, progress: Progress) -> None:
        if self.config.foreground:
            self._separate_foreground()
        with closing(self._features) as features:
            statistics = self._find_directions(features)
            levels = self._raise_border(features, statistics)
            good = None if self.known_defects is None else _some_images(features)
            rows, images = self._select(features, progress)
        self._fit = _Fit(images, statistics, levels)
        self._set_bank(*quantise_bank(rows))
        if good is not None:
            self._learn_defects(*good)

    def _separate_foreground(self) -> None:
        """Find the foreground, and add its mask to the buffered features, if the images show an object."""
        device, earlier = self.backbone.mean.device, self._features
        found, reason = find_foreground(lambda: (self._features_of(batch, device) for batch in earlier))
        if found is None:
            log.warning("The background is not left out: %s.", reason)
            return
        log.info("The foreground, which alone counts, is %s of the good images.", reason)
        with torch.inference_mode(mode=False):
            self.register_buffer("foreground", found.clone())
        self._features = FeatureBuffer()
        for batch in earlier.drain():
            patches = self._features_of(batch, device)
            inside = batch[:, -1].to(device) > 0 if self.input.masked else None
            seen = self._seen(patches, inside)
            assert seen is not None
            self._features.add(torch.cat([patches, seen.unsqueeze(1).to(patches.dtype)], 1))
        earlier.close()

    def _extend(self, progress: Progress) -> None:
        """Add rows of the buffered features to the bank."""
        present = self.bank.float() * self.step
        with closing(self._features) as features:
            rows, images = self._select(features, progress, covered_by=present)
        self._fit = _Fit(torch.cat([images.new_full((len(present),), _EARLIER), images]))
        self._set_bank(*quantise_bank(torch.cat([present, rows]), smallest_step=self.step))

    @torch.no_grad()
    def _learn_defects(self, good: Tensor, numbers: Sequence[int]) -> None:
        """Fill the memory of known defects.

        Args:
            good: Buffered features [n,C,h,w] of some good images.
            numbers: Their positions among the training images.
        """
        assert self.known_defects is not None
        device = self.backbone.mean.device
        found, far = [], []
        for images, masks in self.known_defects.batches(device):
            own, gaps = self._rows_and_distances(self.patches(images))
            chosen = defect_cells(masks, gaps.view(len(images), *self.grid)).flatten()
            found.append(own[chosen])
            far.append(gaps[chosen])
        defects = _DefectCells(torch.cat(found), torch.cat(far))
        examples = self._good_examples(good.to(device), numbers)
        memory, factor = defects.memory(examples), self._harmless_raise(defects, examples)
        if len(memory) and factor == 1:
            log.warning("Known defects change nothing: good images resemble them as much as defects do.")
            memory = memory[:0]
        log.info("Learned %d cells of known defects that are unlike good ones; factor %g.", len(memory), factor)
        # Far features are clipped: the bank's 7 bits are those of the products.
        codes = (memory / self.step).round().clamp(-LARGEST_BANK_CODE, LARGEST_BANK_CODE).to(torch.int8)
        with torch.inference_mode(mode=False):
            self.register_buffer("defects", codes.clone(), persistent=bool(len(codes)))
            largest = torch.tensor(factor, device=device)
            self.register_buffer("largest_raise", largest, persistent=bool(len(codes)))

    def _good_examples(self, good: Tensor, numbers: Sequence[int]) -> _GoodExamples:
        """Return the cells of good images, each compared with what was learned from the others."""
        rows, distances, inside = [], [], []
        for image, number in zip(good.split(1), numbers, strict=True):
            mask = image[:, -1] > 0 if self._masks else None
            patches = image[:, : self.channels].float()
            others = self if len(good) == 1 else self._without(patches, [number], mask)
            own, gaps = others._rows_and_distances(patches)  # noqa: SLF001 - of the same class
            rows.append(own)
            distances.append(gaps.view(1, *self.grid))
            inside.append(torch.ones_like(distances[-1], dtype=torch.bool) if mask is None else mask)
        return _GoodExamples(torch.stack(rows), torch.cat(distances), torch.cat(inside))

    def _harmless_raise(self, defects: _DefectCells, good: _GoodExamples) -> float:
        """Return the factor that good images allow, which are compared with a memory that others edited."""
        if len(good.distances) == 1:
            return LARGEST_RAISE
        halves = [torch.arange(start, len(good.distances), 2) for start in range(2)]
        to_defects = torch.empty_like(good.distances)
        for half, other in (halves, halves[::-1]):
            memory = defects.memory(good.part(other))
            if not len(memory):
                return LARGEST_RAISE
            nearest = nearest_rows(good.rows[half].flatten(0, 1), memory)[0]
            to_defects[half] = nearest.view(len(half), *self.grid)
        inside = good.inside if self._masks else None

        def scores(distances: Tensor) -> Tensor:
            return top_mean(smoothed_inside(self.blur, distances, inside), self.config.score_share, inside)

        return harmless_raise(good.distances, to_defects, scores)

    def _rows_and_distances(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reduced features [n,D] of the cells of features [B,C,h,w], and distances [n] to good ones."""
        standardised = self._standardised(patches)
        along = self._along(standardised)
        return to_rows(self._scaled(along)), self._distances(standardised, along)[0].flatten()

    def _set_bank(self, bank: Tensor, step: Tensor) -> None:
        self._fit_buffer("bank", bank)
        self._fit_buffer("step", step)

    def _select(
        self, features: FeatureBuffer, progress: Progress, covered_by: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Select rows of the bank from features, beyond the rows [M,D] that cover them already.

        Returns:
            The rows [n,D], and the number of the image of each.
        """
        device = self.directions.device
        ends = torch.cat([self._rows_of_images(batch) for batch in features]).cumsum(0)
        patches = int(ends[-1])
        reduced = (self._inner(batch, self.reduced(self._features_of(batch, device))) for batch in features.drain())
        rows = _move_if_it_fits(features.rows(reduced, patches, self.directions.shape[1]), device)
        kept = self._rows_of(patches, fewest=_FEWEST_ROWS if covered_by is None else 1)
        log.info("Selecting %d of %d patches for the memory bank.", kept, patches)
        chosen = k_center_greedy(rows, kept, seed=self.config.seed, covered_by=covered_by, progress=progress)
        return rows[chosen].to(device), torch.searchsorted(ends.to(chosen.device), chosen, right=True)

    def _rows_of(self, patches: int, fewest: int = _FEWEST_ROWS) -> int:
        """Return the number of rows that the bank gets of so many patches."""
        return min(patches, max(fewest, round(self.config.coreset_ratio * patches)))

    def _rows_of_images(self, batch: Tensor) -> Tensor:
        """Return the number of cells [B] inside each image of a buffered batch."""
        if self._masks:
            return (batch[:, -1] > 0).flatten(1).sum(1)
        return torch.full((len(batch),), self.places, device=batch.device)

    def _find_directions(self, features: FeatureBuffer) -> PlaceStatistics:
        """Fit the statistics and directions that reduce features [B,C,h,w] to rows of the bank; return the former."""
        device = self.backbone.mean.device
        statistics = PlaceStatistics.of(features, device, masked=self._masks)
        centre, spread = statistics.around(_SMALLEST_DEVIATION)
        self._fit_buffer("centre", centre.float())
        self._fit_buffer("spread", spread.float())
        rows = (self._inner(batch, self._standardised(self._features_of(batch, device))) for batch in features)
        # The products are computed in single precision, which is faster, and summed in double precision.
        sums = summed(CovarianceSums(len(part), exact(part).sum(0), exact(part.t() @ part)) for part in rows)
        variances, directions = principal_directions(sums.mean_and_covariance()[1])
        kept = min(self.config.dimensions, self.channels)
        self._fit_buffer("directions", directions[:, :kept].float().contiguous())
        self._fit_buffer("scales", self._scales_of(variances.clamp(min=0), kept).float())
        return statistics

    def _raise_border(self, features: FeatureBuffer, statistics: PlaceStatistics) -> Tensor:
        """Multiply the deviations by the levels of the border if there are few images; return the factors [h,w].

        The levels have the weight that `PlaceStatistics.around` gives to all places: the deviations of many images hold
        them already.
        """
        count, device = statistics.count, self.backbone.mean.device
        if not isinstance(count, int) or count > MOST_IMAGES or self.config.rotations > 1:
            return torch.ones(self.grid, device=device)
        standardised = self._standardised(torch.cat([self._features_of(batch, device) for batch in features]))
        along = self._along(standardised)
        levels = border_levels(self._scaled(along), self._beyond(standardised, along)) ** (1 - place_weight(count))
        self._fit_buffer("spread", self.spread * levels)
        return levels

    def _features_of(self, batch: Tensor, device: torch.device) -> Tensor:
        """Return the features [B,C,h,w] of a buffered batch in single precision, without the mask."""
        return batch[:, : self.channels].to(device).float()

    def _scales_of(self, variances: Tensor, kept: int) -> Tensor:
        """Return the factors [kept+1] of squares, from the variances [C] of all directions, largest first."""
        floor = RIDGE * variances.mean()
        scales = (variances[:kept] + floor).pow(-self.config.whitening)
        if kept == len(variances):  # nothing but rounding is left for the remainder
            return torch.cat([scales, scales.new_zeros(1)])
        beyond = self.config.remainder * (variances[kept:].mean() + floor).pow(-self.config.whitening)
        return torch.cat([scales, beyond.view(1)])


@dataclass(frozen=True)
class _Fit:
    """Facts of a fit or update that leaving out images needs.

    Attributes:
        images: Number of the image of each row of the bank, tensor [N]; `_EARLIER` for rows before an update.
        statistics: Statistics to which the images contributed; None after an update.
        levels: Factors [h,w] of the deviations near the border, or 1.
    """

    images: Tensor
    statistics: PlaceStatistics | None = None
    levels: Tensor | float = 1.0


@dataclass(frozen=True)
class _GoodExamples:
    """Cells of good images, compared with what was learned from other good images.

    Attributes:
        rows: Reduced features [N,h*w,D].
        distances: Distances [N,h,w] to good features.
        inside: Mask [N,h,w] of the cells that count.
    """

    rows: Tensor
    distances: Tensor
    inside: Tensor

    def part(self, places: Tensor) -> _GoodExamples:
        """Return some of the images."""
        return _GoodExamples(self.rows[places], self.distances[places], self.inside[places])


@dataclass(frozen=True)
class _DefectCells:
    """Cells of known defects.

    Attributes:
        rows: Reduced features [M,D].
        distances: Distances [M] to good features.
    """

    rows: Tensor
    distances: Tensor

    def memory(self, good: _GoodExamples) -> Tensor:
        """Return the rows [n,D] of those that are unlike good cells."""
        chosen = good.inside.flatten()
        return defect_memory(
            self.rows, self.distances, good.rows.flatten(0, 1)[chosen], good.distances.flatten()[chosen]
        )


def _some_images(features: FeatureBuffer) -> tuple[Tensor, list[int]]:
    """Return the buffered features [n,C,h,w] of some images, evenly from all of them, and their positions."""
    count = sum(len(batch) for batch in features)
    wanted = torch.linspace(0, count - 1, min(count, _GOOD_EXAMPLES)).round().long().unique()
    found, start = [], 0
    for batch in features:
        places = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
        found.append(batch[places])
        start += len(batch)
    return torch.cat(found), wanted.tolist()


def _square_length(features: Tensor) -> Tensor:
    """Return the squared lengths [B,h,w] of features [B,C,h,w]."""
    # Written as a product, because OpenVINO fuses products, but not squares, with the operations before.
    return (features * features).sum(1)


def _move_if_it_fits(rows: Tensor, device: torch.device) -> Tensor:
    """Move the rows to the device, or leave them in main memory if the device has too little memory."""
    try:
        return rows.to(device)
    except torch.OutOfMemoryError:
        return rows
