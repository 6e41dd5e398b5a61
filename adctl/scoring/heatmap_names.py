"""Names of heatmap files: like their images, always inside the folder of the results."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from adctl.names import safe_name

if TYPE_CHECKING:
    from pathlib import Path


class HeatmapNames:
    """Assignment of a file to each image; the same images in the same order get the same files.

    Args:
        folder: Folder of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._taken: set[Path] = set()

    def path(self, key: str) -> Path:
        """Return the heatmap file of an image by its key, the name of the image within its dataset or folder."""
        if key not in self._paths:
            name = safe_name(key)
            # a.jpg and a.png may lie in the same folder.
            others = (
                name.with_name(f"{name.name}{number}.png") for number in itertools.chain([""], itertools.count(2))
            )
            path = self._folder / name.with_suffix(".png")
            while path in self._taken:
                path = self._folder / next(others)
            self._taken.add(path)
            self._paths[key] = path
        return self._paths[key]
