"""Verify fetched files against the digests recorded when they were fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.errors import FetchError, UsageError
from adctl.fetching import store
from adctl.fetching.catalogue import CatalogueEntry, catalogue, find_entry
from adctl.fetching.digests import DIGESTS, compare_digests, read_digests
from adctl.fetching.finding import fetch_command
from adctl.fetching.weights import check_weights, list_weights
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class VerifyResult:
    """Result for one category, or for the weights of one model.

    Attributes:
        name: Data set and category, or weights, such as `mvtec/zipper` or `weights/resnet18`.
        intact: Whether every listed file exists unchanged; None if no digests were recorded.
        files: Number of listed files.
        changed: Files whose content has changed.
        missing: Listed files that do not exist.
        unlisted: Existing files that are not listed.
        remedy: Command that fetches it again; empty if it is intact.
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
    """Verify fetched files against their digests.

    Args:
        name: Name of a data set, or "weights"; everything when None.
        categories: Categories of the data set; all on this machine when empty.
        root: Folder of all fetched data; `data_dir()` when None.
        reporter: Receives progress.

    Raises:
        UsageError: There is nothing to verify.
    """
    base = root or data_dir()
    entries = [find_entry(name)] if name not in {None, "weights"} else list(catalogue().values() if not name else ())
    results = [
        _verify_category(entry, base / entry.name, category, reporter)
        for entry in entries
        for category in _categories(entry, base / entry.name, categories)
    ]
    if name in {None, "weights"}:
        results += [_verify_weights(path) for path in list_weights(base)]
    if not results:
        raise UsageError(
            "There is nothing to verify: it has not been fetched.", "List what is here with: adctl fetch --list"
        )
    return results


def _categories(entry: CatalogueEntry, folder: Path, categories: Sequence[str]) -> tuple[str, ...]:
    for category in categories:
        store.check_category(entry, category)
        if store.missing_categories(folder, [category]):
            raise UsageError(
                f"The category '{category}' of {entry.title} has not been fetched.",
                f"Fetch it with: {fetch_command(entry, category)}",
            )
    return tuple(categories) or store.fetched_categories(entry, folder)


def _verify_category(entry: CatalogueEntry, folder: Path, category: str, reporter: Reporter) -> VerifyResult:
    name, remedy = f"{entry.name}/{category}", f"{fetch_command(entry, category)} --force"
    try:
        listed = read_digests(folder / category / DIGESTS)
    except FetchError:
        return VerifyResult(name, None, remedy=remedy)
    with reporter.stage(f"verifying {name}") as update:
        found = compare_digests(folder / category, listed, progress=update)
    remedy = "" if found.intact else remedy
    return VerifyResult(name, found.intact, len(listed), found.changed, found.missing, found.unlisted, remedy)


def _verify_weights(path: Path) -> VerifyResult:
    intact = check_weights(path)
    changed = (path.name,) if intact is False else ()
    return VerifyResult(
        f"weights/{path.stem}", intact, 1, changed, remedy="" if intact else f"adctl fetch weights {path.stem}"
    )
