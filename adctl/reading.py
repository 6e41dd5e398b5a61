"""Reading of regular files: a pipe, a socket or a device, which could block or never end, is an error."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: The file cannot be read, is not regular, or no file can have this name.
    """
    # Without O_NONBLOCK the call itself would wait for a writer of a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise impossible_name(error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError("it is a pipe, socket or device, and no regular file")


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a regular file; raises the same errors as `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a regular file, with line ends as Python has them.

    Raises:
        OSError: See `open_regular`.
        UnicodeDecodeError: The text has another encoding.
    """
    with io.TextIOWrapper(open_regular(path), encoding) as stream:
        return stream.read()


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file; False also if it cannot be looked up."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def impossible_name(error: ValueError) -> OSError:
    """Return the error for a name that no file can have, because it holds a NUL character."""
    return OSError(f"no file can have this name ({error})")
