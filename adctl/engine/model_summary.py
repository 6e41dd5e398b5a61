"""How large a network is and what an image costs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Summary:
    """The size of a network.

    Attributes:
        layers: Modules with weights of their own.
        parameters: Numbers learned or loaded.
        trainable: Of these, learned.
        stored: Bytes of parameters and fitted statistics, as in the model file.
        flops: Floating-point operations to score one image; matrix products, convolutions and attention.
    """

    layers: int
    parameters: int
    trainable: int
    stored: int
    flops: int


def summarise(network: nn.Module, image: Tensor) -> Summary:
    """Count a network's weights, and its operations on one image [1,C,H,W]."""
    parameters = list(network.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    return Summary(
        layers=sum(1 for part in network.modules() if next(part.parameters(recurse=False), None) is not None),
        parameters=sum(one.numel() for one in parameters),
        trainable=sum(one.numel() for one in parameters if one.requires_grad),
        stored=sum(one.numel() * one.element_size() for one in network.state_dict().values()),
        flops=int(counter.get_total_flops()),
    )
