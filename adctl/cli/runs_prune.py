"""Command `adctl runs prune`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from adctl.cli.output import Call, rows
from adctl.errors import UsageError
from adctl.names import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from adctl.config import RunsPruneSettings
    from adctl.tracking.prune import PruneResult


def run(call: Call[RunsPruneSettings]) -> None:
    """Remove old runs after asking."""
    from adctl.tracking.prune import PruneRule, prune

    settings, dry_run = call.settings, call.asked("dry_run")
    rule = PruneRule(settings.keep_best, settings.metric, settings.older)
    if not dry_run and not settings.yes:
        planned = prune(settings.runs, rule, dry_run=True)
        confirm(f"Remove {len(planned.removed)} runs ({', '.join(planned.removed)})?", planned.left)
    result = prune(settings.runs, rule, dry_run=dry_run)
    call.finish(result, lambda: _text(result))


def confirm(question: str, left: Mapping[str, Sequence[Path | str]]) -> None:
    """Ask at a terminal before runs are removed.

    Args:
        question: Question that names the runs.
        left: Files that stay, by the names of the runs.

    Raises:
        UsageError: There is no terminal to ask at.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("Nothing is removed without being asked.", "Add --yes to remove.")
    for line in left_lines(left):
        typer.echo(" ".join(line), err=True)
    typer.confirm(question, abort=True, err=True)


def left_lines(left: Mapping[str, Sequence[Path | str]]) -> list[tuple[str, str, str]]:
    """Return a line for each run whose folder stays: `stays`, the folder or file, and why."""
    return [
        ("stays", name, f"{len(paths)} files that adctl did not write, such as {printable(str(paths[0]))}")
        for name, paths in left.items()
    ]


def _text(result: PruneResult) -> RenderableType:
    word = "would remove" if result.dry_run else "removed"
    lines = [(word, name, "") for name in result.removed]
    lines += [("kept", name, reason) for name, reason in result.kept.items()]
    return rows(
        [*lines, *left_lines(result.left), ("space", f"{result.bytes / 2**20:.1f} MiB", "")], "", "run", "reason"
    )
