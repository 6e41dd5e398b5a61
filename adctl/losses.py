"""How far a reconstruction is from its image. Tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.backbones import Backbone
    from adctl.engine.phases import Critic, LossTerms

TERMS = ("mse", "ssim")
"""Names of loss terms."""


@dataclass(frozen=True)
class Term:
    """One loss term of a sum, and its weight."""

    name: str
    weight: float

    @property
    def needs_backbone(self) -> bool:
        """Whether it compares features of a frozen backbone."""
        return False


def parse_spec(text: str) -> tuple[Term, ...]:
    """Read `mse=1,ssim=0.5`.

    Raises:
        ValueError: A name is unknown or twice, or a weight is no positive number.
    """
    pairs = (part.partition("=") for part in text.split(","))
    return tuple(Term(name.strip(), float(weight or 1)) for name, _, weight in pairs)


class Objective(nn.Module):
    """A weighted sum of loss terms."""

    def __init__(self, terms: Sequence[Term], *, weighting: str = "fixed", backbone: Backbone | None = None) -> None:
        super().__init__()
        del weighting, backbone
        self.terms = tuple(terms)

    def forward(self, rebuilt: Tensor, target: Tensor) -> LossTerms:
        """Reconstructions and images [B,C,H,W] in [0, 1] to weighted scalar terms."""
        return {term.name: term.weight * self._measure(term.name, rebuilt, target) for term in self.terms}

    def trained(self) -> Iterable[nn.Parameter]:
        """Parameters trained along with the network."""
        return ()

    def critic(self) -> Critic | None:
        """The adversary, or None."""
        return None

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the weights for an epoch, counted from 1."""

    @staticmethod
    def _measure(name: str, rebuilt: Tensor, target: Tensor) -> Tensor:
        if name == "mse":
            return F.mse_loss(rebuilt, target)
        return 0.5 * (1 - structural_similarity(rebuilt, target).mean())


def structural_similarity(first: Tensor, second: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """SSIM at every pixel and channel (Wang et al. 2004, equation 13), Gaussian window, data range 1.

    Args:
        first: Tensor [B,C,H,W].
        second: Tensor [B,C,H,W].
        window: Side of the window, pixels, odd.
        sigma: Of the Gaussian, pixels.

    Returns:
        Tensor [B,C,H,W] in [-1, 1]; 1 where the two agree. Borders are reflected.
    """
    both = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    mean1, mean2, square1, square2, product = _gaussian(both, window, sigma).chunk(5, dim=1)
    variance1, variance2 = square1 - mean1 * mean1, square2 - mean2 * mean2
    covariance = product - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1 * mean1 + mean2 * mean2 + c1)
    similarity: Tensor = luminance * (2 * covariance + c2) / (variance1 + variance2 + c2)
    return similarity


def _gaussian(images: Tensor, window: int, sigma: float) -> Tensor:
    channels = images.shape[1]
    offsets = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    weights = (weights / weights.sum()).view(1, 1, 1, window).expand(channels, 1, 1, window)
    padded = F.pad(images, (window // 2,) * 4, mode="reflect")
    rows = F.conv2d(padded, weights, groups=channels)
    return F.conv2d(rows, weights.transpose(2, 3), groups=channels)
