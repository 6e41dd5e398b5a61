"""Sink that appends verdicts to a CSV file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import UsageError
from adctl.names import csv_cell
from adctl.sinks.base import DeliveryError, Sink

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.sinks.address import Address

_FIRST_COLUMNS = (
    *("id", "time", "triggered", "source", "part", "lot", "model", "verdict", "score", "threshold"),
    *("p_value", "probability", "frames", "image", "error"),
)
"""Columns of files of earlier versions, which keep them."""
COLUMNS = (*_FIRST_COLUMNS, "kind", "kind_probability")


class CsvSink(Sink):
    """File to which rows are appended; each is on the disk before it counts as delivered."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._path = Path(address.path)
        if self._path.exists() and not self._path.is_file():
            raise UsageError(f"{self._path} is no regular file.", "Name another file.")
        self._columns: tuple[str, ...] = COLUMNS
        if self._path.exists() and self._path.stat().st_size and not self._is_ours():
            raise UsageError(
                f"{self._path} is not a CSV file of verdicts: its first line is another.", "Name another file."
            )

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Append one row for each message."""
        try:
            files.make_folder(self._path.parent)
            with self._path.open("ab+") as stream:
                size = _whole_lines(stream)
                stream.truncate(size)  # removes half a row of a killed process
                rows = [[csv_cell(message.get(name)) for name in self._columns] for message in messages]
                stream.write(_lines(rows if size else [list(self._columns), *rows]))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DeliveryError(error.strerror or str(error)) from error

    def _is_ours(self) -> bool:
        with self._path.open("rb") as stream:
            found = stream.read(len(_lines([COLUMNS])))
        if found.startswith(_lines([_FIRST_COLUMNS])):
            self._columns = _FIRST_COLUMNS
            return True
        return _lines([COLUMNS]).startswith(found)


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _whole_lines(stream: Any) -> int:
    """Return the size of a file without its last line if that line has no end."""
    end: int = stream.seek(0, os.SEEK_END)
    start = max(0, end - 2**16)
    stream.seek(start)
    last: int = stream.read(end - start).rfind(b"\n")
    return start + last + 1
