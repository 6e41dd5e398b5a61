"""Scored set on disk: a folder with `scores.json`, `results.csv`, `results.jsonl` and optionally `maps.h5`.

`ScoreWriter` writes it row by row with constant memory; `ScoreSet` reads it. Rows can be read as soon as they are
written, and `scores.json` says `"complete": false` until all are there. A killed, interrupted or failed run keeps its
rows, and the same run continues behind them.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from adctl import documents, files, reading
from adctl.data.datasets.remote import local_copy
from adctl.errors import DataError, OutputError, UsageError
from adctl.names import csv_cell
from adctl.records import Calibration, ScoredImage
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.heatmaps import upsample
from adctl.scoring.map_file import MAPS, MapSpool
from adctl.scoring.parquet import read_parts
from adctl.scoring.score_files import AGAIN, read_manifest, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from adctl.paths import StrPath

SCHEMA = "adctl.scores/1"
MANIFEST = "scores.json"
CSV = "results.csv"
JSONL = "results.jsonl"
COLUMNS = (
    *("path", "key", "label", "score", "p_value", "probability", "threshold", "verdict"),
    *("boxes", "peak", "width", "height", "error", "kind", "kind_probability"),
)

_KINDS = {"maps": "f", "rows": "i", "sizes": "i"}
"""Datasets of `maps.h5` and NumPy's letters for the kind of their values."""

_LARGEST_MAP = 2**28
"""Values of the largest map that is read; damaged files can ask for any memory."""


class ScoreWriter:
    """Writer of a scored set, row by row; the first row takes the place of what was in the folder.

    Args:
        folder: Folder of the files; created if it does not exist.
        manifest: JSON-safe facts about the run: model, digests, settings. If its `job` equals that of an incomplete
            set in the folder, writing continues behind the rows there.
        calibration: Calibration of the verdicts, or None.
        keep_maps: Whether to store raw anomaly maps of float32 in `maps.h5`; each map covers its whole image.
        heatmaps: Heatmaps of this set, which may be written before the first row.
        keep: Function that tells whether a row of the incomplete set still has its other files.

    Attributes:
        done: Rows that were in the folder already.
        rows: Number of rows in the folder.
        old_heatmaps: Heatmaps of the set that was in the folder; the first row removes them, except `heatmaps`.

    Raises:
        UsageError: Another process writes into the folder.
        OutputError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        calibration: Calibration | None,
        *,
        keep_maps: bool,
        heatmaps: Collection[Path] = (),
        keep: Callable[[ScoredImage], bool] = lambda _: True,
    ) -> None:
        self.folder = folder
        self.done: tuple[ScoredImage, ...] = ()
        self.rows = 0
        self._manifest = dict(manifest)
        self._calibration = calibration
        self.old_heatmaps: set[Path] = set()
        self._heatmaps = set(heatmaps)
        self._keep = keep
        self._maps = MapSpool(folder) if keep_maps else None
        self._jsonl: files.AppendFile | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        files.make_folder(self.folder)
        self._stack.enter_context(folder_lock(self.folder))
        try:
            self.old_heatmaps = claimed_files(self.folder)[1]
            files.sweep(self.folder)
            with files.output_errors(self.folder):
                self._resume()
        except BaseException:
            self._stack.close()
            raise
        return self

    def add(self, row: ScoredImage, anomaly_map: NDArray[np.float32] | None = None) -> None:
        """Write one row, and its anomaly map [h,w] if maps are kept; an image without a score has no map."""
        with files.output_errors(self.folder):
            if self._jsonl is None:
                self._begin()
            if self._maps is not None and anomaly_map is not None:
                self._maps.add(self.rows, anomaly_map)
            values = row.to_dict()
            assert self._jsonl is not None
            self._jsonl.add(json_line(values).encode())
            self.rows += 1
            self._csv.add(csv_line(values).encode())

    def note(self, name: str, value: Any) -> None:
        """Add an entry to the manifest; the value must be JSON-safe."""
        self._manifest[name] = value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._jsonl is None:
                return
            try:
                if self._maps is not None:
                    with files.output_errors(self.folder):
                        self._maps.publish()
            except OutputError:
                self._publish(complete=False)
                raise
            self._publish(complete=kind is None)

    def _begin(self) -> None:
        """Remove an earlier set, and open the files."""
        # The old manifest is replaced first, so that nobody reads new rows with an old manifest.
        self._publish(complete=False)
        for path in (self.folder / MAPS, *(self.old_heatmaps - self._heatmaps)):
            path.unlink(missing_ok=True)
        MapSpool(self.folder).remove()
        self._open(0, csv_text(COLUMNS))

    def _resume(self) -> None:
        """Continue behind the rows of an incomplete set of the same job, if there is one."""
        lines = self._usable_lines()
        if not lines:
            return
        self.done = tuple(row for row, _ in lines)
        self.rows = len(lines)
        table = csv_text(COLUMNS) + "".join(csv_line(row.to_dict()) for row in self.done)
        self._open(sum(size for _, size in lines), table)

    def _usable_lines(self) -> list[tuple[ScoredImage, int]]:
        """Return the leading rows of an incomplete set of the same job that have their files, and their bytes."""
        job = self._manifest.get("job")
        before = read_claim(self.folder)
        if job is None or before is None or before.get("complete") is not False or before.get("job") != job:
            return []
        stored = set() if self._maps is None else self._maps.recover()
        found = documents.leading_records(reading.read_bytes(self.folder / JSONL), ScoredImage)
        for number, (row, _) in enumerate(found):
            if not self._keep(row) or (self._maps is not None and row.score is not None and number not in stored):
                return found[:number]
        return found

    def _open(self, size: int, table: str) -> None:
        files.write_bytes(self.folder / CSV, table.encode(), flush=False)
        self._jsonl = files.AppendFile(self.folder / JSONL, size)
        self._csv = files.AppendFile(self.folder / CSV)
        self._stack.callback(self._jsonl.close)
        self._stack.callback(self._csv.close)
        if self._maps is not None:
            self._maps.open(self.rows)
            self._stack.callback(self._maps.close)

    def _publish(self, *, complete: bool) -> None:
        write_manifest(self.folder, self._manifest, self._calibration, rows=self.rows, complete=complete)


def folder_lock(folder: Path) -> AbstractContextManager[None]:
    """Return a context that holds the only right to write scores into a folder.

    Raises:
        UsageError: Another process holds it.
        OutputError: The folder cannot be written.
    """
    return files.folder_lock(folder, "adctl score", "Stop it, or choose another folder with --out.")


def write_manifest(
    folder: Path, manifest: dict[str, Any], calibration: Calibration | None, *, rows: int, complete: bool
) -> None:
    """Write `scores.json`; a folder without this file is not a scored set.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_json(folder / MANIFEST, manifest_of(manifest, calibration, rows=rows, complete=complete))


def manifest_of(
    manifest: dict[str, Any], calibration: Calibration | None, *, rows: int, complete: bool
) -> dict[str, Any]:
    """Return the content of `scores.json`."""
    plain = asdict(calibration) if calibration else None
    return {"schema": SCHEMA, "complete": complete, "rows": rows, "calibration": plain} | manifest


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
        """Read a folder or address that `adctl score` wrote.

        Raises:
            UsageError: The folder is not a scored set.
            DataError: Its files are damaged or have a newer format.
        """
        folder = local_copy(folder)
        if not (folder / MANIFEST).is_file():
            raise UsageError(
                f"{folder} holds no scores ({MANIFEST} is missing).",
                "Name a folder that 'adctl score' wrote, or run 'adctl score' first.",
            )
        manifest, calibration = read_manifest(folder / MANIFEST, SCHEMA)
        complete = manifest.get("complete", True)
        parts = manifest.get("parts")
        held = folder if parts else folder / JSONL
        if parts is None:
            rows = read_rows(folder / JSONL, complete=complete)
        else:
            rows = read_parts(folder, [one["file"] for one in parts], complete=complete)
        if complete and len(rows) < manifest.get("rows", 0):
            raise DataError(
                f"{held} is damaged: it has {len(rows)} rows, and {MANIFEST} says {manifest['rows']}.", AGAIN
            )
        return cls(folder, manifest, rows, calibration)

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
        config: dict[str, Any] = (self.manifest.get("model") or {}).get("config", {})
        return config

    def defect_probability(self, row: ScoredImage) -> float | None:
        """Return the probability that an image is defective, or None if the calibration had no labelled defects.

        Without them the stored number is the share of good images that score lower, extrapolated beyond the calibration
        images; the p-value says the same without extrapolation.
        """
        labelled = self.calibration is not None and self.calibration.probability.tail is None
        return row.probability if labelled else None

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
            return np.asarray(self._file["maps"][index, :height, :width], np.float32)

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
            self._check_shapes()
            numbers = self._file["rows"][:].tolist()
            if len(set(numbers)) < len(numbers) or any(not 0 <= number < len(self._rows) for number in numbers):
                raise ValueError(f"its maps do not belong to the {len(self._rows)} rows of the results")
            return {number: index for index, number in enumerate(numbers)}

    @cached_property
    def _sizes(self) -> Sequence[tuple[int, int]]:
        # Older scored sets have no sizes, because all their maps have the same size.
        stored, (_, rows, columns) = self._file, self._file["maps"].shape
        sizes = stored["sizes"][:].tolist() if "sizes" in stored else [(rows, columns)] * len(self.kept)
        if any(not (0 < height <= rows and 0 < width <= columns) for height, width in sizes):
            raise ValueError("the size of a map is not possible")
        return [(height, width) for height, width in sizes]

    def _check_shapes(self) -> None:
        """Check types and shapes before anything is read, since a damaged file may ask for any memory.

        Raises:
            ValueError: They are not those of maps.
        """
        stored = self._file
        shapes = {name: stored[name].shape for name in ("maps", "rows", "sizes") if name in stored}
        kinds = {name: stored[name].dtype.kind for name in shapes}
        count = len(shapes["rows"]) and shapes["rows"][0]
        expected = {"maps": (count, *shapes["maps"][1:3]), "rows": (count,), "sizes": (count, 2)}
        right = all(shapes[name] == expected[name] and kinds[name] == _KINDS[name] for name in shapes)
        if not right or count > len(self._rows) or math.prod(shapes["maps"][1:]) > _LARGEST_MAP:
            raise ValueError(f"its datasets have the shapes {shapes}")

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
        # HDF5 refuses damaged files in all these ways.
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            raise DataError(f"{self.path} is damaged: {error}.", AGAIN) from error


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
    return [repr(v) if isinstance(v := values[name], float) else csv_cell(v) for name in COLUMNS]


def csv_line(values: dict[str, Any]) -> str:
    """Return one line of `results.csv` as text from `ScoredImage.to_dict`."""
    return csv_text(csv_fields(values))


def csv_text(fields: Sequence[object]) -> str:
    """Return one line of a CSV file, with its end."""
    line = io.StringIO()
    csv.writer(line).writerow(fields)
    return line.getvalue()


def json_line(values: dict[str, Any]) -> str:
    """Return one line of `results.jsonl` from `ScoredImage.to_dict`."""
    return files.to_json(values) + "\n"


def read_claim(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a scored set, complete or not; None if the folder holds none."""
    try:
        manifest: dict[str, Any] = documents.parse(reading.read_bytes(folder / MANIFEST), dict)
    except (OSError, ValueError):
        return None
    return manifest if manifest.get("schema") == SCHEMA else None


def claimed_files(folder: Path) -> tuple[set[Path], set[Path]]:
    """Return the files in a folder that belong to its scored set, and its heatmaps; both empty without one."""
    manifest = read_claim(folder)
    if manifest is None:
        return set(), set()
    own = {folder / name for name in (MANIFEST, CSV, JSONL, MAPS)}
    try:
        settings = {name: entry["value"] for name, entry in manifest["settings"].items()}
        wrote = settings["heatmaps"] if settings["heatmaps"] is not None else settings["out"] is not None
        lines = reading.read_bytes(folder / JSONL).split(b"\n")[:-1] if wrote else ()
        rows = [documents.parse_json(line) for line in lines]
        names = HeatmapNames(folder)
        heatmaps = [names.path(row["key"]) for row in rows]
        return own, {path for row, path in zip(rows, heatmaps, strict=True) if row["score"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return own, set()


def _box_text(box: dict[str, Any]) -> str:
    return f"{box['x']} {box['y']} {box['width']} {box['height']}"
