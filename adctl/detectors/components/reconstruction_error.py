"""From an image and its reconstruction to an anomaly map: in which space they are compared, and how smoothed.

Tensors only; knows nothing of how the reconstruction was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import GaussianBlur
from adctl.detectors.components.losses import split_weights, structural_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.detectors.components.backbones import Backbone

_LEAST_SPREAD, _SPREAD_SHARE = 0.01, 0.1

_GREY_LEVEL = 1 / 255
_FLOORS = {"l1": _GREY_LEVEL, "l2": _GREY_LEVEL**2, "ssim": 0.01, "gradient": _GREY_LEVEL, "features": 0.01}
"""Errors too small to tell from none, in each space: logarithms are taken of errors and this."""

STRIDES = (4, 8, 16)
"""Of the levels compared in a convolutional backbone's features: the finest still sees colours."""

SPACES = ("l1", "l2", "ssim", "gradient", "features")
"""What errors can be measured in; see `ErrorMap`."""


def parse_weights(text: str, known: Sequence[str]) -> dict[str, float]:
    """Read `name=weight,name=weight`; a name alone weighs 1.

    Raises:
        ValueError: A name is unknown or twice, or a weight is no positive number.
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
    """What errors good images have at each place, in S spaces.

    Attributes:
        level: Tensor [S,H,W], the mean of the logarithms.
        spread: Tensor [S,H,W], their standard deviation.
    """

    level: Tensor
    spread: Tensor


class ErrorSums(NamedTuple):
    """Over images, of their `ErrorMap.logarithms`.

    Attributes:
        values: Tensor [S,H,W] of float64.
        squares: Tensor [S,H,W] of float64.
        images: How many.
    """

    values: Tensor
    squares: Tensor
    images: int

    @classmethod
    def of(cls, logarithms: Tensor) -> ErrorSums:
        """Of logarithms [B,S,H,W], on the CPU."""
        exact = logarithms.cpu().double()
        return cls(exact.sum(0), exact.square().sum(0), len(exact))

    def and_of(self, other: ErrorSums) -> ErrorSums:
        """Of the images of both."""
        return ErrorSums(self.values + other.values, self.squares + other.squares, self.images + other.images)


def normal_error_stats(held_out: ErrorSums, around: float) -> NormalErrorStats:
    """What is usual around each place.

    Args:
        held_out: Of good images that were not learned from. A network that knows a few images by heart rebuilds those
            alone well: their errors say nothing of the next image's, and are smallest by far just where good images
            differ most.
        around: How far around: the sigma of a Gaussian, share of the side.
    """
    values, squares, count = held_out
    mean = values / count
    blur = GaussianBlur(around * mean.shape[-1]).to(mean)
    level = blur(mean)
    # About that level, not about each place's own mean: a sharp edge, always rebuilt badly, is usual too.
    deviation = (squares / count - 2 * level * mean + level.square()).clamp(min=0).sqrt()
    # Places that are always rebuilt alike must not drown out all others.
    floor = _SPREAD_SHARE * deviation.mean((1, 2), keepdim=True) + _LEAST_SPREAD
    return NormalErrorStats(level.float(), (blur(deviation) + floor).float())


class ErrorMap(nn.Module):
    """Error of each pixel, smoothed at several scales whose maps are averaged, against what is usual there.

    Spaces: `l1` and `l2`, absolute and squared difference, mean over channels; `ssim`, structural
    dissimilarity (1 - SSIM) / 2 (Bergmann et al. 2019, section 3.1); `gradient`, difference of Sobel gradient
    magnitudes, blind to slow changes of brightness; `features`, 1 - cosine similarity of a frozen backbone's
    features at each level (as in Deng and Li, "Anomaly Detection via Reverse Distillation", CVPR 2022, section 3.2).

    Edges and fine texture are never rebuilt well, and exposures differ from image to image. So the logarithm of each
    error is held against those of good images in the same region, in standard deviations: a map is about 0 where all
    is well, whatever lies there; a space in which good images differ wildly counts for little; and spaces add up in
    one unit. Logarithms, because errors are products more than sums: they spread over orders of magnitude.

    Args:
        weights: Of each space; their maps are added up.
        sigmas: Of the Gaussians, pixels; 0 leaves the map as it is.
        backbone: For `features`.
    """

    sobel: Tensor

    def __init__(self, weights: Mapping[str, float], sigmas: Sequence[float], backbone: Backbone | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.blurs = nn.ModuleList(GaussianBlur(sigma) for sigma in sigmas)
        self.backbone = backbone
        column = torch.tensor([[1.0, 2.0, 1.0]])
        kernel = column.T @ torch.tensor([[-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("sobel", torch.stack([kernel, kernel.T]).unsqueeze(1), persistent=False)

    def forward(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """Images and reconstructions [B,C,H,W] in [0, 1] to errors [B,S,H,W] in each space."""
        measured = torch.stack([self._error(space, images, rebuilt) for space in self.weights], 1)
        planes = measured.flatten(0, 1)
        return torch.stack([blur(planes) for blur in self.blurs]).mean(0).view_as(measured)

    def logarithms(self, errors: Tensor) -> Tensor:
        """Errors [B,S,H,W] to their logarithms, bounded below by that of the smallest error that can be told."""
        floors = torch.tensor([_FLOORS[space] for space in self.weights], device=errors.device)
        return (errors + floors.view(-1, 1, 1)).log()

    def join(self, errors: Tensor, normal_error_stats: NormalErrorStats | None) -> Tensor:
        """Errors [B,S,H,W] to maps [B,H,W]: their weighted sum, as they are or against the usual ones."""
        weights = torch.tensor(list(self.weights.values()), device=errors.device).view(-1, 1, 1)
        if normal_error_stats is None:
            return (errors * weights).sum(1)
        return ((self.logarithms(errors) - normal_error_stats.level) * (weights / normal_error_stats.spread)).sum(1)

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
        """Sobel gradient magnitude of each channel, [B,C,H,W]."""
        planes = F.pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
        slopes = F.conv2d(planes, self.sobel.to(planes.dtype))
        return (slopes.square().sum(1) + 1e-12).sqrt().view(images.shape)

    def _features(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        assert self.backbone is not None
        maps = []
        for real, made in zip(self.backbone(images), self.backbone(rebuilt), strict=True):
            distance = (1 - F.cosine_similarity(real, made, dim=1)).unsqueeze(1)
            maps.append(F.interpolate(distance, size=images.shape[-2:], mode="bilinear", align_corners=False))
        return torch.cat(maps, 1).mean(1)
