"""Writing files so that no reader ever sees half of one: temporary file, fsync, rename.

Knows paths and bytes, nothing of what they hold.
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
    errno.ENOSPC: "Free some space or choose another folder; what was complete before is untouched.",
    errno.EDQUOT: "Free some space or choose another folder; what was complete before is untouched.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: "Choose a folder you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder you may write to, or change its permissions.",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EEXIST: "A file of that name is in the way: choose another folder.",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into one clear error."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "Check the path and its permissions.")
        raise OutputError(f"Cannot write {path}: {reason}.", remedy) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; return it.

    Raises:
        OutputError: It cannot be created.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and rename it into place.

    On any exception, Ctrl-C included, the temporary file is removed and `path` stays as it was.

    Args:
        path: The file to be.
        flush: Whether it is to be whole even after the power fails, which takes longer than all the rest.

    Raises:
        OutputError: The folder or the file cannot be written.
    """
    make_folder(path.parent)
    with output_errors(path):
        # Named before it is made: an interrupt between the two must not leave a file that nobody knows of.
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
    """Write a whole file atomically; see `atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically, with line ends as given."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically, indented, non-ASCII kept readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
