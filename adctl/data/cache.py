"""Cache of preprocessed images on disk: one HDF5 file for each preprocessing, indexed by the image files' digests.

The file name is a digest of the settings and of OpenCV's version. If an image or a setting changes, its old rows are no
longer found. A cache file is replaced atomically, and every row has a checksum; a damaged file is created again. The
rows of unused images are kept. The cache folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import cv2
import h5py
import numpy as np
from filelock import FileLock

from adctl import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec, Pixels

    Decode = Callable[[Sequence[int]], Iterator[tuple[int, Pixels]]]
    _Index = dict[str, tuple[int, int]]

log = logging.getLogger(__name__)

_FORMAT = 1


class DamagedCacheError(Exception):
    """The rows of a cache file cannot be read, or a checksum is wrong."""


class PreprocessedCache:
    """Cache file of network inputs [H,W,C], one input per row.

    Args:
        folder: Folder of the cache file; created if it does not exist.
        spec: Input format that the images are preprocessed for.
    """

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self._spec = spec
        self._settings = json.dumps({"format": _FORMAT, "opencv": cv2.__version__, **asdict(spec)}, sort_keys=True)
        name = hashlib.sha256(self._settings.encode()).hexdigest()[:16]
        self.path = folder / f"preprocessed-{name}.h5"
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the open file, which belongs to the process that opened it."""
        return {**self.__dict__, "_file": None}

    @property
    def is_open(self) -> bool:
        """True if rows can be read."""
        return self._file is not None

    def fill(self, digests: Sequence[str], decode: Decode) -> NDArray[np.int64]:
        """Add missing images to the file, and open it.

        A file lock allows several processes to share the folder.

        Args:
            digests: SHA-256 of each image file, hexadecimal.
            decode: Function from image indices to (image index, pixels) of each of their inputs, image by image.

        Returns:
            Row numbers of all inputs, image by image.

        Raises:
            OutputError: The file cannot be written.
        """
        self.close()
        with files.output_errors(self.path):
            files.make_folder(self.path.parent)
            with FileLock(self.path.with_suffix(".lock")):
                index = self._complete(dict(zip(digests, range(len(digests)), strict=True)), decode)
                self._open()
        return np.concatenate([np.arange(*index[digest]) for digest in digests])

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Return the pixels [B,H,W,C] of rows in any order.

        Raises:
            DamagedCacheError: A row cannot be read, or its checksum is wrong.
        """
        pixels = np.empty((len(rows), *self._spec.shape), np.uint8)
        try:
            stored = self._file["pixels"]
            for position, row in enumerate(rows):
                stored.read_direct(pixels, np.s_[int(row)], np.s_[position])
        except (OSError, KeyError, ValueError) as error:
            raise DamagedCacheError(str(error)) from error
        return pixels

    def discard(self) -> None:
        """Delete a damaged file."""
        self.close()
        log.warning("The cache %s is damaged and is created again.", self.path)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _complete(self, numbers: dict[str, int], decode: Decode) -> _Index:
        """Add the images (index by digest) that the file does not hold yet."""
        known = self._read_index()
        missing = {digest: number for digest, number in numbers.items() if digest not in known}
        if not missing:
            return known
        try:
            return self._write(known, missing, decode)
        except DamagedCacheError:
            self.discard()
            return self._write({}, numbers, decode)

    def _read_index(self) -> _Index:
        """Return the first and the end row (exclusive) of each image by digest; empty if there is no usable file."""
        if not self.path.exists():
            return {}
        try:
            with h5py.File(self.path, "r", locking=False) as stored:
                digests = [digest.decode("ascii") for digest in stored["digests"][:]]
                ends = np.cumsum(stored["counts"][:])
                intact = stored["pixels"].shape == (ends[-1], *self._spec.shape) and len(ends) == len(digests)
                intact = intact and stored.attrs["settings"] == self._settings
        except (OSError, KeyError, ValueError, IndexError, UnicodeDecodeError):
            intact = False
        if not intact:
            self.discard()
            return {}
        return {digest: (int(start), int(end)) for digest, start, end in zip(digests, [0, *ends], ends, strict=False)}

    def _write(self, known: _Index, missing: dict[str, int], decode: Decode) -> _Index:
        """Write a new file with the known images, followed by the missing ones."""
        log.info("Preprocessing %d images into the cache %s.", len(missing), self.path)
        digests = {number: digest for digest, number in missing.items()}
        with files.atomic_path(self.path) as temporary, files.new_hdf5(temporary) as stored:
            stored.attrs["settings"] = self._settings
            writer = _Writer(stored, self._spec.shape)
            for digest, pixels in self._stored_rows(known):
                writer.add(digest, pixels)
            for number, pixels in decode(sorted(digests)):
                writer.add(digests[number], pixels)
            return writer.finish()

    def _stored_rows(self, known: _Index) -> Iterator[tuple[str, Pixels]]:
        """Yield the digest and pixels of every row of the current file; checksums are verified."""
        if not known:
            return
        self._open()
        try:
            for digest, (start, end) in known.items():
                for row in range(start, end):
                    yield digest, self.read([row])[0]
        finally:
            self.close()

    def _open(self) -> None:
        self._file = h5py.File(self.path, "r", locking=False)  # the file is never modified, only replaced


class _Writer:
    """Writer of a cache file, which appends one row after another; the rows of an image are contiguous."""

    def __init__(self, stored: Any, shape: tuple[int, int, int]) -> None:
        self._stored = stored
        size: dict[str, Any] = {"shape": (0, *shape), "maxshape": (None, *shape), "chunks": (1, *shape)}
        self._pixels = stored.create_dataset("pixels", dtype="u1", fletcher32=True, **size)
        self._count = 0
        self._index: _Index = {}

    def add(self, digest: str, pixels: Pixels) -> None:
        start, _ = self._index.get(digest, (self._count, 0))
        self._pixels.resize(self._count + 1, axis=0)
        self._pixels[self._count] = pixels
        self._count += 1
        self._index[digest] = (start, self._count)

    def finish(self) -> _Index:
        """Write the index of the rows."""
        names = np.array([digest.encode("ascii") for digest in self._index])
        counts = np.array([end - start for start, end in self._index.values()], np.int64)
        self._stored.create_dataset("digests", data=names, chunks=names.shape, fletcher32=True)
        self._stored.create_dataset("counts", data=counts, chunks=counts.shape, fletcher32=True)
        return self._index
