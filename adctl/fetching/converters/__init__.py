"""Converters from published layouts to the layout of MVTec AD, one module per layout.

    find(tree, known)             the categories in an unpacked folder, and the folder of each
    read(place, category, known)  the images and masks of one category

Both only read; `adctl.fetching.converters.items.write_category` writes the items that `read` yields:

    train/good/            good training images
    test/LABEL/            test images
    ground_truth/LABEL/    their masks, NAME_mask.png, with values 0 and 255
    validation/good/       good images that the authors reserve for validation, if any; adctl does not use them by
    itself test_private*/         test images with unpublished labels, if any
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from adctl.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

LAYOUTS = (
    "mvtec", "mvtec_loco", "mvtec_ad_2", "visa", "btad", "kolektor_sdd", "kolektor_sdd2", "real_iad", "magnetic_tile",
    "dagm", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet",
)  # fmt: skip
"""Names of layouts and of their modules."""


class Converter(Protocol):
    """The functions of a converter module."""

    def find(self, tree: Path, known: Sequence[str]) -> dict[str, Path]:
        """Return the folder of each category in a tree, to pass to `read`; empty if the layout is different."""

    def read(self, place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
        """Yield the images and masks of one category.

        Raises:
            DataError: The files differ from the published layout.
        """


def load_converter(layout: str) -> Converter:
    """Return the converter of a layout.

    Raises:
        UsageError: There is no such layout.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    return cast("Converter", importlib.import_module(f"adctl.fetching.converters.{layout}"))
