"""The layout of VisA (Zou et al., ECCV 2022), split as its `split_csv/1cls.csv` says.

    CATEGORY/Data/Images/{Normal,Anomaly}/000.JPG
    CATEGORY/Data/Masks/Anomaly/000.png                 grey values name kinds of defects
    split_csv/1cls.csv                                  object,split,label,image,mask

As in the authors' own preparation, anomalies are labelled `bad`.
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
    """Categories that have images, below the folder that holds the splits."""
    root = find_root(tree, lambda folder: (folder / _SPLITS).is_file())
    return {} if root is None else {name: root for name in known if (root / name / "Data" / "Images").is_dir()}


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """The images of a category by the split file."""
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
    """A path that the table names; it may not lead out of the data set."""
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or not (root / path).is_file():
        raise DataError(f"{root / _SPLITS} names {relative!r}, which is not there.", "Fetch the data set again.")
    return root / path
