"""Noise that depends on the pixels of an image alone, as a part of a detector's graph. Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_PRIME = 2**31 - 1
_LEVELS = 255


class ImageNoise(nn.Module):
    """Standard normal noise seeded by a digest of each image: the same image always gets the same noise.

    The digest is a random linear hash of the 8-bit pixels, and each number of the noise another linear hash of the
    digest (Carter and Wegman, "Universal Classes of Hash Functions", 1979), turned into a normal number by Box and
    Muller (1958). Whole numbers are exact, so the noise does not depend on the device, the batch or the runtime.

    Args:
        shape: Shape of the images, (C,H,W).
        noise: Shape of the noise of an image.
    """

    weights: Tensor
    factors: Tensor
    shifts: Tensor

    def __init__(self, shape: tuple[int, int, int], noise: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(20_240_601)

        def numbers(*size: int) -> Tensor:
            return torch.randint(1, _PRIME, size, generator=generator)

        self.shape = noise
        count = math.prod(noise)
        self.register_buffer("weights", numbers(math.prod(shape)), persistent=False)
        self.register_buffer("factors", numbers(2, count), persistent=False)
        self.register_buffer("shifts", numbers(2, count), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the noise [B,*noise] of images [B,C,H,W] in [0, 1]."""
        pixels = (images.float() * _LEVELS).round().to(torch.int64).flatten(1)
        digest = ((pixels * self.weights).sum(1) % _PRIME).view(-1, 1, 1)
        hashed = (((digest + self.shifts) % _PRIME) * self.factors) % _PRIME
        first, second = ((hashed.float() + 0.5) / _PRIME).clamp(min=1e-7).unbind(1)
        noise = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
        shaped: Tensor = noise.unflatten(1, self.shape)
        return shaped
