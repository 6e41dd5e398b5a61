"""Buffer for the features of many images, which are iterated several times, with bounded main memory.

Features that exceed the memory are written to an unnamed temporary file, which the system removes when the process
ends, however it ends. The values are the same in both places, so results do not depend on the place. This module knows
tensors on the CPU, not their meaning.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from adctl import files
from adctl.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

log = logging.getLogger(__name__)

SHARE = 0.5
"""Maximum fraction of the memory that is free when the first features are added."""

CHUNK = 2**26
"""Bytes that are allocated, freed or written together; large enough for the allocator to return them to the system."""

_PIECE = 4
"""Images that are returned together; computations on them take several times their memory."""


def room() -> int:
    """Return the bytes of main memory that buffered features may take now."""
    return int(SHARE * psutil.virtual_memory().available)


class FeatureBuffer:
    """Features of images [C,h,w] in half precision, in the order of addition.

    Attributes:
        on_disk: Bytes in the temporary file.
    """

    def __init__(self) -> None:
        self.on_disk = 0
        self._room: int | None = None
        self._chunks: list[Tensor] = []
        self._filling: Tensor | None = None
        self._filled = 0
        self._file: Any = None

    def add(self, batch: Tensor) -> None:
        """Add features [B,C,h,w] from any device.

        Raises:
            OutputError: Memory and disk are both too small.
        """
        rest = batch.half().cpu()
        while len(rest):
            if self._filling is None:
                self._filling = rest.new_empty(max(1, CHUNK // _size(rest[0])), *rest.shape[1:])
            part = rest[: len(self._filling) - self._filled]
            self._filling[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == len(self._filling):
                self._seal()

    def __iter__(self) -> Iterator[Tensor]:
        """Yield pieces [n,C,h,w] of float16; they are the same in each iteration, in memory or on disk."""
        self._seal()
        for chunk in self._chunks:
            yield from chunk.split(_PIECE)

    def drain(self) -> Iterator[Tensor]:
        """Yield the same pieces a last time, and free each of them after use."""
        self._seal()
        self._chunks.reverse()
        while self._chunks:
            yield from self._chunks.pop().split(_PIECE)

    def rows(self, blocks: Iterable[Tensor], rows: int, columns: int) -> Tensor:
        """Concatenate blocks that are computed from the pieces of `drain`, in memory or on disk.

        Args:
            blocks: Tensors [n,columns] of float32.
            rows: Number of rows of all blocks.
            columns: Number of columns.

        Returns:
            Tensor [rows,columns] of float32.

        Raises:
            OutputError: Memory and disk are both too small.
        """
        held = sum(map(_size, self._chunks))
        free = room() if self._room is None else self._room + held
        if self.on_disk or 4 * rows * columns > free:
            return self._write(blocks, (rows, columns), np.float32)
        matrix = torch.empty(rows, columns)
        done = 0
        for block in blocks:
            matrix[done : done + len(block)] = block
            done += len(block)
        return matrix

    def close(self) -> None:
        """Free all features, in memory and on disk."""
        self._chunks.clear()
        self._filling, self._filled = None, 0
        if self._file is not None:
            self._file.close()

    def _seal(self) -> None:
        """Store the current chunk, in memory or on disk."""
        if self._filling is None or not self._filled:
            return
        chunk = self._filling[: self._filled]
        self._filled = 0
        if self._takes(_size(chunk)):
            self._chunks.append(chunk)
            self._filling = None
        else:
            self._chunks.append(self._write([chunk], chunk.shape, np.float16))

    def _takes(self, size: int) -> bool:
        """Return whether that many more bytes fit into main memory; after the first failure, nothing fits."""
        if self._room is None:
            self._room = room()
        if self.on_disk or size > self._room:
            return False
        self._room -= size
        return True

    def _write(self, blocks: Iterable[Tensor], shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
        """Append blocks to the file, and return them as one memory-mapped tensor."""
        folder = Path(tempfile.gettempdir())
        # Written as a file, because a full disk would kill a process that writes to a memory map.
        with _output_errors(folder):
            if self._file is None:
                log.info("Features are written to a temporary file in %s, because memory is too small.", folder)
                self._file = tempfile.TemporaryFile(dir=folder, prefix="adctl-features-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            start = self._file.seek(0, os.SEEK_END)
            for block in blocks:
                self._file.write(block.cpu().contiguous().numpy().data)
            self._file.flush()
        self.on_disk += math.prod(shape) * np.dtype(kind).itemsize
        # The memory map keeps the unnamed file alive as long as the tensor exists.
        return torch.from_numpy(np.memmap(self._file, kind, "r+", start, shape))


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Raise output errors with the remedy for temporary files."""
    try:
        with files.output_errors(folder):
            yield
    except OutputError as error:
        raise OutputError(
            error.message, "Set the environment variable TMPDIR to a folder with more space, or free some memory."
        ) from error


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
