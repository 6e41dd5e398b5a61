"""Standard output and error: text of adctl alone, in any encoding, and a failure of the output as one message."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_failure: str | None = None
_status = ""


class _Output(io.TextIOWrapper):
    """Standard output that remembers its first failure, after which it takes and drops everything."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            _keep(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            _keep(error)


class _Errors(io.TextIOWrapper):
    """Standard error that drops what cannot be written: messages that nobody can read change no result."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _drop(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _drop(self)


def claim_stdout() -> None:
    """Keep the standard output for adctl: libraries that print to file descriptor 1 reach the standard error instead.

    On a terminal, where no program reads the output, nothing changes.
    """
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or stdout.isatty():
        return
    try:
        own = os.dup(stdout.fileno())
    except OSError:
        return
    with suppress(OSError):  # the standard error is closed
        os.dup2(2, stdout.fileno())
    buffer = open(own, "wb")  # noqa: PTH123, SIM115 - stays open
    claimed = io.TextIOWrapper(buffer, stdout.encoding, stdout.errors, line_buffering=stdout.line_buffering)
    sys.stdout = sys.__stdout__ = claimed  # type: ignore[misc]


def prepare() -> None:
    """Make both streams take any text; characters that the encoding lacks are escaped."""
    # If one was closed before the start, no other file must get its number.
    if sys.stdout is None:
        sys.stdout = _Output(_null(os.O_RDONLY), "utf-8", "backslashreplace")  # writing fails
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(_null(os.O_WRONLY), encoding="utf-8")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, lines = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(sys.stdout.buffer, encoding, "backslashreplace", line_buffering=lines)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Errors(sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def stdout_failure() -> str | None:
    """Write out the standard output, and return why a write failed; None if all went well."""
    with suppress(ValueError):  # it is closed
        sys.stdout.flush()
    return _failure


def show_status(text: str) -> None:
    """Show a line on the standard error until something else is written; nothing if that is no terminal."""
    global _status  # noqa: PLW0603 - a process has one terminal
    try:
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return
    clear_status()
    _status = text[: max(width - 1, 0)]
    write_stderr_part(_status)


def clear_status() -> None:
    """Remove the line of `show_status`."""
    global _status  # noqa: PLW0603 - a process has one terminal
    if _status:
        write_stderr_part("\r" + " " * len(_status) + "\r")
        _status = ""


def write_stdout(text: str) -> None:
    """Write text in UTF-8, whatever the encoding of the stream is; `stdout_failure` tells of a failure."""
    clear_status()
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    try:
        buffer.write(text.encode())
        buffer.flush()
    except OSError as error:
        _keep(error)


def write_stderr(text: str) -> None:
    """Write text on the standard error, on a line of its own, if it can be written to."""
    clear_status()
    write_stderr_part(text)


def write_stderr_part(text: str) -> None:
    """Write text on the standard error where the cursor is, if it can be written to."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _null(flags: int) -> io.BufferedWriter:
    return open(os.open(os.devnull, flags), "wb")  # noqa: PTH123 - stays open


def _keep(error: OSError) -> None:
    """Remember a failure of the standard output, and drop what is not written."""
    global _failure  # noqa: PLW0603 - a process has one standard output
    _failure = _failure or (os.strerror(error.errno) if error.errno else str(error))
    _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    """Drop what a stream has not written: Python would try again at its end, with a message and another exit code."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
