"""Smoothing and scores of anomaly maps, as parts of a detector's graph. Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

_LEAST_WEIGHT = 1e-3
"""Weight of cells inside the image below which a cell outside gets no average of them."""


class GaussianBlur(nn.Module):
    """Separable Gaussian smoothing of maps [B,h,w] with reflected borders; sigma 0 is the identity."""

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        radius = math.ceil(3 * sigma)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)).square())
        self.radius = radius
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Smooth maps [B,h,w]."""
        if self.radius == 0:
            return maps
        pad = min(self.radius, maps.shape[-1] - 1, maps.shape[-2] - 1)
        weights = self.kernel[self.radius - pad : self.radius + pad + 1]
        weights = weights / weights.sum()
        padded = F.pad(maps.unsqueeze(1), (pad, pad, pad, pad), mode="reflect")
        rows = F.conv2d(padded, weights.view(1, 1, 1, -1))
        return F.conv2d(rows, weights.view(1, 1, -1, 1)).squeeze(1)


def smoothed_inside(blur: GaussianBlur, maps: Tensor, inside: Tensor | None) -> Tensor:
    """Smooth maps [B,h,w] by the cells inside the image alone.

    Args:
        blur: The smoothing.
        maps: The maps.
        inside: Mask [B,h,w] of the cells inside the image; None if all are. Cells outside get the average of the cells
            inside that are near, or else the lowest value inside.
    """
    if inside is None:
        plain: Tensor = blur(maps)
        return plain
    weights = inside.to(maps.dtype)
    total = blur(weights)
    lowest = maps.masked_fill(~inside, torch.inf).amin((1, 2), keepdim=True)
    near: Tensor = blur(maps.masked_fill(~inside, 0)) / total.clamp(min=_LEAST_WEIGHT)
    return torch.where(total > _LEAST_WEIGHT, near, lowest)


def top_mean(maps: Tensor, share: float, inside: Tensor | None = None) -> Tensor:
    """Return scores [B]: the mean of the highest cells of each map [B,h,w].

    It varies less than the maximum, which depends on one cell, and with a small share it is as local.

    Args:
        maps: The anomaly maps.
        share: Fraction of the cells to average, at least one cell.
        inside: Mask [B,h,w] of the cells that count; None counts all.
    """
    cells = maps.flatten(1)
    count = max(1, round(share * cells.shape[1]))
    if inside is None:
        return torch.topk(cells, count, dim=1).values.mean(1)
    counted = inside.flatten(1)
    highest = torch.topk(cells.masked_fill(~counted, -torch.inf), count, dim=1).values
    counts = (share * counted.sum(1, keepdim=True)).round().clamp(min=1)
    used = torch.arange(count, device=maps.device) < counts
    return highest.masked_fill(~used, 0).sum(1) / counts.squeeze(1)
