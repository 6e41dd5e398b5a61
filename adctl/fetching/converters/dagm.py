"""The layout of DAGM 2007 (Wieler et al.).

    Class1/{Train,Test}/0001.PNG
    Class1/{Train,Test}/Label/0576_label.PNG        an ellipse around the defect; good images have none
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

_LABEL = "_label"


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Categories: folders with `Train` and `Test/Label`."""
    return find_categories(
        tree, known, lambda folder: (folder / "Train").is_dir() and (folder / "Test" / "Label").is_dir()
    )


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Good images of `Train`, all of `Test`."""
    del category
    defective = _labels(place / "Train")
    for image in images_in(place / "Train"):
        if image.stem not in defective:
            yield CopyFile(image, f"{TRAIN}/{image.name}")
    labels = _labels(place / "Test")
    for image in images_in(place / "Test"):
        mask = labels.get(image.stem)
        yield from labelled_image(image, GOOD) if mask is None else labelled_image(image, "defect", [mask])


def _labels(part: Path) -> dict[str, Path]:
    """Masks by the stems of their images."""
    masks = images_in(part / "Label")
    return {mask.stem.removesuffix(_LABEL): mask for mask in masks if mask.stem.endswith(_LABEL)}
