"""What a report says, in words and tables, whatever the format it is written in.

Knows scored sets and evaluations; nothing of HTML, PDF or slides, and computes no metric.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.files import sha256_file
from adctl.reporting.named_metrics import named_metrics

if TYPE_CHECKING:
    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics
    from adctl.records import Calibration
    from adctl.scoring.score_set import ScoreSet

ABSENT = "–"  # noqa: RUF001 - as it is shown

_JUDGED = "Verdicts at the calibrated threshold"
_CARDS = (
    ("Ranking of images", "AUROC", "image_auroc", "chance that a defective image scores above a good one"),
    ("Ranking of images", "Average precision", "image_average_precision", "precision averaged over recall"),
    ("Ranking of images", "Best F1", "image_f1_max", "at the threshold that suits these images best"),
    ("Ranking of images", "FPR at 95 % TPR", "image_fpr_at_95_tpr", "false-alarm rate that finds 95 % of the defects"),
    (_JUDGED, "F1", "image_f1", "harmonic mean of precision and recall"),
    (_JUDGED, "Precision", "image_precision", "share of alarms that are defects"),
    (_JUDGED, "Recall", "image_recall", "share of defects that are found"),
    (_JUDGED, "False-alarm rate", "image_false_alarm_rate", "share of good images called anomalous"),
    ("Pixels", "AUROC", "pixel_auroc", "as for images, over all pixels"),
    ("Pixels", "Average precision", "pixel_average_precision", "over all pixels"),
    ("Pixels", "AUPRO", "pixel_aupro", "overlap with each defect, up to 30 % false positives"),
    ("Pixels", "IoU", "pixel_iou", "overlap at the pixel threshold"),
    ("Pixels", "Dice", "pixel_dice", "the same, as F1 of pixels"),
)


@dataclass(frozen=True)
class ReportOptions:
    """Choices that a report's writer follows, as far as its format has them.

    Attributes:
        title: Heading; None for the data set and the detector.
        findings: Number of images shown in `md`, `pdf` and `pptx`, missed defects and false alarms first.
        gallery_limit: Largest number of images with a picture in `html`, the worst mistakes first.
        reconstructions: Whether `html` shows an autoencoder's reconstruction of each image.
    """

    title: str | None = None
    findings: int = 12
    gallery_limit: int = 1000
    reconstructions: bool = False


DEFAULT_OPTIONS = ReportOptions()


@dataclass(frozen=True)
class Card:
    """One metric as it is shown.

    Attributes:
        name: Within its group.
        value: To three places.
        interval: `0.912 to 0.987`; empty where there is none.
        meaning: In a few words.
    """

    name: str
    value: str
    interval: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """Rows under headers.

    Attributes:
        title: What is in it.
        headers: One a column.
        rows: The first cell names the row.
        note: How to read it; may be empty.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class ReportContent:
    """Everything a report says.

    Attributes:
        title: Its heading.
        started: When scoring began, ISO 8601, or None.
        summary: The outcome in a few sentences.
        notes: What is missing and why.
        cards: Metrics that exist, by group.
        interval_level: `95 %`; empty where there are no intervals.
        tables: By defect type, by size of defect.
        distributions: Scores by class.
        drift: Whether the images still look like those of calibration, in sentences; empty where nothing is known.
        drifted: Whether that is a warning.
        errors: Images that could not be scored, and why.
        made: Model, digests, threshold.
        settings: Name, value and origin.
        versions: Of the software.
        commands: To type for the same numbers again.
    """

    title: str
    started: str | None
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    cards: dict[str, list[Card]]
    interval_level: str
    tables: tuple[Table, ...]
    distributions: Table | None
    drift: tuple[str, ...]
    drifted: bool
    errors: tuple[tuple[str, str], ...]
    made: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str, str], ...]
    versions: dict[str, str]
    commands: tuple[str, ...]


def build_content(scores: ScoreSet, evaluation: Evaluation, title: str | None = None) -> ReportContent:
    """Gather what a report says.

    Args:
        scores: The scored set.
        evaluation: Its metrics.
        title: Its heading; the data set and detector unless given.
    """
    drift = _table(scores, "drift")
    return ReportContent(
        title=title or _title(scores),
        started=scores.manifest.get("started"),
        summary=tuple(_summary(scores, evaluation)),
        notes=(*evaluation.notes, *_model_note(scores)),
        cards=_cards(evaluation),
        interval_level=f"{100 * evaluation.resampling.level:.4g} %" if evaluation.resampling else "",
        tables=tuple(table for table in (_by_defect(evaluation), _by_size(evaluation)) if table),
        distributions=_distributions(evaluation),
        drift=tuple(_drift(drift)),
        drifted=bool(drift.get("drifted")),
        errors=tuple((row.key, row.error) for row in scores.rows if row.error is not None),
        made=tuple(_how_made(scores)),
        settings=tuple(_settings(scores)),
        versions={name: str(value) for name, value in _table(scores, "environment").items() if value},
        commands=tuple(_commands(scores)),
    )


def _title(scores: ScoreSet) -> str:
    dataset, model = _table(scores, "dataset"), _table(scores, "model")
    names = (dataset.get("category") or dataset.get("name"), model.get("arch"))
    return " · ".join(str(name) for name in names if name) or scores.folder.name


def _summary(scores: ScoreSet, evaluation: Evaluation) -> list[str]:
    """The outcome in words: what became of the images, how good the ranking is, what is promised, and drift."""
    sentences = [_outcome(scores, evaluation)]
    image, chosen = evaluation.image, scores.calibration
    if image.auroc is not None:
        bounds = image.intervals.get("auroc")
        # One without width reads as certainty, which it is not.
        wide = bounds is not None and bounds.low < bounds.high
        ends = f" ({100 * bounds.low:.1f} to {100 * bounds.high:.1f} %)" if bounds and wide else ""
        sentences.append(
            f"Shown one defective and one good image, the detector ranks the defective one higher "
            f"in {100 * image.auroc:.1f} % of such pairs{ends}."
        )
    if chosen is not None and chosen.promised_false_alarm is not None:
        sentences.append(
            f"The threshold promises false alarms on at most {100 * chosen.promised_false_alarm:.3g} % of good images "
            f"like the {chosen.good_images} it was set on."
        )
    if _table(scores, "drift").get("drifted"):
        sentences.append("These images no longer look like those of calibration; see the section on drift.")
    return sentences


def _outcome(scores: ScoreSet, evaluation: Evaluation) -> str:
    order = ("reject", "warn", "good", "uncalibrated", "error")
    names = {"reject": "rejected", "warn": "to look at", "uncalibrated": "without verdict", "error": "unreadable"}
    counts = [f"{evaluation.verdicts[name]} {names.get(name, name)}" for name in order if name in evaluation.verdicts]
    text = f"{count(evaluation.images, 'image')}: {', '.join(counts)}"
    image = evaluation.image
    mistakes = []
    if image.fn is not None and image.defective:
        mistakes.append(f"{image.fn} of {count(image.defective, 'defect')} missed")
    if image.fp is not None and image.good:
        mistakes.append(f"{count(image.fp, 'false alarm')} among {count(image.good, 'good image')}")
    if not scores.calibration:
        return f"{text}. There is no threshold."
    at = f" at threshold {scores.calibration.threshold:.4g}"
    return f"{text}; {', '.join(mistakes)}{at}." if mistakes else f"{text}{at}."


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" + "s" * (number != 1)


def _model_note(scores: ScoreSet) -> list[str]:
    """A warning where the model file is another one by now: its threshold says nothing of these scores."""
    model = _table(scores, "model")
    path = Path(str(model.get("path", "")))
    if not model.get("sha256") or not path.is_file() or sha256_file(path) == model["sha256"]:
        return []
    return [f"{path} is another model now than the one that gave these scores; score again to judge that one."]


def _cards(evaluation: Evaluation) -> dict[str, list[Card]]:
    found = named_metrics(evaluation)
    groups: dict[str, list[Card]] = {}
    for group, name, figure, meaning in _CARDS:
        value, bounds = found[figure].value, found[figure].interval
        if value is not None:
            ends = f"{bounds.low:.3f} to {bounds.high:.3f}" if bounds else ""
            groups.setdefault(group, []).append(Card(name, f"{value:.3f}", ends, meaning))
    return groups


def _by_defect(evaluation: Evaluation) -> Table | None:
    pixels = evaluation.pixel.by_defect if evaluation.pixel else {}
    lines = [
        (
            kind,
            str(image.defective),
            ABSENT if image.tp is None else str(image.tp),
            *(_cell(image, name) for name in ("recall", "auroc", "average_precision")),
            *(_cell(pixels.get(kind), name) for name in ("auroc", "aupro", "iou")),
        )
        for kind, image in evaluation.by_defect.items()
    ]
    headers = ("Defect", "Images", "Found", "Recall", "AUROC", "AP", "Pixel AUROC", "AUPRO", "IoU")
    note = "Recall counts verdicts at the calibrated threshold; each type is measured against all good images."
    return Table("By defect type", headers, tuple(lines), note) if lines else None


def _by_size(evaluation: Evaluation) -> Table | None:
    sizes = evaluation.pixel.by_size if evaluation.pixel else {}
    names = ("recall", "region_overlap", "auroc", "aupro")
    lines = [(size, str(part.regions), *(_cell(part, name) for name in names)) for size, part in sizes.items()]
    headers = ("Size", "Regions", "Pixels found", "Overlap", "Pixel AUROC", "AUPRO")
    note = "Regions are the connected parts of the masks; a share of pixels is found at the pixel threshold."
    return Table("By size of defect", headers, tuple(lines), note) if lines else None


def _distributions(evaluation: Evaluation) -> Table | None:
    lines = []
    for kind, found in evaluation.distributions.items():
        values = (found.mean, found.sd, found.minimum, found.median, found.maximum)
        shown = [ABSENT if value is None else f"{value:.4g}" for value in values]
        normal = f"{found.normality.p_value:.2g}" if found.normality else ABSENT
        lines.append((kind, str(found.count), *shown, normal))
    headers = ("Class", "Images", "Mean", "SD", "Lowest", "Median", "Highest", "Normal, p")
    return Table("Scores by class", headers, tuple(lines), _effect(evaluation)) if lines else None


def _effect(evaluation: Evaluation) -> str:
    found = evaluation.effect_size
    if found is None:
        return ""
    distance = "" if found.cohens_d is None else f"Cohen's d {found.cohens_d:.2f}, "
    return f"Distance of defective from good scores: {distance}Cliff's delta {found.cliffs_delta:.3f} (1: no overlap)."


def _cell(metrics: ImageMetrics | PixelMetrics | None, name: str) -> str:
    value = getattr(metrics, name, None)
    return ABSENT if value is None else f"{value:.3f}"


def _drift(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    reason = str(found.get("reason", ""))
    sentences = [("Warning: " if found.get("drifted") else "") + reason[:1].upper() + reason[1:]]
    if found.get("high_share") is not None:
        sentences.append(
            f"{100 * found['high_share']:.0f} % of {found.get('images')} images score as the highest 10 % of the "
            "good calibration images did; 10 % are expected where nothing has changed and nothing is defective."
        )
    return sentences


def _how_made(scores: ScoreSet) -> list[tuple[str, str]]:
    model, runtime, dataset = (_table(scores, name) for name in ("model", "runtime", "dataset"))
    lines = [
        ("Data set", " · ".join(str(dataset[name]) for name in ("name", "category") if dataset.get(name))),
        ("Model", model.get("path")),
        ("SHA-256", model.get("sha256")),
        ("Detector", model.get("arch")),
        ("Its settings", ", ".join(f"{name} {value}" for name, value in model.get("config", {}).items())),
        ("Scored", scores.manifest.get("started")),
        ("Computed with", " on ".join(str(runtime[name]) for name in ("name", "device") if name in runtime)),
        ("Threshold", _threshold_origin(scores.calibration)),
        ("Warning from", _warning(scores.calibration)),
    ]
    return [(name, str(value)) for name, value in lines if value]


def _threshold_origin(chosen: Calibration | None) -> str | None:
    if chosen is None:
        return None
    basis = f"{chosen.good_images} good" + f" and {chosen.defect_images} defective" * bool(chosen.defect_images)
    return f"{chosen.threshold!r}, by {chosen.method} {chosen.level:g} of {basis} images"


def _warning(chosen: Calibration | None) -> str | None:
    return None if chosen is None or chosen.warn_threshold is None else repr(chosen.warn_threshold)


def _settings(scores: ScoreSet) -> list[tuple[str, str, str]]:
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
