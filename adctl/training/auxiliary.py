"""Labelled images of other categories, from which a detector learns about defects without those of its own category."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.datasets.layouts import categories_in, open_data
from adctl.data.datasets.remote import local_copy
from adctl.data.split import file_digest
from adctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.data.datasets.layouts import Dataset
    from adctl.records import Sample

_GOOD = "good"
_FEWEST = 4


@dataclass(frozen=True)
class AuxiliaryImages:
    """Labelled images of other categories.

    Attributes:
        train: Images to learn from, good and defective.
        validation: Images held out to choose the epoch.
        categories: Names of the categories.
        digests: SHA-256 of each image file by the sample's key, which starts with the category.
        with_good: Whether the good images of the category itself are learned from too.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    categories: tuple[str, ...]
    digests: dict[str, str]
    with_good: bool


def open_auxiliary(path: Path, target: Dataset, *, validation: float, seed: int, with_good: bool) -> AuxiliaryImages:
    """Open the test images of all categories of a dataset but the target's.

    Args:
        path: Folder or manifest of one or all categories.
        target: The dataset of the training.
        validation: Share of the images that is held out to choose the epoch.
        seed: Seed of that choice.
        with_good: Whether the target's good images are learned from too.

    Raises:
        UsageError: There is no such dataset, or no other category in it.
        DataError: A defective image has no mask, there are no defective images, or an image of the target is among
            them.
    """
    here = local_copy(path)
    names: list[str | None] = [*categories_in(here)] or [None]
    found: dict[str, tuple[Sample, ...]] = {}
    for name in names:
        if name is not None and name == target.category:
            continue
        dataset = open_data(here, name)
        found[dataset.category] = dataset.test
    found.pop(target.category, None)
    samples = [
        replace(sample, key=f"{category}/{sample.key}")
        for category, test in found.items()
        for sample in test
        if sample.label is not None
    ]
    if not samples:
        raise UsageError(
            f"--auxiliary {path} has no labelled images of other categories than '{target.category}'.",
            "Give a dataset in MVTec AD layout with other categories.",
        )
    _require_masks(samples, path)
    digests = {sample.key: file_digest(sample) for sample in samples}
    _refuse_leak(digests, target, path)
    order = np.random.default_rng(seed).permutation(len(samples))
    held = round(validation * len(samples))
    train, held_out = (tuple(samples[index] for index in sorted(part)) for part in (order[held:], order[:held]))
    return AuxiliaryImages(train, held_out, tuple(found), digests, with_good)


def _require_masks(samples: list[Sample], path: Path) -> None:
    defective = [sample for sample in samples if sample.label != _GOOD]
    bare = [sample for sample in defective if sample.mask is None]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(defective)} defective images of --auxiliary {path} have no mask, such as "
            f"{bare[0].path}.",
            "Add the masks in ground_truth, or leave these images out.",
        )
    if len(defective) < _FEWEST:
        raise DataError(
            f"--auxiliary {path} has {len(defective)} defective images of other categories; {_FEWEST} are needed.",
            "Give more categories.",
        )


def _refuse_leak(digests: dict[str, str], target: Dataset, path: Path) -> None:
    """Raise if an image of the target's test part is among the auxiliary images: its results would be worthless."""
    own = {file_digest(sample): sample.path for sample in target.test}
    leaked = [(key, own[digest]) for key, digest in digests.items() if digest in own]
    if leaked:
        key, image = leaked[0]
        raise DataError(
            f"{len(leaked)} images of --auxiliary {path} are test images of '{target.category}' too, such as {key} = "
            f"{image}.",
            "Learn from other images than those that measure the result.",
        )
