"""Which good images are fitted on, which choose the epoch, and which set the threshold.

The three parts never share an image, nor a byte-identical copy of one: a threshold measured on images the
detector has learned by heart would promise too few false alarms.

Knows the bytes of image files, nothing of pixels or detectors.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl.data import storage
from adctl.errors import DataError, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from adctl.records import Sample

MIN_GOOD = 8
"""Fewest different good images that can be split."""


@dataclass(frozen=True)
class Split:
    """Good images in three disjoint parts, each sorted by key.

    Attributes:
        train: Fitted on.
        validation: Held out to choose the epoch.
        calibration: Held out to set the threshold.
        digests: SHA-256 of each image file, hexadecimal, by the sample's key.
        seed: Which of the possible splits.
        validation_share: What was asked for, 0 to 1.
        calibration_share: Likewise.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    digests: dict[str, str]
    seed: int
    validation_share: float
    calibration_share: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary: keys, not paths, so that it means the same on another machine."""
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
    def from_dict(cls, value: Mapping[str, Any], samples: Iterable[Sample]) -> Split:
        """Rebuild from `to_dict`.

        Args:
            value: What `to_dict` gave.
            samples: The good images of the data set as it is found now; others than those split are ignored.

        Raises:
            DataError: An image of the split is no longer there.
        """
        found = {sample.key: sample for sample in samples}
        missing = sorted(set(value["digests"]) - set(found))
        if missing:
            raise DataError(
                f"Images that were split and are no longer there: {len(missing)}, such as {missing[0]}.",
                "Put them back, or train anew.",
            )
        names = ("train", "validation", "calibration")
        parts = {name: tuple(found[key] for key in value[name]) for name in names}
        return cls(
            **parts,
            digests=dict(value["digests"]),
            seed=value["seed"],
            validation_share=value["validation_share"],
            calibration_share=value["calibration_share"],
        )


def split_good(samples: Sequence[Sample], *, calibration: float, validation: float, seed: int) -> Split:
    """Divide good images by what they hold, whatever they are called, wherever and in whatever order.

    Different images are ranked by a hash of seed and content; calibration takes the first, validation the
    next, training the rest. Identical copies go together and count as one.

    Args:
        samples: Good images with distinct keys.
        calibration: Share for calibration, 0 to 1; above 0 gives at least one image.
        validation: Share for validation, likewise.
        seed: Which split.

    Raises:
        DataError: There are too few different images.
        ImageError: A file cannot be read.
    """
    digests = {sample.key: file_digest(sample) for sample in samples}
    copies: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        copies[digests[sample.key]].append(sample)
    ranked = sorted(copies, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    held = _count(calibration, len(ranked))
    rest = held + _count(validation, len(ranked))
    _check_enough(len(samples), len(ranked), rest)

    def part(chosen: Sequence[str]) -> tuple[Sample, ...]:
        return tuple(sorted((s for digest in chosen for s in copies[digest]), key=lambda s: s.key))

    return Split(
        train=part(ranked[rest:]),
        validation=part(ranked[held:rest]),
        calibration=part(ranked[:held]),
        digests=dict(sorted(digests.items())),
        seed=seed,
        validation_share=validation,
        calibration_share=calibration,
    )


def training_digest(samples: Iterable[Sample], digests: Mapping[str, str]) -> str:
    """The hexadecimal SHA-256 of a set of images, whatever their names and order.

    Args:
        samples: The images; copies count.
        digests: SHA-256 of each image file by the sample's key, as in `Split.digests`.
    """
    contents = sorted(digests[sample.key] for sample in samples)
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def file_digest(sample: Sample) -> str:
    """The hexadecimal SHA-256 of an image file's bytes.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        return storage.digest(sample.path)
    except OSError as error:
        raise ImageError(
            f"Cannot read the image {sample.path}: {error.strerror or error}.", "Check the file and its permissions."
        ) from error


def _count(share: float, total: int) -> int:
    """A share in whole images, halves rounded up; at least one when the share is not zero."""
    return max(1, math.floor(share * total + 0.5)) if share > 0 else 0


def _check_enough(total: int, different: int, held_out: int) -> None:
    copies = f" ({total} with identical copies)" if total > different else ""
    if different < MIN_GOOD:
        raise DataError(
            f"Too few good images to learn from and to set a threshold: {different} different{copies}.",
            f"Give at least {MIN_GOOD}, better 50 or more.",
        )
    if held_out >= different:
        raise DataError(
            f"No good image is left to fit on: {held_out} of {different}{copies} would be held out.",
            "Lower --calibration-share or --validation-share, or give more good images.",
        )
