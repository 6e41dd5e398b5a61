"""Atomic file writing: write a temporary file, flush it to disk (fsync), rename it.

A reader never sees a partly written file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adctl.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder; files that were complete before are unchanged.",
    errno.EDQUOT: "Free some space or choose another folder; files that were complete before are unchanged.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: "Choose a folder you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder you may write to, or change its permissions.",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EEXIST: "A file of that name exists already: choose another folder.",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise an `OutputError` with a remedy when the operating system refuses to write `path`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "Check the path and its permissions.")
        raise OutputError(f"Cannot write {path}: {reason}.", remedy) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and return it.

    Raises:
        OutputError: The folder cannot be created.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush the file to disk and rename it to `path`.

    On any exception, Ctrl-C included, the temporary file is removed and `path` stays unchanged.

    Args:
        path: The final file.
        flush: Flush to disk before the rename, so that the file is complete even after a power failure. The flush
            takes most of the time.

    Raises:
        OutputError: The folder or the file cannot be written.
    """
    make_folder(path.parent)
    with output_errors(path):
        # The name is chosen before the file is created, so that an interrupt in between leaves no file behind.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            if flush:
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; line ends are not converted."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON document atomically; non-ASCII characters are not escaped."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
