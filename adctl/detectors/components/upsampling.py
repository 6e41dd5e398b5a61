"""Upsampling of diffusers' U-Nets in a form that can be exported for any batch size. Tensors only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


class Upsample(nn.Module):
    """Upsampling by 2, then a convolution.

    It replaces the module of diffusers, whose code depends on the batch size and cannot be exported for any batch.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, features: Tensor, size: None = None) -> Tensor:
        """Double the resolution of features [B,C,h,w]."""
        del size
        doubled: Tensor = self.convolution(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return doubled


def use_exportable_upsampling(unet: Any) -> None:
    """Replace the upsampling of a U-Net of diffusers by `Upsample`."""
    for block in unet.up_blocks[:-1]:
        block.upsamplers = nn.ModuleList([Upsample(block.upsamplers[0].conv)])
