"""MVTec LOCO AD (Bergmann et al., IJCV 2022).

    CATEGORY/train/good/000.png
    CATEGORY/validation/good/000.png
    CATEGORY/test/{good,logical_anomalies,structural_anomalies}/000.png
    CATEGORY/ground_truth/LABEL/000/{000,001,...}.png     one mask per possible location or part of the anomaly

The grey values of the masks encode types of defects (`defects_config.json`). Here every non-zero value is a defect, and
the masks of one image are merged. The saturation areas, which the paper's sPRO metric needs, are not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.errors import DataError
from adctl.fetching.converters.items import (
    TRAIN,
    VALIDATION,
    find_categories,
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


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories: folders with `validation/good` and `test`."""
    return find_categories(
        tree, known, lambda folder: (folder / "validation/good").is_dir() and (folder / "test").is_dir()
    )


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images unchanged and the merged masks."""
    del category
    yield from good_images(place / "train/good", TRAIN)
    yield from good_images(place / "validation/good", VALIDATION)
    for label in folders_in(place / "test"):
        for image in images_in(label):
            yield from labelled_image(image, label.name, _masks(place, label.name, image))


def _masks(place: Path, label: str, image: Path) -> list[Path]:
    if label == GOOD:
        return []
    folder = place / "ground_truth" / label / image.stem
    masks = images_in(folder)
    if not masks:
        raise DataError(f"There are no masks for {image} in {folder}.", "Take the data set from its official source.")
    return masks
