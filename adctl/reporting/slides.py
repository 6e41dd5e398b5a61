"""A report as slides (PowerPoint): summary, charts, tables, and one page for each finding with its picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import MissingExtraError
from adctl.reporting.charts import charts
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.notable_images import NotableImage, notable_images
from adctl.reporting.pictures import as_jpeg, joined, strips

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.content import ReportContent, Table
    from adctl.reporting.pictures import Rgb
    from adctl.scoring.score_set import ScoreSet

_SIDE = 480
_WIDE, _HIGH, _MARGIN = 13.333, 7.5, 0.6
"""Of a slide, inches."""

_INK, _SOFT, _ACCENT, _BAD = 0x16202B, 0x55616D, 0x0B5CAD, 0xA3340B
_FIRST = 2.6
"""Column of a table, inches."""

_ROWS = 12
"""Of a table, on one slide."""


def write_slides(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> None:
    """Write the report as slides.

    Args:
        scores: The scored set.
        evaluation: Its metrics.
        target: The file.
        options: Title and number of images shown.

    Raises:
        MissingExtraError: The extra `report` is not installed.
        OutputError: It cannot be written.
        DataError: The maps are damaged.
    """
    try:
        from pptx import Presentation
    except ImportError:
        raise MissingExtraError("python-pptx", "report") from None
    content = build_content(scores, evaluation, options.title)
    deck = _Deck(Presentation())
    _opening(deck, content)
    drawn = charts(scores, evaluation)
    if drawn:
        deck.start("Scores and curves")
        width = (_WIDE - 2 * _MARGIN) / 3
        for place, png in enumerate(drawn):
            deck.picture(png, _MARGIN + place * width, 1.9, width - 0.1)
    for table in content.tables:
        for start in range(0, len(table.rows), _ROWS):
            deck.start(table.title)
            deck.table(table, table.rows[start : start + _ROWS])
    chosen = notable_images(scores, options.findings)
    shown = dict(strips(scores, [one.index for one in chosen], _SIDE))
    for number, one in enumerate(chosen, 1):
        _finding(deck, one, shown.get(one.index), f"Finding {number} of {len(chosen)}")
    _closing(deck, content)
    files.write_bytes(target, deck.saved())


def _opening(deck: _Deck, content: ReportContent) -> None:
    deck.start(content.title)
    deck.text(" ".join(content.summary), 1.35, 1.3, size=18)
    if content.drifted:
        deck.text(content.drift[0], 2.65, 0.5, size=14, colour=_BAD)
    for line, (group, cards) in enumerate(content.cards.items()):
        top = 3.1 + 1.35 * line
        deck.text(group, top, 0.35, size=12, colour=_SOFT)
        width = (_WIDE - 2 * _MARGIN) / 5
        for place, card in enumerate(cards):
            left = _MARGIN + place * width
            deck.text(card.value, top + 0.28, 0.5, size=24, left=left, width=width, bold=True)
            below = f"{card.name}  {card.interval}" if card.interval else card.name
            deck.text(below, top + 0.75, 0.4, size=11, left=left, width=width, colour=_SOFT)


def _finding(deck: _Deck, one: NotableImage, tiles: list[Rgb] | None, number: str) -> None:
    deck.start(one.title)
    deck.text(one.row.key, 1.3, 0.4, size=16)
    deck.text(one.facts, 1.7, 0.4, size=14, colour=_SOFT)
    if tiles is None:
        deck.text("The image can no longer be read where it was scored.", 3, 0.5, size=14)
    else:
        strip = joined(tiles)
        width = min(_WIDE - 2 * _MARGIN, 4.5 * strip.shape[1] / strip.shape[0])
        deck.picture(as_jpeg(strip), _MARGIN, 2.3, width)
        legend = "Original, anomaly map, overlay; dashed: ground truth, boxes: regions found."
        deck.text(legend if len(tiles) > 1 else "Original.", 6.85, 0.35, size=11, colour=_SOFT)
    deck.text(number, 6.85, 0.35, size=11, left=_WIDE - 2.6, width=2, colour=_SOFT)


def _closing(deck: _Deck, content: ReportContent) -> None:
    deck.start("How this was made")
    lines = [f"{name}: {value}" for name, value in content.made]
    deck.text("\n".join([*lines, "", *content.commands]), 1.35, 5.6, size=12)


class _Deck:
    """Slides with text where it is put; no template decides."""

    def __init__(self, presentation: Any) -> None:
        from pptx.util import Inches

        self._inches = Inches
        self._presentation = presentation
        presentation.slide_width, presentation.slide_height = Inches(_WIDE), Inches(_HIGH)
        self._title_only = presentation.slide_layouts[5]

    def start(self, title: str) -> None:
        """A new slide; its title stands in the title's place, where screen readers and outlines look for it."""
        self._slide = self._presentation.slides.add_slide(self._title_only)
        shape = self._slide.shapes.title
        shape.left, shape.top = self._inches(_MARGIN), self._inches(0.45)
        shape.width, shape.height = self._inches(_WIDE - 2 * _MARGIN), self._inches(0.8)
        self._fill(shape.text_frame, title, 30, _ACCENT, bold=True)

    def text(
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
        """Text in a box, inches."""
        box = self._slide.shapes.add_textbox(*map(self._inches, (left, top, width, height)))
        self._fill(box.text_frame, text, size, colour, bold=bold)

    def picture(self, data: bytes, left: float, top: float, width: float) -> None:
        """A picture of that width, inches."""
        self._slide.shapes.add_picture(io.BytesIO(data), *map(self._inches, (left, top, width)))

    def table(self, table: Table, rows: Sequence[Sequence[str]]) -> None:
        """A table over the whole width, its note below."""
        place = map(self._inches, (_MARGIN, 1.4, _WIDE - 2 * _MARGIN, 0.38 * (len(rows) + 1)))
        made = self._slide.shapes.add_table(len(rows) + 1, len(table.headers), *place).table
        made.columns[0].width = self._inches(_FIRST)
        for column in list(made.columns)[1:]:
            column.width = self._inches((_WIDE - 2 * _MARGIN - _FIRST) / (len(table.headers) - 1))
        for line, cells in enumerate([table.headers, *rows]):
            for column, cell in enumerate(cells):
                self._fill(made.cell(line, column).text_frame, cell, 12, None, bold=line == 0 or column == 0)
        self.text(table.note, 6.85, 0.35, size=11, colour=_SOFT)

    def saved(self) -> bytes:
        """The file."""
        stream = io.BytesIO()
        self._presentation.save(stream)
        return stream.getvalue()

    def _fill(self, frame: Any, text: str, size: float, colour: int | None, *, bold: bool) -> None:
        from pptx.dml.color import RGBColor
        from pptx.enum.text import PP_ALIGN
        from pptx.util import Pt

        frame.word_wrap = True
        # Control characters, as file names may hold, have no place in the format.
        frame.text = "".join(
            char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
        )
        for paragraph in frame.paragraphs:
            paragraph.alignment = PP_ALIGN.LEFT
            paragraph.font.size, paragraph.font.bold = Pt(size), bold
            if colour is not None:
                paragraph.font.color.rgb = RGBColor.from_string(f"{colour:06X}")
