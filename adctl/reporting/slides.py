"""Report as PowerPoint slides: summary, charts, tables, and one slide for each of the most important images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import MissingExtraError
from adctl.reporting.charts import charts
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.notable_images import NotableImage, notable_images
from adctl.reporting.pictures import LEGEND, as_jpeg, colour_scale, joined, strips

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.content import ReportContent, Table
    from adctl.reporting.pictures import Rgb
    from adctl.scoring.score_set import ScoreSet

_SIDE = 480
_WIDE, _HIGH, _MARGIN = 13.333, 7.5, 0.6
"""Width, height and margin of a slide in inches."""

_INK, _SOFT, _ACCENT, _BAD = 0x16202B, 0x55616D, 0x0B5CAD, 0xA3340B
_FIRST_COLUMN = 2.6
"""Width of a table's first column in inches."""

_MAX_ROWS = 12
"""Largest number of table rows on a slide."""


def write_slides(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> None:
    """Write the report as slides.

    Args:
        scores: Scored set.
        evaluation: Metrics of the scored set.
        target: File to write.
        options: Title and number of images.

    Raises:
        MissingExtraError: The extra `report` is not installed.
        OutputError: The file cannot be written.
        DataError: The anomaly maps are damaged.
    """
    try:
        from pptx import Presentation
    except ImportError:
        raise MissingExtraError("python-pptx", "report") from None
    content = build_content(scores, evaluation, options.title)
    deck = _Deck(Presentation())
    _opening(deck, content)
    images = charts(scores, evaluation)
    if images:
        deck.add_slide("Scores and curves")
        width = (_WIDE - 2 * _MARGIN) / 3
        for column, png in enumerate(images):
            deck.add_picture(png, _MARGIN + column * width, 1.9, width - 0.1)
    for table in content.tables:
        for start in range(0, len(table.rows), _MAX_ROWS):
            deck.add_slide(table.title)
            deck.add_table(table, table.rows[start : start + _MAX_ROWS])
    notable = notable_images(scores, options.findings)
    scale = colour_scale(scores)
    tiles_of = dict(strips(scores, [image.index for image in notable], _SIDE, scale))
    for number, image in enumerate(notable, 1):
        tiles = tiles_of.get(image.index)
        _image_slide(deck, image, joined(tiles, scale) if tiles else None, f"Image {number} of {len(notable)}")
    _closing(deck, content)
    files.write_bytes(target, deck.to_bytes())


def _opening(deck: _Deck, content: ReportContent) -> None:
    deck.add_slide(content.title)
    deck.add_text(" ".join(content.summary), 1.35, 1.3, size=18)
    if content.drifted:
        deck.add_text(content.drift[0], 2.65, 0.5, size=14, colour=_BAD)
    for line, (group, cards) in enumerate(content.cards.items()):
        top = 3.1 + 1.35 * line
        deck.add_text(group, top, 0.35, size=12, colour=_SOFT)
        width = (_WIDE - 2 * _MARGIN) / 5
        for column, card in enumerate(cards):
            left = _MARGIN + column * width
            deck.add_text(card.value, top + 0.28, 0.5, size=24, left=left, width=width, bold=True)
            below = f"{card.name}  {card.interval}" if card.interval else card.name
            deck.add_text(below, top + 0.75, 0.4, size=11, left=left, width=width, colour=_SOFT)


def _image_slide(deck: _Deck, image: NotableImage, strip: Rgb | None, number: str) -> None:
    deck.add_slide(image.title)
    deck.add_text(image.row.key, 1.3, 0.4, size=16)
    deck.add_text(image.facts, 1.7, 0.4, size=14, colour=_SOFT)
    if strip is None:
        deck.add_text("The image can no longer be read; perhaps it was moved or deleted.", 3, 0.5, size=14)
    else:
        width = min(_WIDE - 2 * _MARGIN, 4.5 * strip.shape[1] / strip.shape[0])
        deck.add_picture(as_jpeg(strip), _MARGIN, 2.3, width)
        deck.add_text(LEGEND, 6.85, 0.35, size=11, colour=_SOFT)
    deck.add_text(number, 6.85, 0.35, size=11, left=_WIDE - 2.6, width=2, colour=_SOFT)


def _closing(deck: _Deck, content: ReportContent) -> None:
    deck.add_slide("How this was made")
    lines = [f"{name}: {value}" for name, value in content.made]
    deck.add_text("\n".join([*lines, "", *content.commands]), 1.35, 5.6, size=12)


class _Deck:
    """Presentation with slides whose text, pictures and tables are placed by position, not by a template."""

    def __init__(self, presentation: Any) -> None:
        from pptx.util import Inches

        self._inches = Inches
        self._presentation = presentation
        presentation.slide_width, presentation.slide_height = Inches(_WIDE), Inches(_HIGH)
        self._title_only = presentation.slide_layouts[5]

    def add_slide(self, title: str) -> None:
        """Add a slide; its title uses the title placeholder, so that screen readers and outlines find it."""
        self._slide = self._presentation.slides.add_slide(self._title_only)
        shape = self._slide.shapes.title
        shape.left, shape.top = self._inches(_MARGIN), self._inches(0.45)
        shape.width, shape.height = self._inches(_WIDE - 2 * _MARGIN), self._inches(0.8)
        self._fill(shape.text_frame, title, 30, _ACCENT, bold=True)

    def add_text(
        self,
        text: str,
        top: float,
        height: float,
        *,
        size: float,
        left: float = _MARGIN,
        width: float = _WIDE - 2 * _MARGIN,
        colour: int = _INK,
        bold: bool = False,
    ) -> None:
        """Add text in a box; positions and sizes are in inches, the font size in points."""
        box = self._slide.shapes.add_textbox(*map(self._inches, (left, top, width, height)))
        self._fill(box.text_frame, text, size, colour, bold=bold)

    def add_picture(self, data: bytes, left: float, top: float, width: float) -> None:
        """Add a picture; position and width are in inches."""
        self._slide.shapes.add_picture(io.BytesIO(data), *map(self._inches, (left, top, width)))

    def add_table(self, table: Table, rows: Sequence[Sequence[str]]) -> None:
        """Add a table over the whole width, with its note below."""
        position = map(self._inches, (_MARGIN, 1.4, _WIDE - 2 * _MARGIN, 0.38 * (len(rows) + 1)))
        grid = self._slide.shapes.add_table(len(rows) + 1, len(table.headers), *position).table
        grid.columns[0].width = self._inches(_FIRST_COLUMN)
        for column in list(grid.columns)[1:]:
            column.width = self._inches((_WIDE - 2 * _MARGIN - _FIRST_COLUMN) / (len(table.headers) - 1))
        for line, cells in enumerate([table.headers, *rows]):
            for column, cell in enumerate(cells):
                self._fill(grid.cell(line, column).text_frame, cell, 12, None, bold=line == 0 or column == 0)
        self.add_text(table.note, 6.85, 0.35, size=11, colour=_SOFT)

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        stream = io.BytesIO()
        self._presentation.core_properties.author = "adctl"
        self._presentation.save(stream)
        return stream.getvalue()

    def _fill(self, frame: Any, text: str, size: float, colour: int | None, *, bold: bool) -> None:
        from pptx.dml.color import RGBColor
        from pptx.enum.text import PP_ALIGN
        from pptx.util import Pt

        frame.word_wrap = True
        # File names may contain control characters, which the format does not allow.
        frame.text = "".join(
            char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
        )
        for paragraph in frame.paragraphs:
            paragraph.alignment = PP_ALIGN.LEFT
            paragraph.font.size, paragraph.font.bold = Pt(size), bold
            if colour is not None:
                paragraph.font.color.rgb = RGBColor.from_string(f"{colour:06X}")
