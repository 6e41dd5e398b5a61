"""Choosing a coreset: the few feature vectors that cover all the others.

Greedy k-center (Sener & Savarese 2018, algorithm 1; used by PatchCore, Roth et al. 2022, section 3.2),
computed exactly but lazily, so that nearly all of its work is matrix products. Knows only matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adctl.detectors.components.nearest_neighbours import nearest_squared

if TYPE_CHECKING:
    from collections.abc import Callable

_POOL = 4096
"""Candidates looked at between two passes over all vectors; any value gives the same coreset."""

_BLOCK = 65536
"""Rows whose squares are in memory at once."""


def k_center_greedy(
    vectors: Tensor, count: int, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Pick `count` rows, each the farthest from those picked before it.

    A distance to the nearest picked row can only fall as more are picked. So the farthest rows of the last
    full pass form a pool, and as long as the farthest of the pool is no nearer than the best row outside it
    was then, it is the farthest of all: the picks equal those of the plain algorithm (but for ties within
    rounding), while the full pass is one matrix product for hundreds of picks.

    Args:
        vectors: Tensor [N,C] of float32.
        count: How many to pick, 1 to N.
        seed: Decides the first row.
        progress: Told (picked, count) after each full pass.

    Returns:
        Tensor [count] of int64, row indices in the order they were picked.
    """
    rows = vectors.shape[0]
    if not 1 <= count <= rows:
        raise ValueError(f"count must be between 1 and {rows}. Got {count} instead.")
    first = torch.randint(rows, (1,), generator=torch.Generator().manual_seed(seed)).to(vectors.device)
    picked = [first]
    squares = torch.cat([block.square().sum(1) for block in vectors.split(_BLOCK)])  # vectors may be larger than memory
    distance = torch.full((rows,), torch.inf, device=vectors.device)
    done = 1
    while done < count:
        _approach(distance, vectors, squares, picked[-1])
        fresh = _pick_from_pool(vectors, distance, count - done)
        picked.append(fresh)
        done += fresh.numel()
        if progress is not None:
            progress(done, count)
    return torch.cat(picked)


def _approach(distance: Tensor, vectors: Tensor, squares: Tensor, centres: Tensor) -> None:
    """Lower the squared distances [N] to take account of new centres, in place."""
    torch.minimum(distance, nearest_squared(vectors, vectors[centres], squares), out=distance)
    distance[centres] = -1.0  # never again, not even among duplicates


def _pick_from_pool(vectors: Tensor, distance: Tensor, wanted: int) -> Tensor:
    """The next picks of the greedy algorithm, as many as the pool can prove."""
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
