"""Real-IAD (Wang et al., CVPR 2024), divided into training and test images by its multi-view split files.

    realiad_1024/CATEGORY/OK/S0001/CATEGORY_0001_OK_C1_TIME.jpg         or realiad_raw, realiad_512, realiad_256
    realiad_1024/CATEGORY/NG/BX/S0001/CATEGORY_0001_NG_BX_C1_TIME.jpg
    realiad_1024/CATEGORY/NG/BX/S0001/CATEGORY_0001_NG_BX_C1_TIME.png   the mask
    realiad_jsons/CATEGORY.json         {"meta": {"normal_class"}, "train": [...], "test": [...]}
                                        of {"anomaly_class", "image_path", "mask_path"}

The images of the highest resolution are used. As in the split files, views of a defective part that do not show the
defect are good.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from adctl import documents
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
    """Return the categories that have images and a split file."""
    root = find_root(tree, lambda folder: any((folder / splits).is_dir() for splits in _SPLITS))
    if root is None:
        return {}
    return {name: root for name in known if _images(root, name) and _split_file(root, name)}


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield the images and masks that the split file of a category lists."""
    images, path = _images(place, category), _split_file(place, category)
    assert images is not None
    assert path is not None
    try:
        split = documents.parse_json(path.read_text(encoding="utf-8"))
        normal = split["meta"]["normal_class"]
        yield from (item for sample in split["train"] for item in _training_image(images, sample))
        yield from (item for sample in split["test"] for item in _test_image(images, sample, normal))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} differs from the published format: {error!r}.", "Download it again.") from error


def _training_image(images: Path, sample: dict[str, Any]) -> Iterator[Item]:
    image = _inside(images, sample["image_path"])
    yield CopyFile(image, f"{TRAIN}/{_name(image)}")


def _test_image(images: Path, sample: dict[str, Any], normal: str) -> Iterator[Item]:
    image = _inside(images, sample["image_path"])
    label = GOOD if sample["anomaly_class"] == normal else str(sample["anomaly_class"])
    yield CopyFile(image, f"test/{label}/{_name(image)}")
    if sample.get("mask_path") and label != GOOD:
        mask = _inside(images, sample["mask_path"])
        yield MergeMasks((mask,), f"ground_truth/{label}/{PurePosixPath(_name(image)).stem}_mask.png", image)


def _name(image: Path) -> str:
    """Return the name with that of the part's folder before it: images of different parts may share a name."""
    return f"{image.parent.name}_{image.name}"


def _images(root: Path, category: str) -> Path | None:
    return next((root / size / category for size in _SIZES if (root / size / category).is_dir()), None)


def _split_file(root: Path, category: str) -> Path | None:
    paths = (root / splits / f"{category}.json" for splits in _SPLITS)
    return next((path for path in paths if path.is_file()), None)


def _inside(images: Path, relative: str) -> Path:
    """Return a file that the split file names, inside the category's folder or beside it; other paths are refused."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"The split file names {relative!r}, which is outside the data set.", "Download it again.")
    for folder in (images, images.parent):
        if (folder / path).is_file():
            return folder / path
    raise DataError(f"The split file names {relative!r}, which is not in {images}.", "Download the images again.")
