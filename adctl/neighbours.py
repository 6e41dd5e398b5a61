"""Exact nearest-neighbour distances by blocked matrix products. Knows only matrices."""

from __future__ import annotations

import torch
from torch import Tensor

_QUERY_ROWS = 4096
_BANK_ROWS = 512
"""A block of distances, 4096 x 512 in float32, is 8 MiB: reduced while it is still in cache."""

_EXPORT_ROWS = 4096
"""Rows of the bank to a block in an exported or compiled graph, where the number of queries is not known."""


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
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        best = _least_in_graph(queries, bank)
    else:
        best = _least(queries, bank)
    return (best + query_squares).clamp(min=0)


def _least(queries: Tensor, bank: Tensor) -> Tensor:
    """The least |b|^2 - 2qb of each query over the bank; adding |q|^2 makes it the squared distance.

    One block of memory serves all products. Memory that came and went with each, 8 MiB at a time, would be left in
    pieces by the allocator: over a gigabyte of them when a million rows were gone through.
    """
    best = queries.new_full((len(queries),), torch.inf)
    scratch = queries.new_empty(min(_QUERY_ROWS, len(queries)) * min(_BANK_ROWS, len(bank)))
    least = queries.new_empty(min(_QUERY_ROWS, len(queries)))
    blocks = [(part.t(), part.square().sum(1)) for part in bank.split(_BANK_ROWS)]
    for rows, found in zip(queries.split(_QUERY_ROWS), best.split(_QUERY_ROWS), strict=True):
        for transposed, squares in blocks:
            product = scratch[: len(rows) * len(squares)].view(len(rows), len(squares))
            torch.addmm(squares, rows, transposed, alpha=-2, out=product)
            torch.minimum(found, torch.amin(product, 1, out=least[: len(rows)]), out=found)
    return best


def _least_in_graph(queries: Tensor, bank: Tensor) -> Tensor:
    """The same for a graph, which plans its own memory and takes any number of queries."""
    best: Tensor | None = None
    for part in bank.split(_EXPORT_ROWS):
        least = torch.addmm(part.square().sum(1), queries, part.t(), alpha=-2).amin(1)
        best = least if best is None else torch.minimum(best, least)
    assert best is not None
    return best
