"""Command `adctl fetch check`: contents and problems of a folder, as text, JSON and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from adctl.config import FetchCheckSettings
    from adctl.data.checks.check import CheckResult
    from adctl.data.checks.findings import Finding

_SHOWN_CASES = 5
_SHOWN_KINDS = 4


def run(call: Call[FetchCheckSettings]) -> int:
    """Check a folder, archive or manifest; return 1 if there are errors, with --strict also for warnings."""
    from adctl.data.checks.check import check_with_sheet
    from adctl.data.checks.findings import Severity

    settings = call.settings
    checked = check_with_sheet(settings, reporter=call.reporter)
    call.finish(checked, lambda: _text(checked, settings.sheet))
    bad = {Severity.ERROR, Severity.WARNING} if settings.strict else {Severity.ERROR}
    return 1 if any(each.count(severity) for each in checked for severity in bad) else 0


def _text(checked: Sequence[CheckResult], sheet: Path | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for each in checked:
        parts += [rows(_understood(each)), Text()]
        for found in each.findings:
            parts += [*_finding(found, each.path), Text()]
    if sheet is not None:
        parts.append(rows([("picture", str(sheet))]))
    return Group(*parts)


def _understood(checked: CheckResult) -> Iterator[tuple[str, str]]:
    tests = ", ".join(f"{count} {label}" for label, count in checked.test_images.items()) or "none"
    yield "dataset", f"{checked.path} ({checked.layout} layout, category {checked.category})"
    yield "good images", str(checked.train_images)
    if checked.groups:
        yield "groups", f"{len(checked.groups)}: {_most(checked.groups)}"
    yield "test images", f"{tests}; {checked.masks} with a mask"
    yield "sizes", _most(checked.sizes)
    yield "modes", _most(checked.modes)
    yield from (("note", note) for note in checked.notes)
    counts = [f"{len(found.cases)} {found.kind}" for found in checked.findings]
    yield "problems", ", ".join(counts) or "no problems"


def _most(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:_SHOWN_KINDS])
    more = len(counts) - _SHOWN_KINDS
    return (f"{shown} and {more} others" if more > 0 else shown) or "none"


def _finding(found: Finding, root: Path) -> Iterator[RenderableType]:
    from rich.text import Text

    style = {"error": "bold red", "warning": "bold yellow"}[found.severity]
    yield Text.assemble((f"{found.severity}: ", style), (f"{found.title}: {len(found.cases)}", "bold"))
    for case in found.cases[:_SHOWN_CASES]:
        yield Text(f"  {', '.join(_short(path, root) for path in case.paths)}   ({printable(case.detail)})")
    if len(found.cases) > _SHOWN_CASES:
        yield Text(f"  and {len(found.cases) - _SHOWN_CASES} more; --json lists them all")
    yield Text(f"  remedy: {found.remedy}", style="dim")


def _short(path: Path, root: Path) -> str:
    short = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else str(path)
    return printable(short)
