"""The pieces that make up a category's folder, and putting them there.

Knows no layout but the one adctl uses itself.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from PIL import Image

from adctl import files
from adctl.data.images import IMAGE_SUFFIXES, image_size, read_mask
from adctl.errors import DataError, ImageError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TRAIN = f"train/{GOOD}"
VALIDATION = f"validation/{GOOD}"


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A file that is taken over byte for byte, as `target` below the category's folder."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class WriteImage:
    """Pixels, [H,W] or [H,W,3], uint8, that become a PNG file."""

    pixels: NDArray[np.uint8]
    target: str


@dataclass(frozen=True, slots=True)
class MergeMasks:
    """Masks of one image that become one, 0 and 255: defective where any of them is not zero."""

    sources: tuple[Path, ...]
    target: str
    image: Path


Item: TypeAlias = CopyFile | WriteImage | MergeMasks


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """What was written.

    Attributes:
        bytes: Of all files.
        misfits: Images whose masks have another size than they have themselves.
    """

    bytes: int
    misfits: tuple[str, ...]


def good_images(folder: Path, place: str) -> Iterator[Item]:
    """All images of a folder, as they are."""
    for path in images_in(folder):
        yield CopyFile(path, f"{place}/{path.name}")


def labelled_image(image: Path, label: str, masks: Sequence[Path] = ()) -> Iterator[Item]:
    """A test image, with the one mask that its masks add up to."""
    yield CopyFile(image, f"test/{label}/{image.name}")
    if masks:
        yield MergeMasks(tuple(masks), f"ground_truth/{label}/{image.stem}_mask.png", image)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; none where there is no folder. Hidden files are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def is_empty_mask(path: Path) -> bool:
    """Whether a mask marks nothing.

    Raises:
        ImageError: It cannot be read.
    """
    return not read_mask(path).any()


def find_mask(image: Path, folder: Path, *, suffix: str = "") -> Path:
    """The mask of an image in another folder: the same name, whatever the format.

    Raises:
        DataError: There is none.
    """
    for ending in sorted(IMAGE_SUFFIXES):
        for path in (folder / f"{image.stem}{suffix}{spelt}" for spelt in (ending, ending.upper())):
            if path.is_file():
                return path
    raise DataError(f"There is no mask for {image} in {folder}.", "Take the data set from its official source.")


def find_categories(tree: Path, known: Sequence[str], is_one: Callable[[Path], bool]) -> dict[str, Path]:
    """Folders named like categories: the tree itself, folders in it, or in those."""
    if is_one(tree):
        name = tree.resolve().name
        return {name if name in known else "": tree}
    children = folders_in(tree)
    below = [path for child in children for path in folders_in(child)]
    candidates = {path.name: path for path in (*below, *children) if is_one(path)}
    return {name: candidates[name] for name in known or sorted(candidates) if name in candidates}


def find_root(tree: Path, is_one: Callable[[Path], bool]) -> Path | None:
    """The folder that a data set begins at: the tree itself, or a folder in it, or in those."""
    children = folders_in(tree)
    below = [path for child in children for path in folders_in(child)]
    return next((path for path in (tree, *children, *below) if is_one(path)), None)


def folders_in(folder: Path) -> list[Path]:
    """The folders of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def write_category(
    items: Iterable[Item], into: Path, *, move: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> LayoutResult:
    """Write a category's folder.

    Args:
        items: What goes where.
        into: The folder to make.
        move: Take files away from where they are, rather than copy them.
        progress: Told (done, total) in files.

    Raises:
        DataError: Two things have the same place, or a mask cannot be read.
        OutputError: It cannot be written.
    """
    # Masks first: they are compared with their images, which may be moved away.
    plan = sorted(items, key=lambda item: not isinstance(item, MergeMasks))
    written, seen, misfits = 0, set[str](), []
    for done, item in enumerate(plan, 1):
        target = into / item.target
        if item.target.casefold() in seen:
            raise DataError(f"Two files want to be {item.target}.", "Take the data set from its official source.")
        seen.add(item.target.casefold())
        if not _put(item, target, move=move):
            misfits.append(item.target)
        written += target.stat().st_size
        if progress is not None:
            progress(done, len(plan))
    return LayoutResult(written, tuple(misfits))


def _put(item: Item, target: Path, *, move: bool) -> bool:
    """Write one thing; tells whether it fits what it belongs to."""
    files.make_folder(target.parent)
    if isinstance(item, CopyFile):
        with files.output_errors(target):
            (shutil.move if move else shutil.copyfile)(item.source, target)
        return True
    if isinstance(item, WriteImage):
        with files.output_errors(target):
            Image.fromarray(item.pixels).save(target, "PNG")
        return True
    mask = _united(item)
    with files.output_errors(target):
        target.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    try:
        return image_size(item.image) == (mask.shape[1], mask.shape[0])
    except ImageError:
        return True  # whoever reads the image will say what is wrong with it


def _united(item: MergeMasks) -> NDArray[np.uint8]:
    """[H,W], 0 or 255."""
    union = read_mask(item.sources[0])
    for source in item.sources[1:]:
        other = read_mask(source)
        if other.shape != union.shape:
            raise DataError(f"The masks of {item.image} differ in size.", "Take the data set from its official source.")
        union = union | other
    return union.astype(np.uint8) * 255
