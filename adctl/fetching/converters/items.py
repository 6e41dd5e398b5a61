"""Items of a category (files to copy, images to write, masks to merge), and writing them in the layout of MVTec AD."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from PIL import Image

from adctl import files
from adctl.data.images import IMAGE_SUFFIXES, image_size
from adctl.data.masks import read_mask
from adctl.errors import DataError, ImageError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TRAIN = f"train/{GOOD}"
VALIDATION = f"validation/{GOOD}"
_REMEDY = "Take the data set from its official source."


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A file to copy unchanged to `target`, a path relative to the category's folder."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class WriteImage:
    """Pixels [H,W] or [H,W,3], uint8, to write as a PNG file."""

    pixels: NDArray[np.uint8]
    target: str


@dataclass(frozen=True, slots=True)
class MergeMasks:
    """Masks of one image to merge into one with values 0 and 255: defective where any of them is not zero."""

    sources: tuple[Path, ...]
    target: str
    image: Path


Item: TypeAlias = CopyFile | WriteImage | MergeMasks


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """Result of writing a category.

    Attributes:
        bytes: Total size of all files.
        mismatched_masks: Masks that differ in size from their images.
    """

    bytes: int
    mismatched_masks: tuple[str, ...]


def good_images(folder: Path, place: str) -> Iterator[Item]:
    """Yield all images of a folder, unchanged."""
    for path in images_in(folder):
        yield CopyFile(path, f"{place}/{path.name}")


def labelled_image(image: Path, label: str, masks: Sequence[Path] = ()) -> Iterator[Item]:
    """Yield a test image, and its merged mask if it has masks."""
    yield CopyFile(image, f"test/{label}/{image.name}")
    if masks:
        yield MergeMasks(tuple(masks), f"ground_truth/{label}/{image.stem}_mask.png", image)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder without hidden ones, sorted by name; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def is_empty_mask(path: Path) -> bool:
    """Return whether a mask has no defective pixels.

    Raises:
        ImageError: It cannot be read.
    """
    return not read_mask(path).any()


def find_mask(image: Path, folder: Path, *, suffix: str = "") -> Path:
    """Return the mask of an image in another folder: the file with the same name plus `suffix`, in any image format.

    Raises:
        DataError: There is none.
    """
    for ending in sorted(IMAGE_SUFFIXES):
        for path in (folder / f"{image.stem}{suffix}{variant}" for variant in (ending, ending.upper())):
            if path.is_file():
                return path
    raise DataError(f"There is no mask for {image} in {folder}.", _REMEDY)


def find_categories(tree: Path, known: Sequence[str], matches: Callable[[Path], bool]) -> dict[str, Path]:
    """Return the category folders up to two levels below `tree`, or `tree` itself; "" is a category of unknown name."""
    if matches(tree):
        name = tree.resolve().name
        return {name if name in known else "": tree}
    children = folders_in(tree)
    below = [path for child in children for path in folders_in(child)]
    candidates = {path.name: path for path in (*below, *children) if matches(path)}
    return {name: candidates[name] for name in known or sorted(candidates) if name in candidates}


def find_root(tree: Path, matches: Callable[[Path], bool]) -> Path | None:
    """Return the root folder of a data set: `tree`, or a folder up to two levels below it; None if there is none."""
    children = folders_in(tree)
    below = [path for child in children for path in folders_in(child)]
    return next((path for path in (tree, *children, *below) if matches(path)), None)


def folders_in(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def write_category(
    items: Iterable[Item], into: Path, *, move: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> LayoutResult:
    """Write a category's folder.

    Args:
        items: Items to write.
        into: Folder to create.
        move: Move files instead of copying them.
        progress: Called with (done, total) in files.

    Raises:
        DataError: Two items have the same target, or a mask cannot be read.
        OutputError: A file cannot be written.
    """
    # Masks first: they are compared with their images, which may be moved afterwards.
    ordered = sorted(items, key=lambda item: not isinstance(item, MergeMasks))
    size, targets, mismatched = 0, set[str](), []
    for done, item in enumerate(ordered, 1):
        target = into / item.target
        if item.target.casefold() in targets:
            raise DataError(f"Two files have the same target {item.target}.", _REMEDY)
        targets.add(item.target.casefold())
        if not _write(item, target, move=move):
            mismatched.append(item.target)
        size += target.stat().st_size
        if progress is not None:
            progress(done, len(ordered))
    return LayoutResult(size, tuple(mismatched))


def _write(item: Item, target: Path, *, move: bool) -> bool:
    """Write one item; return False for a mask that differs in size from its image."""
    files.make_folder(target.parent)
    if isinstance(item, CopyFile):
        with files.output_errors(target):
            (shutil.move if move else shutil.copyfile)(item.source, target)
        return True
    if isinstance(item, WriteImage):
        with files.output_errors(target):
            Image.fromarray(item.pixels).save(target, "PNG")
        return True
    mask = _merge(item)
    with files.output_errors(target):
        target.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    try:
        return image_size(item.image) == (mask.shape[1], mask.shape[0])
    except ImageError:
        return True  # reading the image later reports the damage


def _merge(item: MergeMasks) -> NDArray[np.uint8]:
    """Return the union of the masks [H,W] with values 0 and 255."""
    union = read_mask(item.sources[0])
    for source in item.sources[1:]:
        other = read_mask(source)
        if other.shape != union.shape:
            raise DataError(f"The masks of {item.image} differ in size.", _REMEDY)
        union = union | other
    return union.astype(np.uint8) * 255
