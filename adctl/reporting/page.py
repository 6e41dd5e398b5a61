"""Self-contained HTML page of a scored set: it needs no network and opens from any disk.

The page contains the rows as data, and computes the verdicts again when the reader moves the threshold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import __version__, files
from adctl.records import GOOD
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.explanations import explainer
from adctl.reporting.html_assets import plotly, read_assets, template, to_script_json
from adctl.reporting.notable_images import worst_first
from adctl.reporting.pictures import colour_scale, pictures
from adctl.scoring.colour_bar import colourise

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.explanations import Explainer
    from adctl.scoring.colour_bar import ColourScale
    from adctl.scoring.score_set import ScoreSet


def write_report(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> Path:
    """Write the report page.

    Args:
        scores: Scored set.
        evaluation: Metrics of the scored set.
        target: HTML file to write.
        options: Title, number of pictures, and whether to compute reconstructions with the model file.

    Returns:
        Path of the HTML file.

    Raises:
        OutputError: The page cannot be written.
        DataError: The anomaly maps are damaged.
    """
    explain, explanation_notes = explainer(scores) if options.reconstructions else (None, ())
    scale = colour_scale(scores)
    data = _page_data(scores, evaluation, options.gallery_limit, scale, explain)
    content = build_content(scores, evaluation, options.title)
    if explain is not None:
        content = replace(content, tables=(*content.tables, *explain.tables()))
    page = template("detector.html").render(
        title=content.title,
        summary=" ".join(content.summary),
        content=content,
        notes=[*content.notes, *_picture_notes(data["rows"], options.gallery_limit), *explanation_notes],
        evaluation=evaluation,
        scale=_scale_bar(scale, shown=scores.has_maps),
        explained=explain.titles if explain is not None else (),
        data=to_script_json(data),
        plotly=plotly(),
        style=read_assets("page.css"),
        script=read_assets("common.js", "detector.js"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def _page_data(
    scores: ScoreSet,
    evaluation: Evaluation,
    gallery_limit: int,
    scale: ColourScale,
    explain: Explainer | None,
) -> dict[str, Any]:
    shown = dict(pictures(scores, worst_first(scores)[:gallery_limit], scale, explain))
    rows = [
        {
            "key": row.key,
            "label": row.label,
            "score": row.score,
            "error": row.error,
            "boxes": len(row.boxes),
            "p": row.p_value,
            "kind": row.kind,
            "probability": scores.defect_probability(row),
            "picture": shown.get(index),
        }
        for index, row in enumerate(scores.rows)
    ]
    return {
        "rows": rows,
        "good": GOOD,
        "named": "classifier" in scores.manifest,
        "threshold": scores.calibration.threshold if scores.calibration else None,
        "warn": scores.calibration.warn_threshold if scores.calibration else None,
        "curves": {name: curve.to_dict() for name, curve in evaluation.curves.items()},
    }


def _scale_bar(scale: ColourScale, *, shown: bool) -> dict[str, Any]:
    """Return what the page needs to draw the colour bar: colours, and position in per cent and text of the numbers."""
    ramp = colourise(np.linspace(0, 1, 17, dtype=np.float32)[None])[0]
    ticks = [{"at": round(100 * at, 2), "text": text} for at, text in scale.ticks()]
    ends = f"from {scale.low:.4g} to {scale.high:.4g}"
    named = f"; pixel threshold {scale.threshold_text}" if scale.threshold is not None else ""
    return {
        "shown": shown,
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in ramp],
        "ticks": ticks,
        "threshold": {"at": round(100 * scale.threshold_at, 2), "text": scale.threshold_text} if named else None,
        "description": f"Colours of the anomaly map {ends}{named}",
    }


def _picture_notes(rows: list[dict[str, Any]], gallery_limit: int) -> list[str]:
    scored = [row for row in rows if row["score"] is not None]
    notes = []
    if len(scored) > gallery_limit:
        notes.append(
            f"The gallery shows pictures of {gallery_limit} of {len(scored)} images, the worst mistakes first."
        )
    absent = min(len(scored), gallery_limit) - sum(row["picture"] is not None for row in scored)
    if absent:
        notes.append(
            f"Images without a picture: {absent}. They can no longer be read; perhaps they were moved or deleted."
        )
    return notes
