"""Anomaly maps from an image and its reconstruction: error spaces, smoothing, and statistics of normal errors.

Tensors only; this module does not know how the reconstruction was computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import GaussianBlur
from adctl.detectors.components.losses import split_weights, structural_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.detectors.components.backbones import Backbone
    from adctl.detectors.components.feature_statistics import VarianceSums

_LEAST_SPREAD, _SPREAD_SHARE = 0.01, 0.1

_GREY_LEVEL = 1 / 255
_FLOORS = {"l1": _GREY_LEVEL, "l2": _GREY_LEVEL**2, "ssim": 0.01, "gradient": _GREY_LEVEL, "features": 0.01}
"""Negligible error of each space; it is added to errors before taking logarithms."""

STRIDES = (4, 8, 16)
"""Strides of the levels compared in a convolutional backbone; the finest level is sensitive to colours."""

SPACES = ("l1", "l2", "ssim", "gradient", "features")
"""Names of the error spaces; see `ErrorMap`."""


def parse_weights(text: str, known: Sequence[str]) -> dict[str, float]:
    """Parse `name=weight,name=weight`; the weight is 1 if left out.

    Raises:
        ValueError: A name is unknown or repeated, or a weight is not a positive number.
    """
    weights: dict[str, float] = {}
    for name, number in split_weights(text, known).items():
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"the weight of '{name}' is not a number: '{number}'") from None
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"the weight of '{name}' must be positive")
    return weights


class NormalErrorStats(NamedTuple):
    """Statistics of the logarithms of errors in good images at each place, in S spaces.

    Attributes:
        level: Tensor [S,H,W], the mean.
        spread: Tensor [S,H,W], the standard deviation.
    """

    level: Tensor
    spread: Tensor


def normal_error_stats(sums: VarianceSums, around: float) -> NormalErrorStats:
    """Compute the statistics of normal errors, averaged over the neighbourhood of each place.

    Args:
        sums: Sums over `ErrorMap.logarithms` of held-out good images. Training images are unsuitable: a network that
            has memorised them has small errors on them, especially where good images differ.
        around: Sigma of the Gaussian that defines the neighbourhood, fraction of the square root of the area.
    """
    mean = sums.total / sums.count
    blur = GaussianBlur(around * math.sqrt(mean.shape[-1] * mean.shape[-2])).to(mean)
    level = blur(mean)
    # The deviation from the smoothed level, not from the mean of each place, so that edges, which always have large
    # errors, get a large deviation.
    deviation = (sums.squares / sums.count - 2 * level * mean + level.square()).clamp(min=0).sqrt()
    # Without a minimum, places whose errors hardly vary would dominate the map.
    floor = _SPREAD_SHARE * deviation.mean((1, 2), keepdim=True) + _LEAST_SPREAD
    return NormalErrorStats(level.float(), (blur(deviation) + floor).float())


class ErrorMap(nn.Module):
    """Error of each pixel, averaged over several smoothing scales, and standardised by the errors of good images.

    Error spaces: `l1` and `l2`, absolute and squared difference, mean over channels; `ssim`, structural dissimilarity
    (1 - SSIM) / 2 (Bergmann et al. 2019, section 3.1); `gradient`, difference of Sobel gradient magnitudes, insensitive
    to slow changes of brightness; `features`, 1 - cosine similarity of a frozen backbone's features at each level (as
    in Deng and Li, "Anomaly Detection via Reverse Distillation", CVPR 2022, section 3.2).

    Edges and fine texture always have large errors, and exposure differs between images. Therefore the logarithm of
    each error is standardised by mean and deviation of good images in the same region. The map is then about 0 for
    normal regions of any texture, spaces with large variation in good images have little influence, and all spaces have
    the same unit. Logarithms are used because errors vary over orders of magnitude.

    Args:
        weights: Weight of each space.
        sigmas: Sigmas of the Gaussians, pixels; 0 is no smoothing.
        backbone: Backbone for `features`, or None.
    """

    sobel: Tensor
    shares: Tensor
    floors: Tensor

    def __init__(self, weights: Mapping[str, float], sigmas: Sequence[float], backbone: Backbone | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        # Buffers, because a GPU would wait for tensors that are created for each batch.
        self.register_buffer("shares", torch.tensor([*self.weights.values()]).view(-1, 1, 1), persistent=False)
        floors = torch.tensor([_FLOORS[space] for space in self.weights]).view(-1, 1, 1)
        self.register_buffer("floors", floors, persistent=False)
        self.blurs = nn.ModuleList(GaussianBlur(sigma) for sigma in sigmas)
        self.backbone = backbone
        column = torch.tensor([[1.0, 2.0, 1.0]])
        kernel = column.T @ torch.tensor([[-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("sobel", torch.stack([kernel, kernel.T]).unsqueeze(1), persistent=False)

    def forward(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """Compute the errors [B,S,H,W] of reconstructions of images, both [B,C,H,W] in [0, 1]."""
        measured = torch.stack([self._error(space, images, rebuilt) for space in self.weights], 1)
        planes = measured.flatten(0, 1)
        return torch.stack([blur(planes) for blur in self.blurs]).mean(0).view_as(measured)

    def logarithms(self, errors: Tensor) -> Tensor:
        """Return the logarithms of errors [B,S,H,W], bounded below."""
        return (errors + self.floors).log()

    def combine(self, errors: Tensor, statistics: NormalErrorStats | None) -> Tensor:
        """Return maps [B,H,W]: the weighted sum of errors [B,S,H,W], standardised if statistics are given."""
        if statistics is None:
            return (errors * self.shares).sum(1)
        return ((self.logarithms(errors) - statistics.level) * (self.shares / statistics.spread)).sum(1)

    def _error(self, space: str, images: Tensor, rebuilt: Tensor) -> Tensor:
        if space == "l1":
            return (images - rebuilt).abs().mean(1)
        if space == "l2":
            return (images - rebuilt).square().mean(1)
        if space == "ssim":
            return 0.5 * (1 - structural_similarity(images, rebuilt).mean(1))
        if space == "gradient":
            return (self._gradient(images) - self._gradient(rebuilt)).abs().mean(1)
        return self._features(images, rebuilt)

    def _gradient(self, images: Tensor) -> Tensor:
        """Return the Sobel gradient magnitude of each channel, [B,C,H,W]."""
        planes = F.pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
        slopes = F.conv2d(planes, self.sobel.to(planes.dtype))
        return (slopes.square().sum(1) + 1e-12).sqrt().view(images.shape)

    def _features(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        assert self.backbone is not None
        maps = []
        for original, reconstruction in zip(self.backbone(images), self.backbone(rebuilt), strict=True):
            distance = (1 - F.cosine_similarity(original, reconstruction, dim=1)).unsqueeze(1)
            maps.append(F.interpolate(distance, size=images.shape[-2:], mode="bilinear", align_corners=False))
        return torch.cat(maps, 1).mean(1)
