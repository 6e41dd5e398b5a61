"""How far a reconstruction is from its image: one class a loss, and their weighted sum. Tensors only.

All take reconstructions and images [B,C,H,W] in [0, 1], C 1 or 3, and give a scalar, computed in float32
whatever the arithmetic around them. A sum is written `mse=1,ssim=0.5`; a weight `0:0.1@20` goes linearly from 0 in
the first epoch to 0.1 in the twentieth and stays there.
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
    """Mean squared difference: the likelihood of Gaussian noise (Bishop, 2006, section 3.1.1)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
        return F.mse_loss(rebuilt, target)


class MeanAbsoluteError(nn.Module):
    """Mean absolute difference; blurs less than squares do (Zhao et al., IEEE TCI 2017, section III.A)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
        return F.l1_loss(rebuilt, target)


class StructuralDissimilarity(nn.Module):
    """(1 - SSIM) / 2 (Wang et al. 2004; as a loss, Bergmann et al. 2019, section 3.1)."""

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
        return 0.5 * (1 - structural_similarity(rebuilt, target).mean())


class MultiScaleDissimilarity(nn.Module):
    """1 - multi-scale SSIM (Wang, Simoncelli and Bovik, "Multi-scale structural similarity", 2003, equation 7).

    Five scales need sides of 176 pixels; smaller images take as many as fit, their exponents scaled up to the
    same sum.
    """

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
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

    Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer", ECCV 2016, section 3.2; with
    any timm network, VGG among them where its weights are given. Features are brought to unit length at each
    place first (Zhang et al., "LPIPS", CVPR 2018, equation 1), so that no level outweighs the others.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
        pairs = zip(self.backbone(rebuilt), self.backbone(target), strict=True)
        distances = [
            (F.normalize(made, dim=1) - F.normalize(real, dim=1)).square().sum(1).mean() for made, real in pairs
        ]
        return torch.stack(distances).mean()


class FocalFrequency(nn.Module):
    """Squared difference of spectra, each frequency weighted by how badly it is rebuilt.

    Focal frequency loss: Jiang et al., ICCV 2021, equations 5 to 8, alpha 1.
    """

    def forward(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Reconstructions and images [B,C,H,W] to a scalar."""
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
_OPPOSED = ("adversarial", "hinge", "matching", "gp")

TERMS = (*_PLAIN, "perceptual", *_OPPOSED)
"""Names of loss terms: those above; `adversarial` (non-saturating) or `hinge`, `matching` of the critic's inner
features, and `gp`, the weight of the critic's gradient penalty (see `adctl.detectors.components.discriminator`)."""

_WEIGHT = re.compile(r"(?P<start>[^:@]+)(:(?P<end>[^:@]+)@(?P<epochs>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Term:
    """One loss term of a sum.

    Attributes:
        name: One of `TERMS`.
        start: Weight in the first epoch.
        end: Weight from the epoch `epochs` on.
        epochs: Over which it changes.
    """

    name: str
    start: float = 1.0
    end: float = 1.0
    epochs: int = 1

    @property
    def needs_backbone(self) -> bool:
        """Whether it compares features of a frozen backbone."""
        return self.name == "perceptual"

    def weight(self, epoch: int) -> float:
        """Its weight in an epoch, counted from 1."""
        done = 1.0 if self.epochs <= 1 else min(1.0, (epoch - 1) / (self.epochs - 1))
        return self.start + (self.end - self.start) * done


def split_weights(text: str, known: Sequence[str]) -> dict[str, str]:
    """Split `name=weight,name=weight` and leave the weights to be read; that of a name alone is `1`.

    Raises:
        ValueError: A name is unknown or twice.
    """
    weights: dict[str, str] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise ValueError(f"'{name}' is not one of {', '.join(known)}")
        if name in weights:
            raise ValueError(f"'{name}' is named twice")
        weights[name] = weight or "1"
    return weights


def parse_spec(text: str) -> tuple[Term, ...]:
    """Read `mse=1,ssim=0.5,hinge=0:0.1@20`; a name alone weighs 1.

    Raises:
        ValueError: A name is unknown or twice, a weight is no number, or terms do not go together.
    """
    terms = {name: _parse_term(name, weight) for name, weight in split_weights(text, TERMS).items()}
    opposed = {"adversarial", "hinge"} & set(terms)
    if len(opposed) > 1:
        raise ValueError("adversarial and hinge are two forms of one loss: name one of them")
    if "gp" in terms and not opposed:
        raise ValueError("gp, the critic's gradient penalty, needs adversarial or hinge beside it")
    if "gp" in terms and terms["gp"].start != terms["gp"].end:
        raise ValueError("the weight of 'gp' is the same in all epochs: name one number")
    if set(terms) <= set(_OPPOSED):
        raise ValueError("a critic alone does not teach to rebuild: add mse, l1 or another one")
    return tuple(terms.values())


def _parse_term(name: str, weight: str) -> Term:
    match = _WEIGHT.fullmatch(weight)
    numbers = (match["start"], match["end"] or match["start"]) if match else ("",)
    try:
        start, end = map(float, numbers)
    except ValueError:
        raise ValueError(f"the weight of '{name}' is neither a number nor like 0:0.1@20: '{weight}'") from None
    if not (0 <= start < math.inf and 0 <= end < math.inf and start + end > 0):
        raise ValueError(f"the weight of '{name}' must be positive")
    return Term(name, start, end, int(match["epochs"] or 1) if match else 1)


class Objective(nn.Module):
    """A weighted sum of loss terms.

    In evaluation mode the weights are those at the end of their schedules, nothing learned is among them and the
    critic has no say, so that epochs compare: otherwise a weight that grows makes every epoch look worse than the
    one before.

    Args:
        terms: What is added up.
        weighting: `fixed`, or `uncertainty`: each term also learns how noisy it is, and weighs less for it
            (Kendall, Gal and Cipolla, CVPR 2018, equation 7); those against the critic keep their weights.
        backbone: For `perceptual`.
        channels: C of the images.
    """

    def __init__(
        self, terms: Sequence[Term], *, weighting: str = "fixed", backbone: Backbone | None = None, channels: int = 3
    ) -> None:
        super().__init__()
        named = {term.name: term for term in terms}
        self.measured = {name: term for name, term in named.items() if name not in _OPPOSED}
        self.losses = nn.ModuleDict({name: _new_loss(name, backbone) for name in self.measured})
        opposed = {name: term for name, term in named.items() if name in _OPPOSED}
        self.opposed = {name: term for name, term in opposed.items() if name != "gp"}
        penalty = opposed["gp"].start if "gp" in opposed else 0.0
        self.adversary = AdversarialLoss(channels, hinge="hinge" in opposed, penalty=penalty) if self.opposed else None
        self.epoch = 1
        learned = {name: nn.Parameter(torch.zeros(())) for name in self.measured}
        self.log_variances = nn.ParameterDict(learned if weighting == "uncertainty" else {})

    def forward(self, rebuilt: Tensor, target: Tensor) -> LossTerms:
        """Reconstructions and images to weighted scalar terms, whose sum is to be made small."""
        with torch.autocast(target.device.type, enabled=False):
            rebuilt, target = rebuilt.float(), target.float()
            values = {name: self.losses[name](rebuilt, target) for name in self.measured}
            if not self.training:
                return {name: self.measured[name].end * value for name, value in values.items()}
            terms = {name: self._weighted(self.measured[name], value) for name, value in values.items()}
            if self.adversary is not None:
                found = self.adversary(rebuilt, target, tuple(self.opposed))
                terms |= {name: self.opposed[name].weight(self.epoch) * value for name, value in found.items()}
        return terms

    def trained(self) -> Iterable[nn.Parameter]:
        """Parameters trained along with the network."""
        return self.log_variances.values()

    def critic(self) -> Critic | None:
        """The adversary's own side, or None."""
        return None if self.adversary is None else self.adversary.critic()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the weights for an epoch, counted from 1."""
        del epochs
        self.epoch = epoch

    def _weighted(self, term: Term, value: Tensor) -> Tensor:
        # The weight is outside: inside, the variance would learn it away, and run off where it is 0.
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
    """SSIM at every pixel and channel (Wang et al. 2004, equation 13), Gaussian window, data range 1.

    Args:
        first: Tensor [B,C,H,W].
        second: Tensor [B,C,H,W].

    Returns:
        Tensor [B,C,H,W] in [-1, 1]; 1 where the two agree. Borders are reflected.
    """
    luminance, contrast = _ssim_parts(first, second, padded=True)
    similarity: Tensor = luminance * contrast
    return similarity


def _ssim_parts(first: Tensor, second: Tensor, *, padded: bool) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure (Wang et al. 2004, equations 6, 9 and 10)."""
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
