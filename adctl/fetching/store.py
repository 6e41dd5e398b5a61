"""Fetched data sets on this machine: folders of categories, and the record of their provenance."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adctl import __version__, documents, files, reading
from adctl.errors import FetchError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from adctl.fetching.catalogue import CatalogueEntry

STAGING = ".fetching"
_RECORD = "fetched.json"
_LOCK_TIMEOUT = 60.0
"""Seconds to wait for another adctl process that fetches the same data."""


@dataclass(frozen=True)
class Provenance:
    """Provenance of a category; one entry of `fetched.json`.

    Attributes:
        urls: Source addresses without secrets; empty if the source was a local file or folder.
        sha256: Digest of the source file; None if the source was several files or a folder.
        bytes: Size of the source.
        verified: Whether the whole source was checked against published digests.
    """

    urls: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int = 0
    verified: bool = False


def check_category(entry: CatalogueEntry, category: str) -> None:
    """Check that the data set has a category.

    Raises:
        UsageError: It does not.
    """
    if entry.categories and category not in entry.categories:
        raise unknown_name(f"category of {entry.title}", category, entry.categories)


def holds_category(folder: Path) -> bool:
    """Return whether a folder holds a category. One good image proves it: only complete folders get this name."""
    try:
        with os.scandir(folder / "train" / "good") as good:
            return any(True for _ in good)
    except OSError:
        return False


def missing_categories(folder: Path, categories: Sequence[str]) -> tuple[str, ...]:
    """Return the categories that are not in a data set's folder."""
    return tuple(category for category in categories if not holds_category(folder / category))


def fetched_categories(entry: CatalogueEntry, folder: Path) -> tuple[str, ...]:
    """Return the categories of a data set that are in its folder."""
    names = entry.categories or tuple(path.name for path in folders_in(folder))
    return tuple(category for category in names if holds_category(folder / category))


def read_provenance(folder: Path) -> dict[str, Provenance]:
    """Read the provenance of a data set's categories; empty if there is no readable record."""
    try:
        stored = documents.parse(reading.read_bytes(folder / _RECORD), _Record, others="ignore")
    except (OSError, ValueError):
        return {}
    return stored.categories


@dataclass(frozen=True)
class _Record:
    """Entries of `fetched.json` that are read again."""

    categories: dict[str, Provenance]


def record_provenance(entry: CatalogueEntry, folder: Path, new: Mapping[str, Provenance]) -> None:
    """Add the provenance of categories to the record of a data set."""
    provenances = read_provenance(folder) | dict(new)
    categories = {name: asdict(provenance) for name, provenance in sorted(provenances.items())}
    facts = {key: getattr(entry, key) for key in ("name", "title", "licence", "terms", "homepage", "citation")}
    files.write_json(folder / _RECORD, {"format": 1, "adctl": __version__, **facts, "categories": categories})


def install_category(new: Path, folder: Path, category: str) -> None:
    """Move a finished category to its place; an older one is moved aside first."""
    target = folder / category
    old = folder / STAGING / "replaced" / category
    with files.output_errors(target):
        if target.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            target.rename(old)
        new.rename(target)


def remove_leftovers(folder: Path) -> None:
    """Delete partly unpacked folders of an interrupted run; unfinished downloads stay and are resumed."""
    for leftover in folders_in(folder / STAGING):
        shutil.rmtree(leftover, ignore_errors=True)


def folders_in(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, without hidden ones, sorted by name."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


@contextmanager
def fetch_lock(target: Path) -> Iterator[None]:
    """Prevent other processes from fetching the same data at the same time.

    Raises:
        FetchError: Another process still fetches it after a minute.
    """
    from filelock import FileLock, Timeout

    files.make_folder(target.parent)
    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    with files.output_errors(path):
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT)
        except Timeout as error:
            raise FetchError(
                f"Another adctl process is fetching {target.name} into {target.parent}.",
                "Wait until it is done, then try again.",
            ) from error
    try:
        yield
    finally:
        lock.release()
