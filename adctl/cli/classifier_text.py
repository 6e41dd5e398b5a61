"""Text of `adctl train --task classify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.classification.training.results import ClassifierResult
    from adctl.classification.training.train import ClassifierForecast
    from adctl.config import TrainSettings
    from adctl.metrics.classification import KindMetrics


def run_classifier(call: Call[TrainSettings]) -> int:
    """Train a classifier, or show the plan of the training."""
    from adctl.classification.training.train import forecast, train_classifier

    if call.asked("dry_run"):
        plan = forecast(call.loaded)
        call.finish(plan, lambda: _plan_text(plan))
        return 0
    result = train_classifier(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))
    return 0


def _text(result: ClassifierResult) -> RenderableType:
    from rich.console import Group

    overall, unknown = result.metrics.overall, result.unknown
    named = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "ece")
    table = rows(
        [_kind_line(kind) for kind in result.metrics.kinds], "kind", "images", "recall", "95 %", "precision", "F1"
    )
    unseen = ", ".join(f"{share:.0%} of {kind}" for kind, share in unknown.unseen.items())
    return Group(
        rows(
            [
                ("model", str(result.model)),
                ("trained on", f"{result.images} images of {len(result.classes)} kinds in {result.seconds:.1f} s"),
                ("tested on", f"{result.test_images} images"),
                ("metrics", ", ".join(f"{name.replace('_', ' ')} {_number(overall[name])}" for name in named)),
                ("unknown", f"{unknown.known:.1%} of known kinds" + (f"; kinds left out: {unseen}" if unseen else "")),
                *_folds(result),
                *((f"note {number}", note) for number, note in enumerate(result.notes, 1)),
            ]
        ),
        "",
        table,
        "",
        rows([("results", f"{result.run}: metrics.json, predictions.csv, auc_scores.csv and curves")]),
    )


def _kind_line(kind: KindMetrics) -> tuple[str, ...]:
    interval = kind.recall_interval
    span = "" if interval is None else f"{interval.low:.2f}-{interval.high:.2f}"
    return kind.name, str(kind.support), _number(kind.recall), span, _number(kind.precision), _number(kind.f1)


def _folds(result: ClassifierResult) -> list[tuple[str, str]]:
    if result.folds is None:
        return []
    score = result.folds.spreads["macro_f1"]
    ensembles = ", ".join(f"{name} {_number(one['macro_f1'])}" for name, one in result.folds.ensembles.items())
    return [
        ("folds", f"macro f1 {score}, best fold {result.folds.best}"),
        ("ensembles", f"macro f1 on the test images by {ensembles}"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plan_text(plan: ClassifierForecast) -> RenderableType:
    counts = {part: ", ".join(f"{name} {count}" for name, count in own.items()) for part, own in plan.images.items()}
    return rows(
        [
            ("dataset", plan.dataset),
            *((part, text) for part, text in counts.items() if text),
            ("classifier", ", ".join(f"{name} {value}" for name, value in plan.config.items())),
            ("device", plan.device),
        ]
    )
