"""Lists of images in a CSV or JSONL file, each with what is known of it: split, label, mask, category.

    path,split,label,mask
    shots/0001.png,train,good,
    shots/0200.png,test,scratch,masks/0200.png

Paths are relative to the manifest's folder. Only `path` is needed: without a split, good images are learned from and
the others are tested on; without a label, images to learn from are good and the others unlabelled.

Knows the file and whether the images it names are there; opens none of them.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from adctl.data import storage
from adctl.data.datasets.folders import os_reason
from adctl.data.datasets.ground_truth import DEFECT, GOOD_NAMES
from adctl.errors import DataError, UsageError
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
"""Endings of manifests, in lower case."""

_NAMES = {
    "path": ("path", "image", "image_path", "file", "filename", "file_name"),
    "split": ("split", "set", "subset"),
    "label": ("label", "class", "defect", "defect_type", "anomaly"),
    "mask": ("mask", "mask_path"),
    "category": ("category", "object"),
}
"""What each column may be called, in lower case, as in the manifests of public data sets."""

_SPLITS: dict[str, Literal["train", "test"]] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "validation": "test",
}
_GOOD_LABELS = GOOD_NAMES | {"0", "false"}
_DEFECT_LABELS = {"1", "true", "anomaly", "anomalous", "bad", "ko", "ng", "nok"}


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One line of a manifest.

    Attributes:
        sample: The image, its label and mask.
        split: What it is for; None where it is not said.
        category: Of the part pictured; None where it is not said.
    """

    sample: Sample
    split: Literal["train", "test"] | None
    category: str | None


def is_manifest(path: Path) -> bool:
    """Whether a path is that of a manifest, by its ending."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest.

    Raises:
        UsageError: It cannot be read.
        DataError: It is no table, lacks the column of paths, names an image that is not there or one twice, or a split
            that is none; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"The manifest {path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"Cannot read the manifest {path}: {os_reason(error)}.", "Check the path.") from error
    rows: dict[str, ManifestRow] = {}
    for number, values in _lines(path, text):
        row = _row(path, number, values)
        if row.sample.key in rows:
            raise _fault(path, number, f"{row.sample.key} is named before", "Keep one line an image.")
        rows[row.sample.key] = row
    if not rows:
        raise DataError(f"The manifest {path} names no image.", "Write one line an image, below the column names.")
    return list(rows.values())


def _lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and values of each line, by the names in `_NAMES`."""
    table = _json_lines(path, text) if path.suffix.lower() == ".jsonl" else _csv_lines(path, text)
    for number, values in table:
        lower = {str(name).strip().casefold(): value for name, value in values.items() if name is not None}
        known = {
            name: next((str(lower[alias]).strip() for alias in aliases if lower.get(alias) is not None), "")
            for name, aliases in _NAMES.items()
        }
        if not known["path"]:
            raise _fault(path, number, f"there is no path among {', '.join(lower)}", "Name that column 'path'.")
        yield number, known


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _fault(path, number, f"it is not JSON ({error})", "Write one JSON object a line.") from error
        if not isinstance(value, dict):
            raise _fault(path, number, "it is no JSON object", 'Write lines such as {"path": "a.png"}.')
        yield number, value


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = text.partition("\n")[0]
    # European spreadsheets separate by semicolons.
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise _fault(path, reader.line_num, str(error), "Save it again as CSV.") from error


def _row(path: Path, number: int, values: dict[str, str]) -> ManifestRow:
    image = _file(path, number, values["path"])
    mask = _file(path, number, values["mask"]) if values["mask"] else None
    key = PurePosixPath(values["path"].replace("\\", "/")).as_posix().lstrip("/")
    return make_row(f"Line {number} of the manifest {path}", key, image, mask, values)


def make_row(place: str, key: str, image: Path, mask: Path | None, said: Mapping[str, str]) -> ManifestRow:
    """One image and what is said of it.

    Args:
        place: Where it is said, for messages.
        key: The image's name within the data set.
        image: Its file.
        mask: Its mask's file, or None.
        said: `split`, `label` and `category` as they are written; empty or left out where they are not.

    Raises:
        DataError: The split is unknown.
    """
    written = said.get("split", "").casefold()
    split = _SPLITS.get(written)
    if written and split is None:
        raise DataError(f"{place}: the split '{written}' is unknown.", "Write train or test.")
    label = _label(said.get("label", ""), split, has_mask=mask is not None)
    return ManifestRow(Sample(image, key, label, mask if label != GOOD else None), split, said.get("category") or None)


def _label(given: str, split: str | None, *, has_mask: bool) -> str | None:
    if given.casefold() in _GOOD_LABELS:
        return GOOD
    if given.casefold() in _DEFECT_LABELS or (not given and has_mask):
        return DEFECT
    return given or (None if split == "test" else GOOD)


def _file(manifest: Path, number: int, name: str) -> Path:
    """A file that a manifest names, relative to its folder."""
    for candidate in (name, name.replace("\\", "/")):
        path = manifest.parent / Path(candidate)
        try:
            if storage.file_size(path) is not None:
                return path
        except OSError:
            continue
    raise _fault(manifest, number, f"{name} is not there", f"Write paths relative to {manifest.parent}.")


def _fault(path: Path, number: int, what: str, remedy: str) -> DataError:
    return DataError(f"Line {number} of the manifest {path}: {what}.", remedy)
