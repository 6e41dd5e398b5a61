"""Test images with what is known of them: labels by subfolder, masks by name.

Knows where files lie; opens none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.data.datasets.folders import IgnoredPath, find_subfolder, scan
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFECT = "defect"
"""The label of an image whose mask is known but not the kind of its defect."""

GOOD_NAMES = {"good", "ok", "normal"}
"""Names of folders, in lower case, that say their images are good."""


@dataclass(frozen=True)
class TestImages:
    """What a test folder holds.

    Attributes:
        samples: Its images with labels and masks as far as known, sorted by key.
        ignored: Files that were left out, those among the masks included.
        unused_masks: Masks that belong to none of the images.
        notes: What the user should know, in sentences.
    """

    samples: tuple[Sample, ...] = ()
    ignored: tuple[IgnoredPath, ...] = ()
    unused_masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def test_images(test: Path, masks: Path | None, prefix: str) -> TestImages:
    """All images of a test folder with labels by subfolder and masks by name.

    Args:
        test: The folder; images may lie in subfolders or loose.
        masks: The folder of masks, or None.
        prefix: What keys start with.
    """
    images, ignored = scan(test, leave_out=[masks] if masks else [])
    samples = sort_by_key(Sample(path, relative_key(path, test, prefix), _label(path, test)) for path in images)
    if masks is None:
        return TestImages(samples, tuple(ignored), notes=tuple(_label_notes(samples)))
    mask_files, unusable = scan(masks)
    matched, ambiguous = _match_masks(samples, test, mask_files, masks)
    samples = tuple(_with_mask(sample, matched.get(sample.path)) for sample in samples)
    notes = _label_notes(samples) + _mask_notes(samples, ambiguous)
    used = set(matched.values())
    unused = tuple(path for path in mask_files if path not in used and _label(path, masks) != GOOD)
    if unused and not ambiguous:
        notes.append(f"Masks that belong to no test image: {len(unused)}, such as {unused[0]}.")
    return TestImages(samples, (*ignored, *unusable), unused, tuple(notes))


def _with_mask(sample: Sample, mask: Path | None) -> Sample:
    return replace(sample, label=sample.label or DEFECT, mask=mask) if mask else sample


def _match_masks(
    samples: Sequence[Sample], test: Path, masks: Sequence[Path], root: Path
) -> tuple[dict[Path, Path], list[Path]]:
    """Pair images with masks of the same name in the same subfolder, or else directly in the masks' root.

    A name that several images or several masks share pairs nothing. Good images have no mask.

    Returns:
        Image to mask, and the images left without one because their name is ambiguous.
    """
    by_place: defaultdict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_place[_place(mask, root).removesuffix("_mask")].append(mask)
    places = Counter(_place(sample.path, test) for sample in samples)
    stems = Counter(sample.path.stem.casefold() for sample in samples)
    matched, ambiguous = {}, []
    for sample in samples:
        place, stem = _place(sample.path, test), sample.path.stem.casefold()
        name, rivals = (place, places[place]) if place in by_place else (stem, stems[stem])
        if sample.label == GOOD or name not in by_place:
            continue
        if rivals == 1 and len(by_place[name]) == 1:
            matched[sample.path] = by_place[name][0]
        else:
            ambiguous.append(sample.path)
    return matched, ambiguous


def _place(path: Path, root: Path) -> str:
    """Where a file lies below a root, without case and ending."""
    return path.relative_to(root).with_suffix("").as_posix().casefold()


def _label(path: Path, root: Path) -> str | None:
    """The name of the subfolder a file lies in; None for a loose one."""
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        return None
    return GOOD if parts[0].casefold() in GOOD_NAMES else parts[0]


def _label_notes(samples: Iterable[Sample]) -> list[str]:
    loose = sum(sample.label is None for sample in samples)
    return [f"Test images without a label, scored but not measured: {loose}."] if loose else []


def _mask_notes(samples: Sequence[Sample], ambiguous: Sequence[Path]) -> list[str]:
    notes = []
    defective = [sample for sample in samples if sample.label not in {GOOD, None}]
    bare = sum(sample.mask is None for sample in defective)
    if bare:
        notes.append(f"Defective test images without a mask: {bare} of {len(defective)}.")
    if ambiguous:
        notes.append(
            f"Test images with several masks of their name, or that share it: {len(ambiguous)}, such as "
            f"{ambiguous[0]}. None was taken; put masks in subfolders like those of the images."
        )
    return notes


def relative_key(path: Path, base: Path, prefix: str = "") -> str:
    """An image's name within a data set whose images lie below `base`."""
    return Path(prefix, path.relative_to(base)).as_posix()


def sort_by_key(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Samples sorted by key."""
    return tuple(sorted(samples, key=lambda sample: sample.key))


def is_category(folder: Path) -> bool:
    """Whether a folder is a category in MVTec AD layout."""
    return good_folder(folder) is not None


def has_test_part(folder: Path) -> bool:
    """Whether a folder has parts beside its test images that are not to be scored."""
    return is_category(folder) or find_subfolder(folder, "ground_truth") is not None


def good_folder(category: Path) -> Path | None:
    """The folder of a category's good training images; None where it is no category."""
    train = find_subfolder(category, "train")
    return train and find_subfolder(train, GOOD)
