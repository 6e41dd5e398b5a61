"""BTAD (Mishra et al., ISIE 2021).

    BTech_Dataset_transformed/{01,02,03}/train/ok/0000.bmp
    BTech_Dataset_transformed/{01,02,03}/test/{ok,ko}/0000.bmp
    BTech_Dataset_transformed/{01,02,03}/ground_truth/ko/0000.png       BMP in category 03

The label `ok` becomes `good`; `ko` stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import TRAIN, find_categories, find_mask, good_images, images_in, labelled_image
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories: folders with `train/ok`."""
    return find_categories(tree, known, lambda folder: (folder / "train" / "ok").is_dir())


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images unchanged and the masks as PNG."""
    del category
    yield from good_images(place / "train" / "ok", TRAIN)
    for image in images_in(place / "test" / "ok"):
        yield from labelled_image(image, GOOD)
    for image in images_in(place / "test" / "ko"):
        yield from labelled_image(image, "ko", [find_mask(image, place / "ground_truth" / "ko")])
