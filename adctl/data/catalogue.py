"""What `adctl fetch` knows: the data sets in `catalogue.toml`, with their licences, addresses and digests.

Knows nothing of downloading, nor of what is on this machine.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adctl.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """How a data set comes to be on this machine."""

    ARCHIVE = "archive"
    GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class Remote:
    """One file at one or more addresses.

    Attributes:
        urls: Where it lies, best first.
        sha256: Its digest, hexadecimal; None when nobody published it.
        md5: Another digest, where only that is published.
        size: Its length in bytes, or None.
    """

    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def filename(self) -> str:
        """The last part of its address."""
        return self.urls[0].partition("?")[0].rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set.

    Attributes:
        name: What it is called on the command line.
        title: What its authors call it.
        kind: Where it comes from.
        licence: Its short name.
        categories: In order of name.
        terms: What the licence asks for, in a sentence; empty when it asks for nothing special.
        restricted: Whether the licence forbids some uses, and so has to be accepted.
        homepage: Of its authors; empty for what adctl makes itself.
        citation: What to cite.
        whole: The archive of all categories, if there is one.
        parts: Archives of single categories, as far as there are any.
    """

    name: str
    title: str
    kind: Kind
    licence: str
    categories: tuple[str, ...]
    terms: str = ""
    restricted: bool = False
    homepage: str = ""
    citation: str = ""
    whole: Remote | None = None
    parts: Mapping[str, Remote] = field(default_factory=lambda: MappingProxyType({}))


@functools.cache
def catalogue() -> Mapping[str, Entry]:
    """All data sets by name."""
    text = importlib.resources.files("adctl.data").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: _entry(name, table) for name, table in tomllib.loads(text)["datasets"].items()})


def find_entry(name: str) -> Entry:
    """The data set of that name.

    Raises:
        UsageError: There is none.
    """
    known = catalogue()
    if name not in known:
        raise unknown_name("data set", name, known)
    return known[name]


def _entry(name: str, table: dict[str, Any]) -> Entry:
    parts = {category: _remote(remote) for category, remote in table.pop("parts", {}).items()}
    whole = table.pop("whole", None)
    return Entry(
        name=name,
        kind=Kind(table.pop("kind")),
        categories=tuple(sorted(table.pop("categories", parts))),
        whole=_remote(whole) if whole else None,
        parts=MappingProxyType(parts),
        **table,
    )


def _remote(table: dict[str, Any]) -> Remote:
    return Remote(**{**table, "urls": tuple(table["urls"])})
