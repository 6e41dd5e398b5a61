"""What lies in a folder or an archive: image files, reasons why others are none, subfolders.

Knows names and sizes of files; opens none, and knows nothing of labels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.data import storage
from adctl.data.containers import is_container_name
from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_ENDINGS = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True, slots=True)
class IgnoredPath:
    """A file or folder that was left out, and why."""

    path: Path
    reason: str


def scan(
    root: Path, *, leave_out: Collection[Path] = (), narrow: Callable[[Path, list[str]], list[str]] | None = None
) -> tuple[list[Path], list[IgnoredPath]]:
    """Find the image files below a folder, in order of name.

    Args:
        root: Where to start. Links are followed, and each folder is entered once.
        leave_out: Folders not to enter.
        narrow: Given a folder and the names of its subfolders, those to enter; all of them when None.

    Returns:
        The usable files, and the others with the reason; hidden ones are passed over.
    """
    images, ignored = [], []

    def unreadable(error: OSError) -> None:
        ignored.append(IgnoredPath(Path(error.filename), "the folder cannot be read"))

    visited = {os.path.realpath(folder) for folder in leave_out}
    for folder, subfolders, names in storage.walk(root, unreadable):
        real = os.path.realpath(folder)
        if real in visited:
            if _leads_in_a_circle(folder, real):
                ignored.append(IgnoredPath(folder, "a link that leads in a circle"))
            subfolders.clear()
            continue
        visited.add(real)
        visible = sorted(name for name in subfolders if not is_hidden(name))
        subfolders[:] = narrow(folder, visible) if narrow else visible
        for path in (folder / name for name in sorted(names) if not is_hidden(name)):
            fault = reason_unusable(path)
            if fault is None:
                images.append(path)
            else:
                ignored.append(IgnoredPath(path, fault))
    return images, ignored


def _leads_in_a_circle(folder: Path, real: str) -> bool:
    """Whether a folder was reached through links from within itself, and not merely by two ways."""
    return any(os.path.realpath(parent) == real for parent in folder.parents)


def reason_unusable(path: Path) -> str | None:
    """Why a file is not taken for an image; None when it is."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        named = "; to look into it, name it" if is_container_name(path.name) else ""
        return f"not an image file{named}"
    try:
        size = storage.file_size(path)
    except OSError as error:
        return os_reason(error)
    if size is None:
        return "not a regular file"
    return None if size else "empty file"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over in silence."""
    return name.startswith(".") or name.casefold() in _JUNK


def subfolders_of(folder: Path) -> list[Path]:
    """Visible subfolders in order of name; none where the folder cannot be read."""
    return [folder / name for name in storage.subfolders(folder) if not is_hidden(name)]


def find_subfolder(folder: Path, name: str) -> Path | None:
    """The subfolder of that name, or else of that name in another case."""
    alike = [each for each in subfolders_of(folder) if each.name.casefold() == name]
    return folder / name if folder / name in alike else next(iter(alike), None)


def subfolder_names(folder: Path) -> set[str]:
    """Names of the visible subfolders, in lower case."""
    return {each.name.casefold() for each in subfolders_of(folder)}


def require_folder(folder: Path, what: str) -> None:
    """Check that a folder is there and can be read.

    Args:
        folder: On disk or in an archive; or an archive itself.
        what: It is said to hold.

    Raises:
        UsageError: It is not.
    """
    try:
        if not storage.is_folder(folder):
            raise NotADirectoryError(20, "not a directory")
        if folder.is_dir():
            os.scandir(folder).close()
    except OSError as error:
        raise UsageError(f"Cannot open the folder {folder} ({what}): {os_reason(error)}.", "Check the path.") from error


def os_reason(error: OSError) -> str:
    """The operating system's reason, to go on a sentence with."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return reason[0].lower() + reason[1:]


def no_images(where: Path | str, ignored: Collection[IgnoredPath]) -> DataError:
    """The error where images were looked for in vain."""
    first = next(iter(ignored), None)
    left_out = f" Left out: {len(ignored)}, such as {first.path} ({first.reason})." if first else ""
    return DataError(f"No images found in {where}.{left_out}", f"Images end in {_ENDINGS}.")
