"""What can be fetched, what of it is here, and where."""

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
    """One line of what can be fetched.

    Attributes:
        name: As in the catalogue.
        title: What its authors call it.
        licence: The short name of its licence.
        terms: What the licence asks for.
        commercial: Whether it allows commercial use; None when nobody says.
        homepage: Of its authors.
        citation: What to cite.
        categories: All there are; none listed where the folder it is taken from says so.
        size: Of all its files, bytes; None when nothing is downloaded, or nobody says.
        verified: Whether the digests of all its files are published; None when nothing is downloaded.
        manual: Whether it has to be brought by hand.
        fetched: Whether any category is on this machine.
        here: Which ones are.
        root: Where it lies, or would lie.
        files: What is downloaded: addresses, length and published digest of each; first what holds all categories,
            then what holds one.
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


_SHARED = ("name", "title", "licence", "terms", "commercial", "homepage", "citation", "categories", "size")


def list_datasets(root: Path | None = None) -> list[DatasetStatus]:
    """Everything that can be fetched, and what of it is on this machine."""
    lines = []
    for entry in catalogue().values():
        folder = (root or data_dir()) / entry.name
        here = fetched_categories(entry, folder)
        wholes = entry.whole or tuple(entry.parts.values())
        lines.append(
            DatasetStatus(
                **{key: getattr(entry, key) for key in _SHARED},
                verified=all(remote.verifiable for remote in wholes) if wholes else None,
                manual=entry.kind is DatasetKind.MANUAL,
                fetched=bool(here),
                here=here,
                root=folder,
                files=entry.remotes,
            )
        )
    return lines


def find_dataset(category: str | None, dataset: str | None, root: Path | None = None) -> Path:
    """Where a fetched data set lies.

    Args:
        category: One it must hold; None when `dataset` is enough.
        dataset: Its name; None takes the first of the catalogue that is here and holds the category.
        root: The folder of all fetched data; `data_dir()` when None.

    Returns:
        The data set's folder, which holds one folder a category.

    Raises:
        UsageError: It is unknown, or not fetched; the remedy is the command that fetches it.
    """
    base = root or data_dir()
    if dataset is not None:
        return _named(find_entry(dataset), category, base)
    if category is None:
        raise UsageError("Which data set?", "Name it with --dataset, or a category with --category.")
    entries = catalogue().values()
    for entry in entries:
        if (category in entry.categories or not entry.categories) and not missing_categories(
            base / entry.name, [category]
        ):
            return base / entry.name
    holders = [entry for entry in entries if category in entry.categories]
    if not holders:
        raise unknown_name("category", category, {name for entry in entries for name in entry.categories})
    raise UsageError(
        f"No fetched data set has the category '{category}'.", f"Fetch one with: {fetch_command(holders[0], category)}"
    )


def fetch_command(entry: CatalogueEntry, category: str | None) -> str:
    """The command that fetches it."""
    words = ["adctl fetch", entry.name]
    if category is not None and len(entry.categories) != 1:
        words += ["--category", category]
    if entry.kind is DatasetKind.MANUAL:
        words += ["--from", "FOLDER"]
    return " ".join(words)


def _named(entry: CatalogueEntry, category: str | None, base: Path) -> Path:
    folder = base / entry.name
    if category is not None:
        check_category(entry, category)
    if not fetched_categories(entry, folder) or (category and missing_categories(folder, [category])):
        what = f"The category '{category}' of {entry.title}" if category else entry.title
        raise UsageError(f"{what} has not been fetched.", f"Fetch it with: {fetch_command(entry, category)}")
    return folder
