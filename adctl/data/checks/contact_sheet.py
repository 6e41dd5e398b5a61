"""Contact sheet of findings: one image that shows the first cases of each finding side by side."""

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

MAX_CASES = 8
"""Maximum number of cases shown for each finding."""

_MAX_IMAGES = 4
_WIDTH, _MARGIN, _GAP = 1240, 16, 6
_THUMB = 132
_LINE = 17
_BACKGROUND, _TEXT_COLOUR, _GREY = (250, 250, 248), (30, 30, 30), (110, 110, 110)
_COLOURS = {Severity.ERROR: (176, 32, 32), Severity.WARNING: (160, 100, 0)}
_TEXT = "DejaVuSans.ttf"
_BOLD = "DejaVuSans-Bold.ttf"


def write_contact_sheet(path: Path, checked: Sequence[CheckResult]) -> None:
    """Write the contact sheet as a PNG file.

    Raises:
        OutputError: The file cannot be written.
    """
    blocks = [block for result in checked for block in _category_blocks(result)]
    sheet = Image.new("RGB", (_WIDTH, sum(block.height for block in blocks) + 2 * _MARGIN), _BACKGROUND)
    top = _MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    write_png(path, np.asarray(sheet), mark=True)


def _category_blocks(checked: CheckResult) -> Iterator[Image.Image]:
    errors, warnings = (checked.count(severity) for severity in (Severity.ERROR, Severity.WARNING))
    counted = f"{checked.train_images} training images, {sum(checked.test_images.values())} test images"
    yield _lines(
        [
            (f"{checked.category}   {errors} errors, {warnings} warnings", _BOLD, 18, _TEXT_COLOUR),
            (f"{checked.path} ({counted})", _TEXT, 12, _GREY),
        ]
    )
    for found in checked.findings:
        yield _heading(found)
        yield from _rows([_tile(case, checked.path) for case in found.cases[:MAX_CASES]])


def _heading(found: Finding) -> Image.Image:
    more = f" (first {MAX_CASES} shown)" if len(found.cases) > MAX_CASES else ""
    return _lines(
        [
            (f"{found.title}: {len(found.cases)}{more}", _BOLD, 14, _COLOURS[found.severity]),
            (found.remedy, _TEXT, 12, _GREY),
        ]
    )


def _rows(tiles: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """Arrange tiles in rows that fit the width of the sheet."""
    row: list[Image.Image] = []
    for tile in tiles:
        if row and _MARGIN + sum(shown.width + _GAP for shown in [*row, tile]) > _WIDTH:
            yield _row(row)
            row = []
        row.append(tile)
    if row:
        yield _row(row)


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (_WIDTH, max(tile.height for tile in tiles) + _GAP), _BACKGROUND)
    left = _MARGIN
    for tile in tiles:
        canvas.paste(tile, (left, 0))
        left += tile.width + _GAP
    return canvas


def _tile(case: FindingCase, root: Path) -> Image.Image:
    """Draw the images of one case side by side, with their names and the detail of the case."""
    half = _MAX_IMAGES // 2
    shown = case.paths if len(case.paths) <= _MAX_IMAGES else (*case.paths[:half], *case.paths[-half:])
    canvas = Image.new("RGB", (len(shown) * (_THUMB + 2), _THUMB + 3 * _LINE), _BACKGROUND)
    for number, path in enumerate(shown):
        left = number * (_THUMB + 2)
        canvas.paste(_thumbnail(path), (left, 0))
        _draw_text(canvas, (left, _THUMB + 2), _shown_folder(path, root), _THUMB, _GREY, 11)
        _draw_text(canvas, (left, _THUMB + _LINE), path.name, _THUMB, _TEXT_COLOUR, 11)
    more = f" (and {len(case.paths) - len(shown)} more)" if len(case.paths) > len(shown) else ""
    _draw_text(canvas, (0, _THUMB + 2 * _LINE), case.detail + more, canvas.width, _GREY, 11)
    return canvas


def _shown_folder(path: Path, root: Path) -> str:
    """Return a file's folder, relative to the dataset's root if it lies below the root."""
    folder = path.parent
    return f"{folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name}/"


def _thumbnail(path: Path) -> Image.Image:
    frame = Image.new("RGB", (_THUMB, _THUMB), (228, 228, 224))
    try:
        image = Image.fromarray(read_display_image(path))
    except (AdctlError, OSError):
        ImageDraw.Draw(frame).text((8, 8), "unreadable", fill=_GREY, font=_font(_TEXT, 11))
        return frame
    image.thumbnail((_THUMB, _THUMB))
    frame.paste(image, ((_THUMB - image.width) // 2, (_THUMB - image.height) // 2))
    return frame


def _lines(lines: Sequence[tuple[str, str, int, tuple[int, int, int]]]) -> Image.Image:
    height = sum(size + 7 for _, _, size, _ in lines) + 10
    canvas = Image.new("RGB", (_WIDTH, height), _BACKGROUND)
    top = 6
    for text, font, size, colour in lines:
        _draw_text(canvas, (_MARGIN, top), text, _WIDTH - 2 * _MARGIN, colour, size, font)
        top += size + 7
    return canvas


def _draw_text(
    canvas: Image.Image,
    position: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
    size: int,
    font: str = _TEXT,
) -> None:
    """Draw a line of text; the middle of a text that is too long is replaced by an ellipsis."""
    draw, face = ImageDraw.Draw(canvas), _font(font, size)
    shown, kept = text, len(text)
    while draw.textlength(shown, font=face) > width and kept > 2:  # noqa: PLR2004 - one character at each end
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    draw.text(position, shown, fill=colour, font=face)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load one of Matplotlib's fonts, which have more characters than Pillow's default font."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), size)
