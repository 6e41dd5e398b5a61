"""Exact nearest-neighbour distances by blocked matrix products. Knows only matrices."""

from __future__ import annotations

import torch
from torch import Tensor

_QUERY_ROWS = 4096
_BANK_ROWS = 512
"""A block of distances, 4096 x 512 in float32, is 8 MiB: reduced while it is still in cache."""

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
    exporting = torch.compiler.is_exporting()
    blocks = [(part.t(), part.square().sum(1)) for part in bank.split(_EXPORT_ROWS if exporting else _BANK_ROWS)]
    if exporting:
        best = _least(queries, blocks)
    else:
        best = torch.cat([_least(part, blocks) for part in queries.split(_QUERY_ROWS)])
    return (best + query_squares).clamp(min=0)


def _least(queries: Tensor, blocks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The least |b|^2 - 2qb of each query over blocks of the bank; adding |q|^2 makes it the squared distance."""
    best: Tensor | None = None
    for transposed, squares in blocks:
        least = torch.addmm(squares, queries, transposed, alpha=-2).amin(1)
        best = least if best is None else torch.minimum(best, least)
    assert best is not None
    return best
