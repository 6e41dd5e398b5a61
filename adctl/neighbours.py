"""Exact nearest-neighbour distances by blocked matrix products. Knows only matrices."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 21
"""Distances held at once: 8 MiB of float32, so that a block is reduced while it is still in cache."""

_EXPORT_ROWS = 4096
"""Rows of the bank to a block in an exported graph, where the number of queries is not known."""


def nearest_squared(queries: Tensor, bank: Tensor, query_squares: Tensor | None = None) -> Tensor:
    """Squared Euclidean distance of each query to its nearest row of the bank.

    Args:
        queries: Tensor [M,C].
        bank: Tensor [N,C], N at least 1.
        query_squares: Tensor [M], the squared norms of the queries where they are known already.

    Returns:
        Tensor [M], never negative.
    """
    if query_squares is None:
        query_squares = queries.square().sum(1)
    if torch.compiler.is_exporting():
        best = torch.stack([_least(queries, part) for part in bank.split(_EXPORT_ROWS)]).amin(0)
    else:
        step = max(1, _BLOCK_ELEMENTS // bank.shape[0])
        best = torch.cat([_least(part, bank) for part in queries.split(step)])
    return (best + query_squares).clamp(min=0)


def _least(queries: Tensor, bank: Tensor) -> Tensor:
    """The least |b|^2 - 2qb of each query; adding |q|^2 makes it the squared distance."""
    return torch.addmm(bank.square().sum(1), queries, bank.t(), alpha=-2).amin(1)
