"""Containers of image files: zip archives, tar archives and HDF5 files, read without unpacking.

In an HDF5 file, an array [N,H,W] or [N,H,W,C] is a folder of N images named by their number, and an array [H,W,C] is
one image. A file with arrays `train/good`, `test/crack` and `ground_truth/crack` is a category in MVTec AD layout.

For safety, member names that lead out of the archive are skipped, links in archives are not followed, and members
larger than `LARGEST_MEMBER` are refused.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_MEMBER = 4 << 30
"""Maximum size of an unpacked member in bytes; the largest image that can be decoded is smaller."""

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_HDF5 = (".h5", ".hdf5")
_ENDINGS = (".zip", ".tar", *_HDF5)
_ONE_IMAGE, _IMAGES = 3, 4  # axes
_CHANNELS = {1, 3, 4}


class Container(ABC):
    """Base class of files that contain other files."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Size of each member in bytes (approximate for HDF5), by name: a relative path with forward slashes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return all bytes of one member.

        Raises:
            OSError: The member is damaged, encrypted or too large.
            KeyError: There is no such member.
        """

    def list_folder(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the sorted names of a folder's subfolders and of its files; the top folder is `""`."""
        folders, files = self._tree
        return sorted(folders.get(folder, ())), sorted(files.get(folder, ()))

    @cached_property
    def _tree(self) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
        """Names of the subfolders and names of the files, both by folder."""
        folders: defaultdict[str, set[str]] = defaultdict(set)
        files: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.sizes:
            parent, _, basename = name.rpartition("/")
            files[parent].append(basename)
            while parent:
                grandparent, _, folder = parent.rpartition("/")
                folders[grandparent].add(folder)
                parent = grandparent
        return dict(folders), dict(files)


def is_container_name(name: str) -> bool:
    """Return True if a file name has the suffix of a container."""
    return name.lower().endswith((*_ENDINGS, *_COMPRESSED_TAR))


def open_container(path: Path) -> Container:
    """Open a container; a container that is already open and has not changed is reused.

    Raises:
        OSError: The file cannot be reached.
        DataError: The file is damaged, or is a compressed tar archive.
    """
    status = path.stat()
    # The process ID is part of the key: a forked process must not share the file position with its parent.
    return _opened(path.absolute(), status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=16)
def _opened(path: Path, changed: int, size: int, process: int) -> Container:
    del changed, size, process
    name = path.name.lower()
    if name.endswith(_COMPRESSED_TAR):
        raise DataError(
            f"{path} is a compressed tar archive, in which single images cannot be read directly.",
            "Unpack it, or pack the images as .zip or as uncompressed .tar.",
        )
    kind: type[_Zip | _Tar | _Hdf5] = _Hdf5 if name.endswith(_HDF5) else _Zip if name.endswith(".zip") else _Tar
    try:
        container = kind(path)
        _ = container.sizes
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"Cannot open {path}: {error}.", "Copy or pack it again; it may be incomplete.") from error
    return container


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in path.parts[0]


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_MEMBER:
        raise OSError(f"{name} is too large: {size >> 30} GiB when unpacked")


class _Zip(Container):
    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)

    @cached_property
    def _infos(self) -> dict[str, zipfile.ZipInfo]:
        infos = (info for info in self._archive.infolist() if not info.is_dir() and _is_safe(info.filename))
        return {str(PurePosixPath(info.filename)): info for info in infos}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: info.file_size for name, info in self._infos.items()}

    def read(self, name: str) -> bytes:
        _check_size(name, self.sizes[name])
        try:
            return self._archive.read(self._infos[name])
        except RuntimeError as error:
            raise OSError("the archive is encrypted") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise OSError(f"the archive is damaged ({error})") from error


class _Tar(Container):
    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._stream.close()

    @cached_property
    def _locations(self) -> dict[str, tuple[int, int]]:
        with tarfile.open(fileobj=self._stream, mode="r:") as archive:
            files = (item for item in archive if item.isreg() and not item.issparse() and _is_safe(item.name))
            return {str(PurePosixPath(item.name)): (item.offset_data, item.size) for item in files}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: size for name, (_, size) in self._locations.items()}

    def read(self, name: str) -> bytes:
        start, size = self._locations[name]
        _check_size(name, size)
        with self._lock:
            self._stream.seek(start)
            data = self._stream.read(size)
        if len(data) < size:
            raise OSError("the archive is truncated")
        return data


class _Hdf5(Container):
    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "r", locking=False)

    @cached_property
    def _images(self) -> dict[str, tuple[Any, int | None]]:
        """HDF5 array of each image and its index in the array (None if the array is the image), by name."""
        found: list[tuple[str, Any]] = []
        self._file.visititems(lambda name, item: found.append((name, item)))
        return {name: entry for path, item in found if hasattr(item, "dtype") for name, entry in _images_of(path, item)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {
            name: array.dtype.itemsize * array.size // (1 if number is None else array.shape[0])
            for name, (array, number) in self._images.items()
        }

    def read(self, name: str) -> bytes:
        array, number = self._images[name]
        _check_size(name, self.sizes[name])
        return _as_tiff(array[()] if number is None else array[number])


def _images_of(path: str, array: Any) -> Iterator[tuple[str, tuple[Any, int | None]]]:
    if array.dtype.kind not in "uf" or not array.size:
        return
    has_channels = array.shape[-1] in _CHANNELS
    if array.ndim == _ONE_IMAGE and has_channels:
        yield f"{path}.tiff", (array, None)
    elif array.ndim == _ONE_IMAGE or (array.ndim == _IMAGES and has_channels):
        for number in range(array.shape[0]):
            yield f"{path}/{number:06d}.tiff", (array, number)


def _as_tiff(pixels: Any) -> bytes:
    """Encode an array [H,W] or [H,W,C] in RGB order as a TIFF file, so that it is read like any other image file."""
    import cv2
    import numpy as np

    swap = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == _ONE_IMAGE and pixels.shape[2] in swap:
        pixels = cv2.cvtColor(pixels, swap[pixels.shape[2]])
    try:
        _, encoded = cv2.imencode(".tiff", np.ascontiguousarray(pixels), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    except cv2.error as error:
        raise OSError(f"pixels of type {pixels.dtype} cannot be stored in an image file") from error
    return encoded.tobytes()
