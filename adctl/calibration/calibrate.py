"""Calibration of a trained model: choose thresholds from scores of held-out images and write a new model file."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.calibration.calibration_scores import collect_scores, wanted_views
from adctl.errors import DataError, UsageError
from adctl.model_file import SUFFIX, read_header, recalibrate, run_of, save_model
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.thresholds import conformal, contaminated, methods, new_groups
from adctl.thresholds.commissioning import RATE
from adctl.thresholds.methods import ThresholdRule
from adctl.thresholds.supervised import Costs
from adctl.tracking import record
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import CalibrateSettings, LoadedSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.records import Calibration


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateResult:
    """Result of a calibration.

    Attributes:
        source: Original model file.
        model: Calibrated model file.
        calibration: New thresholds with their calibration scores.
        previous: Calibration of the original model file, or None.
        notes: Remarks for the user about the thresholds.
    """

    source: Path
    model: Path
    calibration: Calibration
    previous: Calibration | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Level:
    """Setting that holds the level of a threshold method, such as its percentile.

    Attributes:
        setting: Name of the setting.
        default: Default level; None if the user must give it.
        max_warning: Largest level allowed for --warn-at.
    """

    setting: str
    default: float | None
    max_warning: float = math.inf


_PERCENT = 100

_LEVELS = {
    "smooth": _Level("max_false_alarm", 0.01, 1),
    "percentile": _Level("percentile", 99.0, 100),
    "sigma": _Level("sigmas", 3.0),
    "mad": _Level("sigmas", 3.0),
    "tail": _Level("max_false_alarm", 0.01, 1),
    "conformal": _Level("max_false_alarm", 0.01, 1),
    contaminated.METHOD: _Level("max_false_alarm", RATE, 1),
    new_groups.METHOD: _Level("max_false_alarm", 0.01, 1),
    "precision": _Level("min_precision", None, 1),
    "recall": _Level("min_recall", None, 1),
    "fixed": _Level("threshold", None),
}
"""Level of each method; the methods f1 and cost have none."""

_COSTS = ("cost_miss", "cost_alarm", "defect_rate")

_METHOD_OF = {
    "percentile": "percentile",
    "sigmas": "sigma",
    "max_false_alarm": "conformal",
    "min_precision": "precision",
    "min_recall": "recall",
    "threshold": "fixed",
    **dict.fromkeys(_COSTS, "cost"),
}
"""Method that is used if this setting is given without --method."""


def calibrate(loaded: LoadedSettings[CalibrateSettings], reporter: Reporter = SILENT) -> CalibrateResult:
    """Choose thresholds from scores of images that the model was not trained on, and write a calibrated model file.

    If no images are named and the model file stores calibration scores, those are used and PyTorch is not imported.

    Args:
        loaded: Settings.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: The model or the images do not exist, or flags contradict each other.
        DataError: There are too few usable images, with `strict` also for the wanted rate, or the scores are of another
            model.
        OutputError: The model file cannot be written.
    """
    settings = loaded.settings
    _check(settings)
    rule = threshold_rule(settings)
    source = _find_source(settings)
    if source.suffix != SUFFIX:
        raise UsageError(f"{source} is an exported model.", "Calibrate its model.safetensors, then export it again.")
    if settings.out == source:
        raise UsageError(f"--out {source} is the model file itself.", "Give another file, or use --in-place.")
    _check_target(settings, source)
    before = read_header(source)
    fitted: tuple[Detector, ModelHeader] | None = None
    if settings.line is not None:
        from adctl.calibration.line import score_line

        scores, fitted = score_line(settings, source, reporter)
    elif settings.folds is None:
        scores = collect_scores(settings, source, before, reporter)
    else:
        from adctl.calibration.refit import Refitter, cross_fit

        detector, header, scores = cross_fit(
            Refitter(source, loaded, reporter), settings.folds, wanted_views(settings, None)
        )
        fitted = detector, header
    chosen, notes = methods.calibrate(rule, scores)
    notes = (*notes, *_missing_images(rule, chosen, before, strict=settings.strict))
    for note in notes:
        log.warning("%s", note)
    target = source if settings.in_place else settings.out or source.with_name(_file_name(chosen))
    if settings.out is None and not settings.in_place:
        files.require_replaceable([target], overwrite=settings.overwrite)
    if fitted is None:
        recalibrate(source, target, chosen)
    else:
        save_model(target, fitted[0], fitted[1].with_calibration(chosen))
    run = run_of(source, settings.runs)
    run_folder.set_last(settings.runs, "model", target)
    digest = {run_folder.TRAINING_DIGEST: (fitted[1] if fitted else before).training.digest}
    level = {"method": chosen.method, "level": chosen.level, "threshold": chosen.threshold}
    record.made(source, "calibration", target, run=run, facts=level | digest)
    return CalibrateResult(source, target, chosen, before.calibration, notes)


def _check_target(settings: CalibrateSettings, source: Path) -> None:
    """Raise if the model file cannot be written, or would replace a file of the user or the trained model of a run."""
    out = settings.out
    files.require_replaceable([out], overwrite=settings.overwrite)
    files.require_writable([out or source])
    trained = out is not None and out.name == run_folder.MODEL and (out.parent / run_folder.RUN).is_file()
    if trained and not settings.overwrite:
        raise UsageError(f"{out} is the trained model of a run.", "Give another file, or replace it with --overwrite.")


def _find_source(settings: CalibrateSettings) -> Path:
    """Return the model file to calibrate; with `in_place`, a run means the model that was trained."""
    found = find_model(settings.runs, settings.model)
    named = settings.model is None or settings.model.name == found.name
    return found if named or not settings.in_place else found.with_name(run_folder.MODEL)


def _missing_images(rule: ThresholdRule, chosen: Calibration, model: ModelHeader, *, strict: bool) -> tuple[str, ...]:
    """Return how many good images or groups are missing for the wanted rate, and whether folds would have enough.

    Raises:
        DataError: Images or groups are missing, and `strict` is set.
    """
    count, what = chosen.good_images, "good images"
    if rule.method == new_groups.METHOD:
        count, what = len(set(chosen.evidence.groups)), "groups"
    elif rule.method != "conformal" or chosen.evidence.contaminated is not None:
        return ()
    if count >= (needed := conformal.images_needed(rule.level)):
        return ()
    advice = f"Take {needed - count} more {what}."
    if what != "groups" and not chosen.evidence.folds and model.training.images + count >= needed:
        advice = f"{advice[:-1]}, or use --folds 5, which uses all."
    if strict:
        raise DataError(f"{count} {what} cannot guarantee a false-alarm rate of {rule.level:g}.", advice)
    return (advice,)


def threshold_rule(settings: CalibrateSettings) -> ThresholdRule:
    """Return the threshold rule of the settings: the named method, or the method whose level is given.

    Raises:
        UsageError: Levels of two methods are given, a level is missing, or a level does not belong to the method.
    """
    given = {name: value for name in _METHOD_OF if (value := getattr(settings, name)) is not None}
    implied = {_METHOD_OF[name] for name in given}
    if settings.new_groups:
        if settings.method is not None:
            raise UsageError("--new-groups and --method contradict each other.", "Leave out one of them.")
        implied = {new_groups.METHOD}
    if settings.method is None and len(implied) > 1:
        flags = " and ".join(flag_name(name) for name in given)
        raise UsageError(f"{flags} belong to different methods.", "Give one of them, or choose one with --method.")
    method: str = settings.method or next(iter(implied), contaminated.METHOD if settings.line else "smooth")
    level = _LEVELS.get(method)
    allowed = (level.setting,) if level else _COSTS if method == "cost" else ()
    for name in given:
        if name not in allowed:
            known = ", ".join(flag_name(setting) for setting in allowed) or "none"
            raise UsageError(
                f"{flag_name(name)} does not belong to {_flag_of(method)}.", f"Flags of this method: {known}."
            )
    if level is None:
        return ThresholdRule(method, warn=settings.warn_at, costs=_costs(settings, method))
    value = given.get(level.setting, level.default)
    if value is None:
        raise UsageError(f"--method {method} needs a level.", f"Give it with {flag_name(level.setting)}.")
    _check_warning(settings.warn_at, level)
    return ThresholdRule(method, float(value), settings.warn_at)


def _flag_of(method: str) -> str:
    return "--new-groups" if method == new_groups.METHOD else f"--method {method}"


def _costs(settings: CalibrateSettings, method: str) -> Costs:
    if method == "cost" and settings.cost_miss is None and settings.cost_alarm is None:
        raise UsageError(
            "--method cost needs the costs of mistakes.",
            "Give --cost-miss, --cost-alarm or both; a cost that is not given is 1.",
        )
    miss, alarm = (1.0 if value is None else value for value in (settings.cost_miss, settings.cost_alarm))
    return Costs(miss, alarm, settings.defect_rate)


def _check_warning(warn_at: float | None, level: _Level) -> None:
    if warn_at is None:
        return
    like, got = f"--warn-at is a level like {flag_name(level.setting)}", f"Got {warn_at:g} instead."
    if warn_at > level.max_warning:
        advice = f"Give a level that marks more images than {flag_name(level.setting)} does."
        if level.max_warning == 1 and warn_at < _PERCENT:
            advice = f"Write {warn_at / _PERCENT:g} or {warn_at:g}%."
        raise UsageError(f"{like}: at most {level.max_warning:g}. {got}", advice)
    if level.setting == "percentile" and warn_at <= 1:  # a share, or a percentage that was read as one
        raise UsageError(f"{like}: a number up to 100. {got}", f"Write {_PERCENT * warn_at:g}.")


def _check(settings: CalibrateSettings) -> None:
    if settings.in_place and settings.out is not None:
        raise UsageError("--in-place and --out contradict each other.", "Give one of them.")
    sources = [name for name in ("scores", "folds", "good", "line") if getattr(settings, name) is not None]
    if len(sources) > 1:
        raise UsageError(f"{' and '.join(map(flag_name, sources))} contradict each other.", "Give one of them.")
    _check_images(settings)
    for name in ("defects", "tta"):
        if settings.scores is not None and getattr(settings, name) is not None:
            raise UsageError(
                f"--scores uses saved scores, so {flag_name(name)} cannot be used with it.", "Leave out one of them."
            )
    if settings.folds is not None and settings.defects is not None:
        raise UsageError(
            "--folds scores only good images, so --defects cannot be used with it.",
            "Use --folds first, then calibrate the new model with --defects.",
        )
    if settings.folds is not None and settings.method in methods.SUPERVISED:
        raise UsageError(
            f"--method {settings.method} needs defective images, but --folds scores only good ones.",
            "Choose another method.",
        )


def _check_images(settings: CalibrateSettings) -> None:
    if settings.contaminated is not None and settings.line is None:
        raise UsageError("--contaminated belongs to --line, which is missing.", "Give --line DIR too.")
    for name in ("defects", "new_groups"):
        if settings.line is not None and getattr(settings, name):
            raise UsageError(f"--line and {flag_name(name)} contradict each other.", "Give one of them.")
    if settings.group is not None and settings.good is None:
        raise UsageError("--group gives groups to the images of --good, which is missing.", "Give --good DIR too.")


def _file_name(chosen: Calibration) -> str:
    parts = ["model", chosen.method, *([f"{chosen.level:g}"] if chosen.method in _LEVELS else [])]
    if chosen.evidence.folds:
        parts.append(f"folds{chosen.evidence.folds}")
    return "-".join(parts) + SUFFIX
