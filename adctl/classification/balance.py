"""Weights and samples of rare kinds, and losses that take them into account. Arrays and tensors only.

N images, K kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_LARGEST_RATIO = 1e6
"""Largest ratio of two weights; above, float32 gradients of the others vanish."""


def class_weights(counts: NDArray[np.int64], strategy: str, beta: float) -> NDArray[np.float64]:
    """Compute the weight [K] of each kind; their mean over the images is 1.

    Args:
        counts: Training images of each kind [K], at least 1.
        strategy: `weights` (inverse frequency), `class-balanced` (inverse effective number of images; Cui et al.,
            "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 2); others give 1.
        beta: Parameter of the effective number, 0 to 1.

    Raises:
        UsageError: The weights differ so much that training would not be exact.
    """
    if strategy == "weights":
        weights = 1.0 / counts
    elif strategy == "class-balanced":
        weights = (1 - beta) / -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones(len(counts))
    else:
        return np.ones(len(counts))
    if weights.max() / weights.min() > _LARGEST_RATIO:
        raise UsageError(
            f"The weights of the kinds differ {weights.max() / weights.min():.3g}-fold, which is too much.",
            "Give more images of the rare kinds, or use --balance undersample.",
        )
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), np.float64)


def balanced_indices(labels: NDArray[np.int64], strategy: str, seed: int) -> NDArray[np.int64]:
    """Return the images [M] of one epoch: rare kinds repeated, frequent ones thinned out, or all.

    Args:
        labels: Number of each image's kind [N].
        strategy: `oversample`, `undersample`; others give all images.
        seed: Seed of the choice.
    """
    if strategy not in {"oversample", "undersample"}:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    places = [np.flatnonzero(labels == kind) for kind in np.unique(labels)]
    sizes = [len(own) for own in places]
    if strategy == "undersample":
        chosen = [generator.permutation(own)[: min(sizes)] for own in places]
    else:
        chosen = [np.concatenate([own, generator.choice(own, max(sizes) - len(own))]) for own in places]
    return np.sort(np.concatenate(chosen))


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, gamma: float = 0.0) -> Tensor:
    """Compute the focal loss of each image [B]; with gamma 0 the cross-entropy.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5; for soft targets each kind's term counts
    with its share, so that mixed images are mixed losses.

    Args:
        logits: Logits [B,K].
        targets: Shares of each kind [B,K], with sum 1.
        weights: Weight of each kind [K].
        gamma: Exponent of the focal loss.
    """
    log_shares = F.log_softmax(logits, 1)
    terms = targets * weights * log_shares
    if gamma > 0:
        # Bounded, because the derivative of a power below 1 is infinite at 0.
        terms = terms * (1 - log_shares.exp()).clamp_min(1e-12) ** gamma
    return -terms.sum(1)


def smoothed(labels: Tensor, kinds: int, smoothing: float) -> Tensor:
    """Return one-hot targets [B,K] with a share spread evenly over all kinds (Szegedy et al., CVPR 2016, section 7)."""
    return F.one_hot(labels, kinds).float() * (1 - smoothing) + smoothing / kinds


def prior_shift(counts: NDArray[np.int64], strength: float) -> Tensor:
    """Return what logit adjustment adds to the logits [K] in training.

    Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, equation 10.

    Args:
        counts: Training images of each kind [K].
        strength: Factor of the logarithm of the kinds' shares; 0 adds nothing.
    """
    shares = torch.from_numpy(counts / counts.sum())
    return (strength * shares.log()).float()
