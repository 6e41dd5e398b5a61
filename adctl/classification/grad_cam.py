"""Grad-CAM: the places of an image that speak for a kind.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
equations 1 and 2. With a linear head and pooling by the mean alone it is the class activation map of Zhou et al.,
"Learning Deep Features for Discriminative Localization", CVPR 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

if TYPE_CHECKING:
    from torch import Tensor

    from adctl.classification.classifier import Classifier


def grad_cam(classifier: Classifier, images: Tensor, kinds: Tensor) -> Tensor | None:
    """Return maps [B,h,w] of the places that raise the logit of a kind, in the size of the finest level.

    The maps of several levels are added as shares of the logit for each unit of area.

    Args:
        classifier: Classifier in evaluation mode.
        images: Images [B,C,H,W] of float32 in [0, 1].
        kinds: Number of the kind of each image [B].

    Returns:
        The maps; None if the head has no gradient, as trees have none.
    """
    with torch.inference_mode(mode=False):
        with torch.no_grad():
            found = classifier.backbone(images[:, : classifier.config.channels].clone())
        with torch.enable_grad():
            levels = [level.detach().requires_grad_() for level in found]
            logits = classifier.head(classifier.pooled(levels))
            if not logits.requires_grad:
                return None
            gradients = torch.autograd.grad(logits.gather(1, kinds[:, None]).sum(), levels)
        return torch.relu(sum(_shares(*pair, levels[0]) for pair in zip(levels, gradients, strict=True)))  # type: ignore[arg-type]


def _shares(level: Tensor, gradient: Tensor, finest: Tensor) -> Tensor:
    """Return the share of the logit [B,h,w] that each cell of the finest level has by one level [B,C,h',w']."""
    shares = (gradient.mean((2, 3), keepdim=True) * level.detach()).sum(1, keepdim=True)
    size = finest.shape[2:]
    scale = (shares.shape[2] * shares.shape[3]) / (size[0] * size[1])
    return F.interpolate(shares, size, mode="bilinear", align_corners=False)[:, 0] * scale
