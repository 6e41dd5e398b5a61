"""The runs folder: one subfolder for each training run, and a file that points to the last model and scores.

runs/
last.json                        {"model": "…", "scores": "…"}, relative paths, no symbolic links
20261123-162500-padim-zipper/
model.safetensors
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adctl import __version__, documents, files
from adctl.errors import DataError, OutputError, UsageError

log = logging.getLogger(__name__)

LAST = "last.json"
RUN = "run.json"
SPLIT = "split.json"
MODEL = "model.safetensors"
SUMMARY = "summary.json"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "scikit-learn", "safetensors")

_DELETE = "Delete it, and give models, images and scores by path."

Kind = Literal["model", "scores"]


def new_folder(parent: Path, *parts: str, name: str | None = None) -> Path:
    """Create a new folder named after the current time and `parts`, or exactly `name`.

    Raises:
        UsageError: A folder called `name` exists already.
        OutputError: The folder cannot be created.
    """
    files.make_folder(parent)
    stem = name or "-".join((datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S"), *map(_safe_name, parts)))
    for attempt in itertools.count(1):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        with files.output_errors(folder):
            try:
                folder.mkdir()
            except FileExistsError as error:
                if name:
                    raise UsageError(f"The run {folder} exists already.", _remedy_for(folder)) from error
                continue
        return folder
    raise AssertionError("unreachable: itertools.count never ends")


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

    Raises:
        UsageError: There is no such model.
    """
    if model is None:
        return get_last(runs, "model")
    for candidate in (model, runs / model):
        if candidate.is_dir() and (candidate / MODEL).is_file():
            return candidate / MODEL
        if candidate.is_file():
            return candidate
    raise UsageError(f"Cannot find a model {model}.", f"Give a model file, or the folder or name of a run in {runs}.")


@dataclass(frozen=True)
class RunDataset:
    """Dataset of a run, in its manifest: see `adctl.data.datasets`; paths are absolute."""

    layout: str
    root: str
    name: str | None = None
    category: str | None = None
    good: str | None = None
    test: str | None = None
    masks: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class _RunCalibration:
    threshold: float


@dataclass(frozen=True)
class RunManifest:
    """Entries of a run's manifest that are read again."""

    dataset: RunDataset
    calibration: _RunCalibration


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


def timestamp() -> str:
    """Return the local time in ISO 8601 format, in seconds, with its UTC offset."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def _remedy_for(folder: Path) -> str:
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
