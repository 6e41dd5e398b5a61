"""Scored set on disk: a folder with `scores.json`, `results.csv`, `results.jsonl` and optionally `maps.h5`.

`ScoreWriter` writes it row by row with constant memory; `ScoreSet` reads it. A file is never half-written: rows go
to `.partial` files, which are renamed at the end. After an error or Ctrl-C they are renamed too; they then hold the
images scored so far, and `scores.json` says `"complete": false`.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.records import Calibration, ScoredImage
from adctl.scoring.heatmaps import upsample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from adctl.paths import StrPath

SCHEMA = "adctl.scores/1"
MANIFEST = "scores.json"
CSV = "results.csv"
JSONL = "results.jsonl"
MAPS = "maps.h5"
COLUMNS = (
    *("path", "key", "label", "score", "p_value", "probability", "threshold", "verdict"),
    *("boxes", "peak", "width", "height", "error"),
)

_CHUNK = 2**18
"""Bytes of an HDF5 chunk of maps."""

_WAITING_MAPS = 2**20
"""Bytes of maps that are collected in memory before they are written."""


class ScoreWriter:
    """Writer of a scored set, row by row.

    Args:
        folder: Folder of the files; created if it does not exist.
        manifest: JSON-safe facts about the run: model, digests, settings.
        calibration: Calibration of the verdicts, or None.
        keep_maps: Whether to store raw anomaly maps of float32 in `maps.h5`; each map covers its whole image.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], calibration: Calibration | None, *, keep_maps: bool
    ) -> None:
        self.folder = folder
        self.rows = 0
        self._manifest = dict(manifest)
        self._calibration = calibration
        self._keep_maps = keep_maps
        self._maps: _MapFile | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        files.make_folder(self.folder)
        with files.output_errors(self.folder):
            self._csv_stream = self._open(CSV, newline="")
            self._jsonl = self._open(JSONL)
        self._csv = csv.writer(self._csv_stream)
        self._csv.writerow(COLUMNS)
        return self

    def add(self, row: ScoredImage, anomaly_map: NDArray[np.float32] | None = None) -> None:
        """Write one row, and its anomaly map [h,w] if maps are kept; an image without a score has no map."""
        with files.output_errors(self.folder):
            if self._keep_maps and anomaly_map is not None:
                self._map_file(anomaly_map.shape).add(self.rows, anomaly_map)
            values = row.to_dict()
            self._csv.writerow(csv_fields(values))
            self._jsonl.write(json_line(values))
        self.rows += 1

    def note(self, name: str, value: Any) -> None:
        """Add an entry to the manifest; the value must be JSON-safe."""
        self._manifest[name] = value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with files.output_errors(self.folder):
                self._stack.close()
            if self.rows:
                self._publish(complete=kind is None)
        finally:
            for name in (CSV, JSONL, MAPS):
                self._partial(name).unlink(missing_ok=True)

    def _open(self, name: str, newline: str | None = "\n") -> IO[str]:
        stream = self._partial(name).open("w", encoding="utf-8", newline=newline)
        return self._stack.enter_context(stream)

    def _map_file(self, shape: tuple[int, ...]) -> _MapFile:
        if self._maps is None:
            self._maps = self._stack.enter_context(_MapFile(self._partial(MAPS), shape))
        return self._maps

    def _publish(self, *, complete: bool) -> None:
        with files.output_errors(self.folder):
            # The old manifest is removed first, so that nobody reads new rows with an old manifest.
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for name in (CSV, JSONL, MAPS):
                if self._partial(name).exists():
                    self._partial(name).replace(self.folder / name)
                else:
                    (self.folder / name).unlink(missing_ok=True)
        write_manifest(self.folder, self._manifest, self._calibration, rows=self.rows, complete=complete)

    def _partial(self, name: str) -> Path:
        # The process id keeps two runs with the same folder from writing into each other's files.
        return self.folder / f".{name}.{os.getpid()}.partial"


def write_manifest(
    folder: Path, manifest: dict[str, Any], calibration: Calibration | None, *, rows: int, complete: bool
) -> None:
    """Write `scores.json`; a folder without this file is not a scored set.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = asdict(calibration) if calibration else None
    summary = {"schema": SCHEMA, "complete": complete, "rows": rows, "calibration": plain}
    files.write_json(folder / MANIFEST, summary | manifest)


class _MapFile:
    """HDF5 file of raw anomaly maps with their row numbers and sizes; smaller maps are padded with NaN.

    Maps are collected and written together, because one HDF5 call costs more time than writing a small map.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file = h5py.File(path, "w")
        # HDF5 uses memory for every chunk, so small maps share a chunk.
        chunk = (max(1, _CHUNK // (4 * math.prod(shape))), *shape)
        size: dict[str, Any] = {"shape": (0, *shape), "maxshape": (None, None, None), "chunks": chunk}
        self._maps = self._file.create_dataset("maps", dtype="f4", fillvalue=np.nan, **size)
        self._rows = self._file.create_dataset("rows", shape=(0,), maxshape=(None,), dtype="i8", chunks=(1024,))
        self._sizes = self._file.create_dataset("sizes", shape=(0, 2), maxshape=(None, 2), dtype="i8", chunks=(1024, 2))
        self._waiting: list[tuple[int, NDArray[np.float32]]] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write()
        finally:
            self._file.close()

    def add(self, row: int, anomaly_map: NDArray[np.float32]) -> None:
        self._waiting.append((row, anomaly_map))
        self._bytes += anomaly_map.nbytes
        if self._bytes >= _WAITING_MAPS:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        count, rows, columns = self._maps.shape
        sizes = np.array([anomaly_map.shape for _, anomaly_map in waiting])
        rows, columns = max(rows, sizes[:, 0].max()), max(columns, sizes[:, 1].max())
        block = np.full((len(waiting), rows, columns), np.nan, np.float32)
        for index, (_, anomaly_map) in enumerate(waiting):
            block[index, : anomaly_map.shape[0], : anomaly_map.shape[1]] = anomaly_map
        self._maps.resize((count + len(waiting), rows, columns))
        self._rows.resize(count + len(waiting), axis=0)
        self._sizes.resize(count + len(waiting), axis=0)
        self._maps[count:] = block
        self._rows[count:] = [row for row, _ in waiting]
        self._sizes[count:] = sizes


@dataclass(frozen=True)
class ScoreSet:
    """Scored set read from disk.

    Attributes:
        folder: Folder of the scored set.
        manifest: Content of `scores.json`.
        rows: One row for each image, in the order of scoring.
        calibration: Calibration of the verdicts, or None.
    """

    folder: Path
    manifest: dict[str, Any]
    rows: tuple[ScoredImage, ...]
    calibration: Calibration | None

    @classmethod
    def load(cls, folder: Path) -> ScoreSet:
        """Read a folder that `adctl score` wrote.

        Raises:
            UsageError: The folder is not a scored set.
            DataError: Its files are damaged or have a newer format.
        """
        if not (folder / MANIFEST).is_file():
            raise UsageError(
                f"{folder} holds no scores ({MANIFEST} is missing).",
                "Name a folder that 'adctl score' wrote, or run 'adctl score' first.",
            )
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["schema"] != SCHEMA:
                raise DataError(
                    f"{folder / MANIFEST} has the format '{manifest['schema']}'; this adctl reads '{SCHEMA}'.",
                    "Use the adctl version that wrote the file, or score the images again.",
                )
            # splitlines would also split at other characters, which file names may contain.
            lines = (folder / JSONL).read_text(encoding="utf-8").rstrip("\n").split("\n")
            rows = tuple(ScoredImage.from_dict(json.loads(line)) for line in lines)
            calibration = manifest["calibration"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"The scores in {folder} are damaged: {error}.", "Score the images again.") from error
        return cls(folder, manifest, rows, Calibration.from_dict(calibration) if calibration else None)

    @property
    def bit_depth(self) -> int:
        """Number of used bits in 16-bit image files, as the detector read them."""
        return int(self._config.get("bit_depth", 16))

    @property
    def channels(self) -> int:
        """Number of image channels, as the detector read them."""
        return int(self._config.get("channels", 3))

    @property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.manifest.get("model", {}).get("config", {})
        return config

    @property
    def has_maps(self) -> bool:
        """Whether the set has raw anomaly maps."""
        return (self.folder / MAPS).is_file()

    @cached_property
    def anomaly_maps(self) -> AnomalyMaps:
        """Raw anomaly maps of the set.

        Raises:
            UsageError: The set has no maps.
        """
        return AnomalyMaps(self.folder, self.rows)

    def maps(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each row number and its anomaly map [h,w], with one map in memory at a time.

        Args:
            rows: Row numbers to read, in this order; rows without a map are left out. None reads all, in the order
                of scoring.

        Raises:
            DataError: The file of the maps is damaged.
        """
        if not self.has_maps:
            return
        with AnomalyMaps(self.folder, self.rows) as stored:
            for row in stored.kept if rows is None else [row for row in rows if row in stored.kept]:
                yield row, stored[row]


class AnomalyMaps(Mapping[str, NDArray[np.float32]]):
    """Mapping from image paths to raw anomaly maps, read from `maps.h5` one by one.

    Paths are those in `results.csv`; the key of an image or its row number, from 0, works too. A map is an array [h,w]
    of float32 in the detector's own resolution and covers the whole image. Images without a score have no map.

    The file is opened at the first access and stays open until `close` or the end of a `with` block.

    Args:
        folder: Folder that `adctl score` wrote.
        rows: All rows of its results.

    Raises:
        UsageError: The folder has no maps.
    """

    def __init__(self, folder: Path, rows: Sequence[ScoredImage]) -> None:
        self.path = folder / MAPS
        self._rows = rows
        self._opened: h5py.File | None = None
        if not self.path.is_file():
            raise UsageError(f"{folder} holds no anomaly maps.", "Score the images again, without --no-maps.")

    def __getitem__(self, image: StrPath | int) -> NDArray[np.float32]:
        try:
            index = self.kept[self._row_of(image)]
        except KeyError:
            raise KeyError(image) from None
        with self._damage():
            height, width = self._sizes[index]
            return np.asarray(self._file["maps"][index, :height, :width])

    def __iter__(self) -> Iterator[str]:
        return (self._rows[row].path for row in self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @cached_property
    def kept(self) -> dict[int, int]:
        """Index of each map in the file, by row number."""
        with self._damage():
            return {int(row): index for index, row in enumerate(self._file["rows"][:])}

    @cached_property
    def _sizes(self) -> Sequence[tuple[int, int]]:
        # Older scored sets have no sizes, because all their maps have the same size.
        stored = self._file
        sizes = stored["sizes"][:].tolist() if "sizes" in stored else [stored["maps"].shape[1:]] * len(self.kept)
        return [(height, width) for height, width in sizes]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        keys = {row.key: number for number, row in enumerate(self._rows)}
        return keys | {row.path: number for number, row in enumerate(self._rows)}

    @property
    def _file(self) -> h5py.File:
        if self._opened is None:
            self._opened = h5py.File(self.path, "r")
        return self._opened

    def _row_of(self, image: StrPath | int) -> int:
        if isinstance(image, int | np.integer):
            return int(image)
        return self._numbers[os.fspath(image)]

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.path} is damaged: {error}.", "Score the images again.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow(ScoredImage):
    """Row of a scored set that can read the anomaly map of its image.

    Attributes:
        number: Row number, from 0.
        folder: Scored set that the row belongs to.
    """

    number: int
    folder: ScoreSet = field(repr=False, compare=False)

    @classmethod
    def of(cls, folder: ScoreSet, number: int) -> ScoreRow:
        """Return a row of a scored set by its number."""
        row = folder.rows[number]
        return cls(**{name: getattr(row, name) for name in ScoredImage.__slots__}, number=number, folder=folder)

    def map(self) -> NDArray[np.float32]:
        """Read the raw anomaly map and resize it to the image.

        Returns:
            Array [height,width] of float32.

        Raises:
            UsageError: The set has no maps.
            DataError: The image has no score, or the file of the maps is damaged.
        """
        if self.error is not None or self.height is None or self.width is None:
            raise DataError(f"{self.path} has no anomaly map: {self.error}.", "Repair the image and score it again.")
        maps = self.folder.anomaly_maps
        try:
            return upsample(maps[self.number], self.height, self.width)
        finally:
            maps.close()


def open_maps(path: StrPath) -> AnomalyMaps:
    """Open the raw anomaly maps of a scored folder; each map is read when it is used.

    Args:
        path: Folder that `adctl score` wrote, or its `maps.h5`.

    Raises:
        UsageError: The folder holds no scores or no maps.
        DataError: The scores are damaged.
    """
    folder = Path(path).parent if Path(path).name == MAPS else Path(path)
    return ScoreSet.load(folder).anomaly_maps


def csv_fields(values: dict[str, Any]) -> list[object]:
    """Return one line of `results.csv` from `ScoredImage.to_dict`, in the order of `COLUMNS`."""
    values = values | {"boxes": ";".join(_box_text(box) for box in values["boxes"])}
    # repr keeps every digit of a float64, so that the CSV orders images exactly as the detector did.
    return [repr(v) if isinstance(v := values[name], float) else v for name in COLUMNS]


def json_line(values: dict[str, Any]) -> str:
    """Return one line of `results.jsonl` from `ScoredImage.to_dict`."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _box_text(box: dict[str, Any]) -> str:
    return f"{box['x']} {box['y']} {box['width']} {box['height']}"
