"""Formats and files that a report or a comparison writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.choices import REPORT_FORMATS
from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from adctl.config import ReportSettings


def find_targets(settings: ReportSettings, default: Path, known: Collection[str]) -> list[tuple[str, Path]]:
    """Return format and file of each report; files of several formats differ only in their suffixes.

    If the output is a folder, the files lie in it under the default name.

    Args:
        settings: Settings of the command.
        default: File without suffix that is written if no output is given.
        known: Names of the possible formats.

    Raises:
        UsageError: A format is not possible.
    """
    formats = _formats(settings, known)
    out = settings.out
    if out is not None and out.is_dir():
        out, given = out / default.name, False
    else:
        out, given = out or default, out is not None
    if given and len(formats) == 1:
        return [(formats[0], out)]
    stem = out.with_suffix("") if given and out.suffix[1:].lower() in REPORT_FORMATS else out
    return [(name, stem.with_name(f"{stem.name}.{name}")) for name in formats]


def _formats(settings: ReportSettings, known: Collection[str]) -> tuple[str, ...]:
    """Return the wanted formats, or else the format that matches the suffix of the output file."""
    wanted = tuple(dict.fromkeys(settings.format))
    if not wanted and settings.out is not None and settings.out.suffix and not settings.out.is_dir():
        wanted = (_format_of(settings.out.suffix[1:].lower(), known),)
    for name in wanted:
        if name not in known:
            raise UsageError(f"There is no comparison of several models as {name}.", f"Use {' or '.join(known)}.")
    return wanted or ("html",)


def _format_of(ending: str, known: Collection[str]) -> str:
    for name, report_format in REPORT_FORMATS.items():
        if ending in (name, *report_format.aliases):
            return name
    raise unknown_name("format in --out", ending, known)
