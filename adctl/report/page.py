"""One self-contained HTML page of a scored set: nothing is loaded from anywhere, so it opens from any disk.

The rows travel as data; the page judges them again when its threshold is moved. Knows evaluations and pictures,
computes no metric of its own.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from adctl import __version__, files
from adctl.records import GOOD
from adctl.report.evaluate import Evaluation, outcome
from adctl.report.pictures import pictures

if TYPE_CHECKING:
    from adctl.scores import ScoreSet

_GALLERY = 1000
_HERE = Path(__file__).parent


def write_report(
    scores: ScoreSet, evaluation: Evaluation, target: Path, *, title: str | None = None, gallery_limit: int = _GALLERY
) -> Path:
    """Write the page.

    Args:
        scores: The scored set.
        evaluation: Its metrics.
        target: The HTML file.
        title: Its heading; the data set and detector unless given.
        gallery_limit: The most images that get a picture; the worst mistakes go first.

    Returns:
        The HTML file.

    Raises:
        OutputError: It cannot be written.
        DataError: The maps are damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    data = _page_data(scores, evaluation, gallery_limit)
    page = environment.get_template("template.html").render(
        title=title or _title(scores),
        started=scores.manifest.get("started"),
        evaluation=evaluation,
        summary=_summary(scores, evaluation),
        notes=[*evaluation.notes, *_picture_notes(data["rows"], gallery_limit)],
        cards=_cards(evaluation),
        errors=[(row.key, row.error) for row in scores.rows if row.error is not None],
        made=_how_made(scores),
        settings=_settings(scores),
        versions={name: value for name, value in _table(scores, "environment").items() if value},
        reproduce=_commands(scores),
        data=_embedded(data),
        plotly=_plotly(),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def _page_data(scores: ScoreSet, evaluation: Evaluation, gallery_limit: int) -> dict[str, Any]:
    shown = dict(pictures(scores, _worst_first(scores)[:gallery_limit]))
    rows = [
        {
            "key": row.key,
            "label": row.label,
            "score": row.score,
            "error": row.error,
            "boxes": len(row.boxes),
            "picture": shown.get(index),
        }
        for index, row in enumerate(scores.rows)
    ]
    return {
        "rows": rows,
        "good": GOOD,
        "threshold": scores.calibration.threshold if scores.calibration else None,
        "curves": {name: curve.to_dict() for name, curve in evaluation.curves.items()},
    }


def _worst_first(scores: ScoreSet) -> list[int]:
    """Scored rows: defects missed by the most, then the loudest false alarms, then the rest, strangest first."""
    ranks = {"missed": 0, "false alarm": 1}

    def order(index: int) -> tuple[int, float]:
        row = scores.rows[index]
        kind, score = outcome(row), row.score or 0.0
        return ranks.get(kind, 2), score if kind == "missed" else -score

    return sorted((index for index, row in enumerate(scores.rows) if row.score is not None), key=order)


def _picture_notes(rows: list[dict[str, Any]], gallery_limit: int) -> list[str]:
    scored = [row for row in rows if row["score"] is not None]
    notes = []
    if len(scored) > gallery_limit:
        notes.append(f"The gallery has pictures of {gallery_limit} of {len(scored)} images, the worst mistakes first.")
    absent = min(len(scored), gallery_limit) - sum(row["picture"] is not None for row in scored)
    if absent:
        notes.append(f"{absent} images can no longer be read where they were scored, and have no picture.")
    return notes


def _title(scores: ScoreSet) -> str:
    dataset, model = _table(scores, "dataset"), _table(scores, "model")
    names = (dataset.get("category") or dataset.get("name"), model.get("arch"))
    return " · ".join(str(name) for name in names if name) or scores.folder.name


def _summary(scores: ScoreSet, evaluation: Evaluation) -> str:
    """The outcome in words."""
    order = ("reject", "warn", "good", "uncalibrated", "error")
    names = {"reject": "rejected", "warn": "to look at", "uncalibrated": "without verdict", "error": "unreadable"}
    counts = [f"{evaluation.verdicts[name]} {names.get(name, name)}" for name in order if name in evaluation.verdicts]
    text = f"{_count(evaluation.images, 'image')}: {', '.join(counts)}"
    image = evaluation.image
    mistakes = []
    if image.fn is not None and image.defective:
        mistakes.append(f"{image.fn} of {_count(image.defective, 'defect')} missed")
    if image.fp is not None and image.good:
        mistakes.append(f"{_count(image.fp, 'false alarm')} among {_count(image.good, 'good image')}")
    if not scores.calibration:
        return f"{text}. There is no threshold."
    at = f" at threshold {scores.calibration.threshold:.4g}"
    return f"{text}; {', '.join(mistakes)}{at}." if mistakes else f"{text}{at}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _cards(evaluation: Evaluation) -> dict[str, list[tuple[str, str, str]]]:
    """For each group name, value and meaning of the metrics that exist."""
    image, pixel = evaluation.image, evaluation.pixel
    wanted = [
        ("Ranking of images", "AUROC", image.auroc, "chance that a defective image scores above a good one"),
        ("Ranking of images", "Average precision", image.average_precision, "precision averaged over recall"),
        ("Ranking of images", "Best F1", image.f1_max, "at the threshold that suits these images best"),
        (
            "Ranking of images",
            "FPR at 95 % TPR",
            image.fpr_at_95_tpr,
            "false-alarm rate that finds 95 % of the defects",
        ),
        ("Verdicts at the calibrated threshold", "F1", image.f1, "harmonic mean of precision and recall"),
        ("Verdicts at the calibrated threshold", "Precision", image.precision, "share of alarms that are defects"),
        ("Verdicts at the calibrated threshold", "Recall", image.recall, "share of defects that are found"),
        (
            "Verdicts at the calibrated threshold",
            "False-alarm rate",
            image.false_alarm_rate,
            "share of good images called anomalous",
        ),
    ]
    if pixel is not None:
        wanted += [
            ("Pixels", "AUROC", pixel.auroc, "as for images, over all pixels"),
            ("Pixels", "Average precision", pixel.average_precision, "over all pixels"),
            ("Pixels", "AUPRO", pixel.aupro, "overlap with each defect, up to 30 % false positives"),
            ("Pixels", "IoU", pixel.iou, "overlap at the pixel threshold"),
            ("Pixels", "Dice", pixel.dice, "the same, as F1 of pixels"),
        ]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for group, name, value, meaning in wanted:
        if value is not None:
            groups.setdefault(group, []).append((name, f"{value:.3f}", meaning))
    return groups


def _how_made(scores: ScoreSet) -> list[tuple[str, str]]:
    model, runtime = _table(scores, "model"), _table(scores, "runtime")
    lines = [
        ("Model", model.get("path")),
        ("SHA-256", model.get("sha256")),
        ("Detector", model.get("arch")),
        ("Its settings", ", ".join(f"{name} {value}" for name, value in model.get("config", {}).items())),
        ("Scored", scores.manifest.get("started")),
        ("Computed with", " on ".join(str(runtime[name]) for name in ("name", "device") if name in runtime)),
        ("Threshold", _threshold_origin(scores)),
    ]
    return [(name, str(value)) for name, value in lines if value]


def _threshold_origin(scores: ScoreSet) -> str | None:
    chosen = scores.calibration
    if chosen is None:
        return None
    basis = f"{chosen.good_images} good" + f" and {chosen.defect_images} defective" * bool(chosen.defect_images)
    return f"{chosen.threshold!r}, by {chosen.method} {chosen.level:g} of {basis} images"


def _settings(scores: ScoreSet) -> list[tuple[str, str, str]]:
    """Name, value and origin."""
    return [
        (name, _text(entry["value"]), str(entry.get("from", "")))
        for name, entry in _table(scores, "settings").items()
        if isinstance(entry, dict) and "value" in entry
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _commands(scores: ScoreSet) -> list[str]:
    """What to type for the same numbers again; quoted, since file names may hold anything."""
    report = ["adctl", "report", str(scores.folder)]
    model = _table(scores, "model").get("path")
    if model is None:
        return [shlex.join(report)]
    images = _table(scores, "settings").get("images", {}).get("value") or []
    score = ["adctl", "score", *map(str, images), "--model", str(model), "--out", str(scores.folder)]
    return [shlex.join(score), shlex.join(report)]


def _table(scores: ScoreSet, name: str) -> dict[str, Any]:
    """A part of the manifest; empty where whoever wrote the scores left it out."""
    value = scores.manifest.get(name)
    return value if isinstance(value, dict) else {}


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever file names hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
