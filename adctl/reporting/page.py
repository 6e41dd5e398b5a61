"""One self-contained HTML page of a scored set: nothing is loaded from anywhere, so it opens from any disk.

The rows travel as data; the page judges them again when its threshold is moved. Knows evaluations and pictures,
computes no metric of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.records import GOOD
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.html_assets import embedded, plotly, template, text_of
from adctl.reporting.notable_images import worst_first
from adctl.reporting.pictures import pictures
from adctl.reporting.reconstructions import rebuilder

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.pictures import Rebuilder
    from adctl.scoring.score_set import ScoreSet


def write_report(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> Path:
    """Write the page.

    Args:
        scores: The scored set.
        evaluation: Its metrics.
        target: The HTML file.
        options: Title, number of pictures, and whether to compute reconstructions from the model file.

    Returns:
        The HTML file.

    Raises:
        OutputError: It cannot be written.
        DataError: The maps are damaged.
    """
    rebuild, rebuilding_notes = rebuilder(scores) if options.reconstructions else (None, ())
    data = _page_data(scores, evaluation, options.gallery_limit, rebuild)
    content = build_content(scores, evaluation, options.title)
    page = template("template.html").render(
        content=content,
        notes=[*content.notes, *_picture_notes(data["rows"], options.gallery_limit), *rebuilding_notes],
        evaluation=evaluation,
        rebuilt=rebuild is not None,
        data=embedded(data),
        plotly=plotly(),
        style=text_of("page.css"),
        script=text_of("page.js"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def _page_data(
    scores: ScoreSet, evaluation: Evaluation, gallery_limit: int, rebuild: Rebuilder | None
) -> dict[str, Any]:
    shown = dict(pictures(scores, worst_first(scores)[:gallery_limit], rebuild))
    rows = [
        {
            "key": row.key,
            "label": row.label,
            "score": row.score,
            "error": row.error,
            "boxes": len(row.boxes),
            "p": row.p_value,
            "probability": row.probability,
            "picture": shown.get(index),
        }
        for index, row in enumerate(scores.rows)
    ]
    return {
        "rows": rows,
        "good": GOOD,
        "threshold": scores.calibration.threshold if scores.calibration else None,
        "warn": scores.calibration.warn_threshold if scores.calibration else None,
        "curves": {name: curve.to_dict() for name, curve in evaluation.curves.items()},
    }


def _picture_notes(rows: list[dict[str, Any]], gallery_limit: int) -> list[str]:
    scored = [row for row in rows if row["score"] is not None]
    notes = []
    if len(scored) > gallery_limit:
        notes.append(f"The gallery has pictures of {gallery_limit} of {len(scored)} images, the worst mistakes first.")
    absent = min(len(scored), gallery_limit) - sum(row["picture"] is not None for row in scored)
    if absent:
        notes.append(f"{absent} images can no longer be read where they were scored, and have no picture.")
    return notes
