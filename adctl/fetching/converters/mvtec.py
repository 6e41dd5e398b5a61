"""MVTec AD (Bergmann et al., CVPR 2019) and MPDD (Jezek et al., ICUMT 2021): the layout in which adctl stores data.

    CATEGORY/train/good/000.png
    CATEGORY/test/LABEL/000.png
    CATEGORY/ground_truth/LABEL/000_mask.png

All files in a category's folder are kept, including the licence text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import CopyFile, find_categories

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories: folders with files in `train/good`."""
    return find_categories(tree, known, _is_category)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield all files, unchanged."""
    del category
    for path in sorted(place.rglob("*")):
        if path.is_file():
            yield CopyFile(path, path.relative_to(place).as_posix())


def _is_category(folder: Path) -> bool:
    good = folder / "train" / "good"
    return good.is_dir() and any(good.iterdir())
