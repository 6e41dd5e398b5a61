"""PatchGAN discriminator and its adversarial losses: one class per loss. Tensors only.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, section 3.2.2. The loss of
the generator gives no gradients to the discriminator, and vice versa.
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
    """Discriminator of overlapping patches of 46 pixels.

    It uses spectral normalisation (Miyato et al., ICLR 2018) instead of batch norm, so that its output does not depend
    on the batch.
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
        """Return the features of each layer and the logits [B,1,h,w] of images [B,C,H,W] in [0, 1].

        Logits are trained to be above 0 for images and below 0 for reconstructions.
        """
        features = []
        inner = images * 2 - 1
        for layer in self.layers:
            inner = layer(inner)
            features.append(inner)
        return features, self.judge(inner)


class NonSaturating(nn.Module):
    """Cross-entropy, for the generator with swapped labels (Goodfellow et al., NeurIPS 2014, section 3)."""

    def forward(self, fake: Tensor) -> Tensor:
        """Return the loss of the generator, a scalar, from the logits of reconstructions [B,1,h,w]."""
        return F.softplus(-fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of the discriminator, a scalar, from the logits of images and reconstructions [B,1,h,w]."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()


class Hinge(nn.Module):
    """Hinge loss: the discriminator ignores logits beyond a margin of 1 (Lim and Ye, "Geometric GAN", 2017)."""

    def forward(self, fake: Tensor) -> Tensor:
        """Return the loss of the generator, a scalar, from the logits of reconstructions [B,1,h,w]."""
        return -fake.mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of the discriminator, a scalar, from the logits of images and reconstructions [B,1,h,w]."""
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


class FeatureMatching(nn.Module):
    """Mean absolute difference of the discriminator's features, mean over layers (Salimans et al., NeurIPS 2016, 3.1).

    Features are compared at each place, as in Wang et al., "pix2pixHD", CVPR 2018, equation 4.
    """

    def forward(self, rebuilt: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar, of the features [B,C,h,w] of reconstructions and images in each layer."""
        return torch.stack([F.l1_loss(one, other) for one, other in zip(rebuilt, real, strict=True)]).mean()


class GradientPenalty(nn.Module):
    """Half the squared gradient of the logits at real images (R1; Mescheder et al., ICML 2018, equation 9).

    It is divided by the number of patches, so that suitable weights do not depend on the image size.
    """

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the penalty, a scalar, of logits [B,1,h,w] computed from images [B,C,H,W]."""
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return 0.5 * gradient.square().sum((1, 2, 3)).mean() / logits[0].numel()


class AdversarialLoss(nn.Module):
    """Losses of the generator and of the discriminator.

    Args:
        channels: Channels of the images.
        hinge: Whether to use `Hinge` instead of `NonSaturating`.
        penalty: Weight of the gradient penalty; 0 for none.
    """

    def __init__(self, channels: int, *, hinge: bool, penalty: float) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(channels)
        self.loss: Hinge | NonSaturating = Hinge() if hinge else NonSaturating()
        self.matching = FeatureMatching()
        self.gradient_penalty = GradientPenalty()
        self.penalty = penalty
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, rebuilt: Tensor, target: Tensor, names: Sequence[str]) -> LossTerms:
        """Return the generator's losses by name, unweighted: `adversarial` or `hinge`, and `matching`.

        Args:
            rebuilt: Reconstructions [B,C,H,W].
            target: Images [B,C,H,W].
            names: Names of the losses to compute.
        """
        self._last = rebuilt.detach(), target.detach()
        self.discriminator.requires_grad_(requires_grad=False)
        features, logits = self.discriminator(rebuilt)
        terms: LossTerms = {}
        for name in names:
            if name == "matching":
                with torch.no_grad():
                    real, _ = self.discriminator(target)
                terms[name] = self.matching(features, real)
            else:
                terms[name] = self.loss(logits)
        return terms

    def critic(self) -> Critic:
        """Return the training of the discriminator."""
        return Critic(self._critic_loss, list(self.discriminator.parameters()))

    def _critic_loss(self) -> LossTerms:
        """Return the discriminator's losses for the last batch of the generator."""
        assert self._last is not None
        rebuilt, target = self._last
        self.discriminator.requires_grad_(requires_grad=True)
        with torch.autocast(target.device.type, enabled=False):
            target = target.detach().requires_grad_(self.penalty > 0)
            _, real = self.discriminator(target)
            _, fake = self.discriminator(rebuilt)
            terms = {"critic": self.loss.critic(real, fake)}
            if self.penalty:
                terms["gp"] = self.penalty * self.gradient_penalty(real, target)
        return terms
