"""Test images with their ground truth: labels from subfolder names, masks matched by file name. Opens no file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.data.datasets.folders import IgnoredPath, find_subfolder, scan
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFECT = "defect"
"""Label of a defective image whose defect type is unknown."""

GOOD_NAMES = {"good", "ok", "normal"}
"""Names of folders of good images, in lower case."""

_GOOD_WORDS = GOOD_NAMES | {"goods", "okay", "pass", "passed", "clean", "healthy", "intact", "flawless"}
_NEUTRAL_WORDS = {"image", "images", "part", "parts", "sample", "samples", "test", "new", "old", "set", "batch", "only"}
_WITHOUT_DEFECT = re.compile(
    r"(?:no|non|not|without|zero)\W*(?:defect|fault|anomal|damage|flaw)|(?:defect|fault|anomaly|damage|flaw)\W*free"
)


@dataclass(frozen=True)
class TestImages:
    """Content of a test folder.

    Attributes:
        samples: Test images with labels and masks as far as known, sorted by key.
        ignored: Ignored files, including those in the mask folder.
        unused_masks: Masks that belong to no image.
        notes: Sentences to show to the user.
    """

    samples: tuple[Sample, ...] = ()
    ignored: tuple[IgnoredPath, ...] = ()
    unused_masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def test_images(test: Path, masks: Path | None, prefix: str) -> TestImages:
    """Find all images of a test folder, with labels from subfolder names and masks matched by file name.

    Args:
        test: The test folder; its images lie in one subfolder per label, or directly in it without a label.
        masks: The folder of masks, or None.
        prefix: Prefix of the keys.
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
        notes.append(f"Masks without a test image: {len(unused)}, such as {unused[0]}.")
    return TestImages(samples, (*ignored, *unusable), unused, tuple(notes))


def _with_mask(sample: Sample, mask: Path | None) -> Sample:
    return replace(sample, label=sample.label or DEFECT, mask=mask) if mask else sample


def _match_masks(
    samples: Sequence[Sample], test: Path, masks: Sequence[Path], root: Path
) -> tuple[dict[Path, Path], list[Path]]:
    """Match images with masks of the same name in the same subfolder, or else directly in the masks' root.

    A name that several images or several masks share is not matched. Good images have no mask.

    Returns:
        The mask of each matched image, and the images whose name is ambiguous.
    """
    masks_by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        masks_by_stem[_relative_stem(mask, root).removesuffix("_mask")].append(mask)
    counts = Counter(_relative_stem(sample.path, test) for sample in samples)
    stem_counts = Counter(sample.path.stem.casefold() for sample in samples)
    matched, ambiguous = {}, []
    for sample in samples:
        place, stem = _relative_stem(sample.path, test), sample.path.stem.casefold()
        name, images = (place, counts[place]) if place in masks_by_stem else (stem, stem_counts[stem])
        if sample.label == GOOD or name not in masks_by_stem:
            continue
        if images == 1 and len(masks_by_stem[name]) == 1:
            matched[sample.path] = masks_by_stem[name][0]
        else:
            ambiguous.append(sample.path)
    return matched, ambiguous


def _relative_stem(path: Path, root: Path) -> str:
    """Return a file's path below a root in lower case, without suffix."""
    return path.relative_to(root).with_suffix("").as_posix().casefold()


def _label(path: Path, root: Path) -> str | None:
    """Return the label of a file, the name of its top subfolder; None for a file directly in the root."""
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        return None
    return GOOD if parts[0].casefold() in GOOD_NAMES else parts[0]


def _label_notes(samples: Sequence[Sample]) -> list[str]:
    unlabelled = sum(sample.label is None for sample in samples)
    notes = [f"Test images without a label, scored but not used for metrics: {unlabelled}."] if unlabelled else []
    return notes + doubtful_label_notes(sample.label for sample in samples)


def doubtful_label_notes(labels: Iterable[str | None]) -> list[str]:
    """Return a sentence on each label that counts as a defect although its name says good, such as `good_2`."""
    counts = Counter(label for label in labels if label not in {GOOD, None})
    return [
        f"Images labelled '{label}' count as defective: {count}. If they are good, rename '{label}' to '{GOOD}'."
        for label, count in sorted(counts.items(), key=str)
        if label is not None and _says_good(label)
    ]


def _says_good(label: str) -> bool:
    text = label.casefold().replace("_", " ")
    words = set(re.findall("[a-z]+", text)) - _NEUTRAL_WORDS
    return (bool(words) and words <= _GOOD_WORDS) or _WITHOUT_DEFECT.search(text) is not None


def _mask_notes(samples: Sequence[Sample], ambiguous: Sequence[Path]) -> list[str]:
    notes = []
    defective = [sample for sample in samples if sample.label not in {GOOD, None}]
    missing = sum(sample.mask is None for sample in defective)
    if missing:
        notes.append(f"Defective test images without a mask: {missing} of {len(defective)}.")
    if ambiguous:
        notes.append(
            f"Test images whose name matches several masks or images: {len(ambiguous)}, such as {ambiguous[0]}. "
            "They get no mask; put the masks in subfolders with the names of the images' subfolders."
        )
    return notes


def relative_key(path: Path, base: Path, prefix: str = "") -> str:
    """Return the key of an image: its path relative to `base`, below `prefix`."""
    return Path(prefix, path.relative_to(base)).as_posix()


def sort_by_key(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Sort samples by key."""
    return tuple(sorted(samples, key=lambda sample: sample.key))


def is_category(folder: Path) -> bool:
    """Return True if a folder is a category in MVTec AD layout."""
    return good_folder(folder) is not None


def has_test_part(folder: Path) -> bool:
    """Return True if only the test part of a folder is to be scored: it also has a training or ground-truth part."""
    return is_category(folder) or find_subfolder(folder, "ground_truth") is not None


def good_folder(category: Path) -> Path | None:
    """Return a category's folder of good training images; None if the folder is not a category."""
    train = find_subfolder(category, "train")
    return train and find_subfolder(train, GOOD)
