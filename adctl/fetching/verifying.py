"""Holding what was fetched against the digests of the day it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.errors import FetchError, UsageError
from adctl.fetching import store
from adctl.fetching.catalogue import CatalogueEntry, catalogue, find_entry
from adctl.fetching.digests import DIGESTS, DigestComparison, compare_digests, read_digests
from adctl.fetching.finding import fetch_command
from adctl.fetching.weights import check_weights, list_weights
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class VerifyResult:
    """What became of one category, or one model's weights.

    Attributes:
        name: Of the data set and category, or of the weights, as `mvtec/zipper` or `weights/resnet18`.
        intact: Whether every file is there as it came; None when no digests were recorded.
        files: How many were recorded.
        changed: Files with other bytes than at first.
        missing: Files that are gone.
        unlisted: Files that came later.
        remedy: The command that brings it again; empty when it is intact.
    """

    name: str
    intact: bool | None
    files: int = 0
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    remedy: str = ""


def verify(
    name: str | None = None,
    *,
    categories: Sequence[str] = (),
    root: Path | None = None,
    reporter: Reporter = SILENT,
) -> list[VerifyResult]:
    """Read everything that was fetched, and compare.

    Args:
        name: A data set, or "weights"; all when None.
        categories: Of the data set; all that are here when empty.
        root: The folder of all fetched data; `data_dir()` when None.
        reporter: Told how far it is.

    Raises:
        UsageError: There is nothing to verify.
    """
    base = root or data_dir()
    entries = [find_entry(name)] if name not in {None, "weights"} else list(catalogue().values() if not name else ())
    results = [
        _category(entry, base / entry.name, category, reporter)
        for entry in entries
        for category in _wanted(entry, base / entry.name, categories)
    ]
    if name in {None, "weights"}:
        results += [_weights(path) for path in list_weights(base)]
    if not results:
        raise UsageError("Nothing of that has been fetched.", "See what is here with: adctl fetch --list")
    return results


def _wanted(entry: CatalogueEntry, folder: Path, categories: Sequence[str]) -> tuple[str, ...]:
    for category in categories:
        store.check_category(entry, category)
        if store.missing_categories(folder, [category]):
            raise UsageError(
                f"The category '{category}' of {entry.title} has not been fetched.",
                f"Fetch it with: {fetch_command(entry, category)}",
            )
    return tuple(categories) or store.fetched_categories(entry, folder)


def _category(entry: CatalogueEntry, folder: Path, category: str, reporter: Reporter) -> VerifyResult:
    what, again = f"{entry.name}/{category}", f"{fetch_command(entry, category)} --force"
    try:
        listed = read_digests(folder / category / DIGESTS)
    except FetchError:
        return VerifyResult(what, None, remedy=again)
    with reporter.stage(f"verifying {what}") as update:
        found: DigestComparison = compare_digests(folder / category, listed, progress=update)
    return VerifyResult(
        what,
        found.harmless,
        len(listed),
        found.changed,
        found.missing,
        found.unlisted,
        "" if found.harmless else again,
    )


def _weights(path: Path) -> VerifyResult:
    intact = check_weights(path)
    changed = (path.name,) if intact is False else ()
    return VerifyResult(
        f"weights/{path.stem}", intact, 1, changed, remedy="" if intact else f"adctl fetch weights {path.stem}"
    )
