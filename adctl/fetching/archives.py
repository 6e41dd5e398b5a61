"""Safe unpacking of untrusted archives: tar (plain, gzip, bzip2, xz) and zip, recognised by their content.

Nothing is written outside the target folder. Only files and folders are created; owners and permissions are ignored.
The unpacked size is limited, so that a small archive cannot fill the disk. The folder appears only when complete.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Self, cast

from adctl import files, reading
from adctl.data.containers import MAX_ENTRIES, MAX_EXPANSION
from adctl.errors import FetchError, OutputError
from adctl.fetching.download import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adctl.fetching.download import Progress

_BLOCK = 1 << 18
_ALWAYS_ALLOWED = 10_000_000
"""Unpacked bytes that are allowed at any ratio."""
_END_OF_TAR = bytes(512)
_DRIVE = re.compile(r"[A-Za-z]:")
_REMEDY = "Take the archive from its official source."


def extract(
    archive: Path,
    into: Path,
    *,
    wanted: Callable[[PurePosixPath], bool] | None = None,
    progress: Progress | None = None,
) -> int:
    """Unpack an archive into a new folder.

    Args:
        archive: Archive file.
        into: Folder to create; it must not exist.
        wanted: Function that selects paths inside the archive; None selects all. All paths are checked.
        progress: Called with (bytes of the archive read, its size).

    Returns:
        Number of bytes written.

    Raises:
        FetchError: The archive is damaged, or has an unsafe entry; the message names it.
        OutputError: Files cannot be written, or the disk is too small.
    """
    if into.exists():
        raise OutputError(f"{into} exists already.", "Choose a new folder.")
    with files.atomic_folder(into) as temporary:
        unpacked = files.make_folder(temporary / "unpacked")
        with _archive_errors(archive):
            written = _Unpacking(archive, unpacked, wanted, progress).run()
        with files.output_errors(into):
            unpacked.rename(into)
    return written


@dataclass(frozen=True)
class _Member:
    """One entry of an archive.

    Attributes:
        name: Name in the archive.
        fault: Why it cannot be unpacked, such as "as a link"; None for a file or folder.
        is_folder: Whether it is a folder.
        size: Unpacked size in bytes that the archive states.
        open: Function that opens its content; for files only.
    """

    name: str
    fault: str | None
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


class _Unpacking:
    """Unpacks one archive within the limits."""

    def __init__(
        self, archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool] | None, progress: Progress | None
    ) -> None:
        self.archive = archive
        self.folder = folder
        self.wanted = wanted
        self.progress = progress
        self.length = archive.stat().st_size
        self.unpacked = 0
        self.written = 0
        self.free_space = shutil.disk_usage(folder).free

    def run(self) -> int:
        """Unpack the archive and return the number of bytes written."""
        with reading.open_regular(self.archive) as raw:
            kind = raw.read(6)
            raw.seek(0)
            members = self._zip_members(raw) if kind.startswith(b"PK") else self._tar_members(raw, kind)
            for count, member in enumerate(members):
                if count >= MAX_ENTRIES:
                    raise FetchError(f"{self.archive.name} has more than {MAX_ENTRIES} entries.", _REMEDY)
                self._unpack(member)
        return self.written

    def count(self, block: bytes) -> bytes:
        """Count decompressed bytes and return them, unless there are too many for the size of the archive."""
        self.unpacked += len(block)
        if self.unpacked > max(_ALWAYS_ALLOWED, MAX_EXPANSION * self.length):
            raise FetchError(
                f"{self.archive.name} unpacks to more than {MAX_EXPANSION} times its size: it may be a zip bomb.",
                _REMEDY,
            )
        return block

    def _unpack(self, member: _Member) -> None:
        path = self._checked_path(member)
        if self.wanted is not None and not self.wanted(path):
            return
        if member.is_folder:
            with files.output_errors(self.folder / path):
                self._make_folder(self.folder / path, member)
        else:
            self._write(member, self.folder / path)

    def _make_folder(self, folder: Path, member: _Member) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise self._unsafe(member, "as a file and as a folder") from error

    def _write(self, member: _Member, target: Path) -> None:
        if member.size > self.free_space - self.written:
            raise OutputError(
                f"The disk is too small to unpack {self.archive.name} in {self.folder.parent.parent}: "
                f"{format_bytes(self.free_space)} are free.",
                "Free some space, or set ADCTL_DATA_DIR to a folder on another disk.",
            )
        with member.open() as source, self._new_file(member, target) as stream:
            # Only writing is inside `output_errors`: errors of reading are the archive's.
            while block := source.read(_BLOCK):
                with files.output_errors(target):
                    stream.write(block)
                self.written += len(block)
            with files.output_errors(target):
                stream.flush()

    def _new_file(self, member: _Member, target: Path) -> IO[bytes]:
        with files.output_errors(target):
            self._make_folder(target.parent, member)
            try:
                return target.open("xb")
            except FileExistsError as error:
                raise self._unsafe(member, "twice") from error

    def _checked_path(self, member: _Member) -> PurePosixPath:
        path = PurePosixPath(member.name)
        if member.fault is not None:
            raise self._unsafe(member, member.fault)
        if path.is_absolute() or _DRIVE.match(member.name) or "\\" in member.name:
            raise self._unsafe(member, "with a path that is not relative to the archive")
        if ".." in path.parts:
            raise self._unsafe(member, "with a path that leads out of the archive")
        return path

    def _unsafe(self, member: _Member, what: str) -> FetchError:
        return FetchError(f"{self.archive.name} contains {member.name!r} {what}; it was not unpacked.", _REMEDY)

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.length)

    def _tar_members(self, raw: IO[bytes], kind: bytes) -> Iterator[_Member]:
        with _decompressed(raw, kind) as plain:
            counted = _CountedStream(plain, self)
            with tarfile.open(fileobj=cast("IO[bytes]", counted), mode="r|", bufsize=_BLOCK) as tar:
                while (info := tar.next()) is not None:
                    yield _Member(info.name, _tar_fault(info), info.isdir(), info.size, _tar_opener(tar, info))
                    tar.members = []  # type: ignore[attr-defined]  # entries already read only use memory
                    self._report(raw.tell())
            # tarfile accepts a stream that ends between two entries, so the end mark is checked here.
            while counted.read(_BLOCK):
                pass
            if counted.tail != _END_OF_TAR:
                raise EOFError
        self._report(self.length)

    def _zip_members(self, raw: IO[bytes]) -> Iterator[_Member]:
        done = 0
        with zipfile.ZipFile(raw) as archive:
            for info in archive.infolist():
                yield _Member(
                    info.filename,
                    _zip_fault(info),
                    info.filename.endswith("/"),
                    info.file_size,
                    self._zip_opener(archive, info),
                )
                done += info.compress_size
                self._report(min(done, self.length))
        self._report(self.length)

    def _zip_opener(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: cast("IO[bytes]", _CountedStream(archive.open(info), self))


class _CountedStream:
    """A stream of decompressed bytes that counts them and keeps the last 512."""

    def __init__(self, inner: IO[bytes], unpacking: _Unpacking) -> None:
        self._inner = inner
        self._unpacking = unpacking
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        """Read bytes, like a file."""
        block = self._unpacking.count(self._inner.read(size))
        self.tail = (self.tail + block[-512:])[-512:]
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()


def _decompressed(raw: IO[bytes], kind: bytes) -> IO[bytes]:
    if kind.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(raw))
    if kind.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(raw))
    if kind.startswith(b"\xfd7zXZ"):
        return cast("IO[bytes]", lzma.open(raw))
    return raw


def _tar_opener(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def content() -> IO[bytes]:
        stream = tar.extractfile(info)
        assert stream is not None
        return stream

    return content


def _tar_fault(info: tarfile.TarInfo) -> str | None:
    if info.isreg() or info.isdir():
        return None
    return "as a link" if info.issym() or info.islnk() else "as a device"


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    if "\0" in info.orig_filename:
        return "with a null character in its name"
    if info.flag_bits & 1:
        return "encrypted"
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode in {0, stat.S_IFREG, stat.S_IFDIR}:
        return None
    return "as a link" if mode == stat.S_IFLNK else "as a device"


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    """Turn all errors of reading an archive into one `FetchError`."""
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        if isinstance(error, OSError) and error.errno:
            reason, remedy = os.strerror(error.errno), "Check the path and its permissions."
        else:
            reason = "it is damaged or cut short"
            remedy = "Archives end in .tar, .tar.gz, .tar.bz2, .tar.xz or .zip; fetch it again if it is one."
        raise FetchError(f"Cannot unpack {archive}: {reason}.", remedy) from error
