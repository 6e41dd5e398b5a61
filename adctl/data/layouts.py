"""Folders to lists of samples: the MVTec AD layout, plain folders, and whatever is given to be scored.

    CATEGORY/train/good/*.png                   good images to learn from
    CATEGORY/test/LABEL/*.png                   test images; LABEL is "good" or the name of a defect
    CATEGORY/ground_truth/LABEL/*_mask.png      masks of the defective ones, matched by name

(Bergmann et al., "MVTec AD", CVPR 2019, and what people make of it: masks without `_mask`, other cases.)

Knows names and sizes of files; opens none. What cannot be used is returned with the reason, never dropped.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import DataError, UsageError, unknown_name
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

UNLABELLED = "unlabelled"
"""What test images without a label are counted under."""

DEFECT = "defect"
"""The label of an image whose mask is known but not the kind of its defect."""

_GOOD_NAMES = {"good", "ok", "normal"}
_JUNK = {"thumbs.db", "desktop.ini"}
_SHAPE = "Expected CATEGORY/train/good/ with good images, and CATEGORY/test/LABEL/ with test images."
_ENDINGS = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file or folder that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Images to learn from and images to test on.

    Attributes:
        name: Of the data set.
        category: Of the kind of part; equal to `name` where there is only one.
        root: The folder that the samples' keys are relative to; for plain folders, the folder of good images.
        layout: How it was laid out.
        train: Good images, sorted by key.
        test: Test images with their labels and masks as far as known, sorted by key.
        ignored: Files that were left out.
        notes: What the user should know, in sentences.
    """

    name: str
    category: str
    root: Path
    layout: Literal["mvtec", "folders"]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def test_counts(self) -> dict[str, int]:
        """Number of test images for each label, good first, then by name."""
        counts = Counter(sample.label or UNLABELLED for sample in self.test)
        return {label: counts[label] for label in sorted(counts, key=lambda label: (label != GOOD, label))}

    @property
    def mask_count(self) -> int:
        """Number of test images with a ground-truth mask."""
        return sum(sample.mask is not None for sample in self.test)


def open_mvtec(root: Path, category: str | None = None) -> Dataset:
    """Open one category of a data set in MVTec AD layout.

    Args:
        root: The category's folder, which holds `train/good`, or the folder of categories.
        category: Which one; may be left out where there is only one.

    Raises:
        UsageError: The folder does not exist, or the category is unknown or has to be chosen.
        DataError: The folder is not in this layout, holds no good images, or trains on test images.
    """
    _require_folder(root, "data set")
    here = {root.resolve().name: root} if _is_category(root) else None
    categories = here or {folder.name: folder for folder in _folders(root) if _is_category(folder)}
    if not categories:
        raise _not_mvtec(root)
    chosen = _choose(categories, category, root)
    taken = [f"Took '{chosen}', the only category of {root}."] if not (here or category) else []
    return _open_category(categories[chosen], root.resolve().name, chosen, taken)


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
    tested = _TestImages()
    if test is not None:
        tested = _test_images(test, masks, "test")
        if not tested.samples:
            raise _no_images(test, tested.ignored)
    _check_disjoint(train, tested.samples)
    name = _folder_name(good)
    everything = (*ignored, *tested.ignored)
    return Dataset(name, name, good, "folders", train, tested.samples, everything, (*notes, *tested.notes))


def list_images(inputs: Sequence[str | Path]) -> tuple[list[Sample], list[Ignored]]:
    """Find the images to score.

    Folders are searched to the bottom. Of an MVTec category only its test images are taken. Labels and masks
    are filled in for images that lie in a test folder, whichever way they were given: one named `test` beside
    a `ground_truth` or a `train/good`, or another beside a `ground_truth` with subfolders of the same names.

    Args:
        inputs: Folders, files, or patterns with `*`, `?`, `[...]` and `**`.

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
    ignored: dict[Path, Ignored] = {}
    for item in inputs:
        samples, left_out = _expand(item)
        for sample in samples:
            found.setdefault(os.path.realpath(sample.path), sample)
        ignored.update((entry.path, entry) for entry in left_out)
    if not found:
        raise _no_images(", ".join(map(str, inputs)), ignored.values())
    return list(_sorted(_with_truth(_with_unique_keys(list(found.values()))))), list(ignored.values())


# ---- MVTec AD layout


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
    good = _good_folder(root)
    assert good is not None
    train, ignored = _good_images(good, root)
    tested, more = _test_part(root)
    _check_disjoint(train, tested.samples)
    unused = [folder.name for folder in _folders(good.parent) if folder != good]
    notes += [f"Only {good} is learned from, not its neighbours {', '.join(unused)}."] if unused else []
    everything = (*ignored, *tested.ignored)
    return Dataset(name, category, root, "mvtec", train, tested.samples, everything, (*notes, *more))


def _test_part(root: Path) -> tuple[_TestImages, tuple[str, ...]]:
    """The test images of a category, and what to say about them."""
    test, masks = _child(root, "test"), _child(root, "ground_truth")
    if test is None:
        return _TestImages(), (f"{root} has no test folder: nothing can be measured on it.",)
    tested = _test_images(test, masks, test.name)
    bare = "" if masks else f"{root} has no ground_truth folder: only whole images can be judged."
    return tested, (*tested.notes, bare) if bare else tested.notes


def _good_images(good: Path, base: Path, prefix: str = "") -> tuple[tuple[Sample, ...], list[Ignored]]:
    images, ignored = _scan(good)
    if not images:
        raise _no_images(good, ignored)
    return _sorted(Sample(path, _key(path, base, prefix), GOOD) for path in images), ignored


def _is_category(folder: Path) -> bool:
    return _good_folder(folder) is not None


def _good_folder(category: Path) -> Path | None:
    train = _child(category, "train")
    return train and _child(train, GOOD)


def _not_mvtec(root: Path) -> DataError:
    """What is wrong with a folder that is no MVTec data set, with the likeliest way out."""
    message = f"{root} is not in MVTec AD layout: it has no train/good folder."
    train = _child(root, "train")
    good = next((folder for folder in _folders(root) if folder.name.casefold() in _GOOD_NAMES), None)
    if any(_fault(path) is None for path in root.iterdir()):
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
            _require_folder(folder, kind)
    if masks is not None and test is None:
        raise UsageError("Masks belong to test images, and none were given.", "Give them as --test DIR.")
    if masks is not None and test is not None and masks.resolve() == test.resolve():
        raise UsageError(f"{masks} is given both for test images and for masks.", "Keep masks apart from images.")
    for folder, advice in ((good, f"--data {good}"), (test, f"--test {test}/test")):
        if folder is not None and _is_category(folder):
            raise UsageError(f"{folder} is a data set in MVTec AD layout.", f"Pass it as {advice}.")


def _subfolder_notes(good: Path, train: Iterable[Sample]) -> list[str]:
    """Say which subfolders count as good, lest defects lie in one of them."""
    names = sorted({s.path.relative_to(good).parts[0] for s in train if s.path.parent != good})
    return [f"All images below {good} are taken as good, also those in {', '.join(names)}."] if names else []


def _folder_name(good: Path) -> str:
    """A name that says what is pictured, where the folder's own says only that it is good."""
    folder = good.resolve()
    generic = _GOOD_NAMES | {"train"}
    while folder.name.casefold() in generic and folder.parent.name:
        folder = folder.parent
    return folder.name or "images"


# ---- test images, their labels and masks


@dataclass(frozen=True)
class _TestImages:
    samples: tuple[Sample, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()


def _test_images(test: Path, masks: Path | None, prefix: str) -> _TestImages:
    """All images of a test folder with labels by subfolder and masks by name."""
    images, ignored = _scan(test, leave_out=[masks] if masks else [])
    samples = _sorted(Sample(path, _key(path, test, prefix), _label(path, test)) for path in images)
    if masks is None:
        return _TestImages(samples, tuple(ignored), tuple(_label_notes(samples)))
    mask_files, unusable = _scan(masks)
    matched, ambiguous = _match_masks(samples, test, mask_files, masks)
    samples = tuple(_with_mask(sample, matched.get(sample.path)) for sample in samples)
    notes = _label_notes(samples) + _mask_notes(samples, ambiguous)
    used = set(matched.values())
    unused = [path for path in mask_files if path not in used and _label(path, masks) != GOOD]
    if unused and not ambiguous:
        notes.append(f"Masks that belong to no test image: {len(unused)}, such as {unused[0]}.")
    return _TestImages(samples, (*ignored, *unusable), tuple(notes))


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
    return GOOD if parts[0].casefold() in _GOOD_NAMES else parts[0]


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


def _check_disjoint(train: Iterable[Sample], test: Iterable[Sample]) -> None:
    """Refuse to measure on what was learned from."""
    learned = {os.path.realpath(sample.path) for sample in train}
    shared = [sample.path for sample in test if os.path.realpath(sample.path) in learned]
    if shared:
        raise DataError(
            f"Images among both the good ones and the test images: {len(shared)}, such as {shared[0]}.",
            "Keep the test images in a folder of their own, outside the good ones.",
        )


# ---- images to score


def _expand(item: str | Path) -> tuple[list[Sample], list[Ignored]]:
    """The images one input stands for."""
    path = Path(item)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if glob.has_magic(str(item)):
            return _expand_pattern(path)
        raise UsageError(
            f"Cannot find {item}: {_reason(error)}.",
            "Give a folder, an image file, or a pattern such as 'parts/**/*.png'.",
        ) from error
    return _expand_folder(path, path) if is_folder else _expand_file(path, path.parent)


def _expand_file(path: Path, base: Path) -> tuple[list[Sample], list[Ignored]]:
    fault = _fault(path)
    return ([], [Ignored(path, fault)]) if fault else ([Sample(path, _key(path, base))], [])


def _expand_folder(folder: Path, base: Path) -> tuple[list[Sample], list[Ignored]]:
    """All images below a folder, but of MVTec categories only the test part."""
    images, ignored = _scan(folder, tests_only=True)
    return [Sample(path, _key(path, base)) for path in images], ignored


def _expand_pattern(pattern: Path) -> tuple[list[Sample], list[Ignored]]:
    """The files a pattern matches and what is in the folders it matches, as a Unix shell would have it."""
    first = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:first])
    try:
        matches = sorted(base.glob(str(Path(*pattern.parts[first:]))))
    except ValueError as error:
        raise UsageError(f"Bad pattern {pattern}: {error}.", "Write ** between slashes.") from error
    visible = [path for path in matches if not any(map(_is_hidden, path.relative_to(base).parts))]
    if not visible:
        raise UsageError(f"Nothing matches {pattern}.", "Check the pattern, and the folder it starts from.")
    samples, ignored = [], []
    for path in visible:
        more, left_out = _expand_folder(path, base) if path.is_dir() else _expand_file(path, base)
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
        if test is None:
            yield sample
            continue
        if test not in truths:
            truths[test] = _truth(test)
        known = truths[test].get(path, sample)
        yield replace(sample, label=known.label, mask=known.mask)


def _is_test_folder(folder: Path) -> bool:
    if folder.name.casefold() == "test":
        return _is_divided(folder.parent)
    masks = _child(folder.parent, "ground_truth")
    if masks is None or folder.name.casefold() in {"train", "ground_truth"}:
        return False
    return bool(_names(folder) & _names(masks))


def _is_divided(folder: Path) -> bool:
    """Whether a folder has parts beside its test images that are not to be scored."""
    return _is_category(folder) or _child(folder, "ground_truth") is not None


def _truth(test: Path) -> dict[Path, Sample]:
    """What is known of each image in a test folder, by path."""
    masks = _child(test.parent, "ground_truth")
    samples = _test_images(test, masks, test.name).samples
    if test.name.casefold() != "test" and masks is not None:
        # Beside defects that have masks there may be folders that name no defect, such as a date.
        sure = _names(masks) | {GOOD, DEFECT}
        samples = tuple(sample for sample in samples if (sample.label or "").casefold() in sure)
    return {sample.path: sample for sample in samples}


# ---- files and folders


def _scan(
    root: Path, *, leave_out: Collection[Path] = (), tests_only: bool = False
) -> tuple[list[Path], list[Ignored]]:
    """Find the image files below a folder, in order of name.

    Args:
        root: Where to start. Links are followed, and each folder is entered once.
        leave_out: Folders not to enter.
        tests_only: Of MVTec categories on the way enter only the test part.

    Returns:
        The usable files, and the others with the reason; hidden ones are passed over.
    """
    images, ignored = [], []

    def unreadable(error: OSError) -> None:
        ignored.append(Ignored(Path(error.filename), "the folder cannot be read"))

    visited = {os.path.realpath(folder) for folder in leave_out}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in visited:  # a link may lead back up
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        tests = [name for name in subfolders if tests_only and name.casefold() == "test"]
        if tests and _is_divided(Path(folder)):
            subfolders[:] = tests
        for path in (Path(folder, name) for name in sorted(names) if not _is_hidden(name)):
            fault = _fault(path)
            if fault is None:
                images.append(path)
            else:
                ignored.append(Ignored(path, fault))
    return images, ignored


def _fault(path: Path) -> str | None:
    """Why a file is not taken for an image; None when it is."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "not an image file"
    try:
        status = path.stat()
    except OSError as error:
        return _reason(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size else "empty file"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _folders(folder: Path) -> list[Path]:
    """Visible subfolders in order of name; none where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not _is_hidden(entry.name) and entry.is_dir())
    except OSError:
        return []
    return [folder / name for name in names]


def _child(folder: Path, name: str) -> Path | None:
    """The subfolder of that name, or else of that name in another case."""
    folders = _folders(folder)
    alike = [each for each in folders if each.name.casefold() == name]
    return folder / name if folder / name in alike else next(iter(alike), None)


def _names(folder: Path) -> set[str]:
    return {each.name.casefold() for each in _folders(folder)}


def _key(path: Path, base: Path, prefix: str = "") -> str:
    return Path(prefix, path.relative_to(base)).as_posix()


def _sorted(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.key))


def _require_folder(folder: Path, what: str) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UsageError(f"Cannot open the folder {folder} ({what}): {_reason(error)}.", "Check the path.") from error


def _reason(error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return reason[0].lower() + reason[1:]


def _no_images(where: Path | str, ignored: Collection[Ignored]) -> DataError:
    first = next(iter(ignored), None)
    left_out = f" Left out: {len(ignored)}, such as {first.path} ({first.reason})." if first else ""
    return DataError(f"No images found in {where}.{left_out}", f"Images end in {_ENDINGS}.")
