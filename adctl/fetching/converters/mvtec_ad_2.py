"""MVTec AD 2 (Heckler-Kram et al., 2025).

    CATEGORY/train/good/000_regular.png
    CATEGORY/validation/good/000_regular.png
    CATEGORY/test_public/{good,bad}/000_regular.png
    CATEGORY/test_public/ground_truth/bad/000_regular_mask.png
    CATEGORY/{test_private,test_private_mixed}/000_regular.png      labels are not published

The public test set becomes `test`. The private test sets are kept for submissions to the benchmark server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import (
    TRAIN,
    VALIDATION,
    find_categories,
    find_mask,
    folders_in,
    good_images,
    images_in,
    labelled_image,
)
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_MASKS = "ground_truth"
_PRIVATE = ("test_private", "test_private_mixed")


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories: folders with `test_public`."""
    return find_categories(tree, known, lambda folder: (folder / "test_public").is_dir())


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images unchanged and the masks as PNG."""
    del category
    yield from good_images(place / "train/good", TRAIN)
    yield from good_images(place / "validation/good", VALIDATION)
    for private in _PRIVATE:
        yield from good_images(place / private, private)
    public = place / "test_public"
    for label in (folder for folder in folders_in(public) if folder.name != _MASKS):
        masks = public / _MASKS / label.name
        for image in images_in(label):
            image_masks = [] if label.name == GOOD else [find_mask(image, masks, suffix="_mask")]
            yield from labelled_image(image, label.name, image_masks)
