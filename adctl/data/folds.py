"""Division of good images into folds for cross-validation, and the split of each fold's model.

Folds contain no test images, and no good image that is byte for byte equal to a test image. A group is in one fold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.data.split import Split, file_digest, ranked_units, split_good
from adctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.records import Sample


def assign_folds(samples: Sequence[Sample], digests: Mapping[str, str], folds: int) -> list[list[Sample]]:
    """Divide images by content into folds of about equal size; identical copies and groups stay together.

    Args:
        samples: Images with distinct keys.
        digests: SHA-256 of each image by its key.
        folds: Number of folds.

    Returns:
        The images of each fold.

    Raises:
        DataError: There are fewer different images or groups than folds.
    """
    ranked = ranked_units(samples, digests)
    if len(ranked) < folds:
        what = "groups" if any(sample.group is not None for sample in samples) else "different good images"
        raise DataError(f"{len(ranked)} {what} are too few for {folds} folds.", "Lower --folds.")
    sizes = [0] * folds
    fold_of: dict[str, int] = {}
    contents = [{digests[sample.key] for sample in unit} for unit in ranked]
    for content, unit in sorted(zip(contents, ranked, strict=True), key=lambda pair: -len(pair[0])):
        fold = sizes.index(min(sizes))  # large groups come first, so that folds get about equal sizes
        sizes[fold] += len(content)
        fold_of.update((sample.key, fold) for sample in unit)
    return [[sample for sample in samples if fold_of[sample.key] == fold] for fold in range(folds)]


def split_fold(
    train: Sequence[Sample], test: Sequence[Sample], *, folds: int, fold: int | None, validation: float, seed: int
) -> Split:
    """Split the good images for the model of one fold; the calibration part is the held-out fold.

    Args:
        train: Good images with distinct keys.
        test: Test images; good images with equal content are excluded.
        folds: Number of folds.
        fold: Number of the held-out fold, from 1; None holds out no fold and trains on all images.
        validation: Share of the remaining images used to choose the epoch, 0 to 1.
        seed: Seed of the validation part; the folds depend only on the images' content.

    Raises:
        UsageError: There is no such fold.
        DataError: There are too few different images or groups.
        ImageError: A file cannot be read.
    """
    if fold is not None and fold > folds:
        raise UsageError(f"There is no fold {fold}: --folds is {folds}.", f"Give --fold a number from 1 to {folds}.")
    test_digests = {file_digest(sample) for sample in test}
    digests = {sample.key: file_digest(sample) for sample in train}
    pool = [sample for sample in train if digests[sample.key] not in test_digests]
    held_out = [] if fold is None else assign_folds(pool, digests, folds)[fold - 1]
    held_out_keys = {sample.key for sample in held_out}
    rest = [sample for sample in pool if sample.key not in held_out_keys]
    split = split_good(rest, calibration=0.0, validation=validation, seed=seed)
    return replace(
        split,
        calibration=tuple(sorted(held_out, key=lambda sample: sample.key)),
        digests={sample.key: digests[sample.key] for sample in sorted(pool, key=lambda sample: sample.key)},
        calibration_share=0.0 if fold is None else 1 / folds,
    )
