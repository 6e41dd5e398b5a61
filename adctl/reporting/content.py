"""Content of a report as text and tables, the same for all formats.

It formats the values of a scored set and its evaluation, and does not compute metrics or write files.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.evaluation.evaluate import outcome
from adctl.files import sha256_file
from adctl.metrics.statistics import p_text
from adctl.metrics.table import METRICS
from adctl.records import GOOD, Verdict
from adctl.reporting.named_metrics import named_metrics
from adctl.thresholds.methods import ThresholdRule, leave_group_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.image import ImageMetrics
    from adctl.metrics.pixel import PixelMetrics
    from adctl.records import Calibration, ScoredImage
    from adctl.scoring.score_set import ScoreSet

ABSENT = "–"  # noqa: RUF001 - a dash in a cell
_UNNAMED = "not named"
_NAMED = {"rejected": "rejected", "flagged": "rejected and warned", "all": "all"}
"""Words for the images that a classifier named, by the value of `--classify`."""


@dataclass(frozen=True)
class ReportOptions:
    """Choices that a report's writer follows, as far as its format has them.

    Attributes:
        title: Heading; None for the data set and the detector.
        findings: Number of images shown in `md`, `pdf` and `pptx`, missed defects and false alarms first.
        gallery_limit: Largest number of images with a picture in `html`, the worst mistakes first.
        reconstructions: Whether `html` shows an autoencoder's reconstruction of each image or the attention to prompts.
    """

    title: str | None = None
    findings: int = 12
    gallery_limit: int = 1000
    reconstructions: bool = False


DEFAULT_OPTIONS = ReportOptions()


@dataclass(frozen=True)
class Card:
    """Metric as text.

    Attributes:
        name: Name of the metric within its group.
        value: Value with three decimals.
        interval: Confidence interval such as `0.912 to 0.987`; empty if there is none.
        meaning: Short explanation.
    """

    name: str
    value: str
    interval: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """Table as text.

    Attributes:
        title: Title of the table.
        headers: Header of each column.
        rows: Cells of each row; the first cell is the name of the row.
        note: Explanation of the table; may be empty.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class ReportContent:
    """Content of a report.

    Attributes:
        title: Heading of the report.
        started: Start time of the scoring in ISO 8601, or None.
        summary: Result in a few sentences.
        notes: Full sentences that say what is missing or unusual.
        cards: Existing metrics by group.
        interval_level: Level of the confidence intervals such as `95 %`; empty without intervals.
        tables: Metrics by defect type and by size of defect.
        distributions: Statistics of the scores of each class.
        drift: Sentences on whether the scores still match those of the calibration; empty if unknown.
        drifted: Whether drift was found.
        errors: Key of each image that could not be scored, with the reason.
        made: Name and value of facts about the model and the scoring.
        settings: Name, value and origin of each setting.
        versions: Version of each software package.
        commands: Commands that give the same results again.
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
    """Build the content of a report.

    Args:
        scores: Scored set.
        evaluation: Metrics of the scored set.
        title: Heading of the report; by default the dataset and the detector.
    """
    drift = _manifest_part(scores, "drift")
    return ReportContent(
        title=title or _title(scores),
        started=scores.manifest.get("started"),
        summary=tuple(_summary(scores, evaluation)),
        notes=(*evaluation.notes, *_model_note(scores)),
        cards=_cards(evaluation),
        interval_level=f"{100 * evaluation.resampling.level:.4g} %" if evaluation.resampling else "",
        tables=tuple(
            table
            for table in (
                *(_by_defect(evaluation), _by_kind(scores), _by_size(evaluation)),
                *(_by_group(scores), _calibration_groups(scores)),
            )
            if table
        ),
        distributions=_distributions(evaluation),
        drift=tuple(_drift(drift)),
        drifted=bool(drift.get("drifted")),
        errors=tuple((row.key, row.error) for row in scores.rows if row.error is not None),
        made=tuple(how_made(scores.manifest, scores.calibration)),
        settings=tuple(settings_rows(scores.manifest)),
        versions={name: str(value) for name, value in _manifest_part(scores, "environment").items() if value},
        commands=tuple(_commands(scores)),
    )


def _title(scores: ScoreSet) -> str:
    dataset, model = _manifest_part(scores, "dataset"), _manifest_part(scores, "model")
    names = (dataset.get("category") or dataset.get("name"), model.get("arch"))
    return " · ".join(str(name) for name in names if name) or scores.folder.name


def _summary(scores: ScoreSet, evaluation: Evaluation) -> list[str]:
    """Return sentences on the verdicts, the ranking of images, the expected false alarms and drift."""
    sentences = [_verdict_summary(scores, evaluation)]
    image, calibration = evaluation.image, scores.calibration
    if image.auroc is not None:
        bounds = image.intervals.get("auroc")
        # An interval with equal ends is left out, because readers could take it for certainty.
        ends = f" ({100 * bounds.low:.1f} to {100 * bounds.high:.1f} %)" if bounds and bounds.low < bounds.high else ""
        sentences.append(
            f"In {100 * image.auroc:.1f} %{ends} of all pairs of a defective and a good image, "
            "the defective image has the higher score."
        )
    if calibration is not None:
        sentences += _false_alarm_sentences(calibration)
    if _manifest_part(scores, "drift").get("drifted"):
        sentences.append("These images differ from the images used for the calibration; see the section on drift.")
    return sentences


def _false_alarm_sentences(calibration: Calibration) -> list[str]:
    images = f"like the {calibration.good_images} images used for the calibration"
    if calibration.promised_false_alarm is not None:
        most = f"at most {100 * calibration.promised_false_alarm:.3g} %"
        return [f"The threshold is set for false alarms on {most} of good images {images}."]
    if calibration.false_alarm_range is None:
        return []
    rate = f"about {100 * calibration.expected_false_alarm:.2g} % ({calibration.false_alarm_range})"
    return [f"The threshold is set for false alarms on {rate} of good images {images}."]


def _verdict_summary(scores: ScoreSet, evaluation: Evaluation) -> str:
    order = ("reject", "warn", "good", "uncalibrated", "error")
    names = {"reject": "rejected", "warn": "to check", "uncalibrated": "without verdict", "error": "unreadable"}
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
    """Return a number with its noun, such as `1 image` or `2 images`."""
    return f"{number} {noun}" + "s" * (number != 1)


def _model_note(scores: ScoreSet) -> list[str]:
    """Return a warning if the model file has changed since the scoring; its threshold is not valid for these scores."""
    model = _manifest_part(scores, "model")
    path = Path(str(model.get("path", "")))
    if not model.get("sha256") or not path.is_file() or sha256_file(path) == model["sha256"]:
        return []
    return [f"{path} has changed since these images were scored. Score the images again to evaluate the new model."]


def _cards(evaluation: Evaluation) -> dict[str, list[Card]]:
    metrics = named_metrics(evaluation)
    groups: dict[str, list[Card]] = {}
    for name, one in METRICS.items():
        value, bounds = metrics[name].value, metrics[name].interval
        if one.card is not None and value is not None:
            ends = f"{bounds.low:.3f} to {bounds.high:.3f}" if bounds else ""
            pixels = name.startswith("pixel") and evaluation.pixel_resolution
            meaning = f"{one.card.meaning}, {evaluation.pixel_resolution}" if pixels else one.card.meaning
            groups.setdefault(one.card.group, []).append(Card(one.card.name, f"{value:.3f}", ends, meaning))
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
    note = "Recall uses the verdicts at the calibrated threshold. Each defect type is compared with all good images."
    return Table("By defect type", headers, tuple(lines), note) if lines else None


def _by_kind(scores: ScoreSet) -> Table | None:
    """Return hits, misses and alarms for each name that a classifier gave, if there was one."""
    facts = _manifest_part(scores, "classifier")
    if not facts:
        return None
    parts: dict[str, list[ScoredImage]] = {}
    for row in scores.rows:
        if row.score is not None:
            parts.setdefault(row.kind or _UNNAMED, []).append(row)
    lines = []
    for kind, rows in sorted(parts.items(), key=lambda part: (part[0] == _UNNAMED, -len(part[1]), part[0])):
        counts = Counter(outcome(row) for row in rows)
        known = [row.label for row in rows if row.label in facts.get("classes", ()) and kind != _UNNAMED]
        right = f"{sum(label == kind for label in known)} of {len(known)}" if known else ABSENT
        shown = ("caught", "missed", "false alarm")
        lines.append((kind, str(len(rows)), *(str(counts[name]) for name in shown), right))
    headers = ("Named", "Images", "Defects found", "Defects missed", "False alarms", "Named rightly")
    note = (
        f"Names are those of {facts.get('path')}, for {_NAMED.get(facts.get('named', ''), 'some')} images. “Named "
        "rightly” counts images whose label the classifier knows."
    )
    return Table("By predicted kind", headers, tuple(lines), note)


def _by_group(scores: ScoreSet) -> Table | None:
    """Return the verdicts of the images of each group, if the images have groups."""
    group_of: dict[str, str] = _manifest_part(scores, "groups")
    parts: dict[str, list[ScoredImage]] = {}
    for row in scores.rows:
        if row.key in group_of and row.score is not None:
            parts.setdefault(group_of[row.key], []).append(row)
    if not parts:
        return None
    return Table(
        "By group",
        ("Group", "Images", "Good images rejected", "Defective images found"),
        tuple((name, str(len(rows)), *_rejected(rows)) for name, rows in sorted(parts.items())),
        "Groups are those of the training: a column of the manifest, or --group.",
    )


def _rejected(rows: Sequence[ScoredImage]) -> tuple[str, str]:
    good = [row.verdict is Verdict.REJECT for row in rows if row.label == GOOD]
    bad = [row.verdict is Verdict.REJECT for row in rows if row.label not in (None, GOOD)]
    return tuple(f"{sum(part)} of {len(part)}" if part else ABSENT for part in (good, bad))  # type: ignore[return-value]


def _calibration_groups(scores: ScoreSet) -> Table | None:
    """Return the scores of each group of the calibration, if there are at least three."""
    calibration = scores.calibration
    if calibration is None:
        return None
    left_out = leave_group_out(ThresholdRule(calibration.method, calibration.level), calibration.evidence)
    rows = tuple(
        (one.group, str(one.images), f"{one.median:.4g}", f"{100 * one.false_alarm:.0f} %") for one in left_out
    )
    note = "False alarms of each group if the other groups set the threshold: what to expect on a new group."
    headers = ("Group", "Good images", "Median score", "False alarms")
    return Table("Groups of the calibration", headers, rows, note) if rows else None


def _by_size(evaluation: Evaluation) -> Table | None:
    sizes = evaluation.pixel.by_size if evaluation.pixel else {}
    names = ("recall", "region_overlap", "auroc", "aupro")
    lines = [(size, str(part.regions), *(_cell(part, name) for name in names)) for size, part in sizes.items()]
    headers = ("Size", "Regions", "Pixels found", "Overlap", "Pixel AUROC", "AUPRO")
    note = (
        "Regions are the connected parts of the masks. “Pixels found” is the recall of pixels at the pixel threshold."
    )
    return Table("By size of defect", headers, tuple(lines), note) if lines else None


def _distributions(evaluation: Evaluation) -> Table | None:
    lines = []
    for kind, scores in evaluation.distributions.items():
        values = (scores.mean, scores.sd, scores.minimum, scores.median, scores.maximum)
        texts = [ABSENT if value is None else f"{value:.4g}" for value in values]
        normal = p_text(scores.normality.p_value) if scores.normality else ABSENT
        lines.append((kind, str(scores.count), *texts, normal))
    headers = ("Class", "Images", "Mean", "SD", "Lowest", "Median", "Highest", "p, normal")
    note = f"{_effect_size_note(evaluation)} “p, normal” is the p-value of a test for a normal distribution.".strip()
    return Table("Scores by class", headers, tuple(lines), note) if lines else None


def _effect_size_note(evaluation: Evaluation) -> str:
    effect = evaluation.effect_size
    if effect is None:
        return ""
    cohen = "" if effect.cohens_d is None else f"Cohen's d {effect.cohens_d:.2f}, "
    return f"Effect size, defective against good: {cohen}Cliff's delta {effect.cliffs_delta:.3f} (1: no overlap)."


def _cell(metrics: ImageMetrics | PixelMetrics | None, name: str) -> str:
    value = getattr(metrics, name, None)
    return ABSENT if value is None else f"{value:.3f}"


def _drift(drift: dict[str, Any]) -> list[str]:
    if not drift:
        return []
    reason = str(drift.get("reason", ""))
    sentences = [("Warning: " if drift.get("drifted") else "") + reason[:1].upper() + reason[1:]]
    if drift.get("high_share") is not None:
        sentences.append(
            f"{100 * drift['high_share']:.0f} % of {drift.get('images')} images have scores as high as the highest "
            "10 % of the good calibration images. Without drift and without defects, about 10 % are expected."
        )
    return sentences


def how_made(manifest: Mapping[str, Any], calibration: Calibration | None = None) -> list[tuple[str, str]]:
    """Return name and value of facts about the model and the scoring, from the manifest of the scores."""
    model, runtime, dataset = (_dictionary(manifest, name) for name in ("model", "runtime", "dataset"))
    lines = [
        ("Data set", " · ".join(str(dataset[name]) for name in ("name", "category") if dataset.get(name))),
        ("Model", model.get("path")),
        ("SHA-256", model.get("sha256")),
        ("Detector", model.get("arch")),
        ("Its settings", ", ".join(f"{name} {value}" for name, value in model.get("config", {}).items())),
        ("Scored", manifest.get("started")),
        ("Computed with", " on ".join(str(runtime[name]) for name in ("name", "device") if name in runtime)),
        ("Threshold", _threshold_origin(calibration)),
        ("Warning from", _warning(calibration)),
    ]
    return [(name, str(value)) for name, value in lines if value]


def _threshold_origin(calibration: Calibration | None) -> str | None:
    if calibration is None:
        return None
    copies = f"{calibration.evidence.copies} altered copies of " * bool(calibration.evidence.copies)
    images = f"{copies}{calibration.good_images} good" + f" and {calibration.defect_images} defective" * bool(
        calibration.defect_images
    )
    folds = " scored by models that did not learn from them" if calibration.evidence.folds else ""
    return f"{calibration.threshold!r}, method {calibration.method} {calibration.level:g}, from {images} images{folds}"


def _warning(calibration: Calibration | None) -> str | None:
    return None if calibration is None or calibration.warn_threshold is None else repr(calibration.warn_threshold)


def settings_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and origin of each setting, from the manifest of the scores."""
    return [
        (name, _text(entry["value"]), str(entry.get("from", "")))
        for name, entry in _dictionary(manifest, "settings").items()
        if isinstance(entry, dict) and "value" in entry
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _commands(scores: ScoreSet) -> list[str]:
    """Return shell commands that give the same results again, with file names quoted."""
    report = ["adctl", "report", str(scores.folder)]
    model = _manifest_part(scores, "model").get("path")
    if model is None:
        return [shlex.join(report)]
    given = _manifest_part(scores, "settings").get("images")
    images = given.get("value") if isinstance(given, dict) else None
    named = map(str, images if isinstance(images, list) else [])
    score = ["adctl", "score", *named, "--model", str(model), "--out", str(scores.folder)]
    return [shlex.join(score), shlex.join(report)]


def _manifest_part(scores: ScoreSet, name: str) -> dict[str, Any]:
    """Return a part of the manifest, or an empty dictionary if the manifest does not have it."""
    return _dictionary(scores.manifest, name)


def _dictionary(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}
