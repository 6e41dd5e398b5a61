"""Opening of sources by their addresses."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.errors import UsageError
from adctl.sources.folder import FolderSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.scoring.watch_log import Stamp
    from adctl.sources.base import Source
    from adctl.sources.camera import CameraOptions

_NAMED = re.compile(r"([A-Za-z0-9_-]+)=(.+)")
_HIDDEN = re.compile(r"//[^/@]*@")


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME=ADDRESS`; the name is empty if there is none."""
    found = None if Path(text).exists() else _NAMED.fullmatch(text)
    return (found[1], found[2]) if found else ("", text)


def is_folder(text: str) -> bool:
    """Return whether an address is an existing folder."""
    return Path(split_name(text)[1]).is_dir()


def open_sources(
    texts: Sequence[str], options: CameraOptions, *, done: dict[str, Stamp], settle: float, without: Path
) -> list[Source]:
    """Return the sources of addresses; none connects yet.

    Args:
        texts: Addresses, or `NAME=ADDRESS`.
        options: Trigger and images of a part of each camera.
        done: Stamp of each file that was scored before, by the key of its part.
        settle: Seconds that a file must stay unchanged.
        without: Folder of the results.

    Raises:
        UsageError: An address is not valid, or two have one name.
        MissingExtraError: A package is not installed.
    """
    found: list[Source] = []
    for number, text in enumerate(texts, 1):
        name, address = split_name(text)
        name = name or (Path(address).name if Path(address).exists() else f"camera{number}")
        if name in {source.name for source in found}:
            raise UsageError(f"Two sources have the name {name}.", "Name them: --source NAME=ADDRESS")
        if Path(address).is_dir():
            found.append(FolderSource(name, address, done=done, settle=settle, lot=options.lot, without=without))
            continue
        place = "adctl.sources.genicam:Genicam" if address.startswith("genicam:") else "adctl.sources.video:Video"
        found.append(pkgutil.resolve_name(place)(name, address, options))
    return found


def shown(address: str) -> str:
    """Return an address without user and password."""
    return _HIDDEN.sub("//", address)
