"""Atomic file writing: write a temporary file, flush it to disk (fsync), rename it.

A reader never sees a partly written file. Files and folders that killed processes left are removed, and a file that
adctl did not write is replaced only if the user asks for it.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from adctl import reading
from adctl.errors import OutputError, UsageError
from adctl.names import csv_cell, encodable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

log = logging.getLogger(__name__)

_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder; files that were complete before are unchanged.",
    errno.EDQUOT: "Free some space or choose another folder; files that were complete before are unchanged.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: "Choose a folder you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder you may write to, or change its permissions.",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EEXIST: "A file of that name exists already: choose another folder.",
}

_PARTIAL = re.compile(r"\.(?:(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.)?(?:[0-9a-f]{16})\.partial$")
_OLD = 7 * 24 * 3600
"""Age in seconds after which a temporary file is removed whoever wrote it."""

_LONGEST = 40
"""Characters of a file's name in the name of its temporary file; file systems limit names to 255 bytes."""

LOCK = ".adctl.lock"
"""Name of the file that a process locks while it writes results into a folder."""

_swept: set[str] = set()

PNG_MARK = b"Software\0adctl"
"""Content of the text chunk in PNG files of adctl (keyword, NUL, text)."""

_TEXT_MARKS = re.compile(
    rb'content="adctl |Made by adctl|## adctl |"schema": ?"adctl\.|<adctl |name="adctl\.|\Afigure,part,value,'
    rb"|\Aid,name,folder,state,|\Apath,key,label,name,kind,"
)
"""Texts in the HTML, Markdown, JSON, XML and CSV files of adctl."""

_SOURCES = re.compile(
    rb'"schema": ?"adctl\.'
    rb"(?:run|settings|folds|grid|classifier-grid|scores|predictions|watch|artifact|checkpoint)/"
)
"""Schemas of JSON files that no other output replaces unasked."""

_TEXT_SUFFIXES = frozenset(
    {".html", ".htm", ".md", ".txt", ".json", ".jsonl", ".xml", ".csv", ".svg", ".tex", ".sarif", ".yaml"}
)
_HEAD, _TAIL = 2**20, 2**16

_BLOCK = 4096
"""Bytes written to find out whether a folder can be written."""


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise an `OutputError` with a remedy when the operating system refuses to write `path`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "Check the path and its permissions.")
        raise OutputError(f"Cannot write {path}: {reason}.", remedy) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and return it.

    Raises:
        OutputError: The folder cannot be created.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush the file to disk and rename it to `path`.

    On any exception, Ctrl-C included, the temporary file is removed and `path` stays unchanged. The file gets the
    permissions that the umask gives to new files, also if a library writes it with others.

    Args:
        path: The final file.
        flush: Flush to disk before the rename, so that the file is complete even after a power failure. The flush
            takes most of the time.

    Raises:
        OutputError: The folder or the file cannot be written, or `path` is a folder, a device or a pipe.
    """
    make_folder(path.parent)
    if _is_special(path):
        raise OutputError(f"Cannot write {path}: it is no regular file.", "Give the path of a file.")
    with output_errors(path):
        # The name is chosen before the file is created, so that an interrupt in between leaves no file behind.
        temporary = partial_path(path)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            if flush:
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` for files that belong together; it is removed at the end.

    The caller renames a folder inside it to `path` when that is complete.

    Raises:
        OutputError: The folder cannot be created.
    """
    make_folder(path.parent)
    temporary = partial_path(path)
    try:
        with output_errors(path):
            temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Return an unused name beside `path` for unfinished content, and sweep the folder once in each process.

    The name holds this machine and process, so that another process can tell whether its owner still runs.
    """
    if str(path.parent) not in _swept:
        _swept.add(str(path.parent))
        sweep(path.parent)
    return path.with_name(f".{path.name[:_LONGEST]}.{_machine()}.{os.getpid()}.{secrets.token_hex(8)}.partial")


def is_partial(name: str) -> bool:
    """Return whether a file's name is that of unfinished content."""
    return name.startswith(".") and _PARTIAL.search(name) is not None


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes that no longer run; one that cannot be removed stays."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _PARTIAL.search(entry.name) if entry.name.startswith(".") else None
            if found is None or not _is_abandoned(entry, found["machine"], int(found["pid"] or 0)):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    Path(entry.path).unlink()


def _is_abandoned(entry: os.DirEntry[str], machine: str | None, pid: int) -> bool:
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # a process of another user
            return False
        return False
    # On another machine, nobody can tell whether a process runs.
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD


@cache
def _machine() -> str:
    """Return a short name of the machine, and of the container on it, whose process numbers these are."""
    try:
        processes = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        processes = 0
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:8]


class AppendFile:
    """File that grows by whole records: one that cannot be written completely is taken back.

    Args:
        path: File; created if it does not exist.
        size: Bytes to keep of an existing file; None keeps all.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._stream = path.open("ab", buffering=0)
        if size is not None:
            self._stream.truncate(size)
        self._size = self._stream.seek(0, os.SEEK_END)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def add(self, record: bytes) -> None:
        """Append a record; after this, a killed process does not lose it."""
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except BaseException:
            self._stream.truncate(self._size)
            raise
        self._size += len(record)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class DeferredErrorFile(io.RawIOBase):
    """File whose writes never fail, for HDF5, which crashes when it closes a file after a failed write.

    After a failure nothing more is written; `check` raises the error. A file with an error is of no use.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb+", buffering=0)
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first error of a write."""
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        """Write all bytes, or keep the error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Change the size, or keep the error."""
        try:
            return self._stream.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; what is missing after an error is zero."""
        view = memoryview(buffer).cast("B")
        count = self._stream.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


@contextmanager
def new_hdf5(path: Path) -> Iterator[Any]:
    """Yield a new HDF5 file; a full disk raises an `OSError` when it is closed."""
    import h5py

    with closing(DeferredErrorFile(path)) as disk:
        with h5py.File(disk, "w") as stored:
            yield stored
        disk.check()


@contextmanager
def folder_lock(folder: Path, what: str, remedy: str, *, name: str = LOCK, wait: float = 0) -> Iterator[None]:
    """Hold the only right to write results into a folder; a killed process loses it.

    Args:
        folder: Existing folder.
        what: Command that writes, for the message.
        remedy: Advice if another process writes into the folder.
        name: Name of the file that is locked. One that others wait for stays.
        wait: Seconds to wait for another process.

    Raises:
        UsageError: Another process holds it.
        OutputError: The lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / name)
    with output_errors(folder):
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:  # which is an OSError too
            raise UsageError(f"Another '{what}' writes into {folder}.", remedy) from error
        except NotImplementedError:
            log.warning("The file system of %s has no locks: let no other process write there.", folder)
    try:
        yield
    finally:
        # Removed while it is held: after the release it may be the lock of another process. Windows refuses this,
        # and removes it with the release.
        if not wait:
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the right to write into a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with folder_lock(folder, "", ""):
            return False
    except UsageError:
        return True
    except OutputError:
        return False


def require_replaceable(
    targets: Iterable[Path | None], *, overwrite: bool, claimed: Collection[Path] = (), size: int = 0
) -> None:
    """Raise, before the work, if a file cannot be written or would replace one that adctl did not write.

    Args:
        targets: Files that will be written; None stands for a file that is not wanted.
        overwrite: Whether the user allows it with `--overwrite`.
        claimed: Files that are known to be written by adctl.
        size: Least number of bytes that will be written into each folder.

    Raises:
        UsageError: A target exists that adctl did not write, or that other results rest on, or is no regular file, or
            is named twice; the message names it.
        OutputError: A target cannot be written.
    """
    wanted = [target for target in targets if target is not None]
    for number, path in enumerate(wanted):
        if path in wanted[:number]:
            raise UsageError(f"Two outputs would be written to {path}.", "Give each its own file.")
        if _is_special(path):
            raise UsageError(f"{path} is no regular file.", "Give the path of a file.")
    foreign = [
        path
        for path in wanted
        if os.path.lexists(path) and path not in claimed and not (overwrite or (is_ours(path) and not _is_source(path)))
    ]
    if foreign:
        refuse(foreign)
    require_writable(wanted, size)


def require_writable(targets: Iterable[Path], size: int = 0) -> None:
    """Raise if new files cannot be made at the places of the targets; nothing stays there.

    Args:
        targets: Files or folders that will be written; the folders above them need not exist.
        size: Least number of bytes that will be written into each folder.

    Raises:
        OutputError: A folder is read-only or full, or a part of a path is a file.
    """
    checked: set[Path] = set()
    for target in targets:
        folder = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
        if folder in checked:
            continue
        checked.add(folder)
        probe = partial_path(folder / "adctl")
        with output_errors(target):
            try:
                probe.write_bytes(bytes(_BLOCK))
                if shutil.disk_usage(folder).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Return whether a path is a folder, a device, a pipe or a socket."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # there is none, or the write will tell
        return False


def _is_source(path: Path) -> bool:
    """Return whether a file is one of those in runs and scored sets from which everything else can be made again."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        return False
    with path.open("rb") as stream:
        return _SOURCES.search(stream.read(_HEAD)) is not None


def refuse(foreign: Sequence[Path]) -> NoReturn:
    """Raise the error for files of the user in the place of the output."""
    more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
    raise UsageError(
        f"{foreign[0]}{more} exists already, and adctl did not write it.",
        "Choose another place for the output, or replace it with --overwrite.",
    )


def is_ours(path: Path) -> bool:
    """Return whether a file bears a mark of adctl: a text or a name in it that adctl writes in its format."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            content = stream.read(_HEAD)
            stream.seek(max(len(content), stream.seek(0, os.SEEK_END) - _TAIL))
            content += stream.read()
    except OSError:
        return False
    if path.suffix.lower() in _TEXT_SUFFIXES:
        return _TEXT_MARKS.search(content) is not None
    return b"adctl" in content or b"adctl" in _slides_author(path)


def _slides_author(path: Path) -> bytes:
    """Return the properties of an Office document, which are compressed; nothing for other files."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as document:
            return document.read("docProps/core.xml")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return b""


def mark_png(data: bytes) -> bytes:
    """Insert the mark of adctl into an encoded PNG file, after its header."""
    chunk = b"tEXt" + PNG_MARK
    header = 33  # signature (8 bytes) and IHDR (25 bytes)
    mark = (len(PNG_MARK)).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data[:header] + mark + data[header:]


def write_bytes(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; line ends are not converted, and bytes that are not UTF-8 are escaped."""
    write_bytes(path, encodable(text).encode("utf-8"))


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically; None becomes an empty cell, and texts are as in `csv_cell`.

    Raises:
        OutputError: It cannot be written.
    """
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(map(csv_cell, row) for row in rows)
    write_text(path, stream.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON document atomically; see `to_json`."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None, *, allow_nan: bool = False) -> str:
    """Return a value as JSON that UTF-8 can encode.

    Non-ASCII characters are not escaped, unless a text holds bytes of a file name that are not UTF-8, which Python
    keeps as lone surrogates: a parser gets the same text back.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return text if is_encodable(text) else json.dumps(value, indent=indent, allow_nan=allow_nan)


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can encode a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file's bytes."""
    with reading.open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
