"""A scored set as one picture: each image beside its overlay, under its verdict; the worst mistakes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import write_png
from adctl.errors import DataError
from adctl.reporting.notable_images import worst_first
from adctl.reporting.pictures import joined, strips
from adctl.scoring.heatmaps import caption, colour_bar

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.reporting.pictures import Rgb
    from adctl.scoring.score_set import ScoreSet

MOST = 96
"""Images on a sheet."""

_COLUMNS, _SIDE, _GAP, _PAPER = 4, 160, 10, 250


def write_contact_sheet(path: Path, scores: ScoreSet) -> int:
    """Write the sheet as PNG.

    Args:
        path: The file.
        scores: The scored set.

    Returns:
        How many images are on it: no more than `MOST`, and none that can no longer be read.

    Raises:
        DataError: None can be read, or the maps are damaged.
        OutputError: It cannot be written.
    """
    order = worst_first(scores)[:MOST]
    made = {index: _cell(scores, index, tiles) for index, tiles in strips(scores, order, _SIDE)}
    cells = [made[index] for index in order if index in made]
    if not cells:
        raise DataError("No contact sheet: none of the images can be read where they were scored.", "Score again.")
    height, width = (max(cell.shape[axis] for cell in cells) + _GAP for axis in (0, 1))
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    body = np.vstack(
        [
            np.hstack([_padded(cell, height, width) for cell in line] + _blank(line, cells, height, width))
            for line in lines
        ]
    )
    write_png(path, _framed(body))
    return len(cells)


def _cell(scores: ScoreSet, index: int, tiles: list[Rgb]) -> Rgb:
    picture = joined([tiles[0], tiles[-1]] if len(tiles) > 1 else tiles)
    width = max(picture.shape[1], 2 * _SIDE)
    return np.vstack([caption(scores.rows[index], width), _padded(picture, picture.shape[0], width)])


def _blank(line: list[Rgb], cells: list[Rgb], height: int, width: int) -> list[Rgb]:
    """What fills up the last line of several."""
    missing = min(_COLUMNS, len(cells)) - len(line)
    return [np.full((height, missing * width, 3), _PAPER, np.uint8)] if missing else []


def _padded(picture: Rgb, height: int, width: int) -> Rgb:
    padded = np.full((height, width, 3), _PAPER, np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return padded


def _framed(body: Rgb) -> Rgb:
    """With a margin, and at the right the one colour scale of all pictures."""
    bar = _padded(colour_bar(_SIDE), body.shape[0], colour_bar(1).shape[1])
    framed = cv2.copyMakeBorder(np.hstack([body, bar]), _GAP, 0, _GAP, _GAP, cv2.BORDER_CONSTANT, value=(_PAPER,) * 3)
    return np.asarray(framed, np.uint8)
