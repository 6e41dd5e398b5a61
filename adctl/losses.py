"""How far a reconstruction is from its image. Tensors only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


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
