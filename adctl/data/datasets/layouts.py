"""Opening of datasets: the MVTec AD layout, plain folders, manifests and WebDataset shards.

    CATEGORY/train/good/*.png                   good training images
    CATEGORY/test/LABEL/*.png                   test images; LABEL is "good" or the name of a defect
    CATEGORY/ground_truth/LABEL/*_mask.png      masks of the defective test images, matched by name

(Bergmann et al., "MVTec AD", CVPR 2019; masks without `_mask` and names in another case are accepted too.)

No image is opened. Files that cannot be used are returned with the reason.
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
    doubtful_label_notes,
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
"""Name under which test images without a label are counted."""

_EXPECTED_LAYOUT = "Expected CATEGORY/train/good/ with good images, and CATEGORY/test/LABEL/ with test images."


@dataclass(frozen=True)
class Dataset:
    """Training images and test images of one category.

    Attributes:
        name: Name of the dataset.
        category: Name of the category; equal to `name` if there is only one.
        root: For the MVTec AD layout the category's folder, to which keys are relative; for plain folders the folder of
            good images; otherwise the path of the manifest or of the shards.
        layout: The dataset's layout.
        train: Good training images, sorted by key.
        test: Test images with labels and masks as far as known, sorted by key.
        ignored: Ignored files and folders.
        notes: Sentences to show to the user.
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
        """Number of test images by label: first `"good"`, then the other labels sorted by name."""
        counts = Counter(sample.label or UNLABELLED for sample in self.test)
        return {label: counts[label] for label in sorted(counts, key=lambda label: (label != GOOD, label))}

    @property
    def mask_count(self) -> int:
        """Number of test images with a ground-truth mask."""
        return sum(sample.mask is not None for sample in self.test)


def open_data(path: Path, category: str | None = None) -> Dataset:
    """Open a manifest, WebDataset shards, or one category of a dataset in MVTec AD layout.

    Raises:
        UsageError: The path cannot be read, or the category is unknown or must be given.
        DataError: The dataset is damaged, has no good training image, or uses a file for both training and test.
    """
    listed = _read_listed(path)
    return open_mvtec(path, category) if listed is None else _open_listed(path, *listed, category)


def categories_in(path: Path) -> list[str]:
    """Return the sorted names of the categories that `open_data` accepts; empty if the dataset is a single category.

    Raises:
        UsageError: There is no such folder or manifest.
        DataError: The dataset is damaged.
    """
    listed = _read_listed(path)
    if listed is not None:
        return sorted({row.category for row in listed[1] if row.category is not None})
    require_folder(path, "dataset")
    root = _inner_root(path)
    return [] if is_category(root) else [folder.name for folder in subfolders_of(root) if is_category(folder)]


def _read_listed(path: Path) -> tuple[Literal["manifest", "webdataset"], list[ManifestRow]] | None:
    """Read the rows of a manifest or of WebDataset shards, with the name of the layout; None for other paths."""
    if is_manifest(path):
        return "manifest", read_manifest(path)
    shards = find_shards(path)
    return ("webdataset", read_shards(shards)) if shards else None


def _open_listed(
    path: Path, layout: Literal["manifest", "webdataset"], rows: list[ManifestRow], category: str | None
) -> Dataset:
    """Open one category of a manifest or of WebDataset shards."""
    names = {row.category: path for row in rows if row.category is not None}
    chosen = _choose_category(names or {path.stem: path}, category, path)
    rows = [row for row in rows if row.category == chosen] if names else rows
    train = [row.sample for row in rows if row.split == "train" or (row.split is None and row.sample.label == GOOD)]
    test = sort_by_key(
        row.sample for row in rows if row.split == "test" or (not row.split and row.sample.label != GOOD)
    )
    good = sort_by_key(sample for sample in train if sample.label == GOOD)
    if not good:
        raise DataError(f"{path} lists no good training image.", "Give good images the label good.")
    _check_disjoint(good, test)
    ignored = [IgnoredPath(s.path, f"a training image, but labelled {s.label}") for s in train if s.label != GOOD]
    notes = _split_notes(rows) + doubtful_label_notes(sample.label for sample in test)
    return Dataset(path.stem, chosen, path, layout, good, test, tuple(ignored), tuple(notes))


def _split_notes(rows: list[ManifestRow]) -> list[str]:
    """Return a note on how images without a split are used."""
    if all(row.split is not None for row in rows):
        return []
    return ["Images without a split: good images are used for training, the others for testing."]


def open_mvtec(root: Path, category: str | None = None) -> Dataset:
    """Open one category of a dataset in MVTec AD layout.

    Args:
        root: The category's folder, which contains `train/good`, or the folder of categories.
        category: Name of the category; may be None if there is only one.

    Raises:
        UsageError: The folder does not exist, or the category is unknown or must be given.
        DataError: The folder has another layout, contains no good images, or test images are among the good ones.
    """
    require_folder(root, "dataset")
    name = _name_of(root)
    root = _inner_root(root)
    single = {name: root} if is_category(root) else None
    categories = single or {folder.name: folder for folder in subfolders_of(root) if is_category(folder)}
    if not categories:
        raise _not_mvtec(root)
    chosen = _choose_category(categories, category, root)
    taken = [f"Using '{chosen}', the only category of {root}."] if not (single or category) else []
    return _open_category(categories[chosen], name, chosen, taken)


def open_folders(good: Path, test: Path | None = None, masks: Path | None = None) -> Dataset:
    """Open a plain folder of good images, optionally with folders of test images and masks.

    Args:
        good: Folder of good images, with or without subfolders.
        test: Folder of test images: one subfolder per label (`good`, `ok` and `normal` mean good), or no subfolders.
        masks: Folder of masks, in the same subfolders or directly in it; names with or without `_mask`.

    Returns:
        The dataset; keys start with `good/` and `test/`, independent of the folders' names.

    Raises:
        UsageError: A folder does not exist, or masks are given without test images.
        DataError: There are no images, or test images are among the good ones.
    """
    _check_folders(good, test, masks)
    train, ignored = _good_images(good, good, GOOD)
    train, masks_among_them = _without_masks(good, train)
    ignored.extend(masks_among_them)
    notes = _subfolder_notes(good, train)
    tests = TestImages()
    if test is not None:
        tests = test_images(test, masks, "test")
        if not tests.samples:
            raise no_images(test, tests.ignored)
    _check_disjoint(train, tests.samples)
    name = _folder_name(good)
    all_ignored = (*ignored, *tests.ignored)
    notes += tests.notes
    return Dataset(name, name, good, "folders", train, tests.samples, all_ignored, tuple(notes), tests.unused_masks)


# ---- MVTec AD layout


def _name_of(root: Path) -> str:
    name = root.resolve().name
    return root.stem if is_container_name(name) else name


def _inner_root(root: Path) -> Path:
    """Descend into the only folder of an archive that has everything in one folder; otherwise return the root."""
    while is_container_name(root.name) or not root.exists():
        folders = subfolders_of(root)
        if len(folders) != 1 or is_category(root) or is_category(folders[0]) or not subfolders_of(folders[0]):
            break
        root = folders[0]
    return root


def _choose_category(categories: dict[str, Path], category: str | None, root: Path) -> str:
    if category is not None and category not in categories:
        raise unknown_name("category", category, categories)
    if category is None and len(categories) > 1:
        raise UsageError(
            f"{root} has {len(categories)} categories.",
            f"Choose one with --category: {', '.join(sorted(categories))}.",
        )
    return category or next(iter(categories))


def _open_category(root: Path, name: str, category: str, notes: list[str]) -> Dataset:
    good = good_folder(root)
    assert good is not None
    train, ignored = _good_images(good, root)
    tests, test_notes = _test_part(root)
    _check_disjoint(train, tests.samples)
    unused = [folder.name for folder in subfolders_of(good.parent) if folder != good]
    notes += [f"Only {good} is used for training, not the folders {', '.join(unused)} beside it."] if unused else []
    all_ignored = (*ignored, *tests.ignored)
    notes += test_notes
    return Dataset(name, category, root, "mvtec", train, tests.samples, all_ignored, tuple(notes), tests.unused_masks)


def _test_part(root: Path) -> tuple[TestImages, tuple[str, ...]]:
    """Return the test images of a category, and notes for the user."""
    test, masks = find_subfolder(root, "test"), find_subfolder(root, "ground_truth")
    if test is None:
        return TestImages(), (f"{root} has no test folder: no metrics can be computed.",)
    tests = test_images(test, masks, test.name)
    note = "" if masks else f"{root} has no ground_truth folder: no pixel metrics can be computed."
    return tests, (*tests.notes, note) if note else tests.notes


def _good_images(good: Path, base: Path, prefix: str = "") -> tuple[tuple[Sample, ...], list[IgnoredPath]]:
    images, ignored = scan(good)
    if not images:
        raise no_images(good, ignored)
    return sort_by_key(Sample(path, relative_key(path, base, prefix), GOOD) for path in images), ignored


def _not_mvtec(root: Path) -> DataError:
    """Return the error for a folder that is not in MVTec AD layout, with the most likely remedy."""
    message = f"{root} is not in MVTec AD layout: it has no train/good folder."
    train = find_subfolder(root, "train")
    good = next((folder for folder in subfolders_of(root) if folder.name.casefold() in GOOD_NAMES), None)
    if any(reason_unusable(root / name) is None for name in storage.files_in(root)):
        return DataError(message, f"If it is a plain folder of good images, give it as --good {root}.")
    if good is not None:
        return DataError(message, f"If {good} holds the good images, give it as --good {good}.")
    if train is not None:
        return DataError(message, f"Move the good images into {train / GOOD}, or give their folder as --good.")
    return DataError(message, _EXPECTED_LAYOUT)


# ---- plain folders


def _check_folders(good: Path, test: Path | None, masks: Path | None) -> None:
    for folder, kind in ((good, "good images"), (test, "test images"), (masks, "masks")):
        if folder is not None:
            require_folder(folder, kind)
    if masks is not None and test is None:
        raise UsageError("Masks were given without test images.", "Give the test images with --test DIR.")
    if masks is not None and test is not None and masks.resolve() == test.resolve():
        raise UsageError(f"{masks} is given both as --test and as --masks.", "Put masks and images in two folders.")
    for folder, advice in ((good, f"--data {good}"), (test, f"--test {test}/test")):
        if folder is not None and is_category(folder):
            raise UsageError(f"{folder} is a dataset in MVTec AD layout.", f"Give it as {advice}.")


def _without_masks(good: Path, train: tuple[Sample, ...]) -> tuple[tuple[Sample, ...], tuple[IgnoredPath, ...]]:
    """Split the images below a folder into those outside and inside its folder of masks, which are no good images."""
    folder = find_subfolder(good, "ground_truth")
    if folder is None:
        return train, ()
    masks = {sample.path for sample in train if sample.path.is_relative_to(folder)}
    outside = tuple(sample for sample in train if sample.path not in masks)
    ignored = tuple(IgnoredPath(path, "in ground_truth, the folder of masks") for path in sorted(masks))
    if not outside:
        raise no_images(good, ignored)
    return outside, ignored


def _subfolder_notes(good: Path, train: Iterable[Sample]) -> list[str]:
    """Return a note on the subfolders that count as good, in case one of them holds defective images."""
    names = sorted({s.path.relative_to(good).parts[0] for s in train if s.path.parent != good})
    return [f"All images below {good} count as good, including those in {', '.join(names)}."] if names else []


def _folder_name(good: Path) -> str:
    """Return the folder's name; a name such as "good" or "train" is replaced by the name of the parent folder."""
    folder = good.resolve()
    generic = GOOD_NAMES | {"train"}
    while folder.name.casefold() in generic and folder.parent.name:
        folder = folder.parent
    return (folder.stem if is_container_name(folder.name) else folder.name) or "images"


# ---- test images, their labels and masks


def _check_disjoint(train: Iterable[Sample], test: Iterable[Sample]) -> None:
    """Raise an error if a file is both a training image and a test image."""
    train_paths = {os.path.realpath(sample.path) for sample in train}
    shared = [sample.path for sample in test if os.path.realpath(sample.path) in train_paths]
    if shared:
        raise DataError(
            f"Files that are both good images and test images: {len(shared)}, such as {shared[0]}.",
            "Put the test images in a separate folder, outside the folder of good images.",
        )
