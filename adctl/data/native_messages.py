"""Decoding with OpenCV while the messages of its libraries are caught instead of printed to the terminal.

libjpeg and libpng inside OpenCV print to the C library's `stderr` that a file is damaged, without its name, and then
fill the damaged part in silence. Here that stream is a buffer in memory while images are decoded, so that the message
can be given to the caller. Python's own `sys.stderr` and file descriptor 2 are not touched.

Only glibc allows it; elsewhere the libraries print as before, and the messages are not known.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_SIZE = 1 << 16
_UNBUFFERED = 2  # _IONBF


def decode_quietly(data: bytes, flags: int) -> tuple[NDArray[Any] | None, str]:
    """Decode an image with OpenCV.

    Args:
        data: All bytes of the file.
        flags: OpenCV's `IMREAD_` flags.

    Returns:
        The pixels, or None if the file cannot be decoded, and the messages of the decoder; empty if there are none.

    Raises:
        cv2.error: OpenCV cannot decode the file.
    """
    encoded = np.frombuffer(data, np.uint8)
    if _stream is None:
        return cv2.imdecode(encoded, flags), ""
    _stream.enter()
    try:
        pixels = cv2.imdecode(encoded, flags)
    finally:
        printed = _stream.leave()
    if not printed:
        return pixels, ""
    # Another thread's image may have caused the message; alone, this one tells.
    with _stream.alone() as text:
        pixels = cv2.imdecode(encoded, flags)
        return pixels, text()


class _CaughtStream:
    """Buffer that takes the place of the C library's `stderr` while at least one image is decoded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._pointer = ctypes.c_void_p.in_dll(library, "stderr")
        self._original = self._pointer.value
        self._buffer = ctypes.create_string_buffer(_SIZE)
        self._tell, self._rewind = library.ftell, library.rewind
        self._tell.restype = ctypes.c_long
        self._tell.argtypes = self._rewind.argtypes = [ctypes.c_void_p]
        self._rewind.restype = None
        library.fmemopen.restype = ctypes.c_void_p
        library.fmemopen.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        library.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._file = library.fmemopen(self._buffer, _SIZE, b"w+")
        if not self._file:
            raise OSError("no buffer for messages")
        library.setvbuf(self._file, None, _UNBUFFERED, 0)
        self._readers = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        os.register_at_fork(after_in_child=self._restore)

    def _restore(self) -> None:
        self._readers, self._lock = 0, threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._pointer.value = self._original

    def enter(self) -> None:
        """Catch messages together with other threads."""
        with self._lock:
            if not self._readers:
                self._pointer.value = self._file
            self._readers += 1

    def leave(self) -> bool:
        """Stop to catch messages; returns True if this or another thread's image caused one."""
        printed = self._buffer[0] != b"\0"
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._pointer.value = self._original
                self._idle.notify_all()
        return printed

    @contextmanager
    def alone(self) -> Iterator[Callable[[], str]]:
        """Catch messages while no other thread decodes; yields a function that returns their text."""
        with self._lock:
            self._idle.wait_for(lambda: not self._readers)
            self._clear()
            self._pointer.value = self._file
            try:
                yield lambda: self._buffer.raw[: self._tell(self._file)].decode("utf-8", "replace").strip()
            finally:
                self._pointer.value = self._original
                self._clear()

    def _clear(self) -> None:
        self._rewind(self._file)
        self._buffer[0] = b"\0"


def _open_stream() -> _CaughtStream | None:
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return None
    try:
        return _CaughtStream(ctypes.CDLL(None))
    except (OSError, ValueError, AttributeError):
        return None


_stream = _open_stream()
