"""The runs folder: one subfolder for each training run, and a file that points to the last model and scores.

runs/
last.json                        {"model": "…", "scores": "…"}, relative paths, no symbolic links
20261123-162500-padim-zipper/
model.safetensors
lineage/calibration-X.json     a model file that `adctl calibrate` wrote from it; see `adctl.tracking.folders`
run.json                       the manifest: settings and their origins, versions, digests, timings
split.json                     the good images in each part of the split
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import platform
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adctl import __version__, documents, files
from adctl.errors import DataError, OutputError, UsageError
from adctl.names import printable

log = logging.getLogger(__name__)

LAST = "last.json"
RUN = "run.json"
SPLIT = "split.json"
SETTINGS = "settings.json"
MODEL = "model.safetensors"
LINEAGE = "lineage"
TRAINING_DIGEST = "training_digest"
"""Fact of a calibration: the digest of the images that its model was trained on."""
_OLD_CALIBRATIONS = "calibrations.json"
"""List of calibrated model files in runs of before."""
SUMMARY = "summary.json"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "scikit-learn", "safetensors")

_BASE_32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

_DELETE = "Delete it, and give models, images and scores by path."

Kind = Literal["model", "scores"]


def new_folder(parent: Path, *parts: str, name: str | None = None) -> Path:
    """Create a new folder named after the current time and `parts`, or exactly `name`.

    Raises:
        UsageError: A folder called `name` exists already, or it is no name of a folder.
        OutputError: The folder cannot be created.
    """
    if name:
        require_unused(named_folder(parent, name))
    files.make_folder(parent)
    stem = name or "-".join((datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S"), *map(_safe_name, parts)))
    for attempt in itertools.count(1):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        with files.output_errors(folder):
            try:
                folder.mkdir()
            except FileExistsError as error:
                if name:
                    raise _used(folder) from error
                continue
        return folder
    raise AssertionError("unreachable: itertools.count never ends")


def named_folder(runs: Path, name: str) -> Path:
    """Return the folder of a run by its name.

    Raises:
        UsageError: The name is a path, hidden, or has characters that are no part of a name.
    """
    if name[0] in "-." or re.search(r"[/\\:]", name) or printable(name) != name:
        raise UsageError(
            f"'{printable(name)}' is no name for a run.",
            "Give a name without slashes, colons and control characters that begins with neither '-' nor '.'; "
            "--runs says where the folder lies.",
        )
    return runs / name


def require_unused(folder: Path) -> None:
    """Raise if a run exists already.

    Raises:
        UsageError: It exists; the message says how to continue it.
    """
    if folder.exists():
        raise _used(folder)


def _used(folder: Path) -> UsageError:
    return UsageError(f"The run {folder} exists already.", _remedy_for(folder))


def set_last(runs: Path, kind: Kind, path: Path) -> None:
    """Record `path` as the last model or scores; warn if that is not possible, since the work itself is done."""
    try:
        paths = _read_last(runs)
    except DataError:  # the file is damaged and is written anew
        paths = {}
    paths[kind] = _relative(path, runs)
    try:
        files.write_json(runs / LAST, paths)
    except OutputError as error:
        log.warning("%s The next command needs the path %s.", error.message, path)


def get_last(runs: Path, kind: Kind) -> Path:
    """Return the last model file or scores folder.

    Raises:
        UsageError: None is recorded, or it no longer exists.
    """
    missing, remedy = {
        "model": ("There is no model yet", "Train one with 'adctl train', or give its path with --model."),
        "scores": ("There are no scores yet", "Run 'adctl score' first, or give the folder that it wrote."),
    }[kind]
    paths = _read_last(runs)
    if kind not in paths:
        raise UsageError(f"{missing} in {runs}.", remedy)
    # normpath does not resolve symbolic links, and neither did the writer.
    path = Path(os.path.normpath(runs / paths[kind]))
    if not path.exists():
        raise UsageError(f"The last {kind}, {path}, no longer exists.", remedy)
    return path


def find_model(runs: Path, model: Path | None) -> Path:
    """Find a model file by its path, by the folder or name of its run, or return the last one if `model` is None.

    A run means its newest calibration, and a file means itself.

    Raises:
        UsageError: There is no such model.
        DataError: The list of the run's calibrations is damaged.
    """
    if model is None:
        return get_last(runs, "model")
    for candidate in (model, runs / model):
        if candidate.is_dir() and (candidate / MODEL).is_file():
            return newest_model(candidate)
        if candidate.is_file():
            return candidate
    raise UsageError(f"Cannot find a model {model}.", f"Give a model file, or the folder or name of a run in {runs}.")


@dataclass(frozen=True)
class _CalibratedFile:
    """Model file with a new calibration: its name, or its absolute path outside of the run's folder."""

    file: str
    training_digest: str


@dataclass(frozen=True)
class _OldCalibrations:
    schema: str
    files: tuple[_CalibratedFile, ...]


@dataclass(frozen=True)
class _CalibrationEntry:
    """Parts that are needed here of an `adctl.tracking.folders.Artifact`."""

    id: str
    path: str
    facts: dict[str, Any]


def newest_model(run: Path) -> Path:
    """Return the model file of a run that was calibrated last; files outside of its folder do not count.

    Raises:
        DataError: The list of the run's calibrations is damaged.
    """
    inside = (run / entry.file for entry in reversed(_read_calibrations(run)))
    return next((path for path in inside if path.parent == run and path.is_file()), run / MODEL)


def find_trained_on(runs: Path, training_digest: str) -> Path | None:
    """Return the folder of a run that was trained or refitted on the images with this digest; None if there is none."""
    for manifest in sorted((*runs.glob(f"*/{RUN}"), *runs.glob(f"*/*/{RUN}"))):
        run = manifest.parent
        try:
            stored = read_manifest(run)
            digests = {entry.training_digest for entry in _read_calibrations(run)}
        except DataError:  # a damaged run cannot help, and is not asked for
            continue
        if stored is not None and training_digest in {stored.dataset.training_digest, *digests}:
            return run
    return None


def warn_of_newer(model: Path) -> None:
    """Warn if the run of a model file has a newer calibration; exported files begin with the name of their model.

    Raises:
        DataError: The list of the run's calibrations is damaged.
    """
    newest = newest_model(model.parent)
    exported = model.suffix != newest.suffix and model.stem.startswith(newest.stem)
    if newest.is_file() and model != newest and not exported:
        log.warning(
            "%s has a newer calibration, %s. The thresholds of %s are used.", model.parent, newest.name, model.name
        )


def _read_calibrations(run: Path) -> list[_CalibratedFile]:
    """Return the calibrated model files of a run, oldest first.

    Raises:
        DataError: An entry is damaged.
    """
    remedy = f"Delete it, and give models of {run} by path."
    old = documents.read(run / _OLD_CALIBRATIONS, _OldCalibrations, remedy)
    paths = (run / LINEAGE).glob("calibration-*.json")
    entries = [documents.read(path, _CalibrationEntry, remedy, others="ignore") for path in paths]
    newer = sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.id)
    found = [_CalibratedFile(entry.path, str(entry.facts.get(TRAINING_DIGEST, ""))) for entry in newer]
    return [*(old.files if old else ()), *found]


@dataclass(frozen=True)
class RunDataset:
    """Dataset of a run, in its manifest: see `adctl.data.datasets`; paths are absolute.

    With `categories`, it is these categories of the dataset at `root`, joined.
    """

    layout: str
    root: str
    name: str | None = None
    category: str | None = None
    good: str | None = None
    test: str | None = None
    masks: str | None = None
    group: str | None = None
    training_digest: str | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class _RunCalibration:
    threshold: float


@dataclass(frozen=True)
class RunManifest:
    """Entries of a run's manifest that are read again."""

    dataset: RunDataset
    calibration: _RunCalibration | None = None


def read_manifest(folder: Path) -> RunManifest | None:
    """Read the manifest of a run folder; return None if the folder has none.

    Raises:
        DataError: The manifest is damaged.
    """
    return documents.read(folder / RUN, RunManifest, _DELETE, others="ignore")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; return None if there is no such file.

    Raises:
        DataError: The file is damaged.
    """
    value: dict[str, Any] | None = documents.read(path, dict, _DELETE)
    return value


def environment() -> dict[str, Any]:
    """Return the versions of the software and the machine that results depend on."""
    return {
        "adctl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        **{name: _version(name) for name in _PACKAGES},
    }


def new_id() -> str:
    """Return a new unique identifier that sorts by time: a ULID."""
    return encode_id(time.time_ns() // 1_000_000, os.urandom(10))


def encode_id(milliseconds: int, randomness: bytes) -> str:
    """Encode a ULID, 26 characters of Crockford's base 32.

    Args:
        milliseconds: Time since 1970.
        randomness: 10 bytes.
    """
    number = milliseconds << 80 | int.from_bytes(randomness)
    return "".join(_BASE_32[number >> 5 * digit & 31] for digit in reversed(range(26)))


def utc(seconds: float) -> str:
    """Return seconds since 1970 as a time in UTC, ISO 8601, in milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def timestamp() -> str:
    """Return the local time in ISO 8601 format, in seconds, with its UTC offset."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def _remedy_for(folder: Path) -> str:
    if files.is_locked(folder):
        return "Another 'adctl train' is writing it: wait until it is done, or choose another --name."
    if (folder / RUN).exists() or (folder / MODEL).exists():
        return "Choose another --name."
    return f"It was interrupted: continue it with --resume {folder.name}, or choose another --name."


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_last(runs: Path) -> dict[str, str]:
    return documents.read(runs / LAST, dict[str, str], _DELETE) or {}


def _relative(path: Path, runs: Path) -> str:
    try:
        return Path(os.path.relpath(path, runs)).as_posix()
    except ValueError:  # the paths are on different drives, on Windows
        return str(path.absolute())


def _safe_name(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", part) or "_"
