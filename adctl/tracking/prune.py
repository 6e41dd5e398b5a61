"""Removal of runs that nobody needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.tracking import database, queries, versions
from adctl.tracking.folders import read_run
from adctl.tracking.own_files import foreign_files, own_files, remove_own_files
from adctl.tracking.schema import ARTIFACTS, RUNS

if TYPE_CHECKING:
    from adctl.tracking.queries import RunRow

_AGE = re.compile(r"(\d+)([dhw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class PruneRule:
    """Rule that says which runs stay.

    Attributes:
        keep_best: Number of best runs that are kept of each dataset and category.
        metric: Metric that decides which are best.
        older: Minimum age of removed runs, such as `30d`; None removes runs of any age.
    """

    keep_best: int
    metric: str
    older: str | None = None


@dataclass(frozen=True)
class PruneResult:
    """Result of pruning.

    Attributes:
        removed: Names of the runs that were, or would be, removed.
        kept: Names of the runs that are kept, with reasons.
        bytes: Size of the removed files.
        dry_run: Whether nothing was removed.
        left: Files that stay because adctl did not write them, by the names of the removed runs.
    """

    removed: tuple[str, ...]
    kept: dict[str, str]
    bytes: int
    dry_run: bool
    left: dict[str, tuple[Path, ...]] = field(default_factory=dict)


def parse_age(text: str) -> timedelta:
    """Parse an age such as `30d`, `12h` or `4w`.

    Raises:
        UsageError: The text is no age.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not an age.", "Write it as 12h, 30d or 4w.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def prune(runs: Path, rule: PruneRule, *, dry_run: bool) -> PruneResult:
    """Remove old runs, except the best, and those that are tagged, accepted, served, running or used by other runs.

    Args:
        runs: Folder of the runs.
        rule: Rule that says which runs stay.
        dry_run: Only tell what would be removed.

    Raises:
        UsageError: The age cannot be understood.
        AdctlError: The database cannot be read, or a folder cannot be removed.
    """
    rows = queries.find_runs(runs)
    before = datetime.now(UTC) - (parse_age(rule.older) if rule.older else timedelta())
    groups = _groups(rows, rule.metric)
    best = {row.values["id"] for group in groups.values() for row in group[: rule.keep_best]}
    parents = {str(row.get("resume") or "") for row in rows}
    parents |= {str(Path(row.get("update")).parent) for row in rows if row.get("update")}
    kept, removed, left, freed = {}, [], {}, 0
    for row in rows:
        reason = _reason_to_keep(row, best, parents, before)
        if not reason and rule.keep_best and not groups[_group(row)]:
            reason = f"no run of its dataset and category has {rule.metric}"
        if reason:
            kept[row.values["name"]] = reason
            continue
        name = row.values["name"]
        removed.append(name)
        freed += sum((row.folder / path).stat().st_size for path in own_files(row.folder))
        if stays := foreign_files(row.folder) if dry_run else remove(runs, row):
            left[name] = tuple(row.folder / path for path in stays)
    return PruneResult(tuple(removed), kept, freed, dry_run, left)


def remove(runs: Path, row: RunRow) -> tuple[Path, ...]:
    """Remove the files of a run and its entries in the index; return the files of others, relative to its folder.

    The folder stays if it holds such files.

    Raises:
        OutputError: The folder cannot be removed.
    """
    with files.output_errors(row.folder):
        foreign = remove_own_files(row.folder)
    with database.transaction(runs) as connection:
        connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.run == row.values["id"]))
        connection.execute(delete(RUNS).where(RUNS.c.id == row.values["id"]))
    return foreign


def reason_to_stay(row: RunRow) -> str:
    """Return why a run must not be removed without being asked twice; empty if nothing speaks against it."""
    if row.values["tags"]:
        return f"tagged {', '.join(row.values['tags'])}"
    if names := versions.names_of(row.folder):
        return f"a version of {', '.join(names)}"
    if row.state == "running":
        return "running"
    try:
        served = row.folder.is_dir() and any(one.kind == "served" for one in read_run(row.folder).artifacts)
    except DataError:
        return "damaged"
    return "served" if served else ""


def _reason_to_keep(row: RunRow, best: set[str], parents: set[str], before: datetime) -> str:
    if reason := reason_to_stay(row):
        return reason
    if row.values["name"] in parents or row.values["folder"] in parents:
        return "another run continues it"
    if row.values["id"] in best:
        return "among the best"
    stamp = row.values["finished"] or row.values["started"]
    if stamp and datetime.fromisoformat(stamp) > before:
        return "recent"
    return ""


def _groups(rows: list[RunRow], metric: str) -> dict[tuple[str, str], list[RunRow]]:
    """Return the runs of each dataset and category that have the metric, best first."""
    groups: dict[tuple[str, str], list[RunRow]] = {_group(row): [] for row in rows}
    for row in rows:
        if row.get(metric) is not None:
            groups[_group(row)].append(row)
    for group in groups.values():
        group.sort(key=lambda row: row.get(metric), reverse=not queries.is_lower_better(metric))
    return groups


def _group(row: RunRow) -> tuple[str, str]:
    return row.values["dataset"], row.values["category"]
