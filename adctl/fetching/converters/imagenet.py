"""Folders of classes in the layout of ImageNet, as a one-class benchmark.

    train/CLASS/*.JPEG
    val/CLASS/*.JPEG

The training images of one class are the good training images; the validation images of all classes are test images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import TRAIN, find_root, folders_in, good_images, images_in, labelled_image
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the classes that have training and validation images; `known` may be empty."""
    root = find_root(tree, lambda folder: (folder / "train").is_dir() and (folder / "val").is_dir())
    if root is None:
        return {}
    classes = [folder.name for folder in folders_in(root / "train") if (root / "val" / folder.name).is_dir()]
    return {name: root for name in classes if not known or name in known}


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield one class as good and the others as defective."""
    yield from good_images(place / "train" / category, TRAIN)
    for folder in folders_in(place / "val"):
        for image in images_in(folder):
            yield from labelled_image(image, GOOD if folder.name == category else folder.name)
