"""What of a data set is on this machine: folders of categories, and the record of where they came from."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adctl import __version__, files
from adctl.errors import FetchError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from adctl.fetching.catalogue import CatalogueEntry

STAGING = ".fetching"
_RECORD = "fetched.json"
_PATIENCE = 60.0
"""Seconds to wait for another adctl that fetches the same thing."""


@dataclass(frozen=True)
class Provenance:
    """Where a category came from; one entry of `fetched.json`.

    Attributes:
        urls: Addresses, without secrets; none when it came from a file or folder.
        sha256: Of the one file it came from; None when there were several, or a folder.
        bytes: Of what it came from.
        verified: Whether all of that was checked against published digests.
    """

    urls: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int = 0
    verified: bool = False


def check_category(entry: CatalogueEntry, category: str) -> None:
    """Refuse a category that the data set does not have.

    Raises:
        UsageError: It has not.
    """
    if entry.categories and category not in entry.categories:
        raise unknown_name(f"category of {entry.title}", category, entry.categories)


def holds_category(folder: Path) -> bool:
    """Whether it is a category's folder; folders get their final names whole, so a look inside suffices."""
    try:
        with os.scandir(folder / "train" / "good") as good:
            return any(True for _ in good)
    except OSError:
        return False


def missing_categories(folder: Path, categories: Sequence[str]) -> tuple[str, ...]:
    """Which of some categories are not there."""
    return tuple(category for category in categories if not holds_category(folder / category))


def fetched_categories(entry: CatalogueEntry, folder: Path) -> tuple[str, ...]:
    """Which categories of a data set are there."""
    names = entry.categories or tuple(path.name for path in folders_in(folder))
    return tuple(category for category in names if holds_category(folder / category))


def read_provenance(folder: Path) -> dict[str, Provenance]:
    """Where its categories came from, as far as the record can be read."""
    try:
        stored = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["categories"]
        return {name: Provenance(**{**origin, "urls": tuple(origin["urls"])}) for name, origin in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def record_provenance(entry: CatalogueEntry, folder: Path, new: Mapping[str, Provenance]) -> None:
    """Write down where categories came from, beside what is known of others."""
    categories = {name: asdict(origin) for name, origin in sorted((read_provenance(folder) | dict(new)).items())}
    facts = {key: getattr(entry, key) for key in ("name", "title", "licence", "terms", "homepage", "citation")}
    files.write_json(folder / _RECORD, {"format": 1, "adctl": __version__, **facts, "categories": categories})


def install_category(new: Path, folder: Path, category: str) -> None:
    """Give a finished category its place; what was there before goes last."""
    target = folder / category
    old = folder / STAGING / "replaced" / category
    with files.output_errors(target):
        if target.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            target.rename(old)
        new.rename(target)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half unpacked; downloads stay, to be gone on with."""
    for left in folders_in(folder / STAGING):
        shutil.rmtree(left, ignore_errors=True)


def folders_in(folder: Path) -> list[Path]:
    """The folders of a folder, hidden ones left out."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


@contextmanager
def fetch_lock(target: Path) -> Iterator[None]:
    """Keep other processes from fetching the same thing meanwhile.

    Raises:
        FetchError: One still does after a minute.
    """
    from filelock import FileLock, Timeout

    files.make_folder(target.parent)
    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    with files.output_errors(path):
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise FetchError(
                f"Another adctl is fetching {target.name} into {target.parent}.",
                "Wait until it is done, then run this again.",
            ) from error
    try:
        yield
    finally:
        lock.release()
