"""The layout of Real-IAD (Wang et al., CVPR 2024), split as its multi-view files say.

    realiad_1024/CATEGORY/OK/S0001/CATEGORY_0001_OK_C1_TIME.jpg         or realiad_raw, realiad_512, realiad_256
    realiad_1024/CATEGORY/NG/BX/S0001/CATEGORY_0001_NG_BX_C1_TIME.jpg
    realiad_1024/CATEGORY/NG/BX/S0001/CATEGORY_0001_NG_BX_C1_TIME.png   the mask
    realiad_jsons/CATEGORY.json         {"meta": {"normal_class"}, "train": [...], "test": [...]}
                                        of {"anomaly_class", "image_path", "mask_path"}

The sharpest images that are there are taken. Views of a defective part that do not show its defect count as good, as
the files have it.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from adctl.errors import DataError
from adctl.fetching.converters.items import TRAIN, CopyFile, MergeMasks, find_root
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_SIZES = ("realiad_raw", "realiad_1024", "realiad_512", "realiad_256")
_SPLITS = ("realiad_jsons", "realiad_jsons/realiad_jsons")


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Categories with images and a split file."""
    root = find_root(tree, lambda folder: any((folder / splits).is_dir() for splits in _SPLITS))
    if root is None:
        return {}
    return {name: root for name in known if _images(root, name) and _split_file(root, name)}


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """The images of a category by its split file."""
    images, path = _images(place, category), _split_file(place, category)
    assert images is not None
    assert path is not None
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        normal = split["meta"]["normal_class"]
        yield from (item for sample in split["train"] for item in _trained(images, sample))
        yield from (item for sample in split["test"] for item in _tested(images, sample, normal))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not as published: {error!r}.", "Download it again.") from error


def _trained(images: Path, sample: dict[str, Any]) -> Iterator[Item]:
    image = _inside(images, sample["image_path"])
    yield CopyFile(image, f"{TRAIN}/{_name(image)}")


def _tested(images: Path, sample: dict[str, Any], normal: str) -> Iterator[Item]:
    image = _inside(images, sample["image_path"])
    label = GOOD if sample["anomaly_class"] == normal else str(sample["anomaly_class"])
    yield CopyFile(image, f"test/{label}/{_name(image)}")
    if sample.get("mask_path") and label != GOOD:
        mask = _inside(images, sample["mask_path"])
        yield MergeMasks((mask,), f"ground_truth/{label}/{PurePosixPath(_name(image)).stem}_mask.png", image)


def _name(image: Path) -> str:
    """Images of different parts may share a name, so the part's folder goes before it."""
    return f"{image.parent.name}_{image.name}"


def _images(root: Path, category: str) -> Path | None:
    return next((root / size / category for size in _SIZES if (root / size / category).is_dir()), None)


def _split_file(root: Path, category: str) -> Path | None:
    paths = (root / splits / f"{category}.json" for splits in _SPLITS)
    return next((path for path in paths if path.is_file()), None)


def _inside(images: Path, relative: str) -> Path:
    """A path that the split file names, below the category's images or beside them; it may not lead out."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"The split file names {relative!r}, outside the data set.", "Download it again.")
    for folder in (images, images.parent):
        if (folder / path).is_file():
            return folder / path
    raise DataError(f"The split file names {relative!r}, which is not in {images}.", "Download the images again.")
