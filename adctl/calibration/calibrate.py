"""Choosing a model's thresholds again: scores of images it has not learned from to a new model file."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.calibration.calibration_scores import gather, held_out, wanted_views
from adctl.errors import UsageError
from adctl.model_file import SUFFIX, read_header, recalibrate, save_model
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.thresholds import methods
from adctl.thresholds.methods import ThresholdRule
from adctl.thresholds.supervised import Costs

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import CalibrateSettings, LoadedSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.records import Calibration

__all__ = ["CalibrateResult", "calibrate", "held_out", "rule_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateResult:
    """What calibrating made.

    Attributes:
        source: The model file it started from.
        model: The calibrated model file.
        calibration: The thresholds and what they rest on.
        previous: The thresholds before, or None.
        notes: What the user should know of them.
    """

    source: Path
    model: Path
    calibration: Calibration
    previous: Calibration | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Level:
    """The setting that says how far a method goes.

    Attributes:
        setting: Its name.
        default: Where it is left out; None where it must be given.
        most: The most that a level for --warn-at may be.
    """

    setting: str
    default: float | None
    most: float = math.inf


_LEVELS = {
    "percentile": _Level("percentile", 99.0, 100),
    "sigma": _Level("sigmas", 3.0),
    "mad": _Level("sigmas", 3.0),
    "tail": _Level("max_false_alarm", 0.01, 1),
    "conformal": _Level("max_false_alarm", 0.01, 1),
    "precision": _Level("min_precision", None, 1),
    "recall": _Level("min_recall", None, 1),
    "fixed": _Level("threshold", None),
}
"""By method; f1 and cost have none."""

_COSTS = ("cost_miss", "cost_alarm", "defect_rate")

_MEANT = {
    "percentile": "percentile",
    "sigmas": "sigma",
    "max_false_alarm": "conformal",
    "min_precision": "precision",
    "min_recall": "recall",
    "threshold": "fixed",
    **dict.fromkeys(_COSTS, "cost"),
}
"""The method that a setting stands for where --method is left out."""


def calibrate(loaded: LoadedSettings[CalibrateSettings], reporter: Reporter = SILENT) -> CalibrateResult:
    """Choose thresholds from images the model did not learn from, and write them into a model file.

    Without images named, the scores kept in the model file are enough, and torch is not even imported.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: The model or the images do not exist, or flags contradict each other.
        DataError: Too few usable images, or scores of another model.
        OutputError: The model file cannot be written.
    """
    settings = loaded.settings
    _check(settings)
    rule = rule_of(settings)
    source = run_folder.find_model(settings.runs, settings.model)
    if source.suffix != SUFFIX:
        raise UsageError(f"{source} is an exported model.", "Calibrate its model.safetensors, then export that again.")
    if settings.out == source:
        raise UsageError(f"--out {source} is the model itself.", "Give another file, or say --in-place.")
    before = read_header(source)
    fitted: tuple[Detector, ModelHeader] | None = None
    if settings.folds is None:
        evidence = gather(settings, source, before, reporter)
    else:
        from adctl.calibration.refit import Refitter, cross_fit

        detector, header, evidence = cross_fit(
            Refitter(source, loaded, reporter), settings.folds, wanted_views(settings, None)
        )
        fitted = detector, header
    chosen, notes = methods.calibrate(rule, evidence)
    for note in notes:
        log.warning("%s", note)
    target = source if settings.in_place else settings.out or source.with_name(_name(chosen))
    if fitted is None:
        recalibrate(source, target, chosen)
    else:
        save_model(target, fitted[0], fitted[1].with_calibration(chosen))
    run_folder.set_last(settings.runs, "model", target)
    return CalibrateResult(source, target, chosen, before.calibration, notes)


def rule_of(settings: CalibrateSettings) -> ThresholdRule:
    """The rule that the settings mean: the method named, or the one whose level is given.

    Raises:
        UsageError: Levels of two methods are given, a level is missing, or one does not go with the method.
    """
    given = {name: value for name in _MEANT if (value := getattr(settings, name)) is not None}
    meant = {_MEANT[name] for name in given}
    if settings.method is None and len(meant) > 1:
        flags = " and ".join(flag_name(name) for name in given)
        raise UsageError(f"{flags} belong to different methods.", "Give one of them, or say which with --method.")
    method: str = settings.method or next(iter(meant), "percentile")
    level = _LEVELS.get(method)
    allowed = (level.setting,) if level else _COSTS if method == "cost" else ()
    for name in given:
        if name not in allowed:
            known = ", ".join(flag_name(one) for one in allowed) or "none"
            raise UsageError(f"{flag_name(name)} does not go with --method {method}.", f"It takes: {known}.")
    if level is None:
        return ThresholdRule(method, warn=settings.warn_at, costs=_costs(settings, method))
    value = given.get(level.setting, level.default)
    if value is None:
        raise UsageError(f"--method {method} needs a level.", f"Give it with {flag_name(level.setting)}.")
    _check_warning(settings.warn_at, level)
    return ThresholdRule(method, float(value), settings.warn_at)


def _costs(settings: CalibrateSettings, method: str) -> Costs:
    if method == "cost" and settings.cost_miss is None and settings.cost_alarm is None:
        raise UsageError("What mistakes cost is not given.", "Give --cost-miss and --cost-alarm; the other counts 1.")
    miss, alarm = (1.0 if value is None else value for value in (settings.cost_miss, settings.cost_alarm))
    return Costs(miss, alarm, settings.defect_rate)


def _check_warning(warn_at: float | None, level: _Level) -> None:
    if warn_at is not None and warn_at > level.most:
        raise UsageError(
            f"--warn-at is a level like {flag_name(level.setting)}: at most {level.most:g}. Got {warn_at:g} instead.",
            f"Give a level that calls out more images than {flag_name(level.setting)} does.",
        )


def _check(settings: CalibrateSettings) -> None:
    if settings.in_place and settings.out is not None:
        raise UsageError("--in-place and --out contradict each other.", "Give one of them.")
    sources = [name for name in ("scores", "folds", "good") if getattr(settings, name) is not None]
    if len(sources) > 1:
        raise UsageError(f"{' and '.join(map(flag_name, sources))} contradict each other.", "Give one of them.")
    for name in ("defects", "tta"):
        if settings.scores is not None and getattr(settings, name) is not None:
            raise UsageError(f"--scores takes saved scores, so {flag_name(name)} has nothing to do.", "Leave one out.")
    if settings.folds is not None and settings.defects is not None:
        raise UsageError("--folds scores good images only.", "Calibrate the model it makes with --defects afterwards.")
    if settings.folds is not None and settings.method in methods.SUPERVISED:
        raise UsageError(f"--folds has no defective images for --method {settings.method}.", "Choose another method.")


def _name(chosen: Calibration) -> str:
    parts = ["model", chosen.method, *([f"{chosen.level:g}"] if chosen.method in _LEVELS else [])]
    if chosen.evidence.folds:
        parts.append(f"folds{chosen.evidence.folds}")
    return "-".join(parts) + SUFFIX
