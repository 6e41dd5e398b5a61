"""Storage of raw anomaly maps: a spool while images are scored, and one HDF5 file at the end.

An HDF5 file is damaged if its process is killed while it is open. So maps go to a plain file first, whose complete
records survive, and into `maps.h5` when the scoring ends.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from adctl import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAPS = "maps.h5"
"""Name of the file of maps in a scored set."""

_CHUNK = 2**18
"""Bytes of an HDF5 chunk of maps."""

_WAITING_MAPS = 2**20
"""Bytes of maps that are collected in memory before they are written."""

_HEAD = struct.Struct("<qii")
"""Start of a record of the spool: row number, height and width; the values follow as little-endian float32."""


class MapSpool:
    """Raw maps of a scoring that runs, or that was killed.

    Args:
        folder: Folder of the scored set.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".maps.spool"
        self._published = folder / MAPS
        self._stream: files.AppendFile | None = None
        self._first_new = 0

    def recover(self) -> set[int]:
        """Return the row numbers of the maps that an earlier run left."""
        try:
            published = {row for row, _ in _read_published(self._published)} if self._published.is_file() else set()
        except (OSError, KeyError):
            self._published.unlink()
            published = set()
        return published | {row for row, _, _ in self._records()}

    def open(self, rows: int) -> None:
        """Continue behind a number of rows; maps of later rows are dropped."""
        self._first_new = rows
        size = max((end for row, _, end in self._records() if row < rows), default=0)
        self._stream = files.AppendFile(self._path, size)

    def add(self, row: int, anomaly_map: NDArray[np.float32]) -> None:
        """Append the map [h,w] of a row."""
        assert self._stream is not None
        values = np.ascontiguousarray(anomaly_map, "<f4")
        self._stream.add(_HEAD.pack(row, *values.shape) + values.tobytes())

    def publish(self) -> None:
        """Write all maps into the HDF5 file, and remove the spool; without any map there is no file.

        Raises:
            OSError: The file cannot be written; the spool stays.
        """
        if self._stream is None:
            return
        if self._stream.size:
            with files.atomic_path(self._published) as temporary, _MapWriter(temporary) as writer:
                for row, values in self._all_maps():
                    writer.add(row, values)
        self.remove()

    def remove(self) -> None:
        """Remove the spool."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the spool, which stays for a later run if it is not published."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _all_maps(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        seen = set()
        if self._published.is_file():
            for row, values in _read_published(self._published):
                if row < self._first_new:
                    seen.add(row)
                    yield row, values
        for row, values, _ in self._records():
            if row not in seen:
                yield row, values

    def _records(self) -> Iterator[tuple[int, NDArray[np.float32], int]]:
        """Yield row number, map and end of each complete record of the spool."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            while len(head := stream.read(_HEAD.size)) == _HEAD.size:
                row, height, width = _HEAD.unpack(head)
                values = stream.read(4 * height * width)
                if len(values) < 4 * height * width:
                    return
                yield row, np.frombuffer(values, "<f4").reshape(height, width), stream.tell()


def _read_published(path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    with h5py.File(path, "r") as stored:
        maps = stored["maps"]
        for index, (row, (height, width)) in enumerate(zip(stored["rows"][:], stored["sizes"][:], strict=True)):
            yield int(row), maps[index, :height, :width]


class _MapWriter:
    """HDF5 file of raw anomaly maps with their row numbers and sizes; smaller maps are padded with 0.

    Maps are collected and written together, because one HDF5 call costs more time than writing a small map.
    """

    def __init__(self, path: Path) -> None:
        self._disk = files.DeferredErrorFile(path)
        self._file = h5py.File(self._disk, "w")
        self._maps: h5py.Dataset | None = None
        self._waiting: list[tuple[int, NDArray[np.float32]]] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            self._file.close()
            self._disk.close()
        self._disk.check()

    def add(self, row: int, anomaly_map: NDArray[np.float32]) -> None:
        self._waiting.append((row, anomaly_map))
        self._bytes += anomaly_map.nbytes
        if self._bytes >= _WAITING_MAPS:
            self._write()

    def _create(self, shape: tuple[int, ...]) -> h5py.Dataset:
        # HDF5 uses memory for every chunk, so small maps share a chunk.
        chunk = (max(1, _CHUNK // (4 * math.prod(shape))), *shape)
        size: dict[str, Any] = {"shape": (0, *shape), "maxshape": (None, None, None), "chunks": chunk}
        self._rows = self._file.create_dataset("rows", shape=(0,), maxshape=(None,), dtype="i8", chunks=(1024,))
        self._sizes = self._file.create_dataset("sizes", shape=(0, 2), maxshape=(None, 2), dtype="i8", chunks=(1024, 2))
        return self._file.create_dataset("maps", dtype="f4", **size)

    def _write(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        if self._maps is None:
            self._maps = self._create(waiting[0][1].shape)
        count, rows, columns = self._maps.shape
        sizes = np.array([anomaly_map.shape for _, anomaly_map in waiting])
        rows, columns = max(rows, sizes[:, 0].max()), max(columns, sizes[:, 1].max())
        block = np.zeros((len(waiting), rows, columns), np.float32)
        for index, (_, anomaly_map) in enumerate(waiting):
            block[index, : anomaly_map.shape[0], : anomaly_map.shape[1]] = anomaly_map
        self._maps.resize((count + len(waiting), rows, columns))
        self._rows.resize(count + len(waiting), axis=0)
        self._sizes.resize(count + len(waiting), axis=0)
        self._maps[count:] = block
        self._rows[count:] = [row for row, _ in waiting]
        self._sizes[count:] = sizes
        self._disk.check()
