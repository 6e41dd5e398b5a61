"""Preprocessed images on disk: one HDF5 file a way of preprocessing, found again by the content of the image files.

The file's name is a digest of the settings (and of the decoder's version), its rows are found by the digests of the
image files: where either changes, the old rows are no longer found. Files are written anew beside the old one and
renamed, and every row has a checksum: a damaged file is made again. Rows of images that are no longer used stay;
the folder may be removed at any time.

Knows digests and arrays, nothing of how images are read.
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
    """Rows cannot be read back as they were written."""


class PreprocessedCache:
    """Rows of pixels [H,W,C] in a file of a folder.

    Args:
        folder: Where the file lies; made if absent.
        spec: How the images are preprocessed.
    """

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self._spec = spec
        self._settings = json.dumps({"format": _FORMAT, "opencv": cv2.__version__, **asdict(spec)}, sort_keys=True)
        name = hashlib.sha256(self._settings.encode()).hexdigest()[:16]
        self.path = folder / f"preprocessed-{name}.h5"
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in the process that opened it."""
        return {**self.__dict__, "_file": None}

    @property
    def is_open(self) -> bool:
        """Whether rows can be read."""
        return self._file is not None

    def fill(self, digests: Sequence[str], decode: Decode) -> NDArray[np.int64]:
        """Bring what is missing into the file and open it.

        Processes that share the folder take turns.

        Args:
            digests: SHA-256 of each image file, hexadecimal.
            decode: Numbers of images to (number, pixels) of each of their pieces, image by image.

        Returns:
            The rows of all pieces, image by image.

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
        """Pixels [B,H,W,C] of rows in any order.

        Raises:
            DamagedCacheError: They are not what was written.
        """
        pixels = np.empty((len(rows), *self._spec.shape), np.uint8)
        try:
            stored = self._file["pixels"]
            for place, row in enumerate(rows):
                stored.read_direct(pixels, np.s_[int(row)], np.s_[place])
        except (OSError, KeyError, ValueError) as error:
            raise DamagedCacheError(str(error)) from error
        return pixels

    def discard(self) -> None:
        """Remove a damaged file."""
        self.close()
        log.warning("The cache %s is damaged: it is made again.", self.path)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _complete(self, numbers: dict[str, int], decode: Decode) -> _Index:
        """Make a file that holds all these images, by digest to number, if it does not yet."""
        known = self._index()
        missing = {digest: number for digest, number in numbers.items() if digest not in known}
        if not missing:
            return known
        try:
            return self._write(known, missing, decode)
        except DamagedCacheError:
            self.discard()
            return self._write({}, numbers, decode)

    def _index(self) -> _Index:
        """First and last row (exclusive) of each image by its digest; empty where there is no usable file."""
        if not self.path.exists():
            return {}
        try:
            with h5py.File(self.path, "r", locking=False) as stored:
                digests = [digest.decode("ascii") for digest in stored["digests"][:]]
                ends = np.cumsum(stored["counts"][:])
                whole = stored["pixels"].shape == (ends[-1], *self._spec.shape) and len(ends) == len(digests)
                whole = whole and stored.attrs["settings"] == self._settings
        except (OSError, KeyError, ValueError, IndexError, UnicodeDecodeError):
            whole = False
        if not whole:
            self.discard()
            return {}
        return {digest: (int(start), int(end)) for digest, start, end in zip(digests, [0, *ends], ends, strict=False)}

    def _write(self, known: _Index, missing: dict[str, int], decode: Decode) -> _Index:
        """Write the file anew: what it held, then what is missing."""
        log.info("Preprocessing %d images into the cache %s.", len(missing), self.path)
        digests = {number: digest for digest, number in missing.items()}
        with files.atomic_path(self.path) as temporary, h5py.File(temporary, "w") as stored:
            stored.attrs["settings"] = self._settings
            writer = _Writer(stored, self._spec.shape)
            for digest, pixels in self._held(known):
                writer.add(digest, pixels)
            for number, pixels in decode(sorted(digests)):
                writer.add(digests[number], pixels)
            return writer.finish()

    def _held(self, known: _Index) -> Iterator[tuple[str, Pixels]]:
        """What the file holds now, its checksums compared."""
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
        self._file = h5py.File(self.path, "r", locking=False)  # it never changes: it is replaced


class _Writer:
    """A file that grows piece by piece, pieces of one image together."""

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
        """Write what finds the pieces again."""
        names = np.array([digest.encode("ascii") for digest in self._index])
        counts = np.array([end - start for start, end in self._index.values()], np.int64)
        self._stored.create_dataset("digests", data=names, chunks=names.shape, fletcher32=True)
        self._stored.create_dataset("counts", data=counts, chunks=counts.shape, fletcher32=True)
        return self._index
