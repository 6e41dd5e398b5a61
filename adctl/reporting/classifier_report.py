"""Report of a classifier's predictions: one self-contained HTML page.

Confusion matrix that filters the gallery, metrics by kind, curves, reliability, and images with Grad-CAM overlays, the
worst mistakes first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import __version__, files, run_folder
from adctl.choices import REPORT_FORMATS
from adctl.classification.decision import UNKNOWN
from adctl.classification.header import is_classifier
from adctl.classification.predictions import PREDICTIONS, PredictionSet, UnknownShares, is_predictions
from adctl.data.loader import load_image
from adctl.data.preprocess import InputSpec, map_to_image
from adctl.engine.batching import to_input
from adctl.errors import AdctlError, UsageError
from adctl.gate_files import gate_files, require_conditions, write_gate_files
from adctl.gates import Gate, GateResult, check
from adctl.metrics.bootstrap import exact_interval
from adctl.progress import SILENT, Reporter
from adctl.records import Sample
from adctl.reporting.content import ABSENT, Card, Table, how_made, settings_rows
from adctl.reporting.html_assets import plotly, read_assets, template, to_script_json
from adctl.reporting.pictures import as_data_uri, as_jpeg, joined
from adctl.reporting.targets import find_targets
from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.heatmaps import overlay
from adctl.tracking import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from adctl.classification.classifier import Classifier
    from adctl.classification.predictions import PredictedKind
    from adctl.config import LoadedSettings, ReportSettings
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.classification import ClassificationMetrics, KindMetrics

log = logging.getLogger(__name__)

REPORT = "report.html"

_DRAWN = 12
"""Largest number of curves in a chart: those of the kinds with the smallest area."""

_MATRIX = 30
"""Largest number of kinds in the confusion matrix: those with the most mistakes."""

_PICTURES, _EXPLAINED = 1000, 100
"""Largest number of images with a picture, and with a Grad-CAM overlay; the worst mistakes first."""

_SIDE, _QUALITY = 200, 80

_CARDS = {
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the kinds"),
    "accuracy": ("Accuracy", "share of images whose most probable kind is right"),
    "macro_f1": ("F1, macro", "mean over kinds of the harmonic mean of precision and recall"),
    "macro_auroc": ("AUROC, macro", "ranking of each kind against all others"),
    "macro_ap": ("Average precision, macro", "area under the precision-recall curves"),
    "mcc": ("MCC", "correlation of truth and prediction, 0 for chance"),
    "kappa": ("Cohen's kappa", "agreement beyond chance"),
    "top_3_accuracy": ("Top-3 accuracy", "true kind among the three most probable"),
    "ece": ("ECE", "mean difference of confidence and accuracy, best 0"),
    "log_loss": ("Log loss", "cross-entropy of the probabilities, best 0"),
}


@dataclass(frozen=True)
class ClassifierReport:
    """Result of a classifier's report.

    Attributes:
        predictions: Folder of the predictions.
        page: The page.
        metrics: Metrics on the images of known kinds; None without labels.
        unknown: Shares called unknown; None without labels.
        gates: Result of each condition.
    """

    predictions: Path
    page: Path
    metrics: ClassificationMetrics | None
    unknown: UnknownShares | None
    gates: tuple[GateResult, ...] = ()


def report_classifier(
    loaded: LoadedSettings[ReportSettings], folder: Path, reporter: Reporter = SILENT
) -> ClassifierReport:
    """Write the page of the predictions in a folder.

    Args:
        loaded: Settings.
        folder: Folder of the predictions.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A format or a setting is only for detectors, or a condition is invalid.
        DataError: The predictions are damaged.
        OutputError: The page cannot be written.
    """
    settings = loaded.settings
    for name in ("contact_sheet", "figures", "reconstructions", "animation"):
        if getattr(settings, name):
            raise UsageError(f"--{name.replace('_', '-')} belongs to detectors.", "Leave it out.")
    require_conditions(settings)
    gates = [Gate.parse(text) for text in settings.fail_if]
    targets = find_targets(settings, folder / "report", REPORT_FORMATS)
    if [name for name, _ in targets] != ["html"]:
        raise UsageError("A report of a classifier is a page.", "Use --format html; numbers: --json.")
    target = targets[0][1]
    files.require_replaceable([target, *gate_files(settings).values()], overwrite=settings.overwrite)
    predictions = PredictionSet.load(folder)
    metrics = predictions.metrics()
    values = {} if metrics is None else metrics.overall
    results = tuple(check(gates, values, folder.name, {}))
    write_gate_files(settings, "adctl.report", results, {folder.name: folder / PREDICTIONS})
    with reporter.stage("writing the report"):
        classifier, notes = _classifier_of(predictions)
        write_page(predictions, target, classifier, title=settings.title, notes=notes)
    model = (predictions.manifest.get("model") or {}).get("path")
    if model is not None:
        numbers = {name: value for name, value in values.items() if value is not None}
        record.made(Path(model), "report", target, source=folder, metrics=numbers)
    return ClassifierReport(folder, target, metrics, predictions.unknown(), results)


def find_predictions(settings: ReportSettings) -> Path | None:
    """Return the folder to report on if it holds the predictions of a classifier, or else None."""
    try:
        folder = settings.scores[0] if settings.scores else run_folder.get_last(settings.runs, "scores")
    except AdctlError:
        return None
    return folder if is_predictions(folder) else None


def write_page(
    predictions: PredictionSet,
    target: Path,
    classifier: Classifier | None = None,
    device: torch.device | None = None,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        predictions: The predictions.
        target: HTML file to write.
        classifier: Classifier that explains them by Grad-CAM, or None.
        device: Device of the classifier; the CPU if left out.
        title: Heading; None for the dataset.
        notes: Sentences to show.

    Raises:
        OutputError: The page cannot be written.
    """
    metrics, unknown = predictions.metrics(), predictions.unknown()
    order = sorted(range(len(predictions.rows)), key=lambda number: _badness(predictions.rows[number]), reverse=True)
    shown = _pictures(predictions, order, classifier, device)
    data = {
        "rows": [
            {
                **{name: getattr(row, name) for name in ("key", "label", "name", "kind", "probability", "error")},
                "set": list(row.set),
                "true": _true_probability(row, predictions.classes),
                "picture": shown.get(number),
            }
            for number, row in enumerate(predictions.rows)
        ],
        "curves": {} if metrics is None else curves_of_kinds(predictions, metrics),
        "reliability": [] if metrics is None else [_bin(one) for one in metrics.reliability],
    }
    if len(predictions.rows) > _EXPLAINED and classifier is not None:
        notes = (*notes, f"Overlays are shown for {_EXPLAINED} images, the worst mistakes first.")
    page = template("classifier.html").render(
        title=title or f"{(predictions.manifest.get('dataset') or {}).get('name', target.parent.name)} · classifier",
        started=predictions.manifest.get("started"),
        summary=" ".join(_summary(predictions, metrics, unknown)),
        notes=notes,
        metrics=[] if metrics is None else _cards(metrics),
        matrix=None if metrics is None else _matrix(predictions, metrics),
        shown_tables=[] if metrics is None else [_kinds(predictions, metrics), *_unseen(unknown)],
        curves=bool(data["curves"]),
        made=how_made(predictions.manifest),
        settings=settings_rows(predictions.manifest),
        versions={name: str(value) for name, value in (predictions.manifest.get("environment") or {}).items() if value},
        data=to_script_json(data),
        plotly=plotly(),
        style=read_assets("page.css", "classifier.css"),
        script=read_assets("common.js", "classifier.js"),
        version=__version__,
    )
    files.write_text(target, page)


def curves_of_kinds(predictions: PredictionSet, metrics: ClassificationMetrics) -> dict[str, dict[str, Any]]:
    """Return the ROC and PR curve of each kind against all others, those with the smallest area first."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels, probabilities = predictions.arrays()
    drawn = sorted((kind for kind in metrics.kinds if kind.auroc is not None), key=lambda kind: kind.auroc or 0)
    found = {}
    for kind in drawn[:_DRAWN]:
        number = predictions.classes.index(kind.name)
        false, true, _ = roc_curve(labels == number, probabilities[:, number])
        precision, recall, _ = precision_recall_curve(labels == number, probabilities[:, number])
        found[f"{kind.name} ({kind.support})"] = {
            "roc": {"x": false.tolist(), "y": true.tolist()},
            "pr": {"x": recall.tolist(), "y": precision.tolist()},
        }
    return found


# ---- text and tables


def _summary(
    predictions: PredictionSet, metrics: ClassificationMetrics | None, unknown: UnknownShares | None
) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in predictions.counts().items())
    sentences = [f"{len(predictions.rows)} images: {counts}."]
    if metrics is not None and unknown is not None:
        wrong = metrics.images - sum(metrics.confusion[number][number] for number in range(len(predictions.classes)))
        sentences.append(
            f"Of {metrics.images} images of known kinds, {wrong} are most similar to another kind, and "
            f"{100 * unknown.known:.1f} % are called unknown."
        )
    return sentences


def _cards(metrics: ClassificationMetrics) -> list[Card]:
    found = []
    right = sum(metrics.confusion[number][number] for number in range(len(metrics.kinds)))
    for name, (title, meaning) in _CARDS.items():
        value = metrics.overall[name]
        ends = _span(exact_interval(right, metrics.images, 0.95)) if name == "accuracy" else ""
        if value is not None:
            found.append(Card(title, f"{value:.3f}", ends, meaning))
    return found


def _matrix(predictions: PredictionSet, metrics: ClassificationMetrics) -> dict[str, Any]:
    """Return kinds and cells of the confusion matrix; with many kinds those with the most mistakes."""
    counts = np.array(metrics.confusion)
    mistakes = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    chosen = sorted(np.argsort(-mistakes, kind="stable")[:_MATRIX].tolist())
    missed = dict.fromkeys(predictions.classes, 0)
    for row in predictions.known:
        missed[str(row.label)] += row.name == UNKNOWN
    lines = []
    for number in chosen:
        support, name = int(counts[number].sum()), predictions.classes[number]
        cells = [
            {"count": int(counts[number, other]), "share": _share(int(counts[number, other]), support),
             "kind": predictions.classes[other], "right": other == number}
            for other in chosen
        ]  # fmt: skip
        lines.append({"label": name, "cells": cells, "support": support, "unknown": missed[name]})
    names = [predictions.classes[number] for number in chosen]
    return {"names": names, "lines": lines, "left_out": len(predictions.classes) - len(chosen)}


def _kinds(predictions: PredictionSet, metrics: ClassificationMetrics) -> Table:
    lines = tuple(_kind_line(kind, predictions) for kind in metrics.kinds)
    headers = ("Kind", "Images", "Recall", "Precision", "F1", "AUROC", "AP", "Best threshold")
    note = (
        "Exact 95 % intervals in brackets. AUROC and AP compare each kind with all others. The best threshold is the "
        "probability from which calling the kind has the best F1 on the calibration images."
    )
    return Table("Metrics of each kind", headers, lines, note)


def _kind_line(kind: KindMetrics, predictions: PredictionSet) -> tuple[str, ...]:
    threshold = predictions.decision.thresholds[predictions.classes.index(kind.name)]
    return (
        *(kind.name, str(kind.support), _with_interval(kind.recall, kind.recall_interval)),
        _with_interval(kind.precision, kind.precision_interval),
        *(ABSENT if value is None else f"{value:.3f}" for value in (kind.f1, kind.auroc, kind.ap)),
        f"{threshold:.3f}",
    )


def _unseen(unknown: UnknownShares | None) -> list[Table]:
    if unknown is None:
        return []
    kept = (1 - unknown.known_interval.high, 1 - unknown.known_interval.low)
    lines = [("known kinds", "", f"{100 * unknown.known:.1f} %")]
    lines += [
        (kind, str(unknown.unseen_images[kind]), f"{100 * share:.1f} %") for kind, share in unknown.unseen.items()
    ]
    coverage = "" if unknown.coverage is None else f" It holds the true kind of {100 * unknown.coverage:.1f} % of them."
    note = (
        f"{100 * (1 - unknown.known):.1f} % of the images of known kinds are kept (95 % interval {100 * kept[0]:.1f} "
        f"to {100 * kept[1]:.1f} %). Their conformal set has {unknown.mean_set:.2f} kinds on average.{coverage}"
    )
    return [Table("Called unknown", ("Kind", "Images", "Called unknown"), tuple(lines), note)]


def _with_interval(value: float | None, interval: Interval | None) -> str:
    return ABSENT if value is None else f"{value:.3f} ({_span(interval)})" if interval else f"{value:.3f}"


def _span(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _share(count: int, support: int) -> str:
    return f"{100 * count / support:.0f} %" if support else ABSENT


def _bin(one: Any) -> dict[str, float]:
    return {"confidence": one.confidence, "accuracy": one.accuracy, "images": one.images}


# ---- pictures


def _true_probability(row: PredictedKind, classes: Sequence[str]) -> float | None:
    if row.label not in classes or not row.probabilities:
        return None
    return row.probabilities[classes.index(str(row.label))]


def _badness(row: PredictedKind) -> tuple[int, float]:
    """Return the place in the order of mistakes, high for confident ones; images without a mistake follow."""
    if row.error is not None or row.probability is None:
        return 0, 0.0
    if row.label is None:
        return 1, -row.probability
    if row.name == row.label:
        return 1, -row.probability
    # A known kind that is called unknown is a smaller mistake than a wrong kind.
    return (2, row.probability) if row.name == UNKNOWN else (3, row.probability)


def _pictures(
    predictions: PredictionSet, order: Sequence[int], classifier: Classifier | None, device: torch.device | None
) -> dict[int, str]:
    """Return pictures as data URIs by row number: the image, and an overlay of the places that speak for the kind."""
    config = (predictions.manifest.get("model") or {}).get("config")
    spec = InputSpec.from_config(config) if config else InputSpec.from_config({"image_size": 256})
    found = {}
    for place, number in enumerate(order[:_PICTURES]):
        row = predictions.rows[number]
        if row.error is not None or row.kind is None:
            continue
        item = load_image(Sample(Path(row.path), row.key), spec, _SIDE)
        if item.display is None or item.pixels is None:
            continue
        tiles = [item.display]
        if classifier is not None and place < _EXPLAINED:
            kind = predictions.classes.index(row.kind)
            values = _explained(classifier, item.pixels, kind, device)
            if values is not None and float(values.max()) > 0:
                whole = map_to_image(values, spec, item.height, item.width)
                tiles.append(overlay(item.display, whole, ColourScale(0.0, float(whole.max()))))
        found[number] = as_data_uri(as_jpeg(joined(tiles), _QUALITY))
    return found


def _explained(
    classifier: Classifier, pixels: NDArray[np.uint8], kind: int, device: torch.device | None
) -> NDArray[np.float32] | None:
    import torch

    from adctl.classification.grad_cam import grad_cam

    own = device or torch.device("cpu")
    maps = grad_cam(classifier, to_input(pixels[None], own), torch.tensor([kind], device=own))
    return None if maps is None else np.asarray(maps[0].cpu().numpy(), np.float32)


def _classifier_of(predictions: PredictionSet) -> tuple[Classifier | None, tuple[str, ...]]:
    """Return the classifier that made the predictions, if its file is still there, and a note if it is not."""
    from adctl.classification.model_file import load_classifier

    model = predictions.manifest.get("model") or {}
    path = Path(str(model.get("path", "")))
    if path.suffix != ".safetensors":
        return None, ("Overlays need the model.safetensors; these predictions were made by an exported file.",)
    if not path.is_file() or files.sha256_file(path) != model.get("sha256") or not is_classifier(path):
        return None, (f"{path} is not there any more, or has changed, so images have no overlays.",)
    try:
        return load_classifier(path)[0], ()
    except AdctlError as error:
        return None, (f"Images have no overlays: {error.message}",)
