"""Nearest-neighbour distances: exact by blocked matrix products, or approximate by inverted lists.

Knows only matrices.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.graph_capture import capturing

_QUERY_ROWS = 4096
_BANK_ROWS = 512
"""A block of distances, 4096 x 512 in float32, has 8 MiB and is reduced while it is in the cache."""

_GPU_BLOCK = 2**27
"""Distances that a GPU computes at once: fewer would start too many kernels, more would take more than 512 MiB."""

_GRAPH_ROWS = 384
"""Rows of the bank per block in an exported or compiled graph. The distances of an image with 21 x 21 cells, 0.6 MiB,
stay in the cache until they are reduced. With 26 x 26 cells, blocks of 256 are as fast and of 1,024 a tenth slower."""

LARGEST_CODE = 127
LARGEST_BANK_CODE = 63

_LLOYD_STEPS = 3


def nearest_squared(queries: Tensor, bank: Tensor, query_squares: Tensor | None = None) -> Tensor:
    """Return the squared Euclidean distance of each query to its nearest row of the bank.

    With 1,024 and 8,192 queries of length 128 against 4,096 and 40,960 rows (AVX2, one thread;
    `examples/benchmarks/search.py`), this ran at 0.8 to 1.1 times the speed of the matrix product alone, and faiss's
    IndexFlatL2 at 1.0 to 1.2 times. faiss would gain too little for a dependency.

    Args:
        queries: Tensor [M,C].
        bank: Tensor [N,C], with at least one row.
        query_squares: Tensor [M], the squared norms of the queries, if they are known.

    Returns:
        Tensor [M], not negative.
    """
    if query_squares is None:
        query_squares = queries.square().sum(1)
    return (_minimum(queries, bank) + query_squares).clamp(min=0)


def to_codes(values: Tensor, step: Tensor) -> Tensor:
    """Quantise values to integers from -127 to 127, returned as floats; larger values are clipped.

    Args:
        values: Tensor of any shape.
        step: Scalar, the quantisation step.
    """
    return (values / step).round().clamp(-LARGEST_CODE, LARGEST_CODE)


def quantise_bank(bank: Tensor, smallest_step: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantise the bank to 7 bits, which leaves queries twice the range of the bank.

    Processors without 8-bit dot products add pairs of products in 16 bits, which overflow unless one factor has only 7
    bits.

    Args:
        bank: Tensor [N,C].
        smallest_step: Smallest quantisation step: with that of earlier rows, their codes change only if new rows need a
            larger one. None for no limit.

    Returns:
        Codes [N,C] of int8, -63 to 63, and the quantisation step, a scalar.
    """
    step = bank.abs().max().clamp(min=torch.finfo(bank.dtype).tiny) / LARGEST_BANK_CODE
    if smallest_step is not None:
        step = torch.maximum(step, smallest_step)
    return (bank / step).round().to(torch.int8), step


def minimum_over_bank(codes: Tensor, bank: Tensor) -> Tensor:
    """Return the minimum of |b|^2 - 2qb over the rows b of a quantised bank, for each cell's codes q.

    With |q|^2 added it is the squared distance, in quantisation steps. Sums of up to 350 products fit into the 24 bits
    of single precision, so all runtimes give the same result. OpenVINO computes them in 8 bits: with 32 x 32 cells,
    3,276 rows and 64 channels, in 0.4 of the time of single precision. In an exported or compiled graph the products
    are 1 x 1 convolutions, which OpenVINO and ONNX Runtime compute without transposing: with OpenVINO, 1.4 times as
    fast as matrix products.

    Args:
        codes: Tensor [B,C,h,w] of integers, from `to_codes`.
        bank: Tensor [N,C] of int8 with at least one row, from `quantise_bank`.

    Returns:
        Tensor [B,h,w].
    """
    if capturing():
        return -2 * _maximum_in_graph(codes, bank)
    if codes.device.type == "cuda":
        return _minimum_on_gpu(to_rows(codes), bank).view(codes[:, 0].shape)
    return _minimum(to_rows(codes), bank.to(codes.dtype)).view(codes[:, 0].shape)


def _minimum(queries: Tensor, bank: Tensor) -> Tensor:
    """Return the minimum of |b|^2 - 2qb over the bank for each query; with |q|^2 added, the squared distance.

    All products share one block of memory. Allocating 8 MiB for each product fragments the memory: by more than a
    gigabyte after a million rows.
    """
    query_rows, bank_rows = _QUERY_ROWS, _BANK_ROWS
    if queries.device.type != "cpu":
        bank_rows = min(len(bank), _GPU_BLOCK // _QUERY_ROWS)
        query_rows = _GPU_BLOCK // bank_rows
    best = queries.new_full((len(queries),), torch.inf)
    scratch = queries.new_empty(min(query_rows, len(queries)) * min(bank_rows, len(bank)))
    least = queries.new_empty(min(query_rows, len(queries)))
    blocks = [(part.t(), part.square().sum(1)) for part in bank.split(bank_rows)]
    for rows, found in zip(queries.split(query_rows), best.split(query_rows), strict=True):
        for transposed, squares in blocks:
            product = scratch[: len(rows) * len(squares)].view(len(rows), len(squares))
            torch.addmm(squares, rows, transposed, alpha=-2, out=product)
            torch.minimum(found, torch.amin(product, 1, out=least[: len(rows)]), out=found)
    return best


_DIGIT = 64
"""Base of the digits in which `_minimum_on_gpu` adds squared lengths."""


def _minimum_on_gpu(codes: Tensor, bank: Tensor) -> Tensor:
    """Return the minimum of |b|^2 - 2qb over a quantised bank [N,C] for each row of codes [M,C], exactly.

    The factors are whole numbers that half precision holds, and the sums are below 2^24, so tensor cores give the same
    result as single precision. |b|^2 takes part in the product as three digits, which saves a pass over all distances.
    """
    squares = bank.float().square().sum(1)
    upper = squares.floor_divide(_DIGIT)
    digits = [upper.floor_divide(_DIGIT), upper.remainder(_DIGIT), squares.remainder(_DIGIT)]
    padding = -(bank.shape[1] + len(digits)) % 8  # tensor cores take multiples of eight
    factors = torch.cat([-2.0 * bank.float(), torch.stack(digits, 1)], 1)
    right = F.pad(factors, (0, padding)).half().t()
    # A tensor of these three numbers would be copied from the host, for which the GPU waits.
    weights = [codes.new_full((len(codes), 1), float(_DIGIT**power), dtype=torch.float16) for power in (2, 1, 0)]
    left = F.pad(torch.cat([codes.half(), *weights], 1), (0, padding))
    rows = max(1, _GPU_BLOCK // len(bank))
    return torch.cat([torch.mm(part, right, out_dtype=torch.float32).amin(1) for part in left.split(rows)])


def _maximum_in_graph(codes: Tensor, bank: Tensor) -> Tensor:
    """Return the maximum of qb - |b|^2 / 2 for each cell, [B,h,w], in a captured graph."""
    best = None
    for part in bank.split(_GRAPH_ROWS):
        rows = part.to(codes.dtype)
        block = F.conv2d(codes, rows[:, :, None, None], -0.5 * rows.square().sum(1)).amax(1)
        best = block if best is None else torch.maximum(best, block)
    assert best is not None
    return best


class InvertedLists:
    """Bank divided into lists of similar rows; a query is compared with the rows of the nearest lists only.

    The distance is never below the exact one. Sivic & Zisserman 2003; Jegou et al., "Product Quantization for Nearest
    Neighbor Search", 2011, section 4, without quantisation. The lists are the clusters of k-means; their number is the
    square root of the number of rows.

    Args:
        bank: Tensor [N,C].
        probes: Number of lists to compare a query with.
    """

    def __init__(self, bank: Tensor, probes: int) -> None:
        centres = _k_means(bank, max(1, round(len(bank) ** 0.5)))
        lists = _nearest_row(bank, centres)
        lengths = torch.bincount(lists, minlength=len(centres))
        self._centres = centres[lengths > 0]  # empty lists are left out
        self._lengths: list[int] = lengths[lengths > 0].tolist()
        self._probes = min(probes, len(self._lengths))
        self._order = lists.argsort(stable=True)
        self._rows = bank[self._order]
        self._squares = self._rows.square().sum(1)

    def kept(self, kept: Tensor) -> InvertedLists:
        """Return the same lists with some rows of the bank only: kept is [N] of bool."""
        lists = copy.copy(self)
        lists._squares = self._squares.masked_fill(~kept[self._order], torch.inf)  # noqa: SLF001 - of the same class
        return lists

    def nearest_squared(self, queries: Tensor) -> Tensor:
        """Return the squared distance [M] of each query [M,C] to the nearest row in the lists compared."""
        return (self.minimum(queries) + queries.square().sum(1)).clamp_(min=0)

    def minimum(self, queries: Tensor) -> Tensor:
        """Return the minimum of |b|^2 - 2qb [M] over the rows compared, for each query; all rows if none was left."""
        # In blocks, because the gathered rows take a multiple of the memory of the queries.
        found = torch.cat([self._minimum(block) for block in queries.split(_QUERY_ROWS)])
        alone = found.isinf()
        if bool(alone.any()):
            found[alone] = _minimum(queries[alone], self._rows[self._squares.isfinite()])
        return found

    def _minimum(self, queries: Tensor) -> Tensor:
        gaps = torch.addmm(self._centres.square().sum(1), queries, self._centres.t(), alpha=-2)
        probed = gaps.topk(self._probes, dim=1, largest=False).indices.flatten()
        order = probed.argsort(stable=True)  # sorted by list
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
    """Return centres [count,C] after a few steps of Lloyd's algorithm, from random rows with a fixed seed."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    centres = rows[drawn.to(rows.device)]
    for _ in range(_LLOYD_STEPS):
        nearest = _nearest_row(rows, centres)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def _nearest_row(queries: Tensor, bank: Tensor) -> Tensor:
    """Return the index of the nearest row of the bank for each query, [M] of int64."""
    squares = bank.square().sum(1)
    blocks = [torch.addmm(squares, part, bank.t(), alpha=-2).argmin(1) for part in queries.split(_QUERY_ROWS)]
    return torch.cat(blocks)
