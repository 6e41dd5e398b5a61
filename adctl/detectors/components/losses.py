"""Losses of reconstructions: one class per loss, and their weighted sum. Tensors only.

Each loss takes reconstructions and images [B,C,H,W] in [0, 1] with 1 or 3 channels, and returns a scalar, computed in
float32 even under autocast. A sum is written as `mse=1,ssim=0.5`. A weight `0:0.1@20` increases linearly from 0 in the
first epoch to 0.1 in epoch 20, and then stays.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.discriminator import AdversarialLoss

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.detectors.components.backbones import Backbone
    from adctl.engine.phases import Critic, LossTerms

_WINDOW, _SIGMA = 11, 1.5
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of multi-scale SSIM (Wang et al. 2003, section 3.2)."""


class MeanSquaredError(nn.Module):
    """Mean squared difference: the negative log-likelihood of Gaussian noise (Bishop, 2006, section 3.1.1)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        return F.mse_loss(rebuilt, target)


class MeanAbsoluteError(nn.Module):
    """Mean absolute difference; blurs less than squares (Zhao et al., IEEE TCI 2017, section III.A)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        return F.l1_loss(rebuilt, target)


class StructuralDissimilarity(nn.Module):
    """(1 - SSIM) / 2 (Wang et al. 2004; as a loss, Bergmann et al. 2019, section 3.1)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        return 0.5 * (1 - structural_similarity(rebuilt, target).mean())


class MultiScaleDissimilarity(nn.Module):
    """1 - multi-scale SSIM (Wang, Simoncelli and Bovik, "Multi-scale structural similarity", 2003, equation 7).

    Five scales need sides of 176 pixels. Smaller images use fewer scales, with exponents scaled to the same sum.
    """

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        scales = 1
        while scales < len(_SCALES) and min(target.shape[-2:]) >> scales >= _WINDOW:
            scales += 1
        exponents = torch.tensor(_SCALES[:scales], device=target.device)
        exponents = exponents / exponents.sum()
        product = torch.ones(target.shape[:2], device=target.device)
        for scale, exponent in enumerate(exponents):
            luminance, contrast = _ssim_parts(rebuilt, target, padded=False)
            part = luminance * contrast if scale == scales - 1 else contrast
            product = product * part.mean((2, 3)).clamp_min(1e-6) ** exponent
            rebuilt, target = F.avg_pool2d(rebuilt, 2), F.avg_pool2d(target, 2)
        return 1 - product.mean()


class Perceptual(nn.Module):
    """Squared difference of a frozen backbone's features, mean over levels.

    Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer", ECCV 2016, section 3.2, with any timm
    network. Features are scaled to unit length at each place (Zhang et al., "LPIPS", CVPR 2018, equation 1), so that
    all levels have similar weights.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        pairs = zip(self.backbone(rebuilt), self.backbone(target), strict=True)
        distances = [
            (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean() for first, second in pairs
        ]
        return torch.stack(distances).mean()


class FocalFrequency(nn.Module):
    """Squared difference of spectra, with larger weights for frequencies with larger errors.

    Focal frequency loss: Jiang et al., ICCV 2021, equations 5 to 8, with alpha = 1.
    """

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of reconstructions and images [B,C,H,W]."""
        difference = torch.fft.fft2(rebuilt, norm="ortho") - torch.fft.fft2(target, norm="ortho")
        distance = difference.real.square() + difference.imag.square()
        weight = (distance.detach() + 1e-12).sqrt()
        weight = weight / weight.amax((2, 3), keepdim=True)
        loss: Tensor = (weight * distance).mean()
        return loss


_PLAIN = {
    "mse": MeanSquaredError,
    "l1": MeanAbsoluteError,
    "ssim": StructuralDissimilarity,
    "msssim": MultiScaleDissimilarity,
    "focal": FocalFrequency,
}
_ADVERSARIAL = ("adversarial", "hinge", "matching", "gp")

TERMS = (*_PLAIN, "perceptual", *_ADVERSARIAL)
"""Names of loss terms. `adversarial` (non-saturating) or `hinge`, `matching` (feature matching) and `gp` (gradient
penalty) use the discriminator of `adctl.detectors.components.discriminator`."""

_WEIGHT = re.compile(r"(?P<start>[^:@]+)(:(?P<end>[^:@]+)@(?P<epochs>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Term:
    """Loss term with its weight.

    Attributes:
        name: A name from `TERMS`.
        start: Weight in the first epoch.
        end: Weight in epoch `epochs` and later.
        epochs: Number of epochs over which the weight changes.
    """

    name: str
    start: float = 1.0
    end: float = 1.0
    epochs: int = 1

    @property
    def needs_backbone(self) -> bool:
        """Whether the term compares features of a frozen backbone."""
        return self.name == "perceptual"

    def weight(self, epoch: int) -> float:
        """Return the weight in an epoch, counted from 1."""
        done = 1.0 if self.epochs <= 1 else min(1.0, (epoch - 1) / (self.epochs - 1))
        return self.start + (self.end - self.start) * done


def split_weights(text: str, known: Sequence[str]) -> dict[str, str]:
    """Split `name=weight,name=weight` into names and weights, as text; the weight is `1` if left out.

    Raises:
        ValueError: A name is unknown or repeated.
    """
    weights: dict[str, str] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise ValueError(f"'{name}' is not one of {', '.join(known)}")
        if name in weights:
            raise ValueError(f"'{name}' is given twice")
        weights[name] = weight or "1"
    return weights


def parse_spec(text: str) -> tuple[Term, ...]:
    """Parse `mse=1,ssim=0.5,hinge=0:0.1@20`; the weight is 1 if left out.

    Raises:
        ValueError: A name is unknown or repeated, a weight is not a number, or terms cannot be combined.
    """
    terms = {name: _parse_term(name, weight) for name, weight in split_weights(text, TERMS).items()}
    adversarial = {"adversarial", "hinge"} & set(terms)
    if len(adversarial) > 1:
        raise ValueError("adversarial and hinge are two forms of one loss: give one of them")
    if "gp" in terms and not adversarial:
        raise ValueError("gp, the discriminator's gradient penalty, needs adversarial or hinge")
    if "gp" in terms and terms["gp"].start != terms["gp"].end:
        raise ValueError("the weight of 'gp' must be the same in all epochs: give one number")
    if set(terms) <= set(_ADVERSARIAL):
        raise ValueError("adversarial terms need a reconstruction loss: add mse, l1 or another one")
    return tuple(terms.values())


def _parse_term(name: str, weight: str) -> Term:
    match = _WEIGHT.fullmatch(weight)
    numbers = (match["start"], match["end"] or match["start"]) if match else ("",)
    try:
        start, end = map(float, numbers)
    except ValueError:
        raise ValueError(f"the weight of '{name}' must be a number or like 0:0.1@20: '{weight}'") from None
    if not (0 <= start < math.inf and 0 <= end < math.inf and start + end > 0):
        raise ValueError(f"the weight of '{name}' must be positive")
    return Term(name, start, end, int(match["epochs"] or 1) if match else 1)


class Objective(nn.Module):
    """Weighted sum of loss terms.

    In evaluation mode the weights are those at the end of their schedules, without trained weights and without the
    adversarial terms. Otherwise epochs could not be compared, because a growing weight increases the loss.

    Args:
        terms: The terms.
        weighting: `fixed`, or `uncertainty`: each term also has a trained variance, and a larger variance means a lower
            weight (Kendall, Gal and Cipolla, CVPR 2018, equation 7); adversarial terms have fixed weights.
        backbone: Backbone for `perceptual`, or None.
        channels: Channels of the images.
    """

    def __init__(
        self, terms: Sequence[Term], *, weighting: str = "fixed", backbone: Backbone | None = None, channels: int = 3
    ) -> None:
        super().__init__()
        named = {term.name: term for term in terms}
        self.plain = {name: term for name, term in named.items() if name not in _ADVERSARIAL}
        self.losses = nn.ModuleDict({name: _new_loss(name, backbone) for name in self.plain})
        self.adversarial = {name: term for name, term in named.items() if name in _ADVERSARIAL and name != "gp"}
        penalty = named["gp"].start if "gp" in named else 0.0
        self.adversary = (
            AdversarialLoss(channels, hinge="hinge" in named, penalty=penalty) if self.adversarial else None
        )
        self.epoch = 1
        trained = {name: nn.Parameter(torch.zeros(())) for name in self.plain}
        self.log_variances = nn.ParameterDict(trained if weighting == "uncertainty" else {})

    def forward(self, rebuilt: Tensor, target: Tensor) -> LossTerms:
        """Return the weighted terms of reconstructions and images [B,C,H,W], each a scalar; the loss is their sum."""
        with torch.autocast(target.device.type, enabled=False):
            rebuilt, target = rebuilt.float(), target.float()
            values = {name: self.losses[name](rebuilt, target) for name in self.plain}
            if not self.training:
                return {name: self.plain[name].end * value for name, value in values.items()}
            terms = {name: self._weighted(self.plain[name], value) for name, value in values.items()}
            if self.adversary is not None:
                values = self.adversary(rebuilt, target, tuple(self.adversarial))
                terms |= {name: self.adversarial[name].weight(self.epoch) * value for name, value in values.items()}
        return terms

    def trained(self) -> Iterable[nn.Parameter]:
        """Return the parameters that are trained together with the network."""
        return self.log_variances.values()

    def critic(self) -> Critic | None:
        """Return the training of the discriminator, or None if there are no adversarial terms."""
        return None if self.adversary is None else self.adversary.critic()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the weights for an epoch, counted from 1."""
        del epochs
        self.epoch = epoch

    def _weighted(self, term: Term, value: Tensor) -> Tensor:
        # The weight is outside the expression, because a trained variance would compensate a weight inside, and diverge
        # for a weight of 0.
        if term.name in self.log_variances:
            log_variance = self.log_variances[term.name]
            value = 0.5 * (value * torch.exp(-log_variance) + log_variance)
        return term.weight(self.epoch) * value


def _new_loss(name: str, backbone: Backbone | None) -> nn.Module:
    if name != "perceptual":
        return _PLAIN[name]()
    assert backbone is not None
    return Perceptual(backbone)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Compute SSIM at each pixel and channel (Wang et al. 2004, equation 13), Gaussian window, data range 1.

    Args:
        first: Tensor [B,C,H,W].
        second: Tensor [B,C,H,W].

    Returns:
        Tensor [B,C,H,W] in [-1, 1], 1 for equal images. Borders are reflected.
    """
    luminance, contrast = _ssim_parts(first, second, padded=True)
    similarity: Tensor = luminance * contrast
    return similarity


def _ssim_parts(first: Tensor, second: Tensor, *, padded: bool) -> tuple[Tensor, Tensor]:
    """Return luminance, and contrast times structure (Wang et al. 2004, equations 6, 9 and 10)."""
    both = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    mean1, mean2, square1, square2, product = _gaussian(both, padded=padded).chunk(5, dim=1)
    variance1, variance2 = square1 - mean1 * mean1, square2 - mean2 * mean2
    covariance = product - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1 * mean1 + mean2 * mean2 + c1)
    return luminance, (2 * covariance + c2) / (variance1 + variance2 + c2)


def _gaussian(images: Tensor, *, padded: bool) -> Tensor:
    channels = images.shape[1]
    offsets = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA).square())
    weights = (weights / weights.sum()).view(1, 1, 1, _WINDOW).expand(channels, 1, 1, _WINDOW)
    if padded:
        images = F.pad(images, (_WINDOW // 2,) * 4, mode="reflect")
    rows = F.conv2d(images, weights, groups=channels)
    return F.conv2d(rows, weights.transpose(2, 3), groups=channels)
