"""Names of heatmap files: like their images, always inside the folder of the results."""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from typing import TYPE_CHECKING

from adctl.names import safe_name

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath

_LONGEST = 255
"""Bytes of the longest file name."""


class HeatmapNames:
    """Assignment of a file to each image; the same images in the same order get the same files.

    Args:
        folder: Folder of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._taken: set[str] = set()

    def path(self, key: str) -> Path:
        """Return the heatmap file of an image by its key, the name of the image within its dataset or folder."""
        if key not in self._paths:
            name = safe_name(key)
            # a.jpg and a.png may lie in the same folder.
            others = (
                name.with_name(_short(f"{name.name}{number}.png"))
                for number in itertools.chain([""], itertools.count(2))
            )
            chosen = name.with_name(_short(name.with_suffix(".png").name))
            while _same_file(chosen) in self._taken:
                chosen = next(others)
            self._taken.add(_same_file(chosen))
            self._paths[key] = self._folder / chosen
        return self._paths[key]


def _same_file(name: PurePosixPath) -> str:
    """Return a text that is equal for names of the same file on file systems that ignore case or Unicode forms."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _short(name: str) -> str:
    """Return a file name that file systems accept: the middle of a longer one is replaced by a digest."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    start = encoded[: _LONGEST - len(digest) - 5].decode(errors="ignore")
    return f"{start}-{digest}.png"
