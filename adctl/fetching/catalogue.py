"""What `adctl fetch` knows: the data sets in `catalogue.toml`, with their licences, addresses and digests.

Knows nothing of downloading, nor of what is on this machine.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping


class DatasetKind(StrEnum):
    """How a data set comes to be on this machine."""

    ARCHIVE = "archive"
    GENERATED = "generated"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at one or more addresses.

    Attributes:
        urls: Where it lies, best first.
        sha256: Its digest, hexadecimal; None when nobody published it.
        md5: Another digest, where only that is published.
        size: Its length in bytes, or None.
        archive: Whether it is to be unpacked.
    """

    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None
    archive: bool = True

    @property
    def filename(self) -> str:
        """The last part of its first address."""
        return self.urls[0].partition("?")[0].rpartition("/")[2]

    @property
    def verifiable(self) -> bool:
        """Whether somebody published a digest."""
        return bool(self.sha256 or self.md5)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One data set.

    Attributes:
        name: What it is called on the command line.
        title: What its authors call it.
        kind: Where it comes from.
        licence: Its short name.
        categories: In the order of its authors, which numbers the classes of some; empty where the folder it is
            taken from says which there are.
        layout: How its authors lay it out: a name of `adctl.fetching.converters`.
        terms: What the licence asks for, and what it says of commercial use, in a sentence or two.
        commercial: Whether commercial use is allowed; None when nobody says.
        homepage: Of its authors; empty for what adctl makes itself.
        citation: What to cite.
        steps: For a manual one, how to come by it.
        whole: The files that together hold all categories, if there are any.
        parts: Archives of single categories, as far as there are any.
    """

    name: str
    title: str
    kind: DatasetKind
    licence: str
    categories: tuple[str, ...]
    layout: str = "mvtec"
    terms: str = ""
    commercial: bool | None = None
    homepage: str = ""
    citation: str = ""
    steps: str = ""
    whole: tuple[RemoteFile, ...] = ()
    parts: Mapping[str, RemoteFile] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def restricted(self) -> bool:
        """Whether its licence has to be accepted: it forbids some uses, or may do so."""
        return self.commercial is not True

    @property
    def size(self) -> int | None:
        """Bytes of all its files; None when nothing is downloaded, or not all lengths are known."""
        sizes = [remote.size for remote in self.whole]
        return sum(size or 0 for size in sizes) if sizes and all(sizes) else None

    @property
    def remotes(self) -> tuple[RemoteFile, ...]:
        """All files there are of it."""
        return (*self.whole, *self.parts.values())


def catalogue() -> Mapping[str, CatalogueEntry]:
    """All data sets by name.

    A file of the same format, named by `ADCTL_CATALOGUE`, adds data sets or replaces some: a company's own mirror.

    Raises:
        UsageError: That file cannot be used.
    """
    return _with_own(os.environ.get("ADCTL_CATALOGUE"))


def find_entry(name: str) -> CatalogueEntry:
    """The data set of that name.

    Raises:
        UsageError: There is none.
    """
    known = catalogue()
    if name not in known:
        raise unknown_name("data set", name, known)
    return known[name]


@functools.cache
def _with_own(own: str | None) -> Mapping[str, CatalogueEntry]:
    text = importlib.resources.files("adctl.fetching").joinpath("catalogue.toml").read_text(encoding="utf-8")
    entries = _entries(text)
    if own:
        try:
            entries |= _entries(Path(own).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"The catalogue {own} cannot be used: {error}.",
                "Mend it, or unset ADCTL_CATALOGUE; adctl/data/catalogue.toml shows the format.",
            ) from error
    return MappingProxyType(entries)


def _entries(text: str) -> dict[str, CatalogueEntry]:
    return {name: _entry(name, table) for name, table in tomllib.loads(text)["datasets"].items()}


def _entry(name: str, table: dict[str, Any]) -> CatalogueEntry:
    parts = {category: _remote(remote) for category, remote in table.pop("parts", {}).items()}
    return CatalogueEntry(
        name=name,
        kind=DatasetKind(table.pop("kind")),
        categories=tuple(table.pop("categories", parts)),
        whole=tuple(map(_remote, table.pop("whole", []))),
        parts=MappingProxyType(parts),
        **table,
    )


def _remote(table: dict[str, Any]) -> RemoteFile:
    return RemoteFile(**{**table, "urls": tuple(table["urls"])})
