"""Split of the good images into training, validation (chooses the epoch) and calibration (sets the threshold).

The three parts share no image, no byte-identical copies and no group, because a threshold computed from training
images, or from images that resemble them, would underestimate the false alarms on new images.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl import documents
from adctl.data import storage
from adctl.data.groups import units_of
from adctl.errors import DataError, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from adctl.records import Sample

MIN_GOOD = 8
"""Minimum number of different good images for a split."""


@dataclass(frozen=True)
class Split:
    """Good images in three disjoint parts, each sorted by key.

    Attributes:
        train: Training images.
        validation: Images held out to choose the epoch.
        calibration: Images held out to set the threshold.
        digests: SHA-256 of each image file, hexadecimal, by the sample's key.
        seed: Seed of the split.
        validation_share: Requested share of validation images, 0 to 1.
        calibration_share: Requested share of calibration images, 0 to 1.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    digests: dict[str, str]
    seed: int
    validation_share: float
    calibration_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary, with keys instead of paths so that it is valid on other machines."""
        return {
            "seed": self.seed,
            "validation_share": self.validation_share,
            "calibration_share": self.calibration_share,
            "train": [sample.key for sample in self.train],
            "validation": [sample.key for sample in self.validation],
            "calibration": [sample.key for sample in self.calibration],
            "digests": self.digests,
        }

    @classmethod
    def read(cls, path: Path, samples: Iterable[Sample], remedy: str) -> Split:
        """Read the document of `to_dict` from a file.

        Args:
            path: The file.
            samples: The dataset's current good images; images that are not in the split are ignored.
            remedy: Remedy for a damaged file.

        Raises:
            DataError: The file is missing or damaged, or an image of the split is missing.
        """
        stored = documents.read(path, _StoredSplit, remedy)
        if stored is None:
            raise DataError(f"There is no file {path}.", remedy)
        parts = {name: getattr(stored, name) for name in ("train", "validation", "calibration")}
        if not {key for keys in parts.values() for key in keys} <= stored.digests.keys():
            raise DataError(f"{path} is damaged: it has no digest of some of its images.", remedy)
        found = {sample.key: sample for sample in samples}
        missing = sorted(set(stored.digests) - set(found))
        if missing:
            raise DataError(
                f"Images of the split are missing from the dataset: {len(missing)}, such as {missing[0]}.",
                "Restore them, or start a new training.",
            )
        return cls(
            **{name: tuple(found[key] for key in keys) for name, keys in parts.items()},
            digests=stored.digests,
            seed=stored.seed,
            validation_share=stored.validation_share,
            calibration_share=stored.calibration_share,
        )


@dataclass(frozen=True)
class _StoredSplit:
    """Document of a split, as `Split.to_dict` writes it."""

    seed: int
    validation_share: float
    calibration_share: float
    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    digests: dict[str, str]


def split_good(
    samples: Sequence[Sample], *, calibration: float, validation: float, seed: int, fewest: int = MIN_GOOD
) -> Split:
    """Split good images by their content, independent of their names, folders and order.

    Different images are sorted by a hash of seed and content; calibration takes the first, validation the next,
    training the rest. Identical copies stay together and count as one image. So do the images of a group, which count
    as so many images as they are; the shares are then met as nearly as whole groups allow.

    Args:
        samples: Good images with distinct keys.
        calibration: Share of calibration images, 0 to 1; at least one image or group if above 0.
        validation: Share of validation images, 0 to 1; at least one image or group if above 0.
        seed: Seed of the split.
        fewest: Minimum number of different images.

    Raises:
        DataError: There are too few different images or groups.
        ImageError: A file cannot be read.
    """
    digests = {sample.key: file_digest(sample) for sample in samples}
    different = len(set(digests.values()))
    units = ranked_units(samples, digests, f"{seed}:")
    held_out, rest = _take(units, _count(calibration, different), digests)
    validating, training = _take(rest, _count(validation, different), digests)
    taken = sum(len(_contents(unit, digests)) for unit in (*held_out, *validating))
    _check_enough(samples, different, taken, units, fewest)

    def part(chosen: Sequence[Sequence[Sample]]) -> tuple[Sample, ...]:
        return tuple(sorted((sample for unit in chosen for sample in unit), key=lambda sample: sample.key))

    return Split(
        train=part(training),
        validation=part(validating),
        calibration=part(held_out),
        digests=dict(sorted(digests.items())),
        seed=seed,
        validation_share=validation,
        calibration_share=calibration,
    )


def ranked_units(samples: Iterable[Sample], digests: Mapping[str, str], salt: str = "") -> list[list[Sample]]:
    """Return the sets of images that stay together, in an order that depends only on their contents and the salt."""
    return sorted(
        units_of(samples, digests),
        key=lambda unit: hashlib.sha256(
            f"{salt}{min(_contents(unit, digests))}".encode(errors="surrogatepass")
        ).digest(),
    )


def training_digest(samples: Iterable[Sample], digests: Mapping[str, str]) -> str:
    """Return the hexadecimal SHA-256 of a set of images, independent of their names and order.

    Args:
        samples: The images; each copy counts.
        digests: SHA-256 of each image file by the sample's key, as in `Split.digests`.
    """
    contents = sorted(digests[sample.key] for sample in samples)
    return hashlib.sha256("\n".join(contents).encode(errors="surrogatepass")).hexdigest()


def file_digest(sample: Sample) -> str:
    """Return the hexadecimal SHA-256 of an image file's bytes.

    Raises:
        ImageError: The file cannot be read.
    """
    try:
        return storage.digest(sample.path)
    except OSError as error:
        raise ImageError(
            f"Cannot read the image {sample.path}: {error.strerror or error}.", "Check the file and its permissions."
        ) from error


def _count(share: float, total: int) -> int:
    """Return a share as a number of images, with halves rounded up; at least one if the share is above 0."""
    return max(1, math.floor(share * total + 0.5)) if share > 0 else 0


def _contents(unit: Iterable[Sample], digests: Mapping[str, str]) -> set[str]:
    return {digests[sample.key] for sample in unit}


def _take(
    units: Sequence[list[Sample]], wanted: int, digests: Mapping[str, str]
) -> tuple[Sequence[list[Sample]], Sequence[list[Sample]]]:
    """Divide units after the first ones that hold about the wanted number of different images; one at least if any."""
    taken = end = 0
    for unit in units:
        size = len(_contents(unit, digests))
        if taken >= wanted or (end and taken + size - wanted > wanted - taken):
            break
        taken, end = taken + size, end + 1
    return units[:end], units[end:]


def _check_enough(
    samples: Sequence[Sample], different: int, held_out: int, units: Sequence[object], fewest: int
) -> None:
    total = len(samples)
    copies = f" ({total} with identical copies)" if total > different else ""
    if different < fewest:
        raise DataError(
            f"Too few good images to train and to set a threshold: {different} different{copies}.",
            f"Give at least {fewest}; 50 or more are better.",
        )
    if held_out >= different and len(units) < different:
        raise DataError(
            f"No good image is left to train on: whole groups are held out, and there are only {len(units)}.",
            "Give images of more groups, or leave out --group; then a new group may give more false alarms.",
        )
    if held_out >= different:
        raise DataError(
            f"No good image is left to train on: {held_out} of {different}{copies} would be held out.",
            "Lower --calibration-share or --validation-share, or give more good images.",
        )
