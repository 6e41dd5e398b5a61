"""Files that hold images like a folder does: zip and tar archives and HDF5 files, read in place, nothing unpacked.

In an HDF5 file an array [N,H,W] or [N,H,W,C] is a folder of N images named by their number, and an array [H,W,C] is one
image: with arrays `train/good`, `test/crack` and `ground_truth/crack` the file is a category in MVTec AD layout.
(WebDataset shards are tar archives; `adctl.data.datasets.webdataset` knows what the names in them mean.)

Knows names and bytes inside of one file, nothing of layouts. Reads only: names that would lead out of an archive are
passed over, links in archives are not followed, and no member is larger in memory than `LARGEST_MEMBER`.
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
"""Bytes of one file inside an archive: more than the largest image takes that can be decoded."""

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_HDF5 = (".h5", ".hdf5")
_ENDINGS = (".zip", ".tar", *_HDF5)
_ONE_IMAGE, _IMAGES = 3, 4  # axes
_CHANNELS = {1, 3, 4}


class Container(ABC):
    """A file with files inside."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes (of HDF5: about that many) of each file inside, by its name: a relative path with forward slashes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of one file inside.

        Raises:
            OSError: It is damaged, encrypted or too large.
            KeyError: There is no such file.
        """

    def listed(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder; that of the container itself is called ""."""
        folders, files = self._tree
        return sorted(folders.get(folder, ())), sorted(files.get(folder, ()))

    @cached_property
    def _tree(self) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
        """The folders that the names make up: folders in them, files in them."""
        folders: defaultdict[str, set[str]] = defaultdict(set)
        files: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.sizes:
            parent, _, own = name.rpartition("/")
            files[parent].append(own)
            while parent:
                above, _, folder = parent.rpartition("/")
                folders[above].add(folder)
                parent = above
        return dict(folders), dict(files)


def is_container_name(name: str) -> bool:
    """Whether a file of that name is looked into."""
    return name.lower().endswith((*_ENDINGS, *_COMPRESSED_TAR))


def open_container(path: Path) -> Container:
    """Open a container, or take the one that is open already where the file has not changed.

    Raises:
        OSError: It cannot be read.
        DataError: It is damaged, or a compressed tar.
    """
    status = path.stat()
    # A process that was forked must not share the position in a file with its parent.
    return _opened(path.absolute(), status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=16)
def _opened(path: Path, changed: int, size: int, process: int) -> Container:
    del changed, size, process
    name = path.name.lower()
    if name.endswith(_COMPRESSED_TAR):
        raise DataError(
            f"{path} is a compressed tar: to read one image all before it would have to be unpacked.",
            "Unpack it, or pack the images as .zip or as a plain .tar.",
        )
    kind: type[_Zip | _Tar | _Hdf5] = _Hdf5 if name.endswith(_HDF5) else _Zip if name.endswith(".zip") else _Tar
    try:
        container = kind(path)
        _ = container.sizes
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"Cannot look into {path}: {error}.", "Copy or pack it again; it may be incomplete.") from error
    return container


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in path.parts[0]


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_MEMBER:
        raise OSError(f"{name} would take {size >> 30} GiB unpacked")


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
            raise OSError("it is encrypted in its archive") from error
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise OSError(f"it is damaged in its archive ({error})") from error


class _Tar(Container):
    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._stream.close()

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        with tarfile.open(fileobj=self._stream, mode="r:") as archive:
            files = (item for item in archive if item.isreg() and not item.issparse() and _is_safe(item.name))
            return {str(PurePosixPath(item.name)): (item.offset_data, item.size) for item in files}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: size for name, (_, size) in self._places.items()}

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        _check_size(name, size)
        with self._lock:
            self._stream.seek(start)
            data = self._stream.read(size)
        if len(data) < size:
            raise OSError("it is truncated in its archive")
        return data


class _Hdf5(Container):
    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "r", locking=False)

    @cached_property
    def _images(self) -> dict[str, tuple[Any, int | None]]:
        """Array and number in it of each image, by name."""
        found: list[tuple[str, Any]] = []
        self._file.visititems(lambda name, item: found.append((name, item)))
        return {name: place for path, item in found if hasattr(item, "dtype") for name, place in _images_of(path, item)}

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
    coloured = array.shape[-1] in _CHANNELS
    if array.ndim == _ONE_IMAGE and coloured:
        yield f"{path}.tiff", (array, None)
    elif array.ndim == _ONE_IMAGE or (array.ndim == _IMAGES and coloured):
        for number in range(array.shape[0]):
            yield f"{path}/{number:06d}.tiff", (array, number)


def _as_tiff(pixels: Any) -> bytes:
    """An array [H,W] or [H,W,C], RGB, as a TIFF file in memory: whatever reads images reads it like any other."""
    import cv2
    import numpy as np

    swap = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == _ONE_IMAGE and pixels.shape[2] in swap:
        pixels = cv2.cvtColor(pixels, swap[pixels.shape[2]])
    try:
        _, encoded = cv2.imencode(".tiff", np.ascontiguousarray(pixels), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    except cv2.error as error:
        raise OSError(f"its pixels are {pixels.dtype}, which no image format holds") from error
    return encoded.tobytes()
