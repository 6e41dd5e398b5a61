"""Attention blocks behind a feature level: SE, ECA and CBAM. All start as nearly the identity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_REDUCTION = 8
_ECA_WINDOW, _CBAM_WINDOW = 5, 7
_OPEN = 4.0
"""Initial bias of the gates: they let nearly everything pass, so that pretrained features stay useful."""


class SqueezeExcitation(nn.Module):
    """Gate of each channel from the means of all (Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // _REDUCTION)
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        nn.init.constant_(self.up.bias, _OPEN)

    def gate(self, pooled: Tensor) -> Tensor:
        """Return the logits of the gates [B,C] from pooled channels [B,C]."""
        raised: Tensor = self.up(torch.relu(self.down(pooled)))
        return raised

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of features [B,C,h,w]."""
        return features * self.gate(features.mean((2, 3))).sigmoid()[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """Gate of each channel from the means of its neighbours (Wang et al., "ECA-Net", CVPR 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        del channels
        self.convolution = nn.Conv1d(1, 1, _ECA_WINDOW, padding=_ECA_WINDOW // 2)
        nn.init.constant_(self.convolution.bias, _OPEN)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of features [B,C,h,w]."""
        gate = self.convolution(features.mean((2, 3)).unsqueeze(1)).squeeze(1)
        scaled: Tensor = features * gate.sigmoid()[:, :, None, None]
        return scaled


class Cbam(nn.Module):
    """Gates of channels, then of places, from means and maxima (Woo et al., "CBAM", ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = SqueezeExcitation(channels)
        self.place = nn.Conv2d(2, 1, _CBAM_WINDOW, padding=_CBAM_WINDOW // 2)
        nn.init.constant_(self.place.bias, _OPEN)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Scale features [B,C,h,w]."""
        gate = self.channel.gate(features.mean((2, 3))) + self.channel.gate(features.amax((2, 3)))
        features = features * gate.sigmoid()[:, :, None, None]
        places = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)
        scaled: Tensor = features * self.place(places).sigmoid()
        return scaled


ATTENTION: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "se": SqueezeExcitation,
    "eca": EfficientChannelAttention,
    "cbam": Cbam,
}
"""Attention blocks by name, called with the number of channels."""
