"""Text of `adctl train --folds K`: one line for each fold, mean and spread, ensembles, and the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adctl.cli.output import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.training.cross_validation import CrossValidationResult


def cross_validation_text(result: CrossValidationResult) -> RenderableType:
    """Return the table of folds, then the facts about the run."""
    from rich.console import Group
    from rich.padding import Padding

    from adctl.training.evaluate import METRICS, shown

    lines = [
        (f"fold {fold.number}", str(fold.images), str(fold.held_out), f"{fold.threshold:.6g}", *_cells(fold.metrics))
        for fold in result.folds
    ]
    if result.spreads:
        lines.append(("mean ± spread", "", "", "", *shown(result.spreads)))
    for name, metrics in result.ensembles.items():
        lines.append((f"ensemble, {name}", "", "", "", *_cells(metrics)))
    trained = result.trained
    of_all = ("all images", str(trained.images), "", f"{trained.calibration.threshold:.6g}", *_cells(result.all_images))
    lines.append(of_all)
    names = METRICS.values() if result.all_images else ()
    width = 4 + len(names)
    table = rows([line[:width] for line in lines], "model", "trained on", "held out", "threshold", *names)
    facts = [
        ("best fold", f"{result.best}, by {result.criterion}"),
        *(("note", note) for note in result.notes),
        ("model", str(trained.model)),
        ("summary", str(result.run / "summary.json")),
        ("next", f"adctl score FOLDER --model {result.run}"),
    ]
    return Group(table, Padding(rows(facts), (1, 0, 0, 0)))


def cross_validation_json(result: CrossValidationResult) -> dict[str, Any]:
    """Return the content of `summary.json`, with the folder of the run."""
    from adctl.training.cross_validation import summary

    return {"run": result.run, **summary(result)}


def _cells(metrics: dict[str, float]) -> tuple[str, ...]:
    from adctl.training.evaluate import METRICS

    return tuple(f"{metrics[name]:.3f}" if name in metrics else "" for name in METRICS)
