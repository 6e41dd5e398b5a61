"""Output of other libraries, kept instead of shown: that of Python code, and that of C++ code on file descriptors."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS = (1, 2)
_LAST_LINES = 20


@contextlib.contextmanager
def captured_output() -> Iterator[None]:
    """Keep what is written to standard output and error, and ignore warnings.

    The last lines become a note of an exception that leaves the block; otherwise they are dropped.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept,
        _descriptors_into(kept.fileno()),
        contextlib.redirect_stdout(kept),
        contextlib.redirect_stderr(kept),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            kept.seek(0)
            lines = kept.read().strip().splitlines()[-_LAST_LINES:]
            if lines:
                error.add_note("\n".join(lines))
            raise


@contextlib.contextmanager
def _descriptors_into(target: int) -> Iterator[None]:
    """Let the file descriptors of standard output and error be those of another open file."""
    originals: dict[int, int] = {}
    _flush()
    for stream in _STREAMS:
        with contextlib.suppress(OSError):  # it is closed
            originals[stream] = os.dup(stream)
            os.dup2(target, stream)
    try:
        yield
    finally:
        _flush()
        for stream, original in originals.items():
            os.dup2(original, stream)
            os.close(original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
