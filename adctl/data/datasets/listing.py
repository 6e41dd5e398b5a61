"""Listing of the images to score, from folders, files, patterns, archives and manifests. Decodes no image."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.data import storage
from adctl.data.datasets.folders import (
    IgnoredPath,
    find_subfolder,
    is_hidden,
    is_picture,
    is_results,
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
    from collections.abc import Callable, Iterator, Sequence


def list_images(inputs: Sequence[str | Path]) -> tuple[list[Sample], list[IgnoredPath]]:
    """Find the images to score.

    Folders are searched recursively; in an MVTec category, only the test images are taken. Images in a test folder get
    their labels and masks from the ground truth. A test folder is a folder called `test` beside `ground_truth` or
    `train/good`, or a folder beside a `ground_truth` that has a subfolder of the same name.

    Args:
        inputs: Folders, archives, image files, manifests (only their test images, if there are any), or patterns with
            `*`, `?`, `[...]` and `**`.

    Returns:
        The samples, each file once, sorted by key, and the ignored paths. The key is the path below the given folder,
        or the name of the given file; parent folders are added to keys that would be equal.

    Raises:
        UsageError: An input does not exist, or a pattern matches nothing.
        DataError: No input contains an image.
    """
    if not inputs:
        raise UsageError("No images were given.", "Give folders, image files or patterns.")
    found: dict[str, Sample] = {}
    real_folder: Callable[[str], str] = cache(os.path.realpath)
    ignored: dict[Path, IgnoredPath] = {}
    for item in inputs:
        samples, left_out = _expand(item)
        for sample in samples:
            found.setdefault(_real_path(sample.path, real_folder), sample)
        ignored.update((entry.path, entry) for entry in left_out)
    if not found:
        raise no_images(", ".join(map(str, inputs)), ignored.values())
    return list(sort_by_key(_with_ground_truth(_with_unique_keys(list(found.values()))))), list(ignored.values())


def _expand(item: str | Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """Return the images of one input, and the ignored paths."""
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
        return _test_samples(read_manifest(path)), []
    if shards := find_shards(path):
        return _test_samples(read_shards(shards)), []
    return _expand_folder(path, path) if is_folder else _expand_file(path, path.parent)


def _test_samples(rows: list[ManifestRow]) -> list[Sample]:
    """Return the test images of a manifest, or all images if none is marked as a test image."""
    return [row.sample for row in rows if row.split == "test"] or [row.sample for row in rows]


def _expand_file(path: Path, base: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    reason = reason_unusable(path)
    return ([], [IgnoredPath(path, reason)]) if reason else ([Sample(path, relative_key(path, base))], [])


def _expand_folder(folder: Path, base: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """Find all images below a folder, but only the test part of MVTec categories."""
    images, ignored = scan(folder, narrow=_tests_only)
    return [Sample(path, relative_key(path, base)) for path in images], ignored


def _tests_only(folder: Path, subfolders: list[str]) -> list[str]:
    """Return the subfolders to search: only the test part of an MVTec category, all subfolders of another folder."""
    tests = [name for name in subfolders if name.casefold() == "test"]
    return tests if tests and has_test_part(folder) else subfolders


def _expand_pattern(pattern: Path) -> tuple[list[Sample], list[IgnoredPath]]:
    """Return the files that match a pattern and the files in matching folders, without hidden ones."""
    first = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:first])
    try:
        matches = sorted(base.glob(str(Path(*pattern.parts[first:]))))
    except ValueError as error:
        raise UsageError(f"Invalid pattern {pattern}: {error}.", "Write ** between slashes.") from error
    visible = [path for path in matches if not any(map(is_hidden, path.relative_to(base).parts))]
    if not visible:
        raise UsageError(f"Nothing matches {pattern}.", "Check the pattern and its folder.")
    samples, ignored = [], []
    for path in visible:
        found, left_out = _expand_folder(path, base) if storage.is_folder(path) else _expand_file(path, base)
        samples += found
        ignored += left_out
    results = cache(is_results)
    own = {sample.path for sample in samples if _is_result(sample.path, base, results)}
    ignored += [IgnoredPath(path, "a result of adctl") for path in own]
    return [sample for sample in samples if sample.path not in own], ignored


def _is_result(path: Path, base: Path, results: Callable[[Path], bool]) -> bool:
    """Return whether adctl wrote a file that a pattern with the given base matches."""
    inside = path.parents[: len(path.parents) - len(base.parents) - 1]
    is_map = any(parent.name == "maps.h5" and results(parent.parent) for parent in inside)
    return is_map or any(map(results, inside)) or (results(base) and is_picture(path))


def _real_path(path: Path, real_folder: Callable[[str], str]) -> str:
    """Return the path without links.

    Args:
        path: An image file.
        real_folder: Function that returns the path of a folder without links, and remembers it.
    """
    folder, name = os.path.split(path)
    return os.path.realpath(path) if path.is_symlink() else f"{real_folder(folder)}{os.sep}{name}"


def _with_unique_keys(samples: list[Sample]) -> list[Sample]:
    """Add parent folders to equal keys until all keys differ."""
    if len({sample.key for sample in samples}) == len(samples) and all(map(_is_tail, samples)):
        return samples
    paths = [sample.path.absolute() for sample in samples]
    depths = [len(Path(sample.key).parts) for sample in samples]
    while True:
        keys = [Path(*path.parts[-depth:]).as_posix() for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(keys)
        if len(counts) == len(keys):
            return [replace(sample, key=key) for sample, key in zip(samples, keys, strict=True)]
        depths = [depth + (counts[key] > 1) for key, depth in zip(keys, depths, strict=True)]


def _is_tail(sample: Sample) -> bool:
    """Return whether the path of an image ends with its key, as it does unless the key has parts such as `..`."""
    return sample.path.as_posix().endswith(f"/{sample.key}") or sample.path.as_posix() == sample.key


def _with_ground_truth(samples: list[Sample]) -> Iterator[Sample]:
    """Add labels and masks to the images that lie in a test folder."""
    test_folders: dict[str, Path | None] = {}
    ground_truths: dict[Path, dict[Path, Sample]] = {}
    for sample in samples:
        folder = os.path.dirname(sample.path)  # noqa: PTH120 - ten times as fast, and there may be many images
        if folder not in test_folders:
            test_folders[folder] = next(filter(_is_test_folder, sample.path.absolute().parents), None)
        test = test_folders[folder]
        if test is None or sample.label is not None:
            yield sample
            continue
        path = sample.path.absolute()
        if test not in ground_truths:
            ground_truths[test] = _ground_truth(test)
        known = ground_truths[test].get(path, sample)
        yield replace(sample, label=known.label, mask=known.mask)


def _is_test_folder(folder: Path) -> bool:
    if folder.name.casefold() == "test":
        return has_test_part(folder.parent)
    masks = find_subfolder(folder.parent, "ground_truth")
    if masks is None or folder.name.casefold() in {"train", "ground_truth"}:
        return False
    return bool(subfolder_names(folder) & subfolder_names(masks))


def _ground_truth(test: Path) -> dict[Path, Sample]:
    """Return the labelled samples of a test folder by path."""
    masks = find_subfolder(test.parent, "ground_truth")
    samples = test_images(test, masks, test.name).samples
    if test.name.casefold() != "test" and masks is not None:
        # Only subfolders with masks name a defect; other subfolders may have another meaning, such as a date.
        labels = subfolder_names(masks) | {GOOD, DEFECT}
        samples = tuple(sample for sample in samples if (sample.label or "").casefold() in labels)
    return {sample.path: sample for sample in samples}
