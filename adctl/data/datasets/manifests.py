"""Manifests: CSV or JSONL files that list images with their split, label, mask, category and group.

    path,split,label,mask
    shots/0001.png,train,good,
    shots/0200.png,test,scratch,masks/0200.png

Paths are relative to the manifest's folder. Only `path` is required. Without a split, good images are used for training
and the others for testing. Without a label, an image with a mask is a defect, a test image is unlabelled, and any other
image is good.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from adctl import documents, reading
from adctl.data import storage
from adctl.data.datasets.folders import os_reason
from adctl.data.datasets.ground_truth import DEFECT, GOOD_NAMES
from adctl.errors import DataError, UsageError
from adctl.records import GOOD, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
"""Suffixes of manifests, in lower case."""

_NAMES = {
    "path": ("path", "image", "image_path", "file", "filename", "file_name"),
    "split": ("split", "set", "subset"),
    "label": ("label", "class", "defect", "defect_type", "anomaly"),
    "mask": ("mask", "mask_path"),
    "category": ("category", "object"),
    "group": ("group",),
}
"""Accepted names of each column, in lower case, as in the manifests of public datasets."""

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
    """One image of a manifest.

    Attributes:
        sample: The image with its label and mask.
        split: Use of the image; None if not specified.
        category: Category of the image; None if not specified.
    """

    sample: Sample
    split: Literal["train", "test"] | None
    category: str | None


def is_manifest(path: Path) -> bool:
    """Return True if a path is a file with the suffix of a manifest."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest.

    Raises:
        UsageError: The file cannot be read.
        DataError: The file is not a valid table, has no column of paths, lists an image that does not exist or is
            listed already, or contains an unknown split; the message gives the line.
    """
    try:
        text = reading.read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"The manifest {path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"Cannot read the manifest {path}: {os_reason(error)}.", "Check the path.") from error
    rows: dict[str, ManifestRow] = {}
    for number, values in _lines(path, text):
        row = _row(path, number, values)
        if row.sample.key in rows:
            raise _line_error(path, number, f"{row.sample.key} is listed already", "Write one line per image.")
        rows[row.sample.key] = row
    if not rows:
        raise DataError(f"The manifest {path} lists no image.", "Below the column names, write one line per image.")
    return list(rows.values())


def _lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its values by the names in `_NAMES`."""
    table = _json_lines(path, text) if path.suffix.lower() == ".jsonl" else _csv_lines(path, text)
    for number, values in table:
        lower = {str(name).strip().casefold(): value for name, value in values.items() if name is not None}
        known = {
            name: next((str(lower[alias]).strip() for alias in aliases if lower.get(alias) is not None), "")
            for name, aliases in _NAMES.items()
        }
        if not known["path"]:
            raise _line_error(path, number, f"there is no path in {', '.join(lower)}", "Name the path column 'path'.")
        yield number, known


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = documents.parse_json(line)
        except ValueError as error:
            raise _line_error(path, number, f"it is not JSON ({error})", "Write one JSON object per line.") from error
        if not isinstance(value, dict):
            raise _line_error(path, number, "it is not a JSON object", 'Write lines such as {"path": "a.png"}.')
        yield number, value


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = text.partition("\n")[0]
    # Spreadsheet programs with European settings write semicolons.
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise _line_error(path, reader.line_num, str(error), "Save it again as CSV.") from error


def _row(path: Path, number: int, values: dict[str, str]) -> ManifestRow:
    image = _existing_file(path, number, values["path"])
    mask = _existing_file(path, number, values["mask"]) if values["mask"] else None
    key = PurePosixPath(values["path"].replace("\\", "/")).as_posix().lstrip("/")
    return make_row(f"Line {number} of the manifest {path}", key, image, mask, values)


def make_row(place: str, key: str, image: Path, mask: Path | None, fields: Mapping[str, str]) -> ManifestRow:
    """Create a manifest row from the fields of one image.

    Args:
        place: File and line of the fields, for messages.
        key: Name of the image within the dataset.
        image: The image file.
        mask: The mask file, or None.
        fields: `split`, `label`, `category` and `group` as written; empty or missing if not specified.

    Raises:
        DataError: The split is unknown.
    """
    written = fields.get("split", "").casefold()
    split = _SPLITS.get(written)
    if written and split is None:
        raise DataError(f"{place}: the split '{written}' is unknown.", "Write train or test.")
    label = _label(fields.get("label", ""), split, has_mask=mask is not None)
    sample = Sample(image, key, label, mask if label != GOOD else None, fields.get("group") or None)
    return ManifestRow(sample, split, fields.get("category") or None)


def _label(text: str, split: str | None, *, has_mask: bool) -> str | None:
    if text.casefold() in _GOOD_LABELS:
        return GOOD
    if text.casefold() in _DEFECT_LABELS or (not text and has_mask):
        return DEFECT
    return text or (None if split == "test" else GOOD)


def _existing_file(manifest: Path, number: int, name: str) -> Path:
    """Return the path of an existing file that a manifest lists relative to its folder."""
    problem = "does not exist"
    for candidate in (name, name.replace("\\", "/")):
        path = manifest.parent / Path(candidate)
        try:
            if storage.file_size(path) is not None:
                return path
            problem = "is no regular file"
        except (OSError, ValueError):  # ValueError: a name that holds a null character
            continue
    raise _line_error(manifest, number, f"{name} {problem}", f"Write paths relative to {manifest.parent}.")


def _line_error(path: Path, number: int, problem: str, remedy: str) -> DataError:
    return DataError(f"Line {number} of the manifest {path}: {problem}.", remedy)
