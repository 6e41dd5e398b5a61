"""Magnetic tile defects (Huang et al., 2020).

    MT_Free/Imgs/exp1_num_1001.jpg          good; a mask with the same name is all zero
    MT_Blowhole/Imgs/exp1_num_2001.jpg      also for break, crack, fray and uneven
    MT_Blowhole/Imgs/exp1_num_2001.png      the mask

No split is published. Here every fifth good tile is a test tile. A tile may have several images with different
exposures (`exp`), which stay together by the tile's number (`num`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.errors import DataError
from adctl.fetching.converters.items import TRAIN, CopyFile, find_root, folders_in, images_in, labelled_image
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_FREE = "MT_Free"


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the only category: the folder with `MT_Free`."""
    root = find_root(tree, lambda folder: (folder / _FREE / "Imgs").is_dir())
    return {} if root is None else dict.fromkeys(known[:1], root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield good tiles, split by number, and defective tiles with their masks."""
    del category
    good = _images(place / _FREE)
    test_tiles = set(sorted({_tile(image) for image in good})[::5])
    for image in good:
        if _tile(image) in test_tiles:
            yield from labelled_image(image, GOOD)
        else:
            yield CopyFile(image, f"{TRAIN}/{image.name}")
    for folder in folders_in(place):
        if folder.name.startswith("MT_") and folder.name != _FREE:
            for image in _images(folder):
                yield from labelled_image(image, folder.name.removeprefix("MT_").lower(), [_mask(image)])


def _images(folder: Path) -> list[Path]:
    return [path for path in images_in(folder / "Imgs") if path.suffix.lower() in {".jpg", ".jpeg"}]


def _tile(image: Path) -> str:
    """Return the number of the tile, which is the same for all exposures."""
    return image.stem.partition("_num_")[2] or image.stem


def _mask(image: Path) -> Path:
    mask = image.with_suffix(".png")
    if not mask.is_file():
        raise DataError(f"There is no mask for {image}.", "Take the data set from its official source.")
    return mask
