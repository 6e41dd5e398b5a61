"""One way to list and read files, whether they lie in a folder or in an archive.

A path may lead on into a container: `parts.zip/train/good/000.png` is a file in the archive `parts.zip`, and the
archive itself is a folder. Ordinary files cost nothing more for it.

Knows paths and bytes; what is in them is others' concern. Writes nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from typing import TYPE_CHECKING

from adctl.data.containers import Container, is_container_name, open_container
from adctl.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: It does not exist or cannot be read.
        DataError: It lies in a damaged container.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        container, name = _require_inside(path)
        return container.read(name)


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading; errors as for `read_bytes`."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return io.BytesIO(read_bytes(path))


def digest(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes; errors as for `read_bytes`."""
    try:
        return sha256_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return hashlib.sha256(read_bytes(path)).hexdigest()


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, or a container, or a folder in one.

    Raises:
        OSError: There is nothing there.
        DataError: It is a damaged container.
    """
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return True
        if not is_container_name(path.name):
            return False
    except (FileNotFoundError, NotADirectoryError):
        pass
    found = _inside(path)
    if found is None:
        path.stat()
        return False
    container, name = found
    if name in container.sizes:
        return False
    if name and not any(other.startswith(name + "/") for other in container.sizes):
        raise FileNotFoundError(f"no such file in {path.parent}")
    return True


def file_size(path: Path) -> int | None:
    """Bytes of a regular file; None when it is something else.

    Raises:
        OSError: It cannot be reached.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        container, name = _require_inside(path)
        return container.sizes[name]
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones included; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        found = _inside(folder)
    return [] if found is None else found[0].listed(found[1])[0]


def files_in(folder: Path) -> list[str]:
    """Names of all but the folders in a folder, hidden ones included; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        found = _inside(folder)
    return [] if found is None else found[0].listed(found[1])[1]


def walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like `os.walk` from the top, links followed: folder, names of its folders (may be shortened), of its files."""
    found = _inside(root)
    if found is None:
        for folder, folders, names in os.walk(root, followlinks=True, onerror=on_error):
            yield root.__class__(folder), folders, names
        return
    yield from _walk_container(*found, root)


def _walk_container(container: Container, name: str, root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    pending = [(root, name)]
    while pending:
        folder, inside = pending.pop()
        folders, names = container.listed(inside)
        yield folder, folders, names
        pending += [(folder / each, f"{inside}/{each}" if inside else each) for each in reversed(folders)]


def _inside(path: Path) -> tuple[Container, str] | None:
    """The container a path leads into, and the name in it; None for an ordinary path."""
    for place in (path, *path.parents):
        if is_container_name(place.name) and place.is_file():
            return open_container(place), "" if path == place else path.relative_to(place).as_posix()
    return None


def _require_inside(path: Path) -> tuple[Container, str]:
    found = _inside(path)
    if found is None or found[1] not in found[0].sizes:
        raise FileNotFoundError(2, "no such file", str(path))
    return found
