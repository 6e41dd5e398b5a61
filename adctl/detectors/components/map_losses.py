"""Losses of similarity maps against masks, for detectors that learn from labelled or painted defects. Tensors only.

B images, h x w cells. A similarity map has two planes that sum to 1: normal (0) and abnormal (1). All losses are
scalars in float32, 0 at best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adctl.errors import UsageError, unknown_name

TERMS = ("focal", "dice", "bce", "sharpness", "coverage", "consistency")
"""Names of the losses."""

_EPSILON = 1e-6
_SMOOTH = 1.0


def focal(maps: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p, with p the share of the right plane in each cell.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, without alpha, as AnomalyCLIP uses it.

    Args:
        maps: Similarity maps [B,2,h,w].
        masks: Masks [B,h,w], 1 for a defect.
        gamma: Exponent that weakens easy cells.
    """
    right = torch.where(masks > 0.5, maps[:, 1].float(), maps[:, 0].float()).clamp(_EPSILON, 1)  # noqa: PLR2004
    return (-((1 - right) ** gamma) * right.log()).mean()


def dice(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the sum of the Dice losses of both planes, each 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), mean over B.

    Milletari et al., "V-Net", 3DV 2016, equation 3, without squares and with 1 for empty masks; both planes as in
    AnomalyCLIP, equation 5.

    Args:
        maps: Similarity maps [B,2,h,w].
        masks: Masks [B,h,w], 1 for a defect.
    """
    wanted = torch.stack([1 - masks.float(), masks.float()], 1)
    both = 2 * (maps.float() * wanted).sum((2, 3)) + _SMOOTH
    return (1 - both / (maps.float().sum((2, 3)) + wanted.sum((2, 3)) + _SMOOTH)).sum(1).mean()


def image_bce(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of image scores.

    Args:
        scores: Scores [B] in [0, 1].
        labels: Labels [B], 1 for a defective image.
    """
    p, wanted = scores.float().clamp(_EPSILON, 1 - _EPSILON), labels.float()
    return -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()


def sharpness(maps: Tensor) -> Tensor:
    """Return the mean entropy of the two planes in each cell, in bits: -(p log2 p + q log2 q).

    Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NeurIPS 2004, equation 4.

    Args:
        maps: Similarity maps [B,2,h,w].
    """
    shares = maps.float().clamp(_EPSILON, 1)
    return -(shares * shares.log()).sum(1).mean() / math.log(2)


def coverage(masses: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the abnormal prompt's attention outside of the mask, mean over the defective images.

    1 - sum(a m) / sum(a), as the attention losses of Chefer et al., "Attend-and-Excite", SIGGRAPH 2023, and of Chen et
    al., "Training-Free Layout Control with Cross-Attention Guidance", WACV 2024, equation 3, without the square. It is
    0 without defective images.

    Args:
        masses: Attention to both prompts [B,2,h,w].
        masks: Masks [B,h,w], 1 for a defect.
    """
    abnormal, inside = masses[:, 1].float(), masks.float()
    share = (abnormal * inside).sum((1, 2)) / (abnormal.sum((1, 2)) + _EPSILON)
    defective = (inside.sum((1, 2)) > 0).float()
    return ((1 - share) * defective).sum() / defective.sum().clamp(min=1)


def consistency(layers: Tensor, masses: Tensor) -> Tensor:
    """Return the disagreement of the layers plus the overlap of the prompts.

    The first is the mean squared difference of the layers' abnormal planes from their mean. The second is the mean over
    the cells of the smaller of both prompts' attention, each divided by its maximum: 1 where both look at the same
    places, 0 where they look at different ones.

    Args:
        layers: Similarity maps of the layers [K,B,2,h,w].
        masses: Attention to both prompts [B,2,h,w].
    """
    planes = layers[:, :, 1].float()
    between = (planes - planes.mean(0)).square().mean()
    relative = masses.float() / (masses.float().amax((2, 3), keepdim=True) + _EPSILON)
    return between + relative.amin(1).mean()


def parse_weights(text: str) -> dict[str, float]:
    """Parse weights such as `focal=1,dice=0.5`; losses that are left out have weight 0.

    Raises:
        UsageError: A name is unknown, a weight is no number of at least 0, or all are 0.
    """
    weights = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in TERMS:
            raise unknown_name("loss", name, TERMS)
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < math.inf:
            raise UsageError(f"The weight of '{name}' must be a number of at least 0, not '{value}'.")
    if not any(weights.values()):
        raise UsageError("All weights of the losses are 0.", "Give one above 0, such as focal=1.")
    return {name: weight for name, weight in weights.items() if weight}
