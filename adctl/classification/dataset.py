"""Opening of labelled datasets for classifiers, and checks of their labels.

    DIR/train/LABEL/*.png, DIR/test/LABEL/*.png       training and test images of each kind
    DIR/train/good/*.png, DIR/test/LABEL/*.png        MVTec AD layout: all labelled images together
    DIR/CATEGORY/train/good/*.png, ...                one-class benchmarks, such as CIFAR-10: each category is a kind
    DIR/LABEL/*.png                                   one folder for each kind
    manifest, WebDataset shards                       column `label`

Without test images of its own, a part of the images is held out later. No image is decoded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adctl.data.datasets.folders import IgnoredPath, find_subfolder, no_images, require_folder, scan, subfolders_of
from adctl.data.datasets.ground_truth import GOOD_NAMES, is_category, relative_key, sort_by_key
from adctl.data.datasets.manifests import ManifestRow, is_manifest, read_manifest
from adctl.data.datasets.remote import local_copy
from adctl.data.datasets.webdataset import find_shards, read_shards
from adctl.data.groups import assign_groups, units_of
from adctl.data.split import file_digest
from adctl.datasets import open_dataset
from adctl.errors import DataError, UsageError
from adctl.fetching.finding import find_dataset
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from adctl.config import DataSettings

MIN_IMAGES = 4
"""Minimum number of different training images of a kind: two to learn from, and others to test and to calibrate."""

_LISTED = 5


@dataclass(frozen=True)
class LabelledDataset:
    """Labelled images.

    Attributes:
        name: Name of the dataset.
        root: Folder or file that names the images.
        train: Training images, sorted by key; each has a label.
        test: Test images, sorted by key; empty if the dataset does not separate them.
        ignored: Ignored files.
        notes: Sentences to show to the user.
    """

    name: str
    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    ignored: tuple[IgnoredPath, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted labels of the training images."""
        return tuple(sorted({label_of(sample) for sample in self.train}))


def label_of(sample: Sample) -> str:
    """Return the label of an image that has one."""
    assert sample.label is not None
    return sample.label


def open_labelled(settings: DataSettings) -> LabelledDataset:
    """Open the labelled images that the settings name.

    Raises:
        UsageError: The settings name no dataset, or `group` does not fit its images.
        DataError: The layout is unknown, a label or its folder is empty, or labels cannot be told apart.
    """
    dataset = _open(settings)
    _check_labels(dataset)
    if settings.group is None:
        return dataset
    grouped = {one.key: one for one in assign_groups((*dataset.train, *dataset.test), settings.group)}
    train, test = (tuple(grouped[one.key] for one in part) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def check_contents(dataset: LabelledDataset, digests: Mapping[str, str]) -> None:
    """Check that no image has two labels, that no test image or group is a training image, and that kinds suffice.

    Args:
        dataset: The images.
        digests: SHA-256 of each image file, by its key.

    Raises:
        DataError: The images cannot be used; the message names the first of them.
    """
    seen: dict[str, Sample] = {}
    for sample in (*dataset.train, *dataset.test):
        other = seen.setdefault(digests[sample.key], sample)
        if other.label != sample.label:
            raise DataError(
                f"The same image has two labels: {other.path} is '{other.label}', {sample.path} is '{sample.label}'.",
                "Keep it under one label.",
            )
    train_digests = {digests[sample.key] for sample in dataset.train}
    groups = {sample.group for sample in dataset.train} - {None}
    leaks = [one for one in dataset.test if digests[one.key] in train_digests or one.group in groups]
    if leaks:
        raise DataError(
            f"Test images that are training images too, or of the same group: {len(leaks)}, such as {leaks[0].path}.",
            "Keep each image and each group in one part.",
        )
    units = Counter(label for unit in units_of(dataset.train, digests) for label in {label_of(one) for one in unit})
    few = [f"{label} ({units[label]})" for label in dataset.classes if units[label] < MIN_IMAGES]
    if few:
        raise DataError(
            f"Kinds with too few different training images or groups: {_listed(few)}.",
            f"Give at least {MIN_IMAGES} of each, or leave these kinds out with --set 'leave_out=[\"NAME\"]'.",
        )


def digests_of(samples: Iterable[Sample]) -> dict[str, str]:
    """Return the hexadecimal SHA-256 of each image file, by its key."""
    return {sample.key: file_digest(sample) for sample in samples}


def without(dataset: LabelledDataset, kinds: Sequence[str]) -> tuple[LabelledDataset, tuple[Sample, ...]]:
    """Return the dataset without some kinds, and their images, all of them.

    Raises:
        UsageError: There is no such kind.
    """
    for kind in kinds:
        if kind not in dataset.classes:
            raise UsageError(f"There is no kind '{kind}' to leave out.", f"Kinds: {_listed(dataset.classes)}.")
    kept = (tuple(one for one in part if one.label not in kinds) for part in (dataset.train, dataset.test))
    left = tuple(one for one in (*dataset.train, *dataset.test) if one.label in kinds)
    train, test = kept
    reduced = replace(dataset, train=train, test=test)
    _check_classes(reduced)
    return reduced, left


# ---- layouts


def _open(settings: DataSettings) -> LabelledDataset:
    if settings.good is not None or (settings.data is None and settings.dataset is None):
        return _pooled(settings)
    if settings.data is not None and settings.dataset is not None:
        raise UsageError("--data and --dataset both name a dataset.", "Give only one of them.")
    path = local_copy(settings.data) if settings.data is not None else find_dataset(None, settings.dataset)
    rows = read_manifest(path) if is_manifest(path) else read_shards(find_shards(path)) if find_shards(path) else None
    return _open_folder(path, settings) if rows is None else _listed_dataset(path, rows, settings.category)


def _open_folder(path: Path, settings: DataSettings) -> LabelledDataset:
    require_folder(path, "dataset")
    folders = subfolders_of(path)
    categories = [folder for folder in folders if is_category(folder)]
    if categories and settings.category is None and (found := _one_class(path, categories)) is not None:
        return found
    train = find_subfolder(path, "train")
    if train is not None and len(subfolders_of(train)) > 1:
        return _of_folders(path, train, find_subfolder(path, "test"))
    if is_category(path) or categories:
        return _pooled(settings)
    if not folders:
        raise DataError(
            f"{path} has no folders of labelled images.", "Put the images of each kind into a folder of its own."
        )
    return _of_folders(path, path, None)


def _of_folders(root: Path, train: Path, test: Path | None) -> LabelledDataset:
    """Open one folder for each kind below the folders of training and test images."""
    images, ignored = _labelled(train, "train")
    tests, more = ((), []) if test is None else _labelled(test, "test")
    return LabelledDataset(root.resolve().name, root, images, tests, (*ignored, *more))


def _labelled(folder: Path, prefix: str) -> tuple[tuple[Sample, ...], list[IgnoredPath]]:
    found: list[Sample] = []
    ignored: list[IgnoredPath] = []
    for kind in subfolders_of(folder):
        images, left_out = scan(kind)
        ignored += left_out
        if not images:
            raise DataError(f"The folder of the kind '{kind.name}' has no images: {kind}.", "Fill or remove it.")
        name = GOOD if kind.name.casefold() in GOOD_NAMES else kind.name
        found += [Sample(path, relative_key(path, folder, prefix), name) for path in images]
    if not found:
        raise no_images(folder, ignored)
    return sort_by_key(found), ignored


def _one_class(root: Path, categories: Sequence[Path]) -> LabelledDataset | None:
    """Open a one-class benchmark, whose test labels are the names of its other categories; None for other datasets."""
    names = {folder.name for folder in categories}
    tests = {folder.name: find_subfolder(folder, "test") for folder in categories}
    labels = {one.name for test in tests.values() if test is not None for one in subfolders_of(test)} - {GOOD}
    if len(names) < 2 or not labels or not labels <= names:  # noqa: PLR2004 - a second kind
        return None
    parts: dict[str, list[Sample]] = defaultdict(list)
    for folder in categories:
        for part in ("train", "test"):
            images, _ = scan(folder / part / GOOD)
            parts[part] += [Sample(path, relative_key(path, root), folder.name) for path in images]
    return LabelledDataset(root.resolve().name, root, sort_by_key(parts["train"]), sort_by_key(parts["test"]))


def _pooled(settings: DataSettings) -> LabelledDataset:
    """Open a dataset for detectors: its good images and its labelled test images together, to be split anew."""
    dataset = open_dataset(replace(settings, group=None))
    samples = tuple(one for one in (*dataset.train, *dataset.test) if one.label is not None)
    note = "The good images and the labelled test images are put together, and split anew."
    return LabelledDataset(dataset.category, dataset.root, sort_by_key(samples), (), dataset.ignored, (note,))


def _listed_dataset(path: Path, rows: Sequence[ManifestRow], category: str | None) -> LabelledDataset:
    """Open a manifest or shards; images without a split are training images."""
    rows = [row for row in rows if category is None or row.category == category]
    labelled = [row for row in rows if row.sample.label is not None]
    if not labelled:
        raise DataError(f"{path} lists no labelled image.", "Give the kind of each image in the column label.")
    parts = {part: [row.sample for row in labelled if (row.split or "train") == part] for part in ("train", "test")}
    return LabelledDataset(path.stem, path, sort_by_key(parts["train"]), sort_by_key(parts["test"]))


# ---- checks of labels


def _check_labels(dataset: LabelledDataset) -> None:
    folded: dict[str, str] = {}
    for label in sorted({label_of(sample) for sample in (*dataset.train, *dataset.test)}):
        other = folded.setdefault(label.casefold().strip(), label)
        if other != label:
            raise DataError(
                f"The labels '{other}' and '{label}' differ in case or spaces only.", "Write them in one way."
            )
    _check_classes(dataset)
    tested = {label_of(sample) for sample in dataset.test}
    if unknown := sorted(tested - set(dataset.classes)):
        raise DataError(
            f"Kinds with test images but without training images: {_listed(unknown)}.",
            "Give training images of these kinds, or remove their test images.",
        )
    if dataset.test and (untested := sorted(set(dataset.classes) - tested)):
        raise DataError(
            f"Kinds with training images but without test images: {_listed(untested)}.",
            "Give test images of these kinds too, or no test images at all; then a part is held out.",
        )


def _check_classes(dataset: LabelledDataset) -> None:
    if len(dataset.classes) < 2:  # noqa: PLR2004 - a kind and another
        raise DataError(
            f"There are training images of {len(dataset.classes)} kind only: {_listed(dataset.classes)}.",
            "A classifier needs at least two kinds, such as good and scratch; with one, train a detector.",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
