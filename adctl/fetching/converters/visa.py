"""VisA (Zou et al., ECCV 2022), divided into training and test images by its `split_csv/1cls.csv`.

    CATEGORY/Data/Images/{Normal,Anomaly}/000.JPG
    CATEGORY/Data/Masks/Anomaly/000.png                 grey values encode types of defects
    split_csv/1cls.csv                                  object,split,label,image,mask

Defective images get the label `bad`, as in the preparation script of the authors.
"""

from __future__ import annotations

import csv
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from adctl.errors import DataError
from adctl.fetching.converters.items import TRAIN, CopyFile, find_root, labelled_image
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_SPLITS = "split_csv/1cls.csv"
_COLUMNS = {"object", "split", "label", "image", "mask"}


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the categories that have images, in the folder that contains the split file."""
    root = find_root(tree, lambda folder: (folder / _SPLITS).is_file())
    return {} if root is None else {name: root for name in known if (root / name / "Data" / "Images").is_dir()}


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images and masks of a category that the split file lists."""
    for row in _rows(place / _SPLITS):
        if row["object"] != category:
            continue
        image = _inside(place, row["image"])
        if row["split"] == "train":
            yield CopyFile(image, f"{TRAIN}/{image.name}")
        elif row["label"] == "normal":
            yield from labelled_image(image, GOOD)
        else:
            yield from labelled_image(image, "bad", [_inside(place, row["mask"])])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        if not set(table.fieldnames or ()) >= _COLUMNS:
            raise DataError(f"{path} lacks columns: expected {', '.join(sorted(_COLUMNS))}.", "Fetch it again.")
        yield from table


def _inside(root: Path, relative: str) -> Path:
    """Return a file that the split file names; paths outside the data set are refused."""
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or not (root / path).is_file():
        raise DataError(
            f"{root / _SPLITS} names {relative!r}, which does not exist in the data set.", "Fetch the data set again."
        )
    return root / path
