"""DAGM 2007 (Wieler et al.).

    Class1/{Train,Test}/0001.PNG
    Class1/{Train,Test}/Label/0576_label.PNG        ellipse around the defect; not for good images
    Class1/{Train,Test}/Label/Labels.txt

Defective training images are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import TRAIN, CopyFile, find_categories, images_in, labelled_image
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_MASK_SUFFIX = "_label"


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories: folders with `Train` and `Test/Label`."""
    return find_categories(
        tree, known, lambda folder: (folder / "Train").is_dir() and (folder / "Test" / "Label").is_dir()
    )


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the good images of `Train` and all images of `Test`."""
    del category
    train_masks = _masks(place / "Train")
    for image in images_in(place / "Train"):
        if image.stem not in train_masks:
            yield CopyFile(image, f"{TRAIN}/{image.name}")
    test_masks = _masks(place / "Test")
    for image in images_in(place / "Test"):
        mask = test_masks.get(image.stem)
        yield from labelled_image(image, GOOD) if mask is None else labelled_image(image, "defect", [mask])


def _masks(part: Path) -> dict[str, Path]:
    """Return the masks by the stem of their image."""
    masks = images_in(part / "Label")
    return {mask.stem.removesuffix(_MASK_SUFFIX): mask for mask in masks if mask.stem.endswith(_MASK_SUFFIX)}
