"""Coreset selection: a small set of feature vectors that covers all others.

Greedy k-center (Sener & Savarese 2018, algorithm 1; used by PatchCore, Roth et al. 2022, section 3.2), exact, but with
lazy updates, so that nearly all computations are matrix products. Knows matrices only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adctl.detectors.components.nearest_neighbours import nearest_squared

if TYPE_CHECKING:
    from collections.abc import Callable

_POOL = 4096
"""Number of candidates between two passes over all vectors; it does not influence the result."""

_TOGETHER = 64
"""Rows that a GPU picks before the host looks at them."""

_BLOCK = 65536
"""Rows whose squares are computed at once."""


def k_center_greedy(
    vectors: Tensor,
    count: int,
    *,
    seed: int,
    covered_by: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Select rows one after another, each the farthest from all rows selected before.

    The distance of a row to the nearest selected row never increases. The farthest rows of a full pass form a pool.
    While the farthest row of the pool is at least as far as the farthest row outside it was in that pass, it is the
    farthest of all rows. The selection therefore equals that of the plain algorithm, apart from ties within rounding,
    and one full pass, a matrix product, serves hundreds of selections.

    Args:
        vectors: Tensor [N,C] of float32.
        count: Number of rows to select, 1 to N.
        seed: Seed of the first row; not used with `covered_by`.
        covered_by: Rows [M,C] selected before, from other vectors, which count as selected; None for none.
        progress: Receiver of progress, called with (selected, count) after each full pass, or None.

    Returns:
        Tensor [count] of int64, the row indices in the order of selection.

    Raises:
        ValueError: The count is out of range.
    """
    rows = vectors.shape[0]
    if not 1 <= count <= rows:
        raise ValueError(f"count must be between 1 and {rows}. Got {count} instead.")
    squares = torch.cat([block.square().sum(1) for block in vectors.split(_BLOCK)])  # vectors may be larger than memory
    if covered_by is None:
        picked = [torch.randint(rows, (1,), generator=torch.Generator().manual_seed(seed)).to(vectors.device)]
        distance = torch.full((rows,), torch.inf, device=vectors.device)
    else:
        picked = [torch.empty(0, dtype=torch.int64, device=vectors.device)]
        distance = nearest_squared(vectors, covered_by.to(vectors), squares)
    done = picked[0].numel()
    pool = _GpuPool(vectors) if vectors.device.type == "cuda" else None
    while done < count:
        if picked[-1].numel():
            _update_distances(distance, vectors, squares, picked[-1])
        fresh = (_pick_from_pool if pool is None else pool.pick)(vectors, distance, count - done)
        picked.append(fresh)
        done += fresh.numel()
        if progress is not None:
            progress(done, count)
    return torch.cat(picked)


def _update_distances(distance: Tensor, vectors: Tensor, squares: Tensor, centres: Tensor) -> None:
    """Update the squared distances [N] in place for new centres."""
    torch.minimum(distance, nearest_squared(vectors, vectors[centres], squares), out=distance)
    distance[centres] = -1.0  # excludes the centres, even from ties with duplicates


def _pick_from_pool(vectors: Tensor, distance: Tensor, wanted: int) -> Tensor:
    """Return the next selections of the greedy algorithm, as many as the pool determines."""
    pool_distance, pool = torch.topk(distance, min(_POOL, distance.numel()))
    outside = pool_distance[-1].item()
    candidates = vectors[pool]
    squares = candidates.square().sum(1)
    picks: list[int] = []
    while len(picks) < min(wanted, pool.numel()):
        best = int(pool_distance.argmax())
        if picks and pool_distance[best].item() < outside:
            break
        picks.append(best)
        # |a - b|^2 = |a|^2 - 2ab + |b|^2, clamped: rounding may go below zero
        gap = torch.addmv(squares, candidates, candidates[best], alpha=-2).add_(squares[best]).clamp_(min=0)
        torch.minimum(pool_distance, gap, out=pool_distance)
        pool_distance[best] = -2.0
    return pool[torch.tensor(picks, device=pool.device)]


class _GpuPool:
    """Picking from a pool on a GPU, with the results of `_pick_from_pool`.

    The GPU picks many rows before the host looks at them, because waiting for each pick takes longer than finding it.
    Picks beyond the one that ends the use of the pool are dropped. A CUDA graph starts the kernels of all these picks
    at once.

    Args:
        vectors: Tensor [N,C] of float32 on the GPU.
    """

    def __init__(self, vectors: Tensor) -> None:
        size = min(_POOL, len(vectors))
        self._gaps = vectors.new_empty(size, size)
        self._distance = vectors.new_zeros(size)
        self._picks = torch.empty(_TOGETHER, dtype=torch.int64, device=vectors.device)
        self._values = vectors.new_empty(_TOGETHER)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(vectors.device):
            self._step()  # outside the graph once, which loads the kernels
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._step()

    def pick(self, vectors: Tensor, distance: Tensor, wanted: int) -> Tensor:
        """Return the next selections of the greedy algorithm, as many as the pool determines."""
        pool_distance, pool = torch.topk(distance, len(self._distance))
        outside = pool_distance[-1].item()
        self._distance.copy_(pool_distance)
        self._measure(vectors[pool])
        picks: list[int] = []
        while len(picks) < min(wanted, len(pool)):
            self._graph.replay()
            values = self._values.tolist()
            usable = next((place for place, value in enumerate(values) if value < outside and (picks or place)), None)
            picks += self._picks[:usable].tolist()
            if usable is not None:
                break
        return pool[torch.tensor(picks[:wanted], device=pool.device)]

    def _measure(self, candidates: Tensor) -> None:
        """Compute the squared distances between all candidates [n,C]."""
        squares = candidates.square().sum(1)
        torch.addmm(squares, candidates, candidates.t(), alpha=-2, out=self._gaps)
        self._gaps.add_(squares.unsqueeze(1)).clamp_(min=0)

    def _step(self) -> None:
        """Pick `_TOGETHER` rows one after another, each the farthest; note them and their distances."""
        for place in range(_TOGETHER):
            value, best = self._distance.max(0, keepdim=True)
            self._values[place : place + 1].copy_(value)
            self._picks[place : place + 1].copy_(best)
            gap = self._gaps.index_select(0, best).squeeze(0)
            torch.minimum(self._distance, gap, out=self._distance)
            self._distance.index_fill_(0, best, -2.0)
