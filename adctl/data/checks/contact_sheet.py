"""What was found, as one picture: each finding with its first cases side by side. Knows not how it was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adctl.data.checks.findings import Severity
from adctl.data.images import write_png
from adctl.data.multichannel import read_display_image
from adctl.errors import AdctlError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adctl.data.checks.check import CheckResult
    from adctl.data.checks.findings import Finding, FindingCase

MOST_CASES = 8
"""Shown of each finding; the report lists them all."""

_MOST_IMAGES = 4
_WIDTH, _MARGIN, _GAP = 1240, 16, 6
_THUMB = 132
_LINE = 17
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (110, 110, 110)
_COLOURS = {Severity.ERROR: (176, 32, 32), Severity.WARNING: (160, 100, 0)}
_TEXT = "DejaVuSans.ttf"
_BOLD = "DejaVuSans-Bold.ttf"


def write_contact_sheet(path: Path, checked: Sequence[CheckResult]) -> None:
    """Write the contact sheet as PNG.

    Raises:
        OutputError: It cannot be written.
    """
    blocks = [block for each in checked for block in _category(each)]
    sheet = Image.new("RGB", (_WIDTH, sum(block.height for block in blocks) + 2 * _MARGIN), _PAPER)
    top = _MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    write_png(path, np.asarray(sheet))


def _category(checked: CheckResult) -> Iterator[Image.Image]:
    errors, warnings = (checked.count(severity) for severity in (Severity.ERROR, Severity.WARNING))
    counted = f"{checked.train_images} to learn from, {sum(checked.test_images.values())} to test on"
    yield _lines(
        [
            (f"{checked.category}   {errors} errors, {warnings} warnings", _BOLD, 18, _INK),
            (f"{checked.path} ({counted})", _TEXT, 12, _FAINT),
        ]
    )
    for found in checked.findings:
        yield _heading(found)
        yield from _rows([_tile(case, checked.path) for case in found.cases[:MOST_CASES]])


def _heading(found: Finding) -> Image.Image:
    more = f", the first {MOST_CASES} shown" if len(found.cases) > MOST_CASES else ""
    return _lines(
        [
            (f"{found.title}: {len(found.cases)}{more}", _BOLD, 14, _COLOURS[found.severity]),
            (found.remedy, _TEXT, 12, _FAINT),
        ]
    )


def _rows(tiles: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """Tiles side by side, as many to a row as there is room for."""
    row: list[Image.Image] = []
    for tile in tiles:
        if row and _MARGIN + sum(each.width + _GAP for each in [*row, tile]) > _WIDTH:
            yield _row(row)
            row = []
        row.append(tile)
    if row:
        yield _row(row)


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (_WIDTH, max(tile.height for tile in tiles) + _GAP), _PAPER)
    left = _MARGIN
    for tile in tiles:
        picture.paste(tile, (left, 0))
        left += tile.width + _GAP
    return picture


def _tile(case: FindingCase, root: Path) -> Image.Image:
    """The images of one case, side by side, with their names and what was seen."""
    half = _MOST_IMAGES // 2
    shown = case.paths if len(case.paths) <= _MOST_IMAGES else (*case.paths[:half], *case.paths[-half:])
    picture = Image.new("RGB", (len(shown) * (_THUMB + 2), _THUMB + 3 * _LINE), _PAPER)
    for number, path in enumerate(shown):
        left = number * (_THUMB + 2)
        picture.paste(_thumbnail(path), (left, 0))
        _write(picture, (left, _THUMB + 2), _place(path, root), _THUMB, _FAINT, 11)
        _write(picture, (left, _THUMB + _LINE), path.name, _THUMB, _INK, 11)
    more = f" (and {len(case.paths) - len(shown)} more)" if len(case.paths) > len(shown) else ""
    _write(picture, (0, _THUMB + 2 * _LINE), case.detail + more, picture.width, _FAINT, 11)
    return picture


def _place(path: Path, root: Path) -> str:
    """The folder of a file, below the data set's where it lies there."""
    folder = path.parent
    return f"{folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name}/"


def _thumbnail(path: Path) -> Image.Image:
    frame = Image.new("RGB", (_THUMB, _THUMB), (228, 228, 224))
    try:
        image = Image.fromarray(read_display_image(path))
    except (AdctlError, OSError):
        ImageDraw.Draw(frame).text((8, 8), "no picture", fill=_FAINT, font=_font(_TEXT, 11))
        return frame
    image.thumbnail((_THUMB, _THUMB))
    frame.paste(image, ((_THUMB - image.width) // 2, (_THUMB - image.height) // 2))
    return frame


def _lines(lines: Sequence[tuple[str, str, int, tuple[int, int, int]]]) -> Image.Image:
    height = sum(size + 7 for _, _, size, _ in lines) + 10
    picture = Image.new("RGB", (_WIDTH, height), _PAPER)
    top = 6
    for text, font, size, colour in lines:
        _write(picture, (_MARGIN, top), text, _WIDTH - 2 * _MARGIN, colour, size, font)
        top += size + 7
    return picture


def _write(
    picture: Image.Image,
    place: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
    size: int,
    font: str = _TEXT,
) -> None:
    """Write a line, its middle left out where it is too long."""
    draw, face = ImageDraw.Draw(picture), _font(font, size)
    shown, kept = text, len(text)
    while draw.textlength(shown, font=face) > width and kept > 2:  # noqa: PLR2004 - one at each end
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    draw.text(place, shown, fill=colour, font=face)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib brings a font with more letters than Pillow's own."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), size)
