"""Listing and reading of files, both in folders and in containers (zip, tar and HDF5 files). Writes nothing.

A path may continue into a container: `parts.zip/train/good/000.png` is a file in the archive `parts.zip`, and the
archive itself counts as a folder. Ordinary files are tried first, so that they are read without extra cost.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from adctl.data.containers import Container, is_container_name, open_container
from adctl.reading import impossible_name, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file.

    Raises:
        OSError: The file does not exist or cannot be read.
        DataError: The file lies in a damaged container.
    """
    try:
        with open_regular(path) as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        container, name = _require_inside(path)
        return container.read(name)


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading; raises the same errors as `read_bytes`."""
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        container, name = _require_inside(path)
        return container.open(name)


def digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes; raises the same errors as `read_bytes`."""
    try:
        stream = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_folder(path: Path) -> bool:
    """Return True if a path is a folder, a container, or a folder in a container.

    Raises:
        OSError: The path does not exist.
        DataError: The container is damaged.
    """
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return True
        if not is_container_name(path.name):
            return False
    except ValueError as error:
        raise impossible_name(error) from error
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
    """Return the size of a regular file in bytes; None if the path is not a regular file.

    Raises:
        OSError: The path does not exist or cannot be reached.
    """
    try:
        status = path.stat()
    except ValueError as error:
        raise impossible_name(error) from error
    except (FileNotFoundError, NotADirectoryError):
        container, name = _require_inside(path)
        return container.sizes[name]
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of a folder's subfolders, hidden ones included; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        found = _inside(folder)
    return [] if found is None else found[0].list_folder(found[1])[0]


def files_in(folder: Path) -> list[str]:
    """Return the sorted names of a folder's files, hidden ones included; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        found = _inside(folder)
    return [] if found is None else found[0].list_folder(found[1])[1]


def ignored_in(root: Path) -> list[tuple[Path, str]]:
    """Return the members below a folder in a container that are not used, each with the reason; empty elsewhere."""
    found = _inside(root)
    if found is None:
        return []
    container, name = found
    top = root if not name else root.parents[name.count("/")]
    below = f"{name}/" if name else ""
    return [(top / member, reason) for member, reason in container.ignored.items() if member.startswith(below)]


def walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder or container top-down like `os.walk`, following links.

    Yields the folder, the names of its subfolders and the names of its files. The caller may remove names from the list
    of subfolders to skip these.
    """
    found = _inside(root)
    if found is None:
        for folder, folders, names in os.walk(root, followlinks=True, onerror=on_error):
            yield root.__class__(folder), folders, names
        return
    yield from _walk_container(*found, root)


def _walk_container(container: Container, name: str, root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    pending = [(root, name)]
    while pending:
        folder, current = pending.pop()
        folders, names = container.list_folder(current)
        yield folder, folders, names
        pending += [(folder / child, f"{current}/{child}" if current else child) for child in reversed(folders)]


def _inside(path: Path) -> tuple[Container, str] | None:
    """Return the container on a path and the name inside it; None for an ordinary path."""
    for candidate in (path, *path.parents):
        if is_container_name(candidate.name) and candidate.is_file():
            return open_container(candidate), "" if path == candidate else path.relative_to(candidate).as_posix()
    return None


def _require_inside(path: Path) -> tuple[Container, str]:
    found = _inside(path)
    if found is None or found[1] not in found[0].sizes:
        raise FileNotFoundError(2, "no such file", str(path))
    return found
