"""Unpacking archives that nobody vouches for: tar (plain, gzip, bzip2, xz) and zip, told apart by their content.

Nothing is written outside the folder, nothing but files and folders is made, no owner or permission is taken over,
and a few kilobytes cannot become a full disk. The folder appears whole or not at all.
Knows nothing of what the files are.
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
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Self, cast

from adctl import files
from adctl.errors import FetchError, OutputError
from adctl.fetching.download import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adctl.fetching.download import Progress

_BLOCK = 1 << 18
_MOST_MEMBERS = 1_000_000
_MOST_EXPANSION = 200
"""Images hardly shrink; what grows two hundredfold was made to fill a disk."""
_ALWAYS_ALLOWED = 10_000_000
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
        archive: The file.
        into: The folder to make; it must not exist.
        wanted: Says of a path inside the archive whether it is unpacked; None takes all. What is not wanted is
            checked all the same.
        progress: Told (bytes of the archive read, its size).

    Returns:
        Bytes written.

    Raises:
        FetchError: The archive is damaged, or holds something that could do harm; the message names it.
        OutputError: It cannot be written, or there is no room for it.
    """
    if into.exists():
        raise OutputError(f"{into} exists already.", "Choose a new folder.")
    files.make_folder(into.parent)
    with files.output_errors(into):
        box = Path(tempfile.mkdtemp(prefix=f".{into.name}.", suffix=".partial", dir=into.parent))
    try:
        whole = files.make_folder(box / "whole")
        with _damage(archive):
            written = _Unpacking(archive, whole, wanted, progress).run()
        with files.output_errors(into):
            whole.rename(into)
    finally:
        shutil.rmtree(box, ignore_errors=True)
    return written


@dataclass(frozen=True)
class _Member:
    """One entry of an archive.

    Attributes:
        name: As it stands in the archive.
        fault: What it is, if neither file nor folder.
        is_folder: Whether it is a folder.
        size: Bytes it claims to unpack to.
        open: Gives its content; files only.
    """

    name: str
    fault: str | None
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


class _Unpacking:
    """One run over one archive, with its limits."""

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
        self.room = shutil.disk_usage(folder).free

    def run(self) -> int:
        """Unpack; returns bytes written."""
        with self.archive.open("rb") as raw:
            kind = raw.read(6)
            raw.seek(0)
            members = self._zip_members(raw) if kind.startswith(b"PK") else self._tar_members(raw, kind)
            for count, member in enumerate(members):
                if count >= _MOST_MEMBERS:
                    raise FetchError(f"{self.archive.name} holds more than {_MOST_MEMBERS} entries.", _REMEDY)
                self._take(member)
        return self.written

    def count(self, block: bytes) -> bytes:
        """Pass on what came out of the decompressor, unless it is beyond all measure."""
        self.unpacked += len(block)
        if self.unpacked > max(_ALWAYS_ALLOWED, _MOST_EXPANSION * self.length):
            raise FetchError(
                f"{self.archive.name} unpacks to more than {_MOST_EXPANSION} times its size: it looks like a bomb.",
                _REMEDY,
            )
        return block

    def _take(self, member: _Member) -> None:
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
            raise self._refusal(member, "as a file and as a folder") from error

    def _write(self, member: _Member, target: Path) -> None:
        if member.size > self.room - self.written:
            raise OutputError(
                f"There is no room to unpack {self.archive.name} in {self.folder.parent.parent}: "
                f"{format_bytes(self.room)} were free.",
                "Free some space, or name a folder on another disk with ADCTL_DATA_DIR.",
            )
        with member.open() as source, self._new_file(member, target) as stream:
            # Trouble with reading is the archive's fault, trouble with writing the disk's.
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
                raise self._refusal(member, "twice") from error

    def _checked_path(self, member: _Member) -> PurePosixPath:
        path = PurePosixPath(member.name)
        if member.fault is not None:
            raise self._refusal(member, member.fault)
        if path.is_absolute() or _DRIVE.match(member.name) or "\\" in member.name:
            raise self._refusal(member, "with a path that is not relative to the archive")
        if ".." in path.parts:
            raise self._refusal(member, "with a path that leads out of the archive")
        return path

    def _refusal(self, member: _Member, what: str) -> FetchError:
        return FetchError(f"{self.archive.name} holds {member.name!r} {what}; it was not unpacked.", _REMEDY)

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.length)

    def _tar_members(self, raw: IO[bytes], kind: bytes) -> Iterator[_Member]:
        with _decompressed(raw, kind) as plain:
            watched = _Watched(plain, self)
            with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|", bufsize=_BLOCK) as tar:
                while (info := tar.next()) is not None:
                    yield _Member(info.name, _tar_fault(info), info.isdir(), info.size, _tar_opener(tar, info))
                    tar.members = []  # type: ignore[attr-defined]  # in a stream they only use memory
                    self._report(raw.tell())
            # tarfile takes a stream that ends between two entries for a whole one.
            while watched.read(_BLOCK):
                pass
            if watched.tail != _END_OF_TAR:
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
        return lambda: cast("IO[bytes]", _Watched(archive.open(info), self))


class _Watched:
    """A stream of unpacked bytes that counts them and remembers the last block of 512."""

    def __init__(self, inner: IO[bytes], unpacking: _Unpacking) -> None:
        self._inner = inner
        self._unpacking = unpacking
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        """As a file does."""
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
        return "under a name that is cut"
    if info.flag_bits & 1:
        return "encrypted"
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode in {0, stat.S_IFREG, stat.S_IFDIR}:
        return None
    return "as a link" if mode == stat.S_IFLNK else "as a device"


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """Turn the many ways in which an archive cannot be read into one clear error."""
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
        system = isinstance(error, OSError) and error.errno
        reason = (
            os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is damaged or cut short"
        )
        raise FetchError(
            f"Cannot unpack {archive}: {reason}.",
            "Check the path and its permissions."
            if system
            else "Archives end in .tar, .tar.gz, .tar.bz2, .tar.xz or .zip; fetch it again if it is one.",
        ) from error
