"""From an image and its reconstruction to an anomaly map: in which space they are compared, and how smoothed.

Tensors only; knows nothing of how the reconstruction was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.losses import split_weights, structural_similarity
from adctl.maps import GaussianBlur

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.backbones import Backbone

_AROUND = 1 / 32
"""How far around a place its usual error is taken from: the sigma of a Gaussian, share of the side."""

_FLOOR, _TINY = 0.1, 1e-9

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


def usual_error(mean: Tensor) -> Tensor:
    """What error to expect around each place, from the mean errors [S,H,W] of good images."""
    around = GaussianBlur(_AROUND * mean.shape[-1]).to(mean)
    # A tenth of the overall mean keeps places that are always rebuilt perfectly from drowning out all others.
    floor = _FLOOR * mean.mean((1, 2), keepdim=True) + _TINY
    usual: Tensor = around(mean) + floor
    return usual.float()


class ErrorMap(nn.Module):
    """Error of each pixel, smoothed at several scales whose maps are averaged, in multiples of the usual error.

    Spaces: `l1` and `l2`, absolute and squared difference, mean over channels; `ssim`, structural
    dissimilarity (1 - SSIM) / 2 (Bergmann et al. 2019, section 3.1); `gradient`, difference of Sobel gradient
    magnitudes, blind to slow changes of brightness; `features`, 1 - cosine similarity of a frozen backbone's
    features at each level (as in Deng and Li, "Anomaly Detection via Reverse Distillation", CVPR 2022, section 3.2).

    Edges and fine texture are never rebuilt well: of S spaces each is divided by its mean error on good images
    around the same place (see `usual_error`), so that a map is about 1 where all is well, whatever lies there, and
    spaces add up in one unit.

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

    def join(self, errors: Tensor, usual: Tensor) -> Tensor:
        """Errors [B,S,H,W] to maps [B,H,W]: their weighted sum in multiples of the usual ones [S,H,W]."""
        weights = torch.tensor(list(self.weights.values()), device=errors.device).view(-1, 1, 1)
        return (errors * (weights / usual)).sum(1)

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
