"""Text of a grid of trainings: mean and spread over seeds, and failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.training.grid import GridResult, GridSummaryRow

_MAX_TABLES = 4


def grid_text(result: GridResult) -> RenderableType:
    """Return one line for each category and detector, then failures and files."""
    from rich.console import Group
    from rich.padding import Padding

    from adctl.training.evaluate import METRICS
    from adctl.training.grid import SHARED_NOTE

    names = [name for name in METRICS if any(name in line.metrics for line in result.table)]
    headers = ("category", "detector", *(METRICS[name] for name in names), "train, s", "seeds")
    table = rows([_cells(line, names) for line in result.table], *headers)
    failures = [
        ("failed", f"{' '.join(filter(None, (row.category, row.arch)))}, seed {row.seed}: {row.error}")
        for row in result.rows
        if row.error is not None
    ]
    facts = [
        *failures,
        *([("note", SHARED_NOTE)] if any(row.shared for row in result.rows) else []),
        ("runs", str(result.folder)),
        ("tables", "summary.json, results.csv, table.md"),
        *_next(result),
    ]
    shown = [*_by_defect(result), rows(facts)]
    return Group(table, *(Padding(part, (1, 0, 0, 0)) for part in shown))


def _by_defect(result: GridResult) -> list[RenderableType]:
    """Return the tables by defect type; none if there are many, because `table.md` has them too."""
    from adctl.training.grid import defect_tables

    tables = defect_tables(result)
    if len(tables) > _MAX_TABLES:
        return []
    return [
        rows(
            [(arch, *cells) for arch, cells in table.cells.items()],
            " ".join(filter(None, (table.category, table.metric))),
            *table.defects,
        )
        for table in tables
    ]


def _next(result: GridResult) -> list[tuple[str, str]]:
    """Return the command that compares the detectors on the first category."""
    scored = [row for row in result.rows if row.run is not None and row.score_seconds is not None]
    if not scored:
        return []
    first = scored[0]
    runs = [row.run for row in scored if (row.category, row.seed) == (first.category, first.seed)]
    folders = " ".join(f"{result.folder}/{run}/test-scores" for run in runs)
    return [("next", f"adctl report {folders}")]


def _cells(line: GridSummaryRow, names: list[str]) -> tuple[str, ...]:
    metrics = (str(line.metrics.get(name, "")) for name in names)
    seconds = f"{line.train_seconds.mean:.1f}" if line.train_seconds else ""
    return (line.category or "", line.arch, *metrics, seconds, str(line.seeds))
