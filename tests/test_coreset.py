"""The lazy coreset algorithm is greedy: each pick is the row farthest from all earlier picks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.detectors.components import coreset, nearest_neighbours


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 300),
    columns=st.integers(1, 8),
    share=st.floats(0.01, 1),
    pool=st.sampled_from([1, 3, 16, 4096]),
    seed=st.integers(0, 1000),
)
def test_every_pick_is_the_farthest_row(rows, columns, share, pool, seed):
    # Whole numbers: squared distances are exact in float32.
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-60, 60, (rows, columns), generator=generator).float()
    count = max(1, round(share * rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "_POOL", pool)
        picked = coreset.k_center_greedy(vectors, count, seed=seed).tolist()
    assert len(set(picked)) == count
    exact = vectors.double()
    distance = (exact - exact[picked[0]]).square().sum(1)
    for index in picked[1:]:
        assert distance[index] == distance.max()  # farthest of all, ties allowed
        distance = torch.minimum(distance, (exact - exact[index]).square().sum(1))


def test_count_out_of_range_is_refused():
    with pytest.raises(ValueError, match="between 1 and 3"):
        coreset.k_center_greedy(torch.rand(3, 2), 4, seed=0)


@settings(max_examples=30, deadline=None)
@given(
    queries=st.integers(1, 200),
    rows=st.integers(1, 200),
    columns=st.integers(1, 16),
    block=st.sampled_from([1, 64, 1024]),
)
def test_nearest_is_the_brute_force_minimum(queries, rows, columns, block):
    generator = torch.Generator().manual_seed(queries * 1000 + rows)
    first, second = torch.rand(queries, columns, generator=generator), torch.rand(rows, columns, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_neighbours, "_QUERY_ROWS", block)
        patch.setattr(nearest_neighbours, "_BANK_ROWS", block)
        found = nearest_neighbours.nearest_squared(first, second)
    expected = torch.cdist(first.double(), second.double()).amin(1).square()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
