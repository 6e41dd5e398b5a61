"""Detection of duplicate images: byte-identical files, re-saved images, and repeated photographs of one part."""

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
"""Maximum number of different bits, of 64, between the perceptual hashes of near duplicates."""

DETAIL_CORRELATION = 0.7
"""Minimum correlation between the fine structures of near duplicates."""

_MAX_THRESHOLD = 0.98
"""Upper limit of the correlation threshold; a re-saved copy exceeds it."""

_SPREADS = 2.5
"""Distance of the threshold above the median correlation of image pairs, in units of the 95th percentile's distance."""

_BLOCK = 512
_SAMPLE = 200


def find_duplicates(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find duplicates and near duplicates.

    Args:
        stats: Statistics of the readable images.
    """
    copies: defaultdict[str, list[ImageStats]] = defaultdict(list)
    for image in stats:
        copies[image.digest].append(image)
    identical: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for group in copies.values():
        if len(group) > 1:
            identical[_kind_of_copies(group)].append(_case(group, "byte-identical"))
    similar: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for group, correlation in _near_duplicates([group[0] for group in copies.values()]):
        kind = "near-leak" if _is_leak(group) else "near-duplicate"
        similar[kind].append(_case(group, f"correlation of the fine structure at least {correlation:.0%}"))
    cases = {**identical, **similar}
    kinds = ("leak", "near-leak", "contradiction", "duplicate", "near-duplicate")
    return [found for kind in kinds for found in make_finding(kind, cases.get(kind, ()))]


def _kind_of_copies(group: Sequence[ImageStats]) -> str:
    if len({image.sample.label for image in group}) > 1:
        return "contradiction"
    return "leak" if _is_leak(group) else "duplicate"


def _is_leak(group: Sequence[ImageStats]) -> bool:
    return len({image.part for image in group}) > 1


def _case(group: Sequence[ImageStats], detail: str) -> FindingCase:
    # Training images come first: remove these rather than test images, so that results stay comparable.
    ordered = sorted(group, key=lambda image: (image.part == "test", image.sample.key))
    return FindingCase(tuple(image.sample.path for image in ordered), detail)


def similar_pairs(stats: Sequence[ImageStats]) -> list[tuple[int, int, float]]:
    """Return the positions of each pair of near duplicates, and the correlation of their fine structure.

    Args:
        stats: Statistics of readable images.
    """
    if len(stats) < 2:  # noqa: PLR2004 - a pair
        return []
    hashes = np.array([image.hash for image in stats], np.uint64)
    details = np.stack([image.detail for image in stats if image.detail is not None])
    return list(_pairs(hashes, details, _threshold(details)))


def _near_duplicates(stats: Sequence[ImageStats]) -> Iterator[tuple[list[ImageStats], float]]:
    """Yield groups of near duplicates, each with the lowest correlation among its matching pairs."""
    pairs = similar_pairs(stats)
    if not pairs:
        return
    first, second, correlation = (np.array(column) for column in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(stats), len(stats)))
    _, group_of = connected_components(graph, directed=False)
    for group in np.unique(group_of[first]):
        members = np.flatnonzero(group_of == group)
        yield [stats[int(number)] for number in members], float(correlation[group_of[first] == group].min())


def _threshold(details: NDArray[np.int8]) -> float:
    """Compute the correlation threshold for near duplicates from the correlations of random pairs.

    Images of rigid parts share their outlines, so that any two of them correlate.
    """
    drawn = np.random.default_rng(0).permutation(len(details))[:_SAMPLE]
    rows = _unit_rows(details[drawn])
    correlations = (rows @ rows.T)[np.triu_indices(len(drawn), 1)]
    median, high = np.arctanh(np.clip(np.quantile(correlations, [0.5, 0.95]), -0.999, 0.999))
    return min(_MAX_THRESHOLD, max(DETAIL_CORRELATION, math.tanh(median + _SPREADS * (high - median))))


def _pairs(hashes: NDArray[np.uint64], details: NDArray[np.int8], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield pairs with similar hashes and correlated details; works in blocks to limit memory."""
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
            correlation = _unit_rows(details[rows]) @ _unit_rows(details[columns]).T
            for row, column in np.argwhere(near & (correlation >= threshold)):
                yield int(top + row), int(left + column), float(correlation[row, column])


def _unit_rows(details: NDArray[np.int8]) -> NDArray[np.float32]:
    """Scale rows to unit length; the rows of images without structure stay zero, so that they match nothing."""
    values = details.astype(np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(length, 1), np.float32)
