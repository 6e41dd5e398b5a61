"""A critic that tells reconstructions from images, and what is learned from it. Tensors only.

Discriminator of patches: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR
2017, section 3.2.2. The generator's step leaves no gradients on the critic, and the critic's none on the generator.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.engine.phases import Critic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import LossTerms


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of 46 pixels: images [B,C,H,W] in [0, 1] to inner features and logits [B,1,h,w].

    Spectral normalisation (Miyato et al., ICLR 2018) in place of batch statistics, so that it judges an image
    the same in any batch.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)
            )
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.judge = nn.Conv2d(widths[-1], 1, 4, 1, 2)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of each layer, and logits: above 0 for images, below for reconstructions."""
        features = []
        inner = images * 2 - 1
        for layer in self.layers:
            inner = layer(inner)
            features.append(inner)
        return features, self.judge(inner)


class Adversary(nn.Module):
    """Both sides of the game.

    Args:
        channels: C of the images.
        hinge: The hinge form (Lim and Ye, "Geometric GAN", 2017) instead of the non-saturating one (Goodfellow
            et al., NeurIPS 2014, section 3).
        penalty: Weight of the squared gradient at real images (R1; Mescheder et al., ICML 2018, equation 9).
    """

    def __init__(self, channels: int, *, hinge: bool, penalty: float) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(channels)
        self.hinge = hinge
        self.penalty = penalty
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, rebuilt: Tensor, target: Tensor, names: Sequence[str]) -> LossTerms:
        """The generator's losses, unweighted: `adversarial` or `hinge`, and `matching`.

        The latter is the mean absolute difference of inner features (Salimans et al., NeurIPS 2016, section 3.1).
        """
        self._seen = rebuilt.detach(), target
        self.discriminator.requires_grad_(requires_grad=False)
        features, logits = self.discriminator(rebuilt)
        terms: LossTerms = {}
        for name in names:
            if name == "matching":
                with torch.no_grad():
                    real, _ = self.discriminator(target)
                pairs = zip(features, real, strict=True)
                terms[name] = torch.stack([F.l1_loss(made, wanted) for made, wanted in pairs]).mean()
            else:
                terms[name] = -logits.mean() if self.hinge else F.softplus(-logits).mean()
        return terms

    def critic(self) -> Critic:
        """The critic's own training."""
        return Critic(self._critic_loss, list(self.discriminator.parameters()))

    def _critic_loss(self) -> LossTerms:
        """How badly it tells apart what the generator's loss saw last."""
        assert self._seen is not None
        rebuilt, target = self._seen
        self.discriminator.requires_grad_(requires_grad=True)
        target = target.detach().requires_grad_(self.penalty > 0)
        _, real = self.discriminator(target)
        _, made = self.discriminator(rebuilt)
        if self.hinge:
            terms = {"critic": F.relu(1 - real).mean() + F.relu(1 + made).mean()}
        else:
            terms = {"critic": F.softplus(-real).mean() + F.softplus(made).mean()}
        if self.penalty:
            (slope,) = torch.autograd.grad(real.sum(), target, create_graph=True)
            terms["gp"] = 0.5 * self.penalty * slope.square().sum((1, 2, 3)).mean()
        return terms
