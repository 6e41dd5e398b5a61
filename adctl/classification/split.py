"""Stratified division of labelled images into folds and parts; copies and groups stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.classification.dataset import label_of
from adctl.data.groups import units_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample


@dataclass(frozen=True)
class LabelledSplit:
    """Labelled images in disjoint parts, each sorted by key.

    Attributes:
        train: Training images.
        validation: Images that choose the epoch of a tuned backbone; empty for a frozen one.
        calibration: Images that calibrate a tuned classifier; a frozen one is calibrated out of fold.
        test: Test images.
        digests: SHA-256 of each image file, by its key.
        seed: Seed of the split.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    digests: Mapping[str, str]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary, with keys instead of paths."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "calibration", "test")}
        keys = {name: [sample.key for sample in part] for name, part in parts.items()}
        return {"seed": self.seed, **keys, "digests": dict(sorted(self.digests.items()))}


def stratified_folds(samples: Sequence[Sample], digests: Mapping[str, str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each image, from 0: each kind is spread evenly over folds.

    Sets that stay together are dealt out one by one, those with the rarest kinds and the largest ones first, each to
    the fold that has the fewest images of its rarest kind, then the fewest images.

    Args:
        samples: Labelled images with distinct keys.
        digests: SHA-256 of each image file, by its key.
        folds: Number of folds.
        seed: Seed of the order of equal sets.
    """
    counts = Counter(label_of(sample) for sample in samples)
    units = units_of(samples, digests)

    def rarest(unit: Sequence[Sample]) -> str:
        return min((label_of(sample) for sample in unit), key=lambda label: (counts[label], label))

    def order(unit: Sequence[Sample]) -> tuple[int, str, int, bytes]:
        content = min(digests[sample.key] for sample in unit)
        return (
            counts[rarest(unit)],
            rarest(unit),
            -len(unit),
            hashlib.sha256(f"{seed}:{content}".encode(errors="surrogatepass")).digest(),
        )

    filled = [Counter[str]() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for unit in sorted(units, key=order):
        label = rarest(unit)
        fold = min(range(folds), key=lambda number: (filled[number][label], filled[number].total(), number))
        filled[fold].update(label_of(sample) for sample in unit)
        fold_of.update((sample.key, fold) for sample in unit)
    return np.array([fold_of[sample.key] for sample in samples], np.int64)


def hold_out(
    samples: Sequence[Sample], digests: Mapping[str, str], share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divide images into the rest and a stratified part of about this share, 0 to 1.

    Of a kind whose sets are fewer than the parts, the held-out part may have none.
    """
    if share <= 0:
        return tuple(samples), ()
    parts = max(2, round(1 / share))
    taken = min(parts - 1, max(1, round(share * parts)))
    held = parts - 1 - stratified_folds(samples, digests, parts, seed) < taken
    rest = tuple(sample for sample, out in zip(samples, held, strict=True) if not out)
    return rest, tuple(sample for sample, out in zip(samples, held, strict=True) if out)
