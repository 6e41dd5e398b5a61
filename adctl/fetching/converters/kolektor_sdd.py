"""KolektorSDD (Tabernik et al., 2020).

    kos01/Part0.jpg
    kos01/Part0_label.bmp       all zero without a defect

The published splits are for supervised learning. Here the good images of the first four fifths of the items are
training images; all other images are test images. Images of one item look alike, so they stay together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import (
    TRAIN,
    CopyFile,
    MergeMasks,
    find_mask,
    find_root,
    folders_in,
    images_in,
    is_empty_mask,
)
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_LABEL = "_label"
_DEFECT = "defect"


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the only category: the folder that contains `kos01`, `kos02` and so on."""
    root = find_root(tree, lambda folder: bool(_items(folder)))
    return {} if root is None else dict.fromkeys(known[:1], root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images, split by item and named after it."""
    del category
    items = _items(place)
    training = items[: len(items) * 4 // 5]
    for item in items:
        for image in images_in(item):
            if not image.stem.endswith(_LABEL):
                yield from _image(image, training=item in training)


def _image(image: Path, *, training: bool) -> Iterator[Item]:
    name = f"{image.parent.name}_{image.name}"
    mask = find_mask(image, image.parent, suffix=_LABEL)
    if is_empty_mask(mask):
        yield CopyFile(image, f"{TRAIN if training else f'test/{GOOD}'}/{name}")
        return
    yield CopyFile(image, f"test/{_DEFECT}/{name}")
    yield MergeMasks((mask,), f"ground_truth/{_DEFECT}/{image.parent.name}_{image.stem}_mask.png", image)


def _items(folder: Path) -> list[Path]:
    return [item for item in folders_in(folder) if item.name.startswith("kos")]
