"""Contact sheet of a scored set: one picture with each image, its heatmap and its verdict, the worst mistakes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import write_png
from adctl.errors import DataError
from adctl.reporting.notable_images import worst_first
from adctl.reporting.pictures import colour_scale, joined, strips
from adctl.scoring.colour_bar import colour_bar
from adctl.scoring.heatmaps import caption

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.reporting.pictures import Rgb
    from adctl.scoring.colour_bar import ColourScale
    from adctl.scoring.score_set import ScoreSet

MAX_IMAGES = 96
"""Largest number of images on a sheet."""

_BAR_HEIGHT = 220
_COLUMNS, _SIDE, _GAP, _BACKGROUND = 3, 160, 10, 255


def write_contact_sheet(path: Path, scores: ScoreSet) -> int:
    """Write a contact sheet as a PNG file.

    Args:
        path: File to write.
        scores: Scored set.

    Returns:
        Number of images on the sheet: at most `MAX_IMAGES`, without images that can no longer be read.

    Raises:
        DataError: No image can be read, or the anomaly maps are damaged.
        OutputError: The file cannot be written.
    """
    scale = colour_scale(scores)
    order = worst_first(scores)[:MAX_IMAGES]
    cell_of = {index: _cell(scores, index, tiles) for index, tiles in strips(scores, order, _SIDE, scale)}
    cells = [cell_of[index] for index in order if index in cell_of]
    if not cells:
        raise DataError(
            "There is no contact sheet, because none of the scored images can be read. Were they moved or deleted?",
            "Score the images again.",
        )
    height, width = (max(cell.shape[axis] for cell in cells) + _GAP for axis in (0, 1))
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    body = np.vstack(
        [
            np.hstack([_padded(cell, height, width) for cell in line] + _blank(line, cells, height, width))
            for line in lines
        ]
    )
    write_png(path, _add_colour_bar(body, scale), mark=True)
    return len(cells)


def _cell(scores: ScoreSet, index: int, tiles: list[Rgb]) -> Rgb:
    picture = joined(tiles)
    width = max(picture.shape[1], 3 * _SIDE)
    return np.vstack([caption(scores.rows[index], width), _padded(picture, picture.shape[0], width)])


def _blank(line: list[Rgb], cells: list[Rgb], height: int, width: int) -> list[Rgb]:
    """Return the blank part of an incomplete last line."""
    missing = min(_COLUMNS, len(cells)) - len(line)
    return [np.full((height, missing * width, 3), _BACKGROUND, np.uint8)] if missing else []


def _padded(picture: Rgb, height: int, width: int) -> Rgb:
    padded = np.full((height, width, 3), _BACKGROUND, np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return padded


def _add_colour_bar(body: Rgb, scale: ColourScale) -> Rgb:
    """Add a margin, and at the right the colour bar that applies to all images."""
    bar = colour_bar(_BAR_HEIGHT, scale)
    height = max(len(body), len(bar))
    parts = [_padded(part, height, part.shape[1]) for part in (body, bar)]
    framed = cv2.copyMakeBorder(np.hstack(parts), _GAP, 0, _GAP, _GAP, cv2.BORDER_CONSTANT, value=(_BACKGROUND,) * 3)
    return np.asarray(framed, np.uint8)
