"""List the data sets that can be fetched, and find those on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.errors import UsageError, unknown_name
from adctl.fetching.catalogue import CatalogueEntry, DatasetKind, catalogue, find_entry
from adctl.fetching.store import check_category, fetched_categories, missing_categories
from adctl.paths import data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.fetching.catalogue import RemoteFile


@dataclass(frozen=True)
class DatasetStatus:
    """A data set of the catalogue, and how much of it is on this machine.

    Attributes:
        name: Name in the catalogue.
        title: Name given by its authors.
        licence: Short name of its licence.
        terms: Summary of the licence.
        commercial: Whether commercial use is allowed; None if unknown.
        homepage: Home page of its authors.
        citation: Publication to cite.
        categories: All its categories; empty if the source folder decides which there are.
        size: Bytes to download for all categories; None if nothing is downloaded or a size is unknown.
        verified: Whether digests of all its files are published; None if nothing is downloaded.
        manual: Whether the user has to download it.
        fetched: Whether any category is on this machine.
        here: Categories on this machine.
        root: Its folder, existing or not.
        files: Files to download: first those with all categories, then those with one category each.
    """

    name: str
    title: str
    licence: str
    terms: str
    commercial: bool | None
    homepage: str
    citation: str
    categories: tuple[str, ...]
    size: int | None
    verified: bool | None
    manual: bool
    fetched: bool
    here: tuple[str, ...]
    root: Path
    files: tuple[RemoteFile, ...]


_COPIED_FIELDS = ("name", "title", "licence", "terms", "commercial", "homepage", "citation", "categories", "size")


def list_datasets(root: Path | None = None) -> list[DatasetStatus]:
    """Return all data sets of the catalogue, with their state on this machine."""
    statuses = []
    for entry in catalogue().values():
        folder = (root or data_dir()) / entry.name
        here = fetched_categories(entry, folder)
        needed = entry.whole or tuple(entry.parts.values())
        statuses.append(
            DatasetStatus(
                **{key: getattr(entry, key) for key in _COPIED_FIELDS},
                verified=all(remote.has_digest for remote in needed) if needed else None,
                manual=entry.kind is DatasetKind.MANUAL,
                fetched=bool(here),
                here=here,
                root=folder,
                files=entry.remotes,
            )
        )
    return statuses


def find_dataset(category: str | None, dataset: str | None, root: Path | None = None) -> Path:
    """Return the folder of a fetched data set.

    Args:
        category: Category it must have; may be None if `dataset` is given.
        dataset: Name of the data set; None takes the first one in the catalogue that is here and has the category.
        root: Folder of all fetched data; `data_dir()` when None.

    Returns:
        Folder of the data set, with one subfolder per category.

    Raises:
        UsageError: It is unknown or not fetched; the remedy is the command that fetches it.
    """
    base = root or data_dir()
    if dataset is not None:
        return _named_dataset(find_entry(dataset), category, base)
    if category is None:
        raise UsageError("No data set was named.", "Name one with --dataset, or a category with --category.")
    entries = catalogue().values()
    for entry in entries:
        if (category in entry.categories or not entry.categories) and not missing_categories(
            base / entry.name, [category]
        ):
            return base / entry.name
    candidates = [entry for entry in entries if category in entry.categories]
    if not candidates:
        raise unknown_name("category", category, {name for entry in entries for name in entry.categories})
    raise UsageError(
        f"No fetched data set has the category '{category}'.",
        f"Fetch one with: {fetch_command(candidates[0], category)}",
    )


def fetch_command(entry: CatalogueEntry, category: str | None) -> str:
    """Return the command that fetches a data set, or one of its categories."""
    words = ["adctl fetch", entry.name]
    if category is not None and len(entry.categories) != 1:
        words += ["--category", category]
    if entry.kind is DatasetKind.MANUAL:
        words += ["--from", "FOLDER"]
    return " ".join(words)


def _named_dataset(entry: CatalogueEntry, category: str | None, base: Path) -> Path:
    folder = base / entry.name
    if category is not None:
        check_category(entry, category)
    if not fetched_categories(entry, folder) or (category and missing_categories(folder, [category])):
        what = f"The category '{category}' of {entry.title}" if category else entry.title
        raise UsageError(f"{what} has not been fetched.", f"Fetch it with: {fetch_command(entry, category)}")
    return folder
