"""Features of many images, gathered once and gone through several times, with bounded main memory.

What has no room in main memory lies in a temporary file that no folder shows and that goes with the process, however
it ends. The bytes are the same in either place, so nothing that is computed from them depends on where they lay.
Knows tensors on the CPU, nothing of what they mean.
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
"""Of the memory that is free when the first features come: so much may be taken before the disk is."""

CHUNK = 2**26
"""Bytes that are kept, let go or written together: so large that the allocator gives them back to the system."""

_PIECE = 4
"""Images that are looked at together; what is computed from them takes several times their memory."""


def room() -> int:
    """Bytes of main memory that gathered features may take now."""
    return int(SHARE * psutil.virtual_memory().available)


class FeatureBuffer:
    """Features of images [C,h,w] in half precision, in the order they came.

    Attributes:
        on_disk: Bytes that lie in the temporary file.
    """

    def __init__(self) -> None:
        self.on_disk = 0
        self._room: int | None = None
        self._chunks: list[Tensor] = []
        self._filling: Tensor | None = None
        self._filled = 0
        self._file: Any = None

    def add(self, batch: Tensor) -> None:
        """Keep features [B,C,h,w], from any device.

        Raises:
            OutputError: There is neither memory nor disk for them.
        """
        waiting = batch.half().cpu()
        while len(waiting):
            if self._filling is None:
                self._filling = waiting.new_empty(max(1, CHUNK // _size(waiting[0])), *waiting.shape[1:])
            part = waiting[: len(self._filling) - self._filled]
            self._filling[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            waiting = waiting[len(part) :]
            if self._filled == len(self._filling):
                self._seal()

    def __iter__(self) -> Iterator[Tensor]:
        """Pieces [n,C,h,w] of float16, the same ones each time and wherever they lie."""
        self._seal()
        for chunk in self._chunks:
            yield from chunk.split(_PIECE)

    def drain(self) -> Iterator[Tensor]:
        """The same pieces once more, each let go of on the way; nothing is left."""
        self._seal()
        self._chunks.reverse()
        while self._chunks:
            yield from self._chunks.pop().split(_PIECE)

    def rows(self, blocks: Iterable[Tensor], rows: int, columns: int) -> Tensor:
        """What became of the drained pieces, as one matrix that lies where there is room.

        Args:
            blocks: Tensors [n,columns] of float32, drawn from `drain`.
            rows: In all blocks.
            columns: Of each.

        Returns:
            Tensor [rows,columns] of float32.

        Raises:
            OutputError: There is neither memory nor disk for it.
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
        """Let everything go."""
        self._chunks.clear()
        self._filling, self._filled = None, 0
        if self._file is not None:
            self._file.close()

    def _seal(self) -> None:
        """Put the chunk that is being filled where it stays."""
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
        """Whether so many more bytes fit into main memory; after the first that do not, none do."""
        if self._room is None:
            self._room = room()
        if self.on_disk or size > self._room:
            return False
        self._room -= size
        return True

    def _write(self, blocks: Iterable[Tensor], shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
        """Append blocks to the file; the whole of them as one tensor that is read from there when it is needed."""
        folder = Path(tempfile.gettempdir())
        # Written, not mapped: a full disk is an error then, and not the end of the process.
        with _output_errors(folder):
            if self._file is None:
                log.info("Features go to a temporary file in %s: they would take too much memory.", folder)
                self._file = tempfile.TemporaryFile(dir=folder, prefix="adctl-features-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            start = self._file.seek(0, os.SEEK_END)
            for block in blocks:
                self._file.write(block.cpu().contiguous().numpy().data)
            self._file.flush()
        self.on_disk += math.prod(shape) * np.dtype(kind).itemsize
        # The mapping keeps the file, which has no name, for as long as a tensor reads from it.
        return torch.from_numpy(np.memmap(self._file, kind, "r+", start, shape))


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """As any other, with the remedy for this one."""
    try:
        with files.output_errors(folder):
            yield
    except OutputError as error:
        raise OutputError(
            error.message, "Name a folder with room in the environment variable TMPDIR, or free some memory."
        ) from error


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
