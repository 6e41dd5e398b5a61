"""Size of a network and its cost per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelSummary:
    """Size of a network.

    Attributes:
        layers: Number of modules with parameters of their own.
        parameters: Number of parameters.
        trainable: Number of trainable parameters.
        stored: Bytes of parameters and fitted statistics in the model file.
        flops: Floating-point operations per image, in matrix products, convolutions and attention.
    """

    layers: int
    parameters: int
    trainable: int
    stored: int
    flops: int


def summarise(network: nn.Module, image: Tensor) -> ModelSummary:
    """Count the parameters of a network, and its operations on one image [1,C,H,W]."""
    parameters = list(network.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    return ModelSummary(
        layers=sum(1 for part in network.modules() if next(part.parameters(recurse=False), None) is not None),
        parameters=sum(one.numel() for one in parameters),
        trainable=sum(one.numel() for one in parameters if one.requires_grad),
        stored=sum(one.numel() * one.element_size() for one in network.state_dict().values()),
        flops=int(counter.get_total_flops()),
    )
