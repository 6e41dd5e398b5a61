"""Pictures that occur more than once: the same file, the same picture saved again, the same part photographed again.

Knows looks, nothing of folders.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from adctl.data.checks.findings import Finding, FindingCase, make_finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.data.checks.image_stats import ImageStats

HASH_DISTANCE = 10
"""Bits of 64 by which perceptual hashes of one picture may differ."""

DETAIL_CORRELATION = 0.7
"""Least correlation of the fine structure of two pictures of one thing."""

_HIGHEST = 0.98
"""Whatever the other pictures share: a copy saved again shares this much."""

_SPREADS = 2.5
"""How far above the spread of any two pictures of the folder two pictures of one thing must be."""

_BLOCK = 512
_SAMPLE = 200


def find_duplicates(looks: Sequence[ImageStats]) -> list[Finding]:
    """Find pictures that occur more than once.

    Args:
        looks: At readable images.
    """
    copies: defaultdict[str, list[ImageStats]] = defaultdict(list)
    for look in looks:
        copies[look.digest].append(look)
    same: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for group in copies.values():
        if len(group) > 1:
            same[_kind_of_copies(group)].append(_case(group, "byte for byte the same"))
    close: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for group, correlation in _near([group[0] for group in copies.values()]):
        kind = "near-leak" if _on_both_sides(group) else "near-duplicate"
        close[kind].append(_case(group, f"{correlation:.0%} of the fine structure shared, or more"))
    cases = {**same, **close}
    kinds = ("leak", "near-leak", "contradiction", "duplicate", "near-duplicate")
    return [found for kind in kinds for found in make_finding(kind, cases.get(kind, ()))]


def _kind_of_copies(group: Sequence[ImageStats]) -> str:
    if len({look.sample.label for look in group}) > 1:
        return "contradiction"
    return "leak" if _on_both_sides(group) else "duplicate"


def _on_both_sides(group: Sequence[ImageStats]) -> bool:
    return len({look.part for look in group}) > 1


def _case(group: Sequence[ImageStats], detail: str) -> FindingCase:
    # What is easiest to do without comes first: test images stay, so that results stay comparable.
    ordered = sorted(group, key=lambda look: (look.part == "test", look.sample.key))
    return FindingCase(tuple(look.sample.path for look in ordered), detail)


def _near(looks: Sequence[ImageStats]) -> Iterator[tuple[list[ImageStats], float]]:
    """Groups of pictures that are nearly the same, each with the least correlation that holds it together."""
    if len(looks) < 2:  # noqa: PLR2004 - a pair
        return
    hashes = np.array([look.hash for look in looks], np.uint64)
    details = np.stack([look.detail for look in looks if look.detail is not None])
    pairs = list(_pairs(hashes, details, _threshold(details)))
    if not pairs:
        return
    first, second, correlation = (np.array(column) for column in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(looks), len(looks)))
    _, group_of = connected_components(graph, directed=False)
    for group in np.unique(group_of[first]):
        members = np.flatnonzero(group_of == group)
        yield [looks[int(number)] for number in members], float(correlation[group_of[first] == group].min())


def _threshold(details: NDArray[np.int8]) -> float:
    """What two pictures must share, in view of what any two of them share: rigid parts share their outlines."""
    chosen = np.random.default_rng(0).permutation(len(details))[:_SAMPLE]
    unit = _unit(details[chosen])
    shared = (unit @ unit.T)[np.triu_indices(len(chosen), 1)]
    middle, high = np.arctanh(np.clip(np.quantile(shared, [0.5, 0.95]), -0.999, 0.999))
    return min(_HIGHEST, max(DETAIL_CORRELATION, math.tanh(middle + _SPREADS * (high - middle))))


def _pairs(hashes: NDArray[np.uint64], details: NDArray[np.int8], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs with close hashes and correlated detail, block by block: all of them at once would not fit into memory."""
    for top in range(0, len(hashes), _BLOCK):
        rows = slice(top, top + _BLOCK)
        for left in range(top, len(hashes), _BLOCK):
            columns = slice(left, left + _BLOCK)
            distance = np.bitwise_count(hashes[rows, None] ^ hashes[None, columns])
            near = distance <= HASH_DISTANCE
            if top == left:
                near &= np.tri(len(near), k=-1, dtype=bool).T
            if not near.any():
                continue
            correlation = _unit(details[rows]) @ _unit(details[columns]).T
            for row, column in np.argwhere(near & (correlation >= threshold)):
                yield int(top + row), int(left + column), float(correlation[row, column])


def _unit(details: NDArray[np.int8]) -> NDArray[np.float32]:
    """Rows of length one; empty pictures, which are like nothing, stay zero."""
    values = details.astype(np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(length, 1), np.float32)
