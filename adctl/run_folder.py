"""The folder of runs: one folder a training, a manifest in it, and a pointer to the last model and scores.

    runs/
      last.json                        {"model": "…", "scores": "…"}, relative paths, no symbolic links
      20261123-162500-padim-zipper/
        model.safetensors
        run.json                       settings and their origins, versions, digests, timings
        split.json                     which good images were held out

Knows paths and JSON, nothing of detectors.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adctl import __version__, files
from adctl.errors import DataError, UsageError

LAST = "last.json"
RUN = "run.json"
SPLIT = "split.json"
MODEL = "model.safetensors"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "scikit-learn", "safetensors")

Kind = Literal["model", "scores"]


def new_folder(parent: Path, *parts: str, name: str | None = None) -> Path:
    """Make a new folder named by the time and the parts, or exactly as given.

    Raises:
        UsageError: There is one of the given name already.
        OutputError: It cannot be made.
    """
    files.make_folder(parent)
    stem = name or "-".join((datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S"), *map(_plain, parts)))
    for attempt in itertools.count(1):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        with files.output_errors(folder):
            try:
                folder.mkdir()
            except FileExistsError as error:
                if name:
                    raise UsageError(f"There is a run {folder} already.", "Choose another --name.") from error
                continue
        return folder
    raise AssertionError("counting never ends")


def set_last(runs: Path, kind: Kind, path: Path) -> None:
    """Make `path` the last model or scores."""
    pointer = _read_pointer(runs)
    pointer[kind] = _relative(path, runs)
    files.write_json(runs / LAST, pointer)


def get_last(runs: Path, kind: Kind) -> Path:
    """The last model file or folder of scores.

    Raises:
        UsageError: There is none, or it has gone.
    """
    missing, remedy = {
        "model": ("There is no model yet", "Train one with 'adctl train', or name it with --model."),
        "scores": ("There are no scores yet", "Run 'adctl score' first, or name the folder it wrote."),
    }[kind]
    pointer = _read_pointer(runs)
    if kind not in pointer:
        raise UsageError(f"{missing} in {runs}.", remedy)
    # As it was written: by names, whatever links lie on the way.
    path = Path(os.path.normpath(runs / pointer[kind]))
    if not path.exists():
        raise UsageError(f"The last {kind}, {path}, has gone.", remedy)
    return path


def find_model(runs: Path, given: Path | None) -> Path:
    """The model file meant: a file, the one of a run's folder, a run by its name, or the last one.

    Raises:
        UsageError: There is no such thing.
    """
    if given is None:
        return get_last(runs, "model")
    for candidate in (given, runs / given):
        if candidate.is_dir() and (candidate / MODEL).is_file():
            return candidate / MODEL
        if candidate.is_file():
            return candidate
    raise UsageError(f"There is no model {given}.", f"Give a model file, or the folder or name of a run in {runs}.")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the run a model file lies in, or None where it was moved away from it.

    Raises:
        DataError: It is damaged.
    """
    return read_json(folder / RUN)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON table, or None where there is no such file.

    Raises:
        DataError: It is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Delete it; name models and scores by their paths.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged: not a table.", "Delete it; name models and scores by their paths.")
    return value


def environment() -> dict[str, Any]:
    """Versions of everything numbers depend on."""
    return {
        "adctl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        **{name: _version(name) for name in _PACKAGES},
    }


def timestamp() -> str:
    """The time, to the second, with its offset."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_pointer(runs: Path) -> dict[str, Any]:
    return read_json(runs / LAST) or {}


def _relative(path: Path, runs: Path) -> str:
    try:
        return Path(os.path.relpath(path, runs)).as_posix()
    except ValueError:  # another drive, on Windows
        return str(path.absolute())


def _plain(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", part) or "_"
