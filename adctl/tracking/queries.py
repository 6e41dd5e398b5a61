"""Questions to the run database: conditions, order, the best run."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Float, String, and_, asc, cast, desc, func, or_, select

from adctl import run_folder
from adctl.errors import AdctlError, UsageError, unknown_name
from adctl.tracking import database, index
from adctl.tracking.schema import RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection

    from adctl.config import RunsBestSettings

log = logging.getLogger(__name__)

_CONDITION = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|!=|=|<|>|~)\s*([^\s=<>~].*?)\s*")
_AND = re.compile(r"\s+and(?:\s+|$)", re.IGNORECASE)
_TEXTS = ("id", "name", "folder", "state", "started", "finished", "arch", "dataset", "category", "model", "version",
          "machine", "note", "model_sha256", "images_sha256")  # fmt: skip
_FILTERS = ("arch", "dataset", "category", "tag")
_NUMBERS = ("seed", "images", "seconds")
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
        return Path(self.values["folder"])

    @property
    def state(self) -> str:
        """State of the run: as stored, or `missing` if its folder is gone, or `interrupted` if its process is."""
        from adctl.tracking.folders import is_run, read_run

        if not is_run(self.folder):
            return "missing"
        return read_run(self.folder).state if self.values["state"] == "running" else str(self.values["state"])


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
    query = select(RUNS).where(*(_condition(part) for text in conditions for part in _AND.split(text)))
    name = sort.removeprefix("-")
    key = _number(name) if name not in _TEXTS else RUNS.c[name]
    order = desc(key) if sort.startswith("-") else asc(key)
    query = query.order_by(key.is_(None), order, RUNS.c.id).limit(limit)
    with _current(runs) as connection:
        return [RunRow(dict(row)) for row in connection.execute(query).mappings()]


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
    matches = or_(RUNS.c.name == name, RUNS.c.folder == str(Path(name).absolute()), RUNS.c.id.startswith(name.upper()))
    with _current(runs) as connection:
        found = [RunRow(dict(row)) for row in connection.execute(select(RUNS).where(matches)).mappings()]
        names = connection.execute(select(RUNS.c.name)).scalars().all() if not found else []
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


@contextmanager
def _current(runs: Path) -> Iterator[Connection]:
    """Open the index to read it, up to date if it can be written: a full disk does not hide what it holds."""
    problem = ""
    try:
        index.refresh(runs)
    except AdctlError as error:
        problem = error.message
    with database.snapshot(runs) as connection:
        yield connection
    if problem:
        log.warning("The index of runs is not up to date. %s", problem)


def _condition(text: str) -> ColumnElement[bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"The condition '{text}' cannot be understood.",
            "Write NAME, one of = != < <= > >= ~, and a value, such as 'arch=patchcore and image_auroc>0.95'.",
        )
    name, operator, value = match.groups()
    if name in ("tag", "tags"):
        found = cast(RUNS.c.tags, String).contains(f'"{value}"', autoescape=True)
        return found if operator in ("=", "~") else ~found
    number = _float(value)
    if operator == "~":
        return func.lower(_text(name)).contains(value.lower(), autoescape=True)
    if name in _TEXTS or number is None:
        return _compare(_text(name), operator, value)
    return _compare(_number(name), operator, number)


def _compare(one: ColumnElement[Any], operator: str, value: str | float) -> ColumnElement[bool]:
    comparisons = {
        "=": one == value, "!=": or_(one != value, one.is_(None)),
        "<": one < value, "<=": one <= value, ">": one > value, ">=": one >= value,
    }  # fmt: skip
    return and_(comparisons[operator])


def _text(name: str) -> ColumnElement[Any]:
    if name in _TEXTS:
        return RUNS.c[name]
    return cast(RUNS.c[name], String) if name in _NUMBERS else RUNS.c.settings[name].as_string()


def _number(name: str) -> ColumnElement[Any]:
    if name in _NUMBERS:
        return RUNS.c[name]
    return func.coalesce(RUNS.c.metrics[name].as_float(), cast(RUNS.c.settings[name].as_string(), Float))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
