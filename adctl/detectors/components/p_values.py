"""Negative logarithms of p-values: how improbable a value is among the values of good images, as part of a graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adctl.detectors.components.feature_statistics import exact

_PROBABILITIES = (0.9, 0.5, *(2.0**-power for power in range(2, 11)))
"""Shares of good values above the knots; above the last one, an exponential tail begins."""

_SMALLEST_STEP = 1e-4
"""Smallest distance of neighbouring knots, as a fraction of the mean absolute value."""


class PValues(nn.Module):
    """Function from values to -log p, where p is the probability that a good value is as high.

    It is linear between quantiles of good values. Beyond the highest quantile, p falls exponentially, at the rate of
    the mean excess of the good values there.

    Attributes:
        knots: Tensor [K], the quantiles, in ascending order.
        slopes: Tensor [K], the slope of the function above each knot; below the first, it is that above it.
    """

    knots: Tensor
    slopes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("knots", torch.zeros(len(_PROBABILITIES)))
        self.register_buffer("slopes", torch.ones(len(_PROBABILITIES)))

    def fit(self, values: Tensor) -> None:
        """Estimate the function from good values [n]."""
        ordered = exact(values).sort().values
        last = len(ordered) - 1
        places = [round(last * (1 - probability)) for probability in _PROBABILITIES]
        smallest = _SMALLEST_STEP * float(ordered.abs().mean().clamp(min=_SMALLEST_STEP))
        knots = ordered[places] + smallest * torch.arange(len(places), device=ordered.device)
        heights = -torch.tensor(_PROBABILITIES, dtype=ordered.dtype, device=ordered.device).log()
        excess = (ordered[places[-1] :] - ordered[places[-1]]).mean().clamp(min=smallest)
        self.knots.copy_(knots)
        self.slopes.copy_(torch.cat([heights.diff() / knots.diff(), 1 / excess.view(1)]))

    def forward(self, values: Tensor) -> Tensor:
        """Return -log p of values [...], which grows with them; in natural logarithms."""
        above = (values.unsqueeze(-1) - self.knots[1:]).clamp(min=0)
        lowest = -math.log(_PROBABILITIES[0]) + self.slopes[0] * (values - self.knots[0])
        return lowest + above @ self.slopes.diff()
