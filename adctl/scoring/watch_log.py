"""Scored set that grows for days: each row is written before the next, and a killed process loses or repeats none.

`watch.jsonl` is the master file. Its first line names the model and the watched folder; each further line holds the
row of one image file, with the file's size and modification time. A file counts as scored once its line is written.
`results.csv` and `results.jsonl` are written in parallel, and are rebuilt from the master file at each start, which
repairs them after a kill. Raw maps are not saved, because a kill would damage their HDF5 file.
"""

from __future__ import annotations

import csv
import hashlib
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from adctl import documents, files
from adctl.errors import DataError, UsageError
from adctl.records import ScoredImage  # noqa: TC001 - pydantic resolves it at run time
from adctl.run_folder import encode_id
from adctl.scoring.commissioning import COMMISSIONING
from adctl.scoring.score_set import COLUMNS, CSV, JSONL, MANIFEST, claimed_files, csv_line, folder_lock, json_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SCHEMA = "adctl.watch/1"
LOG = "watch.jsonl"


class Stamp(NamedTuple):
    """State of a file: it changes when the file changes.

    Attributes:
        size: Size in bytes.
        mtime_ns: Modification time in nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """Return the stamp from the result of `os.stat`."""
        return cls(stat.st_size, stat.st_mtime_ns)


def file_id(model: str, key: str, stamp: Stamp) -> str:
    """Return the identifier of the verdict on a file, which depends on the file and the model alone.

    A file that is scored again, because its process was killed before it wrote this down, has the same identifier.

    Args:
        model: SHA-256 of the model file.
        key: Name of the file in the results.
        stamp: State of the file.
    """
    facts = f"{model} {key} {stamp.size} {stamp.mtime_ns}"
    digest = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).digest()
    return encode_id(max(0, stamp.mtime_ns // 1_000_000), digest[:10])


@dataclass(frozen=True)
class Owner:
    """Model and folder that the rows of a watch log belong to.

    Attributes:
        model: SHA-256 of the model file.
        folder: Absolute path of the watched folder.
    """

    model: str
    folder: str


class WatchLog:
    """Append-only log of scored files, with the result files that belong to it.

    Args:
        folder: Folder of the files; created if it does not exist.
        owner: Model and watched folder.

    Raises:
        UsageError: Another process writes into the folder, or its log belongs to another model or folder.
        DataError: The log is damaged.
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self.done: dict[str, Stamp] = {}
        self.rows = 0
        self._owner = owner
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        files.make_folder(self.folder)
        try:
            self._stack.enter_context(folder_lock(self.folder))
            with files.output_errors(self.folder):
                self._recover()
                self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with files.output_errors(self.folder), self._stack:
            self.sync()

    def add(self, row: ScoredImage, stamp: Stamp) -> None:
        """Write one row; after this a killed process does not lose it.

        Args:
            row: Row of one image file.
            stamp: State of the file when it was scored.
        """
        values = row.to_dict()
        with files.output_errors(self.folder):
            self._log.write(json_line({"key": row.key, **stamp._asdict(), "row": values}))
            self._log.flush()
            self._jsonl.write(json_line(values))
            self._jsonl.flush()
            self._csv_stream.write(csv_line(values))
            self._csv_stream.flush()
        self.done[row.key] = stamp
        self.rows += 1

    def sync(self) -> None:
        """Flush the rows to disk, so that they survive a power failure."""
        with files.output_errors(self.folder):
            os.fsync(self._log.fileno())

    def _open(self) -> None:
        self._log = self._append(LOG)
        self._jsonl = self._append(JSONL)
        self._csv_stream = self._append(CSV)

    def _append(self, name: str) -> IO[str]:
        return self._stack.enter_context((self.folder / name).open("a", encoding="utf-8", newline=""))

    def _recover(self) -> None:
        """Remove a half-written last line from the log, and rebuild the result files from the log."""
        path = self.folder / LOG
        if not path.exists():
            files.write_text(path, json_line({"schema": SCHEMA, **asdict(self._owner)}))
        _remove_partial_line(path)
        with (
            files.atomic_path(self.folder / JSONL) as jsonl_path,
            files.atomic_path(self.folder / CSV) as csv_path,
            jsonl_path.open("w", encoding="utf-8", newline="") as jsonl,
            csv_path.open("w", encoding="utf-8", newline="") as table,
        ):
            csv.writer(table).writerow(COLUMNS)
            for entry in self._entries(path):
                self.done[entry.key] = Stamp(entry.size, entry.mtime_ns)
                self.rows += 1
                jsonl.write(json_line(entry.row.to_dict()))
                table.write(csv_line(entry.row.to_dict()))

    def _entries(self, path: Path) -> Iterator[_Entry]:
        """Check the first line of the log and yield the entries of the other lines."""
        with path.open(encoding="utf-8", newline="\n") as stream:
            try:
                self._check_owner(documents.parse(next(stream), dict))
                yield from (documents.parse(line, _Entry) for line in stream)
            except (ValueError, KeyError, TypeError, StopIteration) as error:
                raise DataError(
                    f"The file {path} is damaged: {error}.",
                    "Choose another folder with --out; all files are then scored again.",
                ) from error

    def _check_owner(self, first_line: dict[str, Any]) -> None:
        if first_line["schema"] != SCHEMA:
            raise DataError(
                f"{self.folder / LOG} has the format '{first_line['schema']}'; this adctl reads '{SCHEMA}'.",
                "Choose another folder with --out.",
            )
        for name, current in asdict(self._owner).items():
            if first_line[name] != current:
                raise UsageError(
                    f"{self.folder} holds the results of another {name}: {first_line[name]}.",
                    "Choose another folder with --out.",
                )


@dataclass(frozen=True)
class _Entry:
    """Line of the log: an image file and its row."""

    key: str
    size: int
    mtime_ns: int
    row: ScoredImage


def claimed_by_watch(folder: Path) -> set[Path]:
    """Return the files in a folder that belong to a watch log or scored set there, without heatmaps."""
    own = claimed_files(folder)[0]
    return (
        own | {folder / name for name in (LOG, CSV, JSONL, MANIFEST, COMMISSIONING)}
        if files.is_ours(folder / LOG)
        else own
    )


def _remove_partial_line(path: Path) -> None:
    """Truncate the file after its last line end."""
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 2**16)
            stream.seek(start)
            last = stream.read(end - start).rfind(b"\n")
            if last >= 0:
                stream.truncate(start + last + 1)
                return
            end = start
        stream.truncate(0)
