"""A critic that tells reconstructions from images, and what is learned from it: one class a loss. Tensors only.

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


class NonSaturating(nn.Module):
    """Cross-entropy of judgements; the generator's with swapped labels (Goodfellow et al., NeurIPS 2014, section 3)."""

    def forward(self, made: Tensor) -> Tensor:
        """The generator's loss: logits of reconstructions [B,1,h,w] to a scalar."""
        return F.softplus(-made).mean()

    def critic(self, real: Tensor, made: Tensor) -> Tensor:
        """The critic's loss: logits of images and of reconstructions [B,1,h,w] to a scalar."""
        return F.softplus(-real).mean() + F.softplus(made).mean()


class Hinge(nn.Module):
    """The critic learns only from what it judges by less than a margin of 1 (Lim and Ye, "Geometric GAN", 2017)."""

    def forward(self, made: Tensor) -> Tensor:
        """The generator's loss: logits of reconstructions [B,1,h,w] to a scalar."""
        return -made.mean()

    def critic(self, real: Tensor, made: Tensor) -> Tensor:
        """The critic's loss: logits of images and of reconstructions [B,1,h,w] to a scalar."""
        return F.relu(1 - real).mean() + F.relu(1 + made).mean()


class FeatureMatching(nn.Module):
    """Mean absolute difference of the critic's inner features, mean over layers (Salimans et al., NeurIPS 2016, 3.1).

    Compared place by place, as in Wang et al., "pix2pixHD", CVPR 2018, equation 4.
    """

    def forward(self, made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Features [B,C,h,w] of reconstructions and of images, one a layer, to a scalar."""
        return torch.stack([F.l1_loss(one, wanted) for one, wanted in zip(made, real, strict=True)]).mean()


class GradientPenalty(nn.Module):
    """Half the squared gradient of the logits at real images (R1; Mescheder et al., ICML 2018, equation 9).

    Divided by the number of patches, so that a weight means the same at any size of the images.
    """

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Logits [B,1,h,w] and the images [B,C,H,W] they were computed from, to a scalar."""
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return 0.5 * slope.square().sum((1, 2, 3)).mean() / logits[0].numel()


class AdversarialLoss(nn.Module):
    """Both sides of the game.

    Args:
        channels: C of the images.
        hinge: `Hinge` instead of `NonSaturating`.
        penalty: Weight of the gradient penalty; 0 for none.
    """

    def __init__(self, channels: int, *, hinge: bool, penalty: float) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(channels)
        self.judgement: Hinge | NonSaturating = Hinge() if hinge else NonSaturating()
        self.matching = FeatureMatching()
        self.slope = GradientPenalty()
        self.penalty = penalty
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, rebuilt: Tensor, target: Tensor, names: Sequence[str]) -> LossTerms:
        """The generator's losses, unweighted, of images [B,C,H,W]: `adversarial` or `hinge`, and `matching`."""
        self._seen = rebuilt.detach(), target.detach()
        self.discriminator.requires_grad_(requires_grad=False)
        features, logits = self.discriminator(rebuilt)
        terms: LossTerms = {}
        for name in names:
            if name == "matching":
                with torch.no_grad():
                    real, _ = self.discriminator(target)
                terms[name] = self.matching(features, real)
            else:
                terms[name] = self.judgement(logits)
        return terms

    def critic(self) -> Critic:
        """The critic's own training."""
        return Critic(self._critic_loss, list(self.discriminator.parameters()))

    def _critic_loss(self) -> LossTerms:
        """How badly it tells apart what the generator's loss saw last."""
        assert self._seen is not None
        rebuilt, target = self._seen
        self.discriminator.requires_grad_(requires_grad=True)
        with torch.autocast(target.device.type, enabled=False):
            target = target.detach().requires_grad_(self.penalty > 0)
            _, real = self.discriminator(target)
            _, made = self.discriminator(rebuilt)
            terms = {"critic": self.judgement.critic(real, made)}
            if self.penalty:
                terms["gp"] = self.penalty * self.slope(real, target)
        return terms
