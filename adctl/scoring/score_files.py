"""Reading `scores.json` and `results.jsonl` of a scored set, with every value checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl import documents, reading
from adctl.data.datasets.folders import os_reason
from adctl.errors import DataError
from adctl.records import Calibration, ScoredImage, Verdict

if TYPE_CHECKING:
    from pathlib import Path

AGAIN = "Score the images again."

_LARGEST_SIDE = 2**20
"""Pixels of the longest side that an image can have; damaged files can ask for any memory."""


@dataclass(frozen=True)
class _ImageConfig:
    bit_depth: int = 16
    channels: int = 3


@dataclass(frozen=True)
class _ScoredModel:
    path: str | None = None
    sha256: str | None = None
    tensors_sha256: str | None = None
    arch: str | None = None
    config: _ImageConfig = _ImageConfig()


@dataclass(frozen=True)
class _PartEntry:
    file: str
    rows: int


@dataclass(frozen=True)
class _Manifest:
    """Entries of `scores.json` that are read again, with their types; other entries are shown as they are."""

    schema: str
    calibration: dict[str, Any] | None
    complete: bool = True
    rows: int = 0
    started: str | None = None
    model: _ScoredModel | None = None
    dataset: dict[str, Any] | None = None
    views: tuple[str, ...] = ()
    runtime: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    seconds: float | None = None
    drift: dict[str, Any] | None = None
    parts: tuple[_PartEntry, ...] | None = None


def read_manifest(path: Path, schema: str) -> tuple[dict[str, Any], Calibration | None]:
    """Read `scores.json` and the calibration in it.

    Raises:
        DataError: It is damaged, or has a newer format.
    """
    manifest: dict[str, Any] = documents.read(path, dict, AGAIN) or {}
    try:
        checked = documents.convert(manifest, _Manifest, others="ignore")
        calibration = documents.convert(checked.calibration, Calibration) if checked.calibration else None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.", AGAIN) from error
    if checked.schema != schema:
        raise DataError(
            f"{path} has the format '{checked.schema}'; this adctl reads '{schema}'.",
            "Use the adctl version that wrote the file, or score the images again.",
        )
    return manifest, calibration


def read_rows(path: Path, *, complete: bool = True) -> tuple[ScoredImage, ...]:
    """Read `results.jsonl`; the last line of an incomplete set may be half-written, and is left out.

    Raises:
        DataError: It is missing or damaged; the message names the line and the field.
    """
    rows: list[ScoredImage] = []
    try:
        for line in _lines(reading.read_bytes(path), complete=complete):
            row = documents.parse(line, ScoredImage)
            _check_row(row)
            rows.append(row)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {os_reason(error)}.", AGAIN) from error
    except ValueError as error:
        raise DataError(f"Line {len(rows) + 1} of {path} is damaged: {error}.", AGAIN) from error
    return tuple(rows)


def _lines(content: bytes, *, complete: bool) -> list[bytes]:
    # splitlines would also split at other characters, which file names may contain.
    lines = content.split(b"\n")
    if not complete or not lines[-1]:  # the last line is being written
        lines.pop()
    if not lines:
        raise ValueError("there is no row yet")
    return lines


def _check_row(row: ScoredImage) -> None:
    """Check the relations between the fields of a row.

    Raises:
        ValueError: They contradict each other.
    """
    if (row.score is None) != (row.verdict is Verdict.ERROR):
        raise ValueError(f"score is {row.score}, and verdict is {row.verdict}")
    for side in (row.width, row.height):
        if side is not None and not 0 < side <= _LARGEST_SIDE:
            raise ValueError(f"the image is {row.width} x {row.height} pixels")
