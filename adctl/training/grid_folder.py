"""Folder of a grid of trainings: results in `summary.json`, from which a later call with the same name continues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adctl import documents, files, run_folder
from adctl.config import TrainSettings
from adctl.engine import distributed
from adctl.errors import DataError, UsageError
from adctl.training.resume import MAY_DIFFER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

K = TypeVar("K")
R = TypeVar("R")

RESULTS = "results.csv"
TABLE = "table.md"


def listed(text: str) -> list[str]:
    """Return the parts of a text with commas, each once."""
    return list(dict.fromkeys(part for given in text.split(",") if (part := given.strip())))


def check_grid(settings: TrainSettings) -> None:
    """Raise if a setting cannot be used in a grid.

    Raises:
        UsageError: A run is to be resumed, folds are asked for, or the process was started by torchrun.
    """
    if settings.resume is not None:
        raise UsageError(
            "--resume continues a single run, not a grid.",
            "Call again with the same --name: completed combinations are kept.",
        )
    if settings.folds is not None:
        raise UsageError(
            "--folds needs one model and one seed, and a detector one category.", "Train the combinations one by one."
        )
    if distributed.is_launched_externally():
        raise UsageError("A grid of trainings cannot be started by torchrun.", "Use --devices instead.")


def find_grid(settings: TrainSettings, schema: str) -> Path | None:
    """Return the folder of an earlier call with the same name; None if there is none."""
    if settings.name is None:
        return None
    folder = run_folder.named_folder(settings.runs, settings.name)
    return folder if _summary(folder, schema) is not None else None


def new_grid(settings: TrainSettings, *parts: str) -> Path:
    """Return a new folder, named by the settings or by parts, in which commas become plus signs.

    Raises:
        UsageError: There is a folder of this name, which is no grid of the kind.
        OutputError: It cannot be made.
    """
    return run_folder.new_folder(settings.runs, *(part.replace(",", "+") for part in parts if part), name=settings.name)


def shared_settings(settings: TrainSettings, axes: Collection[str]) -> dict[str, Any]:
    """Return the settings that all combinations share and that influence results; paths are absolute.

    Args:
        settings: Settings of the grid.
        axes: Names of the settings that combinations differ in.
    """
    values = {name: value for name, value in settings.to_json().items() if name not in MAY_DIFFER and name not in axes}
    for name in values:
        given = getattr(settings, name)
        if isinstance(given, Path):
            values[name] = str(given.absolute())
    return values


def known_rows(folder: Path, schema: str, row: type[R], now: dict[str, Any]) -> list[R]:
    """Return the results of earlier calls whose models are there.

    Args:
        folder: Folder of the grid.
        schema: Schema of its summary.
        row: Dataclass of one result, with the name of its run, or None, as `run`.
        now: Settings of this call, by `shared_settings`.

    Raises:
        UsageError: The earlier calls had other settings.
        DataError: The summary is damaged.
    """
    path = folder / run_folder.SUMMARY
    known = _summary(folder, schema) or {"settings": now, "combinations": []}
    before = known.get("settings", {})
    if not isinstance(before, dict):
        raise DataError(f"{path} is damaged: it holds no settings.", "Choose another --name.")
    _check_same(folder, before, now)
    try:
        rows: Sequence[Any] = documents.convert(known.get("combinations"), list[row])  # type: ignore[valid-type]
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.", "Choose another --name.") from error
    return [one for one in rows if one.run is None or (folder / one.run / run_folder.MODEL).is_file()]


def ordered(rows: Mapping[K, R], wanted: Iterable[K]) -> list[R]:
    """Return the rows of this call in their order, followed by those of earlier calls."""
    return [rows[one] for one in dict.fromkeys((*wanted, *rows)) if one in rows]


def write_grid(
    folder: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]], markdown: str, summary: dict[str, Any]
) -> None:
    """Write the results of a grid.

    Args:
        folder: Folder of the grid.
        columns: Columns of the CSV file.
        lines: Its lines, by the names of the columns; a missing value is an empty cell.
        markdown: The tables for people.
        summary: Content of `summary.json`, from which a later call continues.

    Raises:
        OutputError: A file cannot be written.
    """
    rows = ([line.get(name) for name in columns] for line in lines)
    files.write_csv(folder / RESULTS, [columns, *rows])
    files.write_text(folder / TABLE, markdown)
    files.write_json(folder / run_folder.SUMMARY, summary)


def _summary(folder: Path, schema: str) -> dict[str, Any] | None:
    known = run_folder.read_json(folder / run_folder.SUMMARY)
    return known if known is not None and known.get("schema") == schema else None


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    before = TrainSettings().to_json() | before  # settings that are newer than the grid
    differing = [f"{name} (was {before[name]!r}, now {now[name]!r})" for name in now if before[name] != now[name]]
    if differing:
        raise UsageError(
            f"{folder} was started with other settings: {'; '.join(differing)}.",
            "Use the same settings, or choose another --name.",
        )
