"""Report as Markdown for people, and as CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.names import csv_cell, printable
from adctl.reporting.content import DEFAULT_OPTIONS, ReportOptions, build_content
from adctl.reporting.named_metrics import named_metrics
from adctl.reporting.notable_images import notable_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.evaluation.evaluate import Evaluation
    from adctl.reporting.content import ReportContent
    from adctl.scoring.score_set import ScoreSet

SCHEMA = "adctl.report-file/1"
COLUMNS = ("figure", "part", "value", "low", "high", "reason")
_MARKUP = re.compile(r"([\\`*_\[\]<>|#])")


def write_markdown(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> None:
    """Write the report as Markdown, with the names of the most important images.

    Raises:
        OutputError: The file cannot be written.
    """
    content = build_content(scores, evaluation, options.title)
    parts = [f"# {_escaped(content.title)}", *map(_escaped, content.summary)]
    if content.notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in content.notes))
    for group, cards in content.cards.items():
        lines = [(card.name, card.value, card.interval, card.meaning) for card in cards]
        parts += [f"## {group}", _table(("Metric", "Value", f"{content.interval_level} interval".strip(), ""), lines)]
    for table in (*content.tables, *([content.distributions] if content.distributions else [])):
        parts += [f"## {table.title}", _table(table.headers, table.rows), _escaped(table.note)]
    if content.drift:
        parts += ["## Drift", *map(_escaped, content.drift)]
    images = [(image.title, image.row.key, image.facts) for image in notable_images(scores, options.findings)]
    if images:
        parts += ["## Most important images", _table(("Result", "Image", ""), images)]
    if content.errors:
        parts += ["## Images that could not be scored", _table(("Image", "Reason"), content.errors)]
    made = (*content.made, *content.versions.items())
    parts += ["## How this was made", _table(("", ""), made)] if made else []
    parts += ["## Reproduce these results", "\n".join(("```bash", *content.commands, "```"))]
    parts.append(f"Made by adctl {__version__}.")
    files.write_text(target, "\n\n".join(part for part in parts if part) + "\n")


def write_csv(scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS) -> None:
    """Write one line for each metric: of the whole set, or of the defect type or size in the column `part`.

    Raises:
        OutputError: The file cannot be written.
    """
    del scores, options
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for metric in named_metrics(evaluation).values():
        name, _, part = metric.name.partition(".")
        bounds = (metric.interval.low, metric.interval.high) if metric.interval else (None, None)
        numbers = [value if value is None else repr(value) for value in (metric.value, *bounds)]
        writer.writerow([name, csv_cell(part), *numbers, csv_cell(metric.reason)])
    files.write_text(target, stream.getvalue())


def write_document(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> None:
    """Write all content of the report as one JSON document.

    Raises:
        OutputError: The file cannot be written.
    """
    content = build_content(scores, evaluation, options.title)
    files.write_json(target, {"schema": SCHEMA, **_document(content, scores, evaluation)})


def _document(content: ReportContent, scores: ScoreSet, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "title": content.title,
        "started": content.started,
        "summary": content.summary,
        "notes": content.notes,
        "images": evaluation.images,
        "verdicts": evaluation.verdicts,
        "threshold": scores.calibration.threshold if scores.calibration else None,
        "warn_threshold": scores.calibration.warn_threshold if scores.calibration else None,
        "image": evaluation.image.to_dict(),
        "by_defect": {kind: metrics.to_dict() for kind, metrics in evaluation.by_defect.items()},
        "pixel": evaluation.pixel.to_dict() if evaluation.pixel else None,
        "pixel_resolution": evaluation.pixel_resolution or None,
        "curves": {name: curve.to_dict() for name, curve in evaluation.curves.items()},
        "distributions": {kind: asdict(distribution) for kind, distribution in evaluation.distributions.items()},
        "effect_size": asdict(evaluation.effect_size) if evaluation.effect_size else None,
        "intervals": asdict(evaluation.resampling) if evaluation.resampling else None,
        "drift": scores.manifest.get("drift"),
        "rows": [row.to_dict() for row in scores.rows],
        "made": dict(content.made),
        "settings": [dict(zip(("name", "value", "from"), line, strict=True)) for line in content.settings],
        "versions": content.versions,
        "commands": content.commands,
        "adctl": __version__,
    }


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headers, ["---"] * len(headers), *([_escaped(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _escaped(text: str) -> str:
    """Escape text so that Markdown shows it unchanged; file names may contain any character."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))
