"""From each published layout to the one MVTec-style layout, one module a layout.

    find(tree, known)             the categories in an unpacked tree, and the folder of each
    read(place, category, known)  the images and masks of one category's folder

Both only read; `adctl.fetching.converters.items.write_category` does what `read` says. A category's folder ends up as

    train/good/            good images to learn from
    test/LABEL/            test images
    ground_truth/LABEL/    their masks, NAME_mask.png, 0 and 255
    validation/good/       good images that the authors hold out, where they do; nothing of adctl reads them by itself
    test_private*/         test images whose labels the authors keep to themselves, where there are any
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
"""Names of layouts, and of the modules that know them."""


class Converter(Protocol):
    """What a module of this package offers."""

    def find(self, tree: Path, known: Sequence[str]) -> dict[str, Path]:
        """The categories in a tree, each with the folder to give to `read`; none where the layout is another."""

    def read(self, place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
        """What makes up one category's folder.

        Raises:
            DataError: The layout is not what was published.
        """


def load_converter(layout: str) -> Converter:
    """The converter of that name.

    Raises:
        UsageError: There is none.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    return cast("Converter", importlib.import_module(f"adctl.fetching.converters.{layout}"))
