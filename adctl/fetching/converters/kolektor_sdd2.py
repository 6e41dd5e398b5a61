"""KolektorSDD2 (Božič et al., 2021).

    {train,test}/10000.png
    {train,test}/10000_GT.png       all zero without a defect

Defective training images are left out, and so are duplicates in the archive, such as `10301 (copy).png`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import (
    TRAIN,
    CopyFile,
    find_mask,
    find_root,
    images_in,
    is_empty_mask,
    labelled_image,
)
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_MASK_SUFFIX = "_GT"


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the only category: the folder whose `train` contains masks."""
    root = find_root(tree, lambda folder: any(path.stem.endswith(_MASK_SUFFIX) for path in images_in(folder / "train")))
    return {} if root is None else dict.fromkeys(known[:1], root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the good images of `train` and all images of `test`."""
    del category
    for image in _images(place / "train"):
        if is_empty_mask(find_mask(image, image.parent, suffix=_MASK_SUFFIX)):
            yield CopyFile(image, f"{TRAIN}/{image.name}")
    for image in _images(place / "test"):
        mask = find_mask(image, image.parent, suffix=_MASK_SUFFIX)
        yield from labelled_image(image, GOOD) if is_empty_mask(mask) else labelled_image(image, "defect", [mask])


def _images(folder: Path) -> list[Path]:
    return [path for path in images_in(folder) if not path.stem.endswith(_MASK_SUFFIX) and "(copy)" not in path.stem]
