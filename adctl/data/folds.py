"""Good images cut into folds for cross-validation, and what each fold's model learns from and is held out from.

The test part never enters a fold, nor does a good image that is byte for byte one of the test images. Knows the
bytes of image files, nothing of pixels or detectors.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.data.split import Split, file_digest, split_good
from adctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.records import Sample


def assign_folds(samples: Sequence[Sample], digests: Mapping[str, str], folds: int) -> list[list[Sample]]:
    """Cut images into folds of about the same size by what they hold; identical copies stay together.

    Args:
        samples: With distinct keys.
        digests: SHA-256 of each by its key.
        folds: How many.

    Raises:
        DataError: There are fewer different images than folds.
    """
    ranked = sorted({digests[one.key] for one in samples}, key=lambda one: hashlib.sha256(one.encode()).digest())
    if len(ranked) < folds:
        raise DataError(f"{len(ranked)} different good images cannot be cut into {folds} folds.", "Lower --folds.")
    fold_of = {digest: rank % folds for rank, digest in enumerate(ranked)}
    return [[one for one in samples if fold_of[digests[one.key]] == fold] for fold in range(folds)]


def split_fold(
    train: Sequence[Sample], test: Sequence[Sample], *, folds: int, fold: int | None, validation: float, seed: int
) -> Split:
    """What the model of one fold learns from; its calibration part is the fold held out.

    Args:
        train: Good images with distinct keys.
        test: The test images, of which none may be learned from.
        folds: How many folds.
        fold: Which one is held out, from 1; None holds out none: all images are learned from.
        validation: Share of the images learned from that chooses the epoch, 0 to 1.
        seed: Which validation part; the folds themselves rest on content alone.

    Raises:
        UsageError: There is no such fold.
        DataError: There are too few different images.
        ImageError: A file cannot be read.
    """
    if fold is not None and fold > folds:
        raise UsageError(f"There is no fold {fold} of {folds}.", f"Give --fold a number from 1 to {folds}.")
    tested = {file_digest(sample) for sample in test}
    digests = {sample.key: file_digest(sample) for sample in train}
    pool = [sample for sample in train if digests[sample.key] not in tested]
    held = [] if fold is None else assign_folds(pool, digests, folds)[fold - 1]
    inside = {sample.key for sample in held}
    rest = [sample for sample in pool if sample.key not in inside]
    split = split_good(rest, calibration=0.0, validation=validation, seed=seed)
    return replace(
        split,
        calibration=tuple(sorted(held, key=lambda sample: sample.key)),
        digests={sample.key: digests[sample.key] for sample in sorted(pool, key=lambda sample: sample.key)},
        calibration_share=0.0 if fold is None else 1 / folds,
    )
