"""Report as PDF, written without a browser: summary, metrics, charts, tables and the most important images."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape  # only escapes text, parses nothing

from adctl import __version__, files
from adctl.errors import MissingExtraError
from adctl.reporting.charts import charts
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.notable_images import notable_images
from adctl.reporting.pictures import LEGEND, as_jpeg, colour_scale, joined, strips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.content import ReportContent
    from adctl.scoring.score_set import ScoreSet

_SIDE = 280
_WIDTH = 178.0
"""Width of the text in mm: A4 with margins of 16 mm."""

_MAX_HEIGHT = 62.0
"""Largest height of a picture in mm, so that three images with their text fit on a page."""

_INK, _SOFT, _LINE, _ACCENT, _BAD = "#16202b", "#55616d", "#d8dfe6", "#0b5cad", "#a3340b"


def write_pdf(scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS) -> None:
    """Write the report as PDF.

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
        from reportlab.lib.pagesizes import A4
        from reportlab.lib.units import mm
        from reportlab.platypus import SimpleDocTemplate
    except ImportError:
        raise MissingExtraError("reportlab", "report") from None
    content = build_content(scores, evaluation, options.title)
    stream = io.BytesIO()
    document = SimpleDocTemplate(
        stream,
        pagesize=A4,
        leftMargin=16 * mm,
        rightMargin=16 * mm,
        topMargin=16 * mm,
        bottomMargin=16 * mm,
        title=content.title,
        creator=f"adctl {__version__}",
    )
    story = [*_opening(content), *_charts(scores, evaluation), *_tables(content)]
    story += [*_findings(scores, options.findings), *_closing(content)]
    document.build(story, onFirstPage=_page_number, onLaterPages=_page_number)
    files.write_bytes(target, stream.getvalue())


@lru_cache
def _fonts() -> tuple[str, str]:
    """Register the regular and bold fonts of matplotlib, which have Latin, Greek and Cyrillic letters."""
    import matplotlib as mpl
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    pdfmetrics.registerFont(TTFont("adctl", folder / "DejaVuSans.ttf"))
    pdfmetrics.registerFont(TTFont("adctl-bold", folder / "DejaVuSans-Bold.ttf"))
    return "adctl", "adctl-bold"


def _paragraph(text: str, size: float = 9.5, colour: str = _INK, *, bold: bool = False, before: float = 0) -> Any:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        "plain",
        fontName=_fonts()[bold],
        fontSize=size,
        leading=size * 1.4,
        textColor=colour,
        spaceBefore=before,
        spaceAfter=size * 0.4,
        splitLongWords=True,
        keepWithNext=bold,
    )
    return Paragraph(escape(text), style)


def _heading(text: str) -> Any:
    return _paragraph(text, 13, bold=True, before=12)


def _opening(content: ReportContent) -> list[Any]:
    dated = f"Anomaly detection report {(content.started or '')[:10]}".strip()
    parts = [_paragraph(dated, 9, _ACCENT, bold=True), _paragraph(content.title, 21, bold=True)]
    parts += [_paragraph(" ".join(content.summary), 11)]
    parts += [_paragraph("Note: " + note, 9, _BAD) for note in content.notes]
    for group, cards in content.cards.items():
        lines = [(card.name, card.value, card.interval, card.meaning) for card in cards]
        interval = f"{content.interval_level} interval" if content.interval_level else ""
        parts += [_heading(group), _table(("Metric", "Value", interval, ""), lines, (38, 18, 34, 88))]
    return parts


def _charts(scores: ScoreSet, evaluation: Evaluation) -> list[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import Image, KeepTogether, Table

    width = _WIDTH / 2 - 2
    images = [Image(io.BytesIO(png), width * mm, width * 3.4 / 4.6 * mm) for png in charts(scores, evaluation)]
    pairs = [[*images[start : start + 2], ""][:2] for start in range(0, len(images), 2)]
    tables = [Table([pair], hAlign="LEFT") for pair in pairs]
    return [KeepTogether([_heading("Scores and curves"), tables[0]]), *tables[1:]] if tables else []


def _tables(content: ReportContent) -> list[Any]:
    parts: list[Any] = []
    for table in (*content.tables, *([content.distributions] if content.distributions else [])):
        first = 40.0
        rest = (_WIDTH - first) / (len(table.headers) - 1)
        widths = (first, *[rest] * (len(table.headers) - 1))
        parts += [_heading(table.title), _table(table.headers, table.rows, widths)]
        parts += [_paragraph(table.note, 8, _SOFT)] if table.note else []
    if content.drift:
        parts.append(_heading("Drift"))
        parts += [
            _paragraph(text, colour=_BAD if content.drifted and not n else _INK) for n, text in enumerate(content.drift)
        ]
    return parts


def _findings(scores: ScoreSet, limit: int) -> list[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import Image, KeepTogether

    images = notable_images(scores, limit)
    scale = colour_scale(scores)
    tiles_of = dict(strips(scores, [image.index for image in images], _SIDE, scale))
    parts: list[Any] = []
    for number, image in enumerate(images):
        title = _paragraph(f"{image.title}: {image.row.key}", 10, bold=True, before=6)
        block = [title, _paragraph(image.facts, 9, _SOFT)]
        if number == 0:  # in one block with the first image, so that it does not end a page
            block = [_heading("Most important images"), _paragraph(LEGEND, 8, _SOFT), *block]
        if image.index in tiles_of:
            strip = joined(tiles_of[image.index], scale)
            factor = min(_WIDTH / strip.shape[1], _MAX_HEIGHT / strip.shape[0])
            size = (strip.shape[1] * factor * mm, strip.shape[0] * factor * mm)
            block.append(Image(io.BytesIO(as_jpeg(strip)), *size, hAlign="LEFT"))
        parts.append(KeepTogether(block))
    return parts


def _closing(content: ReportContent) -> list[Any]:
    parts: list[Any] = []
    if content.errors:
        parts += [_heading("Images that could not be scored"), _table(("Image", "Reason"), content.errors, (70, 108))]
    named = [(name, f"{value} ({origin})" if origin else value) for name, value, origin in content.settings]
    sections = {"How this was made": content.made, "Settings": named, "Versions": tuple(content.versions.items())}
    for title, lines in sections.items():
        parts += [_heading(title), _table(("", ""), lines, (38, 140))] if lines else []
    return [*parts, _heading("Reproduce these results"), *(_paragraph(line, 8.5) for line in content.commands)]


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]], widths: Sequence[float]) -> Any:
    from reportlab.lib.units import mm
    from reportlab.platypus import Table

    head = [[_paragraph(text, 8, _SOFT, bold=True) for text in headers]] if any(headers) else []
    rows = [[_paragraph(cell, 8.5, bold=not n) for n, cell in enumerate(line)] for line in lines]
    style = [("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    style += [("TOPPADDING", (0, 0), (-1, -1), 2), ("BOTTOMPADDING", (0, 0), (-1, -1), 0)]
    return Table([*head, *rows], [width * mm for width in widths], repeatRows=len(head), style=style, hAlign="LEFT")


def _page_number(canvas: Any, document: Any) -> None:
    canvas.setFont(_fonts()[0], 8)
    canvas.setFillColor(_SOFT)
    canvas.drawRightString(document.pagesize[0] - document.rightMargin, 24, str(document.page))
