"""Command `adctl calibrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.classifier_text import calibrate_kinds, find_classifier
from adctl.cli.output import Call, rows, sparkline

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from adctl.calibration.calibrate import CalibrateResult
    from adctl.calibration.learning_curve import LearningCurve
    from adctl.config import CalibrateSettings
    from adctl.records import Calibration


def run(call: Call[CalibrateSettings]) -> None:
    """Choose the threshold, or estimate how many good images are enough."""
    if (model := find_classifier(call.settings)) is not None:
        calibrate_kinds(call, model)
        return
    if call.settings.learning_curve:
        from adctl.calibration.learning_curve import learning_curve

        curve = learning_curve(call.loaded, call.reporter)
        call.finish(curve, lambda: _curve_text(curve))
        return
    from adctl.calibration.calibrate import calibrate

    result = calibrate(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result, call.settings))


def _text(result: CalibrateResult, settings: CalibrateSettings) -> RenderableType:
    chosen, before = result.calibration, result.previous
    basis = copies_text(chosen) or f"{chosen.good_images} good images"
    if chosen.evidence.contaminated is not None:
        basis = f"{chosen.good_images} parts, at most {100 * chosen.evidence.contaminated:g} % of them defective"
    if chosen.defect_images:
        basis += f" and {chosen.defect_images} defective images"
    if chosen.evidence.folds:
        basis += ", each scored as by a model that did not learn from it"
    was = f" (was {before.threshold:.6g})" if before else ""
    warn = [("warn above", f"{chosen.warn_threshold:.6g}")] if chosen.warn_threshold is not None else []
    return rows(
        [
            ("model", str(result.model)),
            ("method", f"{chosen.method} {chosen.level:.4g}"),
            ("threshold", f"{chosen.threshold:.6g}{was}, from {basis}"),
            *warn,
            ("false alarms", false_alarms(chosen)),
            ("next", f"adctl score FOLDER --model {_name_of(result.model, settings.runs)}"),
        ]
    )


def _name_of(model: Path, runs: Path) -> str:
    """Return the shortest name for --model: that of a run in the usual folder, or the path."""
    import shlex

    from adctl.config import CalibrateSettings
    from adctl.run_folder import newest_model

    run = model.parent
    is_run = run.parent == runs == CalibrateSettings().runs and newest_model(run) == model
    return shlex.quote(run.name if is_run else str(model))


def false_alarms(chosen: Calibration) -> str:
    """Return the rate of false alarms in words: what is usual, and what is guaranteed."""
    from adctl.thresholds import new_groups

    usual = f"about {100 * chosen.expected_false_alarm:.2g} % of new good images"
    if chosen.promised_false_alarm is None:
        return _estimate_text(chosen, usual)
    if chosen.evidence.contaminated is not None:
        most = f"at most {100 * chosen.promised_false_alarm:.3g} %"
        return f"{_aim(chosen)}{most} guaranteed, whatever the defective parts score, if good parts stay as they are"
    rate = f"at most {100 * chosen.promised_false_alarm:.3g} % of new good images"
    if chosen.method == new_groups.METHOD:
        count = len(set(chosen.evidence.groups))
        if chosen.evidence.folds:
            bound = "by the bound of the hierarchical jackknife+"
            return f"usually {usual} of new groups; {rate} {bound}, on average, if new groups resemble these {count}"
        return f"{rate} of new groups, on average: guaranteed, if new groups resemble these {count}"
    if not chosen.evidence.folds:
        return f"{rate}: guaranteed, if they resemble these images"
    return f"usually {usual}; {rate} by the bound of cross-conformal prediction, if they resemble these images"


def _estimate_text(chosen: Calibration, usual: str) -> str:
    from adctl.thresholds import new_groups

    if chosen.evidence.copies:
        return "unknown, as the threshold rests on one image: give other good images to adctl calibrate --good DIR"
    groups = " for new groups" if chosen.evidence.groups and chosen.method != new_groups.METHOD else ""
    interval = f" ({chosen.false_alarm_range} with 90 % confidence)" if chosen.false_alarm_range else ""
    return f"{usual}{interval}: an estimate, not a guarantee{groups}"


def copies_text(chosen: Calibration) -> str:
    """Return the source of the scores in words if they are those of copies of a single image, else an empty text."""
    return f"{chosen.evidence.copies} altered copies of the only good image" if chosen.evidence.copies else ""


def _aim(chosen: Calibration) -> str:
    from adctl.thresholds import contaminated

    return f"about {100 * chosen.level:.3g} % of new good parts; " if chosen.method == contaminated.METHOD else ""


def _curve_text(curve: LearningCurve) -> RenderableType:
    from rich.console import Group

    aurocs = bool(curve.defects)
    values = [point.auroc if aurocs else point.score for point in curve.points]
    lines = [
        (
            str(point.images),
            f"{value:.4g}",
            _spread(point.aurocs or point.scores),
            f"{point.seconds:.1f} s",
        )
        for point, value in zip(curve.points, values, strict=True)
    ]
    measure = "image AUROC" if aurocs else "score of held-out good images"
    return Group(
        rows(lines, "good images", measure, "range", "time"),
        rows(
            [
                ("curve", sparkline([value for value in values if value is not None])),
                ("answer", curve.answer.text),
                ("results", f"{curve.folder}: learning_curve.json, learning_curve.png"),
            ]
        ),
    )


def _spread(values: tuple[float, ...]) -> str:
    return f"{min(values):.4g} - {max(values):.4g}" if len(values) > 1 else ""
