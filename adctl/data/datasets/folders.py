"""Search for image files and subfolders in a folder or archive, with reasons for ignored files. Opens no file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import files
from adctl.data import storage
from adctl.data.containers import is_container_name
from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import AdctlError, DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
_RESULTS = ("scores.json", "run.json", "settings.json", "summary.json")
"""Documents that adctl writes into the folders of its results."""
_SCHEMA = b'"schema": "adctl.'
_HEAD = 256
_ENDINGS = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True, slots=True)
class IgnoredPath:
    """Ignored file or folder, and the reason."""

    path: Path
    reason: str


def scan(
    root: Path, *, leave_out: Collection[Path] = (), narrow: Callable[[Path, list[str]], list[str]] | None = None
) -> tuple[list[Path], list[IgnoredPath]]:
    """Find the image files below a folder, sorted by name within each folder.

    Args:
        root: Folder to search. Links are followed, and each folder is entered once.
        leave_out: Folders not to enter.
        narrow: Function from a folder and the names of its subfolders to the names to enter; None enters all.

    Returns:
        The usable image files, and the ignored files and folders. Hidden ones are in neither list. Heatmaps and other
        pictures of adctl are ignored: folders of its results, and marked pictures if `root` is such a folder.
    """
    images = []
    ignored = [IgnoredPath(path, reason) for path, reason in storage.ignored_in(root)]

    def unreadable(error: OSError) -> None:
        ignored.append(IgnoredPath(Path(error.filename), "the folder cannot be read"))

    beside_results = is_results(root)
    visited = {os.path.realpath(folder) for folder in leave_out}
    for folder, subfolders, names in storage.walk(root, unreadable):
        real = os.path.realpath(folder)
        if real in visited:
            if _is_link_loop(folder, real):
                ignored.append(IgnoredPath(folder, "a link to one of its parent folders"))
            subfolders.clear()
            continue
        visited.add(real)
        if folder != root and is_results(folder):
            ignored.append(IgnoredPath(folder, "results of adctl"))
            subfolders.clear()
            continue
        visible = sorted(name for name in subfolders if not is_hidden(name))
        subfolders[:] = narrow(folder, visible) if narrow else visible
        for path in (folder / name for name in sorted(names) if not is_hidden(name)):
            reason = reason_unusable(path) or ("a picture of adctl" if beside_results and is_picture(path) else None)
            if reason is None:
                images.append(path)
            else:
                ignored.append(IgnoredPath(path, reason))
    return images, ignored


def is_results(folder: Path) -> bool:
    """Return True if adctl wrote results of a training or a scoring into a folder."""
    return any(_SCHEMA in _head(folder / name) for name in _RESULTS)


def is_picture(path: Path) -> bool:
    """Return True for a PNG file that bears the mark of adctl."""
    return files.PNG_MARK in _head(path)


def _head(path: Path) -> bytes:
    try:
        with storage.open_binary(path) as stream:
            return stream.read(_HEAD)
    except (OSError, AdctlError):
        return b""


def _is_link_loop(folder: Path, real: str) -> bool:
    """Return True if a folder was reached by a link from inside itself; False if two separate links lead to it."""
    return any(os.path.realpath(parent) == real for parent in folder.parents)


def reason_unusable(path: Path) -> str | None:
    """Return the reason why a file is not used as an image; None if it is used."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        hint = "; to read its images, give its path" if is_container_name(path.name) else ""
        return f"not an image file{hint}"
    try:
        size = storage.file_size(path)
    except OSError as error:
        return os_reason(error)
    if size is None:
        return "not a regular file"
    return None if size else "empty file"


def is_hidden(name: str) -> bool:
    """Return True if a file or folder is skipped without a message."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def subfolders_of(folder: Path) -> list[Path]:
    """Return the visible subfolders, sorted by name; empty if the folder cannot be read."""
    return [folder / name for name in storage.subfolders(folder) if not is_hidden(name)]


def find_subfolder(folder: Path, name: str) -> Path | None:
    """Return the subfolder called `name` (lower case), or one whose name differs only in case, or None."""
    matches = [subfolder for subfolder in subfolders_of(folder) if subfolder.name.casefold() == name]
    return folder / name if folder / name in matches else next(iter(matches), None)


def subfolder_names(folder: Path) -> set[str]:
    """Return the names of the visible subfolders in lower case."""
    return {subfolder.name.casefold() for subfolder in subfolders_of(folder)}


def require_folder(folder: Path, content: str) -> None:
    """Check that a folder exists and can be read.

    Args:
        folder: A folder on disk, an archive, or a folder in an archive.
        content: Expected content, for the error message.

    Raises:
        UsageError: The folder does not exist, is not a folder or cannot be read.
    """
    try:
        if not storage.is_folder(folder):
            raise NotADirectoryError(20, "not a directory")
        if folder.is_dir():
            os.scandir(folder).close()
    except OSError as error:
        message = f"Cannot open the folder {folder} ({content}): {os_reason(error)}."
        raise UsageError(message, "Check the path.") from error


def os_reason(error: OSError) -> str:
    """Return the operating system's reason, starting in lower case."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return reason[0].lower() + reason[1:]


def no_images(where: Path | str, ignored: Collection[IgnoredPath]) -> DataError:
    """Return the error for a search that found no images."""
    first = next(iter(ignored), None)
    details = f" Files left out: {len(ignored)}, such as {first.path} ({first.reason})." if first else ""
    return DataError(f"No images found in {where}.{details}", f"Image file names end in {_ENDINGS}.")
