"""The layout of MVTec AD (Bergmann et al., CVPR 2019), and of MPDD (Jezek et al., ICUMT 2021): adctl's own.

    CATEGORY/train/good/000.png
    CATEGORY/test/LABEL/000.png
    CATEGORY/ground_truth/LABEL/000_mask.png

Everything in a category's folder is kept, the licence text beside the images too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import CopyFile, find_categories

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Categories: folders with `train/good`."""
    return find_categories(tree, known, _is_category)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """All files, as they are."""
    del category
    for path in sorted(place.rglob("*")):
        if path.is_file():
            yield CopyFile(path, path.relative_to(place).as_posix())


def _is_category(folder: Path) -> bool:
    good = folder / "train" / "good"
    return good.is_dir() and any(good.iterdir())
