"""Questions to the run database: conditions, order, the best run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import run_folder
from adctl.errors import DataError, UsageError, unknown_name
from adctl.names import restored
from adctl.tracking import conditions as sql
from adctl.tracking import reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.config import RunsBestSettings

_FILTERS = ("arch", "dataset", "category", "tag")
_RUNS = f"SELECT {', '.join(sql.COLUMNS)} FROM runs WHERE "  # noqa: S608 - names of columns
_LOWER_IS_BETTER = re.compile(r"(_ms|_mib|seconds|energy|false_alarm|loss|_bytes|fpr)", re.IGNORECASE)

COLUMNS = ("name", "arch", "dataset", "category", "seed", "finished", "state", "tags")
"""Columns of a list that are shown unless others are wanted; metrics follow them."""


@dataclass(frozen=True)
class RunRow:
    """One run of an answer.

    Attributes:
        values: Columns of the table by name, with `metrics`, `settings` and `tags`.
    """

    values: dict[str, Any]

    def get(self, name: str) -> Any:
        """Return a column, a metric or a setting; None if the run has none of that name."""
        for place in (self.values, self.values["metrics"], self.values["settings"]):
            if name in place:
                return place[name]
        return None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        stored = Path(self.values["folder"])
        return stored if stored.exists() else Path(restored(self.values["folder"]))

    @property
    def state(self) -> str:
        """State of the run: as stored, or `missing` if its folder is gone, or `interrupted` if its process is.

        It is `damaged` if its process cannot be told from its folder.
        """
        from adctl.tracking.folders import is_run, read_run

        if not is_run(self.folder):
            return "missing"
        try:
            return read_run(self.folder).state if self.values["state"] == "running" else str(self.values["state"])
        except DataError:
            return "damaged"


def find_runs(runs: Path, conditions: Sequence[str] = (), sort: str = "-id", limit: int | None = None) -> list[RunRow]:
    """Find runs that meet all conditions.

    Args:
        runs: Folder of the runs.
        conditions: Texts such as `arch=patchcore and image_auroc>0.95`: columns, metrics and settings; `~` finds a
            part of a text; `tag=line3` a tag.
        sort: Name to sort by; with a minus sign the highest first. Runs without it come last.
        limit: Maximum number of runs.

    Raises:
        UsageError: A condition cannot be understood.
        AdctlError: The database cannot be read.
    """
    dialect = reader.dialect()
    where = dialect.conditions(tuple(conditions))
    most = "" if limit is None else f" LIMIT {int(limit)}"
    question = f"{_RUNS}{where.text} ORDER BY {dialect.order(sort)}{most}"
    return [RunRow(row) for row in reader.read(runs, question, where.values)]


def find_run(runs: Path, name: str | None) -> RunRow:
    """Find one run by its name, its identifier or the beginning of it, or its folder; None finds the newest.

    Raises:
        UsageError: There is no such run, or there are several.
    """
    if name is None:
        newest = find_runs(runs, limit=1)
        if not newest:
            raise UsageError(f"There are no runs in {runs}.", "Train a model, or rebuild the index: adctl runs index")
        return newest[0]
    dialect = reader.dialect()
    begins, mark = dialect.begins("id", name.upper()), dialect.mark
    question = f"{_RUNS}name = {mark} OR folder = {mark} OR {begins.text} ORDER BY id"
    found = [RunRow(row) for row in reader.read(runs, question, (name, str(Path(name).absolute()), *begins.values))]
    names = [] if found else [str(row["name"]) for row in reader.read(runs, "SELECT name FROM runs")]
    if not found:
        raise unknown_name("run", name, names)
    if len(found) > 1:
        raise UsageError(
            f"'{name}' is the name of {len(found)} runs: {', '.join(row.values['id'] for row in found)}.",
            "Give one of these identifiers.",
        )
    return found[0]


def find_folder(runs: Path, name: str | None) -> Path:
    """Return the folder of a run, also by a path inside it or by a scored folder.

    Raises:
        UsageError: There is no such run, or its folder is gone.
    """
    from adctl.tracking.folders import is_run

    if name is not None:
        path = Path(name)
        for candidate in (path, path.parent, runs / name):
            if is_run(candidate):
                return candidate
    found = find_run(runs, name).folder
    if not is_run(found):
        raise UsageError(f"The folder of the run, {found}, no longer exists.", "Update the index: adctl runs index")
    return found


def best_run(runs: Path, metric: str, conditions: Sequence[str] = (), *, lowest: bool | None = None) -> RunRow:
    """Find the finished run with the best value of a metric.

    Args:
        runs: Folder of the runs.
        metric: Name of the metric.
        conditions: Further conditions, see `find_runs`.
        lowest: Whether the lowest value is best; None decides by the name of the metric.

    Raises:
        UsageError: No run meets the conditions and has the metric.
    """
    low = is_lower_better(metric) if lowest is None else lowest
    found = find_runs(runs, ["state=finished", *conditions], metric if low else f"-{metric}", limit=1)
    if not found or found[0].get(metric) is None:
        wanted = f" that meet {' and '.join(conditions)}" if conditions else ""
        known = sorted({name for row in find_runs(runs) for name in row.values["metrics"]})
        raise UsageError(
            f"None of the runs{wanted} has the metric '{metric}'.",
            f"Known metrics: {', '.join(known)}." if known else "Metrics come from 'adctl report' and grids.",
        )
    return found[0]


def conditions_of(settings: RunsBestSettings) -> list[str]:
    """Return all conditions of the settings of `adctl runs best`."""
    given = [f"{name}={value}" for name in _FILTERS if (value := getattr(settings, name)) is not None]
    return [*given, *settings.where, *settings.max]


def is_lower_better(metric: str) -> bool:
    """Return whether lower values of a metric are better, by its name."""
    return bool(_LOWER_IS_BETTER.search(metric))


def model_of(row: RunRow) -> Path:
    """Return the model file that scoring by the run's name uses.

    Raises:
        UsageError: The run has no model, or it is gone.
    """
    return run_folder.find_model(row.folder.parent, row.folder)
