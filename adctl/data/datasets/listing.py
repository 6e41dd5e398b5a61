"""Whatever is given to be scored, as a list of samples: folders, files, patterns, archives, manifests.

Knows names and sizes of files; opens none.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.data import storage
from adctl.data.datasets.folders import (
    IgnoredPath,
    find_subfolder,
    is_hidden,
    no_images,
    os_reason,
    reason_unusable,
    scan,
    subfolder_names,
)
from adctl.data.datasets.ground_truth import DEFECT, has_test_part, relative_key, sort_by_key, test_images
from adctl.data.datasets.manifests import ManifestRow, is_manifest, read_manifest
from adctl.data.datasets.remote import local_copy
from adctl.data.datasets.webdataset import find_shards, read_shards
from adctl.errors import UsageError
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def list_images(inputs: Sequence[str | Path]) -> tuple[list[Sample], list[IgnoredPath]]:
    """Find the images to score.

    Folders are searched to the bottom. Of an MVTec category only its test images are taken. Labels and masks
    are filled in for images that lie in a test folder, whichever way they were given: one named `test` beside
    a `ground_truth` or a `train/good`, or another beside a `ground_truth` with subfolders of the same names.

    Args:
        inputs: Folders, archives, image files, manifests (of which the test images, if it names any), or patterns with
            `*`, `?`, `[...]` and `**`.

    Returns:
        The samples, each file once, sorted by key: the path below the folder given, the name of a file given,
        with leading folders where that leaves two the same. And what was left out.

    Raises:
        UsageError: An input does not exist, or a pattern matches nothing.
        DataError: There is no image in all of them.
    """
    if not inputs:
        raise UsageError("No images were given.", "Give folders, image files or patterns.")
    found: dict[str, Sample] = {}
    ignored: dict[Path, IgnoredPath] = {}
    for item in inputs:
        samples, left_out = _expand(item)
        for sample in samples:
            found.setdefault(os.path.realpath(sample.path), sample)
        ignored.update((entry.path, entry) for entry in left_out)
    if not found:
        raise no_images(", ".join(map(str, inputs)), ignored.values())
    return list(sort_by_key(_with_truth(_with_unique_keys(list(found.values()))))), list(ignored.values())


def _expand(item: str | Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """The images one input stands for."""
    path = local_copy(Path(item))
    try:
        is_folder = storage.is_folder(path)
    except OSError as error:
        if glob.has_magic(str(item)):
            return _expand_pattern(path)
        raise UsageError(
            f"Cannot find {item}: {os_reason(error)}.",
            "Give a folder, an image file, or a pattern such as 'parts/**/*.png'.",
        ) from error
    if is_manifest(path):
        return _tests_of(read_manifest(path)), []
    if shards := find_shards(path):
        return _tests_of(read_shards(shards)), []
    return _expand_folder(path, path) if is_folder else _expand_file(path, path.parent)


def _tests_of(rows: list[ManifestRow]) -> list[Sample]:
    """Listed images to test on, or all where none are said to be."""
    return [row.sample for row in rows if row.split == "test"] or [row.sample for row in rows]


def _expand_file(path: Path, base: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    fault = reason_unusable(path)
    return ([], [IgnoredPath(path, fault)]) if fault else ([Sample(path, relative_key(path, base))], [])


def _expand_folder(folder: Path, base: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """All images below a folder, but of MVTec categories only the test part."""
    images, ignored = scan(folder, narrow=_tests_only)
    return [Sample(path, relative_key(path, base)) for path in images], ignored


def _tests_only(folder: Path, subfolders: list[str]) -> list[str]:
    """Of an MVTec category on the way only the test part."""
    tests = [name for name in subfolders if name.casefold() == "test"]
    return tests if tests and has_test_part(folder) else subfolders


def _expand_pattern(pattern: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """The files a pattern matches and what is in the folders it matches, as a Unix shell would have it."""
    first = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:first])
    try:
        matches = sorted(base.glob(str(Path(*pattern.parts[first:]))))
    except ValueError as error:
        raise UsageError(f"Bad pattern {pattern}: {error}.", "Write ** between slashes.") from error
    visible = [path for path in matches if not any(map(is_hidden, path.relative_to(base).parts))]
    if not visible:
        raise UsageError(f"Nothing matches {pattern}.", "Check the pattern, and the folder it starts from.")
    samples, ignored = [], []
    for path in visible:
        more, left_out = _expand_folder(path, base) if storage.is_folder(path) else _expand_file(path, base)
        samples += more
        ignored += left_out
    return samples, ignored


def _with_unique_keys(samples: list[Sample]) -> list[Sample]:
    """Put parent folders before keys that several files share, until they differ."""
    paths = [sample.path.absolute() for sample in samples]
    depths = [len(Path(sample.key).parts) for sample in samples]
    while True:
        keys = [Path(*path.parts[-depth:]).as_posix() for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(keys)
        if len(counts) == len(keys):
            return [replace(sample, key=key) for sample, key in zip(samples, keys, strict=True)]
        depths = [depth + (counts[key] > 1) for key, depth in zip(keys, depths, strict=True)]


def _with_truth(samples: list[Sample]) -> Iterator[Sample]:
    """Fill in labels and masks of the images that lie in a test folder."""
    test_folders: dict[Path, Path | None] = {}
    truths: dict[Path, dict[Path, Sample]] = {}
    for sample in samples:
        path = sample.path.absolute()
        if path.parent not in test_folders:
            test_folders[path.parent] = next(filter(_is_test_folder, path.parents), None)
        test = test_folders[path.parent]
        if test is None or sample.label is not None:
            yield sample
            continue
        if test not in truths:
            truths[test] = _truth(test)
        known = truths[test].get(path, sample)
        yield replace(sample, label=known.label, mask=known.mask)


def _is_test_folder(folder: Path) -> bool:
    if folder.name.casefold() == "test":
        return has_test_part(folder.parent)
    masks = find_subfolder(folder.parent, "ground_truth")
    if masks is None or folder.name.casefold() in {"train", "ground_truth"}:
        return False
    return bool(subfolder_names(folder) & subfolder_names(masks))


def _truth(test: Path) -> dict[Path, Sample]:
    """What is known of each image in a test folder, by path."""
    masks = find_subfolder(test.parent, "ground_truth")
    samples = test_images(test, masks, test.name).samples
    if test.name.casefold() != "test" and masks is not None:
        # Beside defects that have masks there may be folders that name no defect, such as a date.
        sure = subfolder_names(masks) | {GOOD, DEFECT}
        samples = tuple(sample for sample in samples if (sample.label or "").casefold() in sure)
    return {sample.path: sample for sample in samples}
