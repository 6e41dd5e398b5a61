"""Files in the folder of a run that adctl wrote, told from those that a user put there.

They are known by their names, by the run's record of what was made from it, or by a mark in their content.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.errors import DataError
from adctl.tracking import folders

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN = frozenset(
    {
        *("run.json", "settings.json", "started.json", "split.json", "summary.json", "notes.json", "calibrations.json"),
        *("model.safetensors", "exports.json", "history.csv", "loss.png", "out_of_fold.csv", "update.json"),
        *("images.jsonl", "metrics.json", "auc_scores.csv", "roc_curve.svg", "pr_curve.svg", "report.html"),
        *("predictions.csv", "predictions.json", "predictions.jsonl", files.LOCK),
    }
)
"""Names in the folder of a run, and of the folds of a cross-validation."""

_SCORES = frozenset({"scores.json", "results.csv", "results.jsonl", "maps.h5", "watch.jsonl", "commissioning.json"})
"""Names in scored sets, besides those of predictions and heatmaps."""

_FOLDERS = {
    "checkpoints": re.compile(r"step-\d+\.safetensors"),
    run_folder.LINEAGE: re.compile(r"[a-z]+-[0-9a-f]+\.json"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..+"),
}
"""Folders in the folder of a run, and the names in them."""

_FOLD = re.compile(r"fold-\d+")

_MARKED = frozenset(
    {
        *(".safetensors", ".onnx", ".xml", ".ts", ".pt2", ".engine", ".h5", ".parquet"),
        *(".json", ".csv", ".png", ".svg", ".html", ".pdf", ".pptx", ".tex"),
    }
)
"""Ends of the names of files whose content may bear the mark of adctl."""


def foreign_files(folder: Path) -> tuple[Path, ...]:
    """Return the files in the folder of a run that adctl did not write, relative to it, in the order of their names.

    Links count as files, and a folder that cannot be read counts as one.
    """
    return _divided(folder)[1]


def own_files(folder: Path) -> tuple[Path, ...]:
    """Return the files in the folder of a run that adctl wrote, relative to it; the manifest of the run comes last."""
    return _divided(folder)[0]


def remove_own_files(folder: Path) -> tuple[Path, ...]:
    """Remove the files that adctl wrote in the folder of a run; return the others, relative to it.

    The folder stays if it holds other files.

    Raises:
        OSError: A file cannot be removed.
    """
    own, foreign = _divided(folder)
    if foreign:
        for path in own:
            (folder / path).unlink(missing_ok=True)
        for place, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # it is not empty
                Path(place).rmdir()
    elif folder.is_dir():
        # Renamed first, so that a removal that is interrupted leaves no half run.
        doomed = folder.rename(files.partial_path(folder))
        shutil.rmtree(doomed)
    return foreign


def clear_own_files(folder: Path) -> None:
    """Remove what an interrupted training may have left in the folder of a run; what cannot be removed stays."""
    with suppress(OSError):
        remove_own_files(folder)


def _divided(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the files that adctl wrote, the manifest of the run last, and the others; each file is looked at once."""
    recorded, last = _recorded(folder), ("settings.json", "run.json")
    own: list[Path] = []
    foreign: list[Path] = []
    for path in _walk(folder):
        (own if _is_own(folder, path, recorded) else foreign).append(path)
    own.sort(key=lambda path: (last.index(str(path)) if str(path) in last else -1, path))
    return tuple(own), tuple(sorted(foreign))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, and links to folders and unreadable folders, relative to it."""
    unreadable: list[Path] = []
    for place, inner, names in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        links = [name for name in inner if Path(place, name).is_symlink()]
        yield from (Path(place, name).relative_to(folder) for name in (*names, *links))
    yield from (path.relative_to(folder) for path in unreadable)


def _recorded(folder: Path) -> frozenset[str]:
    """Return the paths in a run that its record names, and those of files that belong to them."""
    with suppress(DataError, OSError):
        paths = [PurePath(one.path) for one in folders.read_run(folder).artifacts]
        return frozenset(
            str(path) for one in paths for path in (one, one.with_suffix(".bin"), one.with_name(f"{one.name}.data"))
        )
    return frozenset()


def _is_own(folder: Path, path: Path, recorded: frozenset[str]) -> bool:
    place = folder / path
    if place.is_symlink() or not place.is_file():
        return False
    inside = path.parts[1:] if len(path.parts) > 1 and _FOLD.fullmatch(path.parts[0]) else path.parts
    if len(inside) == 1 and inside[0] in _RUN:
        return True
    names = _FOLDERS.get(inside[0]) if len(inside) == 2 else None  # noqa: PLR2004 - folder and file
    if names is not None and names.fullmatch(inside[1]):
        return True
    if str(path) in recorded or files.is_partial(path.name):
        return True
    if path.name in _SCORES and files.is_ours(place.with_name("scores.json")):
        return True
    return path.suffix.lower() in _MARKED and files.is_ours(place)
