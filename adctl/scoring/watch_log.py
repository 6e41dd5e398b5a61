"""A scored set that grows for days: each row is on disk before the next, and a kill loses and repeats nothing.

`watch.jsonl` is the truth: a first line that says whose rows these are, then one line an image file, with the size
and time of change it was scored at and its whole row. A line is written at once, and that alone makes the file
done. `results.csv` and `results.jsonl` follow it and are written anew from it when the journal is opened, so a kill
between two of them shows for no longer than that. Raw maps are not kept: an HDF5 file does not survive a kill.

Knows nothing of networks or of how files are found.
"""

from __future__ import annotations

import csv
import io
import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from filelock import FileLock, Timeout

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.scoring.score_set import COLUMNS, CSV, JSONL, csv_fields, json_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adctl.records import ScoredImage

SCHEMA = "adctl.watch/1"
JOURNAL = "watch.jsonl"
_LOCK = ".watch.lock"


class Stamp(NamedTuple):
    """What tells one state of a file from the next.

    Attributes:
        size: Bytes.
        mtime_ns: When it was last changed, nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """From the operating system's answer."""
        return cls(stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Owner:
    """Whose rows a journal holds.

    Attributes:
        model: SHA-256 of the model file.
        folder: The folder watched, absolute.
    """

    model: str
    folder: str


class WatchLog:
    """Rows appended one by one, each exactly once.

    Args:
        folder: Where the files go; made if absent.
        owner: Whose rows these are.

    Raises:
        UsageError: Another process writes there, or the journal there is of another model or folder.
        DataError: The journal is damaged.
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
            with files.output_errors(self.folder):
                self._lock()
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
        """Write one row; once this returns a kill does not lose it.

        Args:
            row: Of one image file.
            stamp: The state of the file it was scored in.
        """
        values = row.to_dict()
        with files.output_errors(self.folder):
            self._journal.write(json_line({"key": row.key, **stamp._asdict(), "row": values}))
            self._journal.flush()
            self._jsonl.write(json_line(values))
            self._jsonl.flush()
            self._csv_stream.write(_csv_line(values))
            self._csv_stream.flush()
        self.done[row.key] = stamp
        self.rows += 1

    def sync(self) -> None:
        """Have what was written outlast a loss of power too."""
        with files.output_errors(self.folder):
            os.fsync(self._journal.fileno())

    def _lock(self) -> None:
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"Another 'adctl score --watch' writes into {self.folder}.", "Stop it, or choose another --out."
            ) from error
        self._stack.callback(lock.release)

    def _open(self) -> None:
        self._journal = self._append(JOURNAL)
        self._jsonl = self._append(JSONL)
        self._csv_stream = self._append(CSV)

    def _append(self, name: str) -> IO[str]:
        return self._stack.enter_context((self.folder / name).open("a", encoding="utf-8", newline=""))

    def _recover(self) -> None:
        """Cut off a line that a kill left half-written, and make the results follow the journal."""
        path = self.folder / JOURNAL
        if not path.exists():
            files.write_text(path, json_line({"schema": SCHEMA, **asdict(self._owner)}))
        _cut_torn_line(path)
        with (
            files.atomic_path(self.folder / JSONL) as jsonl_path,
            files.atomic_path(self.folder / CSV) as csv_path,
            jsonl_path.open("w", encoding="utf-8", newline="") as jsonl,
            csv_path.open("w", encoding="utf-8", newline="") as table,
        ):
            csv.writer(table).writerow(COLUMNS)
            for entry in self._entries(path):
                self.done[entry["key"]] = Stamp(entry["size"], entry["mtime_ns"])
                self.rows += 1
                jsonl.write(json_line(entry["row"]))
                table.write(_csv_line(entry["row"]))

    def _entries(self, path: Path) -> Iterator[dict[str, Any]]:
        """Lines of the journal but the first, which is checked."""
        with path.open(encoding="utf-8", newline="\n") as stream:
            try:
                self._check_owner(json.loads(next(stream)))
                yield from map(json.loads, stream)
            except (ValueError, KeyError, TypeError, StopIteration) as error:
                raise DataError(
                    f"The journal {path} is damaged: {error}.", "Choose another --out; all files are then scored again."
                ) from error

    def _check_owner(self, said: dict[str, Any]) -> None:
        if said["schema"] != SCHEMA:
            raise DataError(
                f"{self.folder / JOURNAL} has the format '{said['schema']}'; this adctl reads '{SCHEMA}'.",
                "Choose another --out.",
            )
        for what, now in (("model", self._owner.model), ("folder", self._owner.folder)):
            if said[what] != now:
                raise UsageError(
                    f"{self.folder} holds the results of watching with another {what}: {said[what]}.",
                    "Choose another --out for this one.",
                )


def _csv_line(values: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(csv_fields(values))
    return line.getvalue()


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last line end."""
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 2**16)
            stream.seek(start)
            place = stream.read(end - start).rfind(b"\n")
            if place >= 0:
                stream.truncate(start + place + 1)
                return
            end = start
        stream.truncate(0)
