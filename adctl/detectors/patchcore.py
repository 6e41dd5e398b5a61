"""PatchCore: distance of each patch feature to its nearest neighbour in a coreset of good ones.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import CostEstimate, Prediction
from adctl.detectors.components.anomaly_maps import GaussianBlur, to_rows, top_mean
from adctl.detectors.components.coreset import k_center_greedy
from adctl.detectors.components.feature_buffer import CHUNK, FeatureBuffer, room
from adctl.detectors.components.nearest_neighbours import (
    LARGEST_CODE,
    InvertedLists,
    coded_bank,
    least_of_codes,
    to_codes,
)
from adctl.detectors.feature_detector import FeatureConfig, FeatureDetector
from adctl.engine.phases import Observe
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.engine.phases import Phase, Progress

log = logging.getLogger(__name__)

_FOR_EACH_PATCH = 24
"""Bytes of distances and norms while the coreset is picked, as measured."""

_LEAST_VARIANCE = 0.01
"""Share of the mean variance added to each direction's: those of almost none are held back."""


class PatchCoreConfig(FeatureConfig):
    """Settings of PatchCore."""

    context: int = Field(3, ge=1, le=9, description=FeatureConfig.model_fields["context"].description)
    cell: float | None = Field(12, gt=0, description=FeatureConfig.model_fields["cell"].description)
    coreset_ratio: float = Field(0.01, gt=0, le=1, description="Share of all patches kept in the memory bank")
    dimensions: int = Field(80, ge=2, description="Principal directions of the features that the bank keeps")
    whitening: float = Field(
        0.5, ge=0, le=1, description="How far directions are brought to one variance: 0 leaves them, 1 makes all alike"
    )
    remainder: float = Field(0.25, ge=0, description="Weight of what a feature has outside the kept directions")
    blur: float = Field(0.5, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest cells whose mean is the score")
    search: Literal["exact", "ivf"] = Field(
        "exact", description="Nearest neighbours: exact, or by inverted lists, sooner in large banks; not exportable"
    )
    probes: int = Field(
        8, ge=1, description="Of ivf: lists, of about the root of the bank's size, that are looked into"
    )
    seed: int = Field(0, ge=0, description="Decides the first patch of the coreset")


class PatchCore(FeatureDetector):
    """A memory bank of good patch features; a map cell is the distance to the nearest of them.

    Four choices differ from the paper. Features are standardised by their mean and spread around the same place
    of the image, which sharpens the distance where good parts look alike, and changes nothing where they lie
    differently each time. Of their principal directions the bank keeps those of most variance, brought some way towards
    one variance so that the distance does not rest on few of them; the rest, in which good features vary little and
    alike, adds the square of what a feature has there (Tipping & Bishop, "Probabilistic Principal Component Analysis",
    1999, whose noise it is): distances of all directions at a fraction of the cost. The image score is the mean of the
    strangest cells of the smoothed map, where the paper re-weights the single strangest one (its equation 7):
    steadier on textured parts, and one reduction in an exported graph.

    Attributes:
        centre: Tensor [C,h,w], the mean feature around each place.
        spread: Tensor [C,h,w], the standard deviation around each place.
        directions: Tensor [C,D], orthonormal, of most variance first.
        scales: Tensor [D+1], what the square of each direction is multiplied by, and that of the remainder.
        step: Tensor, a scalar: what a one stands for in codes of reduced features.
        bank: Tensor [N,D] of int8, codes of good patches' reduced features in the order the coreset picked them.
    """

    Config = PatchCoreConfig
    fitted: ClassVar[tuple[str, ...]] = ("centre", "spread", "directions", "scales", "step", "bank")
    config: PatchCoreConfig
    centre: Tensor
    spread: Tensor
    directions: Tensor
    scales: Tensor
    step: Tensor
    bank: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        for name in self.fitted:
            self.register_buffer(name, torch.empty(0))
        self.blur = GaussianBlur(config.blur)
        self._seen = FeatureBuffer()
        self._lists: tuple[Tensor, InvertedLists] | None = None

    def phases(self) -> Sequence[Phase]:
        """One pass that gathers every patch, then statistics and the coreset."""
        self._seen = FeatureBuffer()  # a fit that failed may have left some
        return (Observe(self.patches, self._absorb, self._finish, "memory bank"),)

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,3,H,W]; maps have the cells that the settings ask for."""
        standardised = self._standardised(self.patches(images))
        along = self._along(standardised)
        beyond = self.scales[-1] * (_square_length(standardised) - _square_length(along))
        squares = self._nearest_squared(self._scaled(along)) + beyond
        maps = self.blur(squares.clamp(min=0).sqrt())  # below zero by rounding alone
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def forecast(self, images: int) -> CostEstimate:
        """Patches wait in half precision and make room for their reduced ones; the disk takes what memory has not."""
        patches = images * self.grid**2
        kept = max(1, round(self.config.coreset_ratio * patches))
        reduced = min(self.config.dimensions, self.channels)
        waiting, rows = 2 * patches * self.channels, 4 * patches * reduced
        held, free = max(waiting, rows), room()
        disk = 0 if held <= free else max(0, waiting - free) + rows
        flops = 2.0 * patches * (kept * reduced + self.channels * (self.channels + reduced))
        memory = min(held, free) + min(CHUNK, waiting) + _FOR_EACH_PATCH * patches + 4 * kept * reduced
        return CostEstimate(memory=memory, flops=flops, disk=disk)

    def reduced(self, patches: Tensor) -> Tensor:
        """Features [B,C,h,w] to what is compared with the bank, [B,D,h,w]."""
        return self._scaled(self._along(self._standardised(patches)))

    def check_exportable(self) -> None:
        """Inverted lists are gone through by loops that depend on the image."""
        if self.config.search != "exact":
            raise UsageError(
                f"A PatchCore with search={self.config.search} cannot be exported: its search is no fixed graph.",
                "Train with --set search=exact, and with a smaller coreset_ratio to make it faster.",
            )

    def _nearest_squared(self, reduced: Tensor) -> Tensor:
        """Squared distance [B,h,w] of each reduced feature [B,D,h,w] to the bank, up to rounding.

        The squared distance of the codes, and the squares of what coding took: by rounding, and where a feature lies
        beyond all codes. Out there, twice as far as any row of the bank, the bank is taken to lie in the middle.
        """
        codes = to_codes(reduced, self.step)
        coded = codes * self.step
        inside = reduced.clamp(-LARGEST_CODE * self.step, LARGEST_CODE * self.step)
        # With r reduced, c inside, q coded: |q - b|^2 + |c - q|^2 + |r|^2 - |c|^2, but for what holds b.
        alone = (reduced * reduced + 2 * coded * (coded - inside)).sum(1)
        return alone + self._least(codes) * self.step.square()

    def _least(self, codes: Tensor) -> Tensor:
        """The least |b|^2 - 2qb of each cell, [B,h,w], over all rows of the bank, in steps."""
        if self.config.search == "exact":
            return least_of_codes(codes, self.bank)
        if self._lists is None or self._lists[0] is not self.bank:  # fitted, loaded or moved since
            self._lists = self.bank, InvertedLists(self.bank.float(), self.config.probes)
        return self._lists[1].least(to_rows(codes)).view(codes[:, 0].shape)

    def _standardised(self, patches: Tensor) -> Tensor:
        """Features [B,C,h,w] of about zero mean and unit variance at each place."""
        return (patches - self.centre) / self.spread

    def _along(self, standardised: Tensor) -> Tensor:
        """Standardised features [B,C,h,w] along the kept directions, [B,D,h,w]."""
        return F.conv2d(standardised, self.directions.t()[:, :, None, None])

    def _scaled(self, along: Tensor) -> Tensor:
        return along * self.scales[:-1].sqrt().view(-1, 1, 1)

    def _absorb(self, patches: Tensor) -> None:
        # Half precision halves what waits; statistics, bank and distances are single precision or more.
        self._seen.add(patches)

    def _finish(self, progress: Progress) -> None:
        with closing(self._seen) as seen:
            self._find_directions(seen)
            device = self.directions.device
            patches = sum(batch[:, 0].numel() for batch in seen)
            reduced = (to_rows(self.reduced(batch.to(device).float())) for batch in seen.drain())
            rows = _on(device, seen.rows(reduced, patches, self.directions.shape[1]))
            count = max(1, round(self.config.coreset_ratio * patches))
            log.info("Picking %d of %d patches for the memory bank.", count, patches)
            chosen = k_center_greedy(rows, count, seed=self.config.seed, progress=progress)
            bank, step = coded_bank(rows[chosen].to(device))
            self._fit_buffer("bank", bank)
            self._fit_buffer("step", step)

    def _find_directions(self, seen: FeatureBuffer) -> None:
        """Fit what turns features [B,C,h,w] into rows of the bank."""
        device = self.backbone.mean.device
        centre, spread = _place_statistics(seen, device)
        self._fit_buffer("centre", centre)
        self._fit_buffer("spread", spread)
        variances, directions = torch.linalg.eigh(
            _covariance(to_rows(self._standardised(batch.to(device).float())) for batch in seen)
        )
        kept = min(self.config.dimensions, self.channels)
        self._fit_buffer("directions", directions.flip(1)[:, :kept].float().contiguous())
        self._fit_buffer("scales", self._scales_of(variances.flip(0).clamp(min=0), kept).float())

    def _scales_of(self, variances: Tensor, kept: int) -> Tensor:
        """Factors [kept+1] of the squares, from the variances [C] of all directions, most first."""
        floor = _LEAST_VARIANCE * variances.mean()
        scales = (variances[:kept] + floor).pow(-self.config.whitening)
        if kept == len(variances):  # what is beyond is rounding alone
            return torch.cat([scales, scales.new_zeros(1)])
        beyond = self.config.remainder * (variances[kept:].mean() + floor).pow(-self.config.whitening)
        return torch.cat([scales, beyond.view(1)])


def _square_length(features: Tensor) -> Tensor:
    """Of features [B,C,h,w]: [B,h,w]."""
    # Not a power of two, which OpenVINO computes by itself, apart from what comes before.
    return (features * features).sum(1)


def _on(device: torch.device, rows: Tensor) -> Tensor:
    """The rows where they are compared fastest; in main memory when the device has no room."""
    try:
        return rows.to(device)
    except torch.OutOfMemoryError:
        return rows


def _place_statistics(batches: Iterable[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C,h,w] over images, averaged over 3 x 3 places; never near zero."""
    count = sum(len(batch) for batch in batches)
    mean = sum(_exact(batch.to(device)).sum(0) for batch in batches) / count
    variance = sum((_exact(batch.to(device)) - mean).square().sum(0) for batch in batches) / count
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    mean, deviation = (
        F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False) for values in (mean, variance.sqrt())
    )
    # A tenth of the channel's usual spread keeps places that never varied from drowning out all others.
    usual = deviation.mean((1, 2), keepdim=True)
    return mean.float(), (0.9 * deviation + 0.1 * usual + 1e-6).float()


def _exact(features: Tensor) -> Tensor:
    """In double precision where the device has it."""
    return features.float() if features.device.type == "mps" else features.double()


def _covariance(blocks: Iterable[Tensor]) -> Tensor:
    """Covariance [C,C] of rows that come in blocks [n,C], summed in double precision where the device has it."""
    count, total, products = 0, None, None
    for block in blocks:
        count += len(block)
        sums, squares = _exact(block).sum(0), _exact(block.t() @ block)
        total = sums if total is None else total + sums
        products = squares if products is None else products + squares
    assert total is not None
    assert products is not None
    mean = total / count
    return products / count - mean.outer(mean)
