"""Nearest-neighbour distances: exact by blocked matrix products, or approximate by inverted lists.

Knows only matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import to_rows
from adctl.detectors.components.graph_capture import capturing

_QUERY_ROWS = 4096
_BANK_ROWS = 512
"""A block of distances, 4096 x 512 in float32, is 8 MiB: reduced while it is still in cache."""

_GRAPH_ROWS = 384
"""Rows of the bank to a block in an exported or compiled graph: the distances of an image to them, 0.6 MiB with 21 x 21
cells, stay in cache until they are reduced. With 26 x 26, blocks of 256 are as fast, of 1,024 a tenth slower."""

LARGEST_CODE = 127
_LARGEST_BANK_CODE = 63

_LLOYD_STEPS = 3


def nearest_squared(queries: Tensor, bank: Tensor, query_squares: Tensor | None = None) -> Tensor:
    """Squared Euclidean distance of each query to its nearest row of the bank.

    Measured with 1,024 and 8,192 queries of length 128 against 4,096 and 40,960 rows (AVX2, one thread, a busy machine;
    `examples/benchmarks/search.py`): 0.8 to 1.1 times the speed of the bare matrix product, and faiss's IndexFlatL2 1.0
    to 1.2 times. An exact search in float32 has nothing left to gain there, so faiss is not used.

    Args:
        queries: Tensor [M,C].
        bank: Tensor [N,C], N at least 1.
        query_squares: Tensor [M], the squared norms of the queries where they are known already.

    Returns:
        Tensor [M], never negative.
    """
    if query_squares is None:
        query_squares = queries.square().sum(1)
    return (_least(queries, bank) + query_squares).clamp(min=0)


def to_codes(values: Tensor, step: Tensor) -> Tensor:
    """Values to whole numbers of eight bits, -127 to 127, as floats; what lies beyond is brought to the ends.

    Args:
        values: Tensor of any shape.
        step: Scalar, what a one stands for.
    """
    return (values / step).round().clamp(-LARGEST_CODE, LARGEST_CODE)


def coded_bank(bank: Tensor) -> tuple[Tensor, Tensor]:
    """A bank in seven bits, which leaves features room for twice as much as good ones have.

    A processor without instructions for products of eight bits adds pairs of them in sixteen, which overflow unless one
    factor has a bit less.

    Args:
        bank: Tensor [N,C].

    Returns:
        Codes [N,C] of int8, -63 to 63, and the step, a scalar.
    """
    step = bank.abs().max().clamp(min=torch.finfo(bank.dtype).tiny) / _LARGEST_BANK_CODE
    return (bank / step).round().to(torch.int8), step


def least_of_codes(codes: Tensor, bank: Tensor) -> Tensor:
    """The least |b|^2 - 2qb of each cell's codes q over the rows b of a coded bank.

    Adding |q|^2 makes it the squared distance, in steps. Sums of up to 350 such products fit into the 24 bits of single
    precision: then every runtime finds the same. OpenVINO computes them in eight bits: measured with 32 x 32 cells,
    3,276 rows and 64 channels, in 0.4 of the time of single precision. In an exported or compiled graph the products
    are convolutions of one pixel, which OpenVINO and ONNX Runtime compute without moving channels about: measured with
    OpenVINO, 1.4 times as fast as products of matrices.

    Args:
        codes: Tensor [B,C,h,w] of whole numbers, as `to_codes` gives them.
        bank: Tensor [N,C] of int8, as `coded_bank` gives it, N at least 1.

    Returns:
        Tensor [B,h,w].
    """
    if capturing():
        return -2 * _closest_in_graph(codes, bank)
    return _least(to_rows(codes), bank.to(codes.dtype)).view(codes[:, 0].shape)


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


def _closest_in_graph(codes: Tensor, bank: Tensor) -> Tensor:
    """The most qb - |b|^2 / 2 of each cell, [B,h,w], for a graph, which plans its own memory."""
    best = None
    for part in bank.split(_GRAPH_ROWS):
        rows = part.to(codes.dtype)
        block = F.conv2d(codes, rows[:, :, None, None], -0.5 * rows.square().sum(1)).amax(1)
        best = block if best is None else torch.maximum(best, block)
    assert best is not None
    return best


class InvertedLists:
    """A bank in lists of rows that lie together; a query is compared with the rows of the nearest few lists alone.

    The distance found is never below the exact one. Sivic & Zisserman 2003; Jegou et al., "Product Quantization for
    Nearest Neighbor Search", 2011, section 4, without the quantisation. The lists are those of k-means, as many as
    the root of the number of rows.

    Args:
        bank: Tensor [N,C].
        probes: Lists a query is compared with.
    """

    def __init__(self, bank: Tensor, probes: int) -> None:
        centres = _k_means(bank, max(1, round(len(bank) ** 0.5)))
        lists = _nearest_row(bank, centres)
        lengths = torch.bincount(lists, minlength=len(centres))
        self._centres = centres[lengths > 0]  # one without rows would be looked into for nothing
        self._lengths: list[int] = lengths[lengths > 0].tolist()
        self._probes = min(probes, len(self._lengths))
        self._rows = bank[lists.argsort(stable=True)]
        self._squares = self._rows.square().sum(1)

    def nearest_squared(self, queries: Tensor) -> Tensor:
        """Squared distance [M] of each query [M,C] to the nearest row in the lists it is compared with."""
        return (self.least(queries) + queries.square().sum(1)).clamp_(min=0)

    def least(self, queries: Tensor) -> Tensor:
        """The least |b|^2 - 2qb [M] of each query over those rows."""
        # In blocks: what is gathered for them takes a multiple of their memory.
        return torch.cat([self._least(block) for block in queries.split(_QUERY_ROWS)])

    def _least(self, queries: Tensor) -> Tensor:
        gaps = torch.addmm(self._centres.square().sum(1), queries, self._centres.t(), alpha=-2)
        probed = gaps.topk(self._probes, dim=1, largest=False).indices.flatten()
        order = probed.argsort(stable=True)  # list by list: the queries that are compared with it
        wanted = queries[order // self._probes]
        best = queries.new_full((len(order),), torch.inf)
        counts: list[int] = torch.bincount(probed, minlength=len(self._lengths)).tolist()
        query, row = 0, 0
        for count, length in zip(counts, self._lengths, strict=True):
            if count:
                rows, squares = self._rows[row : row + length], self._squares[row : row + length]
                products = torch.addmm(squares, wanted[query : query + count], rows.t(), alpha=-2)
                torch.amin(products, 1, out=best[query : query + count])
            query, row = query + count, row + length
        return torch.empty_like(best).index_copy_(0, order, best).view(-1, self._probes).amin(1)


def _k_means(rows: Tensor, count: int) -> Tensor:
    """Centres [count,C] after a few of Lloyd's steps, from rows drawn at random, always the same ones."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    centres = rows[drawn.to(rows.device)]
    for _ in range(_LLOYD_STEPS):
        nearest = _nearest_row(rows, centres)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def _nearest_row(queries: Tensor, bank: Tensor) -> Tensor:
    """Which row of the bank is nearest to each query, [M] of int64."""
    squares = bank.square().sum(1)
    blocks = [torch.addmm(squares, part, bank.t(), alpha=-2).argmin(1) for part in queries.split(_QUERY_ROWS)]
    return torch.cat(blocks)
