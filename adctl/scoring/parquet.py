"""Parquet parts of a scored set: writing and reading, on a disk or in an object store. Needs the extra `ray`."""

from __future__ import annotations

import importlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import documents, files, reading
from adctl.data.datasets.remote import absolute_path, is_remote
from adctl.errors import DataError, MissingExtraError, OutputError
from adctl.names import escaped_name, restored
from adctl.records import ScoredImage
from adctl.scoring.score_files import AGAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

_TRIES = 5
_FIRST_WAIT = 0.2
"""Seconds before the second try to write to an object store; doubled each time, because it may be throttling."""


@dataclass(frozen=True)
class Place:
    """Folder of the results: a folder of a disk that all nodes share, or an address of fsspec.

    Attributes:
        folder: The folder or address.
    """

    folder: Path

    @property
    def remote(self) -> bool:
        """Whether it is an address."""
        return is_remote(self.folder)

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole; a store that throttles is asked again.

        Raises:
            OutputError: The place denies it, is full, or cannot be reached.
        """
        if not self.remote:
            files.write_bytes(self.folder / name, data, flush=False)
            return
        for number in range(_TRIES):
            try:
                filesystem, root = self._open()
                filesystem.pipe_file(f"{root}/{name}", data)
            except PermissionError as error:
                raise self._failed(name, error) from error
            except Exception as error:  # every file system has exceptions of its own
                if number == _TRIES - 1:
                    raise self._failed(name, error) from error
                time.sleep(_FIRST_WAIT * 2**number)
            else:
                return

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None if there is no such file.

        Raises:
            OutputError: The place cannot be read.
        """
        try:
            if not self.remote:
                return reading.read_bytes(self.folder / name)
            filesystem, root = self._open()
            filesystem.invalidate_cache()
            data: bytes = filesystem.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(name, error) from error
        return data

    def exists(self, name: str) -> bool:
        """Return whether there is a file.

        Raises:
            OutputError: The place cannot be read.
        """
        if not self.remote:
            return os.path.lexists(self.folder / name)
        try:
            filesystem, root = self._open()
            return bool(filesystem.exists(f"{root}/{name}"))
        except Exception as error:
            raise self._failed(name, error) from error

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none.

        Raises:
            OutputError: The place denies it.
        """
        try:
            if self.remote:
                filesystem, root = self._open()
                filesystem.rm_file(f"{root}/{name}")
            else:
                (self.folder / name).unlink()
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed(name, error) from error

    def _open(self) -> tuple[Any, str]:
        try:
            fsspec: Any = importlib.import_module("fsspec")
            filesystem, root = fsspec.url_to_fs(absolute_path(self.folder))
        except ImportError as error:
            raise MissingExtraError(str(error.name or "fsspec"), "ray") from error
        return filesystem, root.rstrip("/")

    def _failed(self, name: str, error: Exception) -> OutputError:
        return OutputError(
            f"{absolute_path(self.folder)}/{name} cannot be written or read: {error or type(error).__name__}.",
            "Check the rights, the space and the credentials; the same command then continues.",
        )


def to_parquet(rows: Sequence[ScoredImage]) -> bytes:
    """Return rows as a Parquet file with the fields of `ScoredImage`."""
    pyarrow, parquet = _pyarrow()
    stream = io.BytesIO()
    table = pyarrow.Table.from_pylist([_plain(row) for row in rows], schema=_schema(pyarrow))
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def from_parquet(data: bytes, name: str) -> list[ScoredImage]:
    """Return the rows of a Parquet file.

    Args:
        data: Bytes of the file.
        name: Name of the file, for messages.

    Raises:
        DataError: The file is damaged.
    """
    pyarrow, parquet = _pyarrow()
    try:
        rows = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
        return [documents.convert(_with_names(row), ScoredImage) for row in rows]
    except (pyarrow.ArrowException, ValueError, TypeError, OSError) as error:
        raise DataError(f"{name} is damaged: {error}.", AGAIN) from error


def read_parts(folder: Path, names: Sequence[str], *, complete: bool) -> tuple[ScoredImage, ...]:
    """Read the parts of a scored set, in order; those that an incomplete set lacks are left out.

    Raises:
        DataError: A part is missing or damaged.
    """
    rows: list[ScoredImage] = []
    for name in names:
        data = Place(folder).read(Path(name).name)
        if data is None and complete:
            raise DataError(f"{folder / name} is missing.", AGAIN)
        rows += [] if data is None else from_parquet(data, name)
    return tuple(rows)


def _plain(row: ScoredImage) -> dict[str, Any]:
    """Return a row with names that Parquet can hold: bytes that are not UTF-8 are escaped, as in CSV files."""
    values = row.to_dict()
    texts = {name: escaped_name(value) for name, value in values.items() if isinstance(value, str)}
    return {**values, **texts, "boxes": list(values["boxes"])}


def _with_names(values: dict[str, Any]) -> dict[str, Any]:
    return {name: restored(value) if isinstance(value, str) else value for name, value in values.items()}


def _schema(pyarrow: Any) -> Any:
    text, number, count = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    box = pyarrow.struct([*((name, count) for name in ("x", "y", "width", "height")), ("peak", number)])
    kinds = {"score": number, "threshold": number, "boxes": pyarrow.list_(box), "width": count, "height": count}
    kinds |= dict.fromkeys(("p_value", "probability", "peak", "kind_probability"), number)
    return pyarrow.schema([(name, kinds.get(name, text)) for name in ScoredImage.__slots__])


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray") from error
