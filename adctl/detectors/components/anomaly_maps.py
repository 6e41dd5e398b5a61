"""What detectors do with feature maps and anomaly maps inside their graph. Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


class GaussianBlur(nn.Module):
    """Separable Gaussian smoothing of maps [B,h,w] with reflected borders; sigma 0 changes nothing."""

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        radius = math.ceil(3 * sigma)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)).square())
        self.radius = radius
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B,h,w] to smoothed maps of the same shape."""
        if self.radius == 0:
            return maps
        pad = min(self.radius, maps.shape[-1] - 1, maps.shape[-2] - 1)
        weights = self.kernel[self.radius - pad : self.radius + pad + 1]
        weights = weights / weights.sum()
        padded = F.pad(maps.unsqueeze(1), (pad, pad, pad, pad), mode="reflect")
        rows = F.conv2d(padded, weights.view(1, 1, 1, -1))
        return F.conv2d(rows, weights.view(1, 1, -1, 1)).squeeze(1)


def top_mean(maps: Tensor, share: float) -> Tensor:
    """The mean of the highest `share` of each map [B,h,w], at least one cell: scores [B].

    Steadier than the maximum, which rests on one cell, and as local where the share is small.
    """
    cells = maps.flatten(1)
    count = max(1, round(share * cells.shape[1]))
    return torch.topk(cells, count, dim=1).values.mean(1)


def to_rows(features: Tensor) -> Tensor:
    """Features [B,C,h,w] to rows [B*h*w,C], image by image, row by row."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
