"""Containers of image files: zip archives, tar archives and HDF5 files, read without unpacking.

In an HDF5 file, an array [N,H,W] or [N,H,W,C] is a folder of N images named by their number, and an array [H,W,C] is
one image. A file with arrays `train/good`, `test/crack` and `ground_truth/crack` is a category in MVTec AD layout.

For safety, members with unusable names, links and devices are listed as ignored, and `check_member` refuses members
that are too large or compressed so far that they cannot be images, before a byte of them is read. HDF5 arrays whose
pixels lie in other files are not read.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_MEMBER = 4 << 30
"""Maximum size of an unpacked member in bytes; the largest image that can be decoded is smaller."""

MAX_EXPANSION = 200
"""Maximum ratio of unpacked to packed size; images hardly shrink, and data that grows more was made to fill a disk."""

MAX_ENTRIES = 1_000_000
"""Maximum number of entries of a container."""

SMALL_MEMBER = 64 << 20
"""Size in bytes up to which the ratio of a member does not matter, because it fits into memory anyway."""

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_HDF5 = (".h5", ".hdf5")
_ENDINGS = (".zip", ".tar", *_HDF5)
_ONE_IMAGE, _IMAGES = 3, 4  # axes
_CHANNELS = {1, 3, 4}


class Container(ABC):
    """Base class of files that contain other files.

    Attributes:
        ignored: Members that are not used, by name with escaped control characters, and the reason of each.
    """

    def __init__(self) -> None:
        self.ignored: dict[str, str] = {}

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

    def open(self, name: str) -> BinaryIO:
        """Open one member for reading from its start; raises the same errors as `read`."""
        return io.BytesIO(self.read(name))

    def _usable(self, name: str, fault: str | None = None) -> bool:
        """Return True if a member is used; otherwise note the reason: the given fault, or that of its name."""
        reason = fault or _name_fault(name)
        if reason is not None:
            self.ignored[name.encode("unicode_escape").decode("ascii") or "(no name)"] = reason
        return reason is None

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


def _name_fault(name: str) -> str | None:
    """Return the reason why a member name cannot be used as a path below the archive; None if it can."""
    path = PurePosixPath(name)
    if not path.parts:
        return "an entry without a name"
    if any(ord(character) < ord(" ") for character in name):
        return "its name holds control characters"
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        return "its name leads out of the archive"
    return None


def check_member(name: str, size: int, packed: int) -> None:
    """Check the size of a member before it is read.

    Args:
        name: Name of the member, for messages.
        size: Unpacked size, bytes.
        packed: Size in the archive, bytes.

    Raises:
        OSError: It is larger than `LARGEST_MEMBER`, or unpacks to more than `MAX_EXPANSION` times its packed size.
    """
    if size > LARGEST_MEMBER:
        raise OSError(f"{name} is too large: {size >> 30} GiB when unpacked")
    if size > max(SMALL_MEMBER, MAX_EXPANSION * packed):
        raise OSError(
            f"{name} is {size >> 20} MiB when unpacked, more than {MAX_EXPANSION} times its size in the archive, "
            "which no photograph is"
        )


def _check_count(count: int) -> None:
    if count > MAX_ENTRIES:
        raise OSError(f"it holds more than {MAX_ENTRIES:,} entries")


class _Zip(Container):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._archive = zipfile.ZipFile(path)

    @cached_property
    def _infos(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._archive.infolist()
        _check_count(len(entries))
        # zipfile cuts names at NUL; the original name tells.
        names = ((info.orig_filename if "\0" in info.orig_filename else info.filename, info) for info in entries)
        infos = (info for name, info in names if not name.endswith("/") and self._usable(name))
        return {str(PurePosixPath(info.filename)): info for info in infos}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: info.file_size for name, info in self._infos.items()}

    def read(self, name: str) -> bytes:
        with _zip_errors(), self.open(name) as stream:
            return stream.read()

    def open(self, name: str) -> BinaryIO:
        info = self._infos[name]
        check_member(name, info.file_size, info.compress_size)
        with _zip_errors():
            return cast("BinaryIO", self._archive.open(info))


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Raise OSError for a damaged or encrypted member, or one compressed by an unknown method."""
    try:
        yield
    except NotImplementedError as error:
        raise OSError("it is compressed by a method that cannot be read") from error
    except RuntimeError as error:
        raise OSError("the archive is encrypted") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise OSError(f"the archive is damaged ({error})") from error


class _Tar(Container):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._stream = path.open("rb")
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._stream.close()

    @cached_property
    def _locations(self) -> dict[str, tuple[int, int]]:
        with tarfile.open(fileobj=self._stream, mode="r:") as archive:
            files = (item for item in archive if not item.isdir() and self._usable(item.name, _tar_fault(item)))
            found = {}
            for item in files:
                found[str(PurePosixPath(item.name))] = (item.offset_data, item.size)
                _check_count(len(found))
            return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: size for name, (_, size) in self._locations.items()}

    def read(self, name: str) -> bytes:
        start, size = self._locations[name]
        check_member(name, size, size)
        with self._lock:
            self._stream.seek(start)
            data = self._stream.read(size)
        if len(data) < size:
            raise OSError("the archive is truncated")
        return data


def _tar_fault(item: tarfile.TarInfo) -> str | None:
    if item.issparse():
        return "a sparse file"
    return None if item.isreg() else "a link" if item.issym() or item.islnk() else "not a regular file"


class _Hdf5(Container):
    def __init__(self, path: Path) -> None:
        import h5py

        super().__init__()
        self._file = h5py.File(path, "r", locking=False)

    @cached_property
    def _images(self) -> dict[str, tuple[Any, int | None]]:
        """HDF5 array of each image and its index in the array (None if the array is the image), by name."""
        found: list[tuple[str, Any]] = []
        self._file.visititems(lambda name, item: found.append((name, item)))
        arrays = [(name, item) for name, item in found if hasattr(item, "dtype")]
        _check_count(sum(item.shape[0] for _, item in arrays if item.ndim >= _ONE_IMAGE))
        usable = ((name, item) for name, item in arrays if self._usable(name, _hdf5_fault(item)))
        return {name: entry for path, item in usable for name, entry in _images_of(path, item)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {
            name: array.dtype.itemsize * array.size // (1 if number is None else array.shape[0])
            for name, (array, number) in self._images.items()
        }

    def read(self, name: str) -> bytes:
        array, number = self._images[name]
        chunk = array.dtype.itemsize * math.prod(array.chunks or ())  # unpacked as a whole
        size = max(self.sizes[name], chunk)
        if size > SMALL_MEMBER:
            packed = array.id.get_storage_size() / (array.dtype.itemsize * array.size)
            check_member(name, size, int(size * packed))
        return _as_tiff(array[()] if number is None else array[number])


def _hdf5_fault(array: Any) -> str | None:
    return "its pixels lie in other files" if array.external or array.is_virtual else None


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

    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)  # OpenCV takes the bytes as they are
    swap = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == _ONE_IMAGE and pixels.shape[2] in swap:
        pixels = cv2.cvtColor(pixels, swap[pixels.shape[2]])
    try:
        _, encoded = cv2.imencode(".tiff", np.ascontiguousarray(pixels), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    except cv2.error as error:
        raise OSError(f"pixels of type {pixels.dtype} cannot be stored in an image file") from error
    return encoded.tobytes()
