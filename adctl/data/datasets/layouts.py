"""Folders to data sets: the MVTec AD layout and plain folders, on disk or in an archive.

    CATEGORY/train/good/*.png                   good images to learn from
    CATEGORY/test/LABEL/*.png                   test images; LABEL is "good" or the name of a defect
    CATEGORY/ground_truth/LABEL/*_mask.png      masks of the defective ones, matched by name

(Bergmann et al., "MVTec AD", CVPR 2019, and what people make of it: masks without `_mask`, other cases.)

Knows names and sizes of files; opens none. What cannot be used is returned with the reason, never dropped.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adctl.data import storage
from adctl.data.containers import is_container_name
from adctl.data.datasets.folders import (
    IgnoredPath,
    find_subfolder,
    no_images,
    reason_unusable,
    require_folder,
    scan,
    subfolders_of,
)
from adctl.data.datasets.ground_truth import (
    DEFECT,
    GOOD_NAMES,
    TestImages,
    good_folder,
    is_category,
    relative_key,
    sort_by_key,
    test_images,
)
from adctl.data.datasets.listing import list_images
from adctl.data.datasets.manifests import ManifestRow, is_manifest, read_manifest
from adctl.data.datasets.webdataset import find_shards, read_shards
from adctl.errors import DataError, UsageError, unknown_name
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "DEFECT",
    "UNLABELLED",
    "Dataset",
    "IgnoredPath",
    "categories_in",
    "list_images",
    "open_data",
    "open_folders",
    "open_mvtec",
]

UNLABELLED = "unlabelled"
"""What test images without a label are counted under."""

_SHAPE = "Expected CATEGORY/train/good/ with good images, and CATEGORY/test/LABEL/ with test images."


@dataclass(frozen=True)
class Dataset:
    """Images to learn from and images to test on.

    Attributes:
        name: Of the data set.
        category: Of the kind of part; equal to `name` where there is only one.
        root: The folder that the samples' keys are relative to; for plain folders, the folder of good images; for a
            manifest its file, for shards their folder.
        layout: How it was laid out.
        train: Good images, sorted by key.
        test: Test images with their labels and masks as far as known, sorted by key.
        ignored: Files that were left out.
        notes: What the user should know, in sentences.
        unused_masks: Masks that belong to no test image.
    """

    name: str
    category: str
    root: Path
    layout: Literal["mvtec", "folders", "manifest", "webdataset"]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    ignored: tuple[IgnoredPath, ...] = ()
    notes: tuple[str, ...] = ()
    unused_masks: tuple[Path, ...] = ()

    @property
    def test_counts(self) -> dict[str, int]:
        """Number of test images for each label, good first, then by name."""
        counts = Counter(sample.label or UNLABELLED for sample in self.test)
        return {label: counts[label] for label in sorted(counts, key=lambda label: (label != GOOD, label))}

    @property
    def mask_count(self) -> int:
        """Number of test images with a ground-truth mask."""
        return sum(sample.mask is not None for sample in self.test)


def open_data(path: Path, category: str | None = None) -> Dataset:
    """Open a manifest, WebDataset shards, or one category of a data set in MVTec AD layout, whichever it is.

    Raises:
        UsageError: It cannot be read, or the category is unknown or has to be chosen.
        DataError: It is damaged, holds no good image to learn from, or the same file to learn from and to test on.
    """
    listed = _listed(path)
    return open_mvtec(path, category) if listed is None else _open_listed(path, *listed, category)


def categories_in(path: Path) -> list[str]:
    """Names of the categories that `open_data` has to choose from, sorted; none where there is nothing to choose.

    Raises:
        UsageError: There is no such folder or manifest.
        DataError: It is damaged.
    """
    listed = _listed(path)
    if listed is not None:
        return sorted({row.category for row in listed[1] if row.category is not None})
    require_folder(path, "data set")
    root = _unwrapped(path)
    return [] if is_category(root) else [folder.name for folder in subfolders_of(root) if is_category(folder)]


def _listed(path: Path) -> tuple[Literal["manifest", "webdataset"], list[ManifestRow]] | None:
    """What says of each image what it is, and what it says; None where folders say it."""
    if is_manifest(path):
        return "manifest", read_manifest(path)
    shards = find_shards(path)
    return ("webdataset", read_shards(shards)) if shards else None


def _open_listed(
    path: Path, layout: Literal["manifest", "webdataset"], rows: list[ManifestRow], category: str | None
) -> Dataset:
    """One category of listed images; the root is what lists them, and keys are what they are called there."""
    names = {row.category: path for row in rows if row.category is not None}
    chosen = _choose(names or {path.stem: path}, category, path)
    rows = [row for row in rows if row.category == chosen] if names else rows
    train = [row.sample for row in rows if row.split == "train" or (row.split is None and row.sample.label == GOOD)]
    test = sort_by_key(
        row.sample for row in rows if row.split == "test" or (not row.split and row.sample.label != GOOD)
    )
    good = sort_by_key(sample for sample in train if sample.label == GOOD)
    if not good:
        raise DataError(f"{path} names no good image to learn from.", "Label good images as good.")
    _check_disjoint(good, test)
    ignored = [IgnoredPath(s.path, f"to learn from, but labelled {s.label}") for s in train if s.label != GOOD]
    return Dataset(path.stem, chosen, path, layout, good, test, tuple(ignored), tuple(_guessed_notes(rows)))


def _guessed_notes(rows: list[ManifestRow]) -> list[str]:
    """Say what a manifest without splits was taken to mean."""
    if all(row.split is not None for row in rows):
        return []
    return ["Images without a split: the good ones are learned from, the others are tested on."]


def open_mvtec(root: Path, category: str | None = None) -> Dataset:
    """Open one category of a data set in MVTec AD layout.

    Args:
        root: The category's folder, which holds `train/good`, or the folder of categories.
        category: Which one; may be left out where there is only one.

    Raises:
        UsageError: The folder does not exist, or the category is unknown or has to be chosen.
        DataError: The folder is not in this layout, holds no good images, or trains on test images.
    """
    require_folder(root, "data set")
    name = _name_of(root)
    root = _unwrapped(root)
    here = {name: root} if is_category(root) else None
    categories = here or {folder.name: folder for folder in subfolders_of(root) if is_category(folder)}
    if not categories:
        raise _not_mvtec(root)
    chosen = _choose(categories, category, root)
    taken = [f"Took '{chosen}', the only category of {root}."] if not (here or category) else []
    return _open_category(categories[chosen], name, chosen, taken)


def open_folders(good: Path, test: Path | None = None, masks: Path | None = None) -> Dataset:
    """Open a plain folder of good images, with test images and masks where there are any.

    Args:
        good: Good images, in subfolders or not.
        test: Test images: in one subfolder a label, where `good`, `ok` and `normal` mean good, or loose.
        masks: Masks of the test images, in the same subfolders or all in one, with or without `_mask`.

    Returns:
        The data set; keys start with `good/` and `test/`, whatever the folders are called.

    Raises:
        UsageError: A folder does not exist, or masks are given without test images.
        DataError: There are no images, or test images are among the good ones.
    """
    _check_folders(good, test, masks)
    train, ignored = _good_images(good, good, GOOD)
    notes = _subfolder_notes(good, train)
    tested = TestImages()
    if test is not None:
        tested = test_images(test, masks, "test")
        if not tested.samples:
            raise no_images(test, tested.ignored)
    _check_disjoint(train, tested.samples)
    name = _folder_name(good)
    everything = (*ignored, *tested.ignored)
    notes += tested.notes
    return Dataset(name, name, good, "folders", train, tested.samples, everything, tuple(notes), tested.unused_masks)


# ---- MVTec AD layout


def _name_of(root: Path) -> str:
    name = root.resolve().name
    return root.stem if is_container_name(name) else name


def _unwrapped(root: Path) -> Path:
    """What archives often hold: one folder with everything in it."""
    while is_container_name(root.name) or not root.exists():
        folders = subfolders_of(root)
        if len(folders) != 1 or is_category(root) or is_category(folders[0]) or not subfolders_of(folders[0]):
            break
        root = folders[0]
    return root


def _choose(categories: dict[str, Path], category: str | None, root: Path) -> str:
    if category is not None and category not in categories:
        raise unknown_name("category", category, categories)
    if category is None and len(categories) > 1:
        raise UsageError(
            f"{root} holds {len(categories)} categories.",
            f"Choose one with --category: {', '.join(sorted(categories))}.",
        )
    return category or next(iter(categories))


def _open_category(root: Path, name: str, category: str, notes: list[str]) -> Dataset:
    good = good_folder(root)
    assert good is not None
    train, ignored = _good_images(good, root)
    tested, more = _test_part(root)
    _check_disjoint(train, tested.samples)
    unused = [folder.name for folder in subfolders_of(good.parent) if folder != good]
    notes += [f"Only {good} is learned from, not its neighbours {', '.join(unused)}."] if unused else []
    everything = (*ignored, *tested.ignored)
    notes += more
    return Dataset(name, category, root, "mvtec", train, tested.samples, everything, tuple(notes), tested.unused_masks)


def _test_part(root: Path) -> tuple[TestImages, tuple[str, ...]]:
    """The test images of a category, and what to say about them."""
    test, masks = find_subfolder(root, "test"), find_subfolder(root, "ground_truth")
    if test is None:
        return TestImages(), (f"{root} has no test folder: nothing can be measured on it.",)
    tested = test_images(test, masks, test.name)
    bare = "" if masks else f"{root} has no ground_truth folder: only whole images can be judged."
    return tested, (*tested.notes, bare) if bare else tested.notes


def _good_images(good: Path, base: Path, prefix: str = "") -> tuple[tuple[Sample, ...], list[IgnoredPath]]:
    images, ignored = scan(good)
    if not images:
        raise no_images(good, ignored)
    return sort_by_key(Sample(path, relative_key(path, base, prefix), GOOD) for path in images), ignored


def _not_mvtec(root: Path) -> DataError:
    """What is wrong with a folder that is no MVTec data set, with the likeliest way out."""
    message = f"{root} is not in MVTec AD layout: it has no train/good folder."
    train = find_subfolder(root, "train")
    good = next((folder for folder in subfolders_of(root) if folder.name.casefold() in GOOD_NAMES), None)
    if any(reason_unusable(root / name) is None for name in storage.files_in(root)):
        return DataError(message, f"For a plain folder of good images pass it as --good {root}.")
    if good is not None:
        return DataError(message, f"For a plain folder of good images pass it as --good {good}.")
    if train is not None:
        return DataError(message, f"Move the good images into {train / GOOD}, or pass their folder as --good.")
    return DataError(message, _SHAPE)


# ---- plain folders


def _check_folders(good: Path, test: Path | None, masks: Path | None) -> None:
    for folder, kind in ((good, "good images"), (test, "test images"), (masks, "masks")):
        if folder is not None:
            require_folder(folder, kind)
    if masks is not None and test is None:
        raise UsageError("Masks belong to test images, and none were given.", "Give them as --test DIR.")
    if masks is not None and test is not None and masks.resolve() == test.resolve():
        raise UsageError(f"{masks} is given both for test images and for masks.", "Keep masks apart from images.")
    for folder, advice in ((good, f"--data {good}"), (test, f"--test {test}/test")):
        if folder is not None and is_category(folder):
            raise UsageError(f"{folder} is a data set in MVTec AD layout.", f"Pass it as {advice}.")


def _subfolder_notes(good: Path, train: Iterable[Sample]) -> list[str]:
    """Say which subfolders count as good, lest defects lie in one of them."""
    names = sorted({s.path.relative_to(good).parts[0] for s in train if s.path.parent != good})
    return [f"All images below {good} are taken as good, also those in {', '.join(names)}."] if names else []


def _folder_name(good: Path) -> str:
    """A name that says what is pictured, where the folder's own says only that it is good."""
    folder = good.resolve()
    generic = GOOD_NAMES | {"train"}
    while folder.name.casefold() in generic and folder.parent.name:
        folder = folder.parent
    return (folder.stem if is_container_name(folder.name) else folder.name) or "images"


# ---- test images, their labels and masks


def _check_disjoint(train: Iterable[Sample], test: Iterable[Sample]) -> None:
    """Refuse to measure on what was learned from."""
    learned = {os.path.realpath(sample.path) for sample in train}
    shared = [sample.path for sample in test if os.path.realpath(sample.path) in learned]
    if shared:
        raise DataError(
            f"Images among both the good ones and the test images: {len(shared)}, such as {shared[0]}.",
            "Keep the test images in a folder of their own, outside the good ones.",
        )
