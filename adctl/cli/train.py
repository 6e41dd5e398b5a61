"""Command `adctl train`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from adctl.config import TrainSettings
    from adctl.data.split import Split
    from adctl.engine.model_summary import ModelSummary
    from adctl.records import Calibration
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult
    from adctl.training.plan import TrainingPlan
    from adctl.training.resource_estimate import ResourceEstimate
    from adctl.training.single_run import TrainedExport, TrainResult
    from adctl.training.step_forecast import StepForecast

_SHOWN_IGNORED = 10

_FEW_IMAGES, _FOLDS = 60, 5
"""With fewer images after gradient training, cross-fitting with so many folds is offered."""


def run(call: Call[TrainSettings]) -> int:
    """Train, or show the plan of a training; return 1 if a model of a grid failed."""
    from adctl.training.resume import task_of

    if task_of(call.loaded) == "classify":
        from adctl.cli.classifier_text import run_classifier

        return run_classifier(call)
    if call.asked("dry_run"):
        _refuse_grid(call.settings)
        import psutil

        from adctl.exporting.after_training import forecast
        from adctl.training.fetch_missing import fetch_missing
        from adctl.training.plan import plan_training

        fetch_missing(call.settings, call.reporter)
        plan = plan_training(call.settings)
        started = time.time() - psutil.Process().create_time()  # a training starts in the same way
        step = _step(plan, call.settings)
        notes = [*plan.dataset.notes, *_small_defects(plan, call.settings)]
        if step is not None and getattr(plan.config, "base_digest", None) is None:
            needs = None
            notes.append(
                f"The base model is not on this machine: adctl fetch weights {plan.config.model_dump()['base']}"
            )
        else:
            needs = forecast(plan, call.settings)
            needs = replace(needs, seconds=needs.seconds + started)
        call.finish(_plan_json(plan, needs, notes, step), lambda: _plan_text(plan, needs, notes, step))
        return 0
    from adctl.exporting.after_training import train_and_export

    return _show(call, train_and_export(call.loaded, call.reporter))


def _step(plan: TrainingPlan, settings: TrainSettings) -> StepForecast | None:
    """Forecast the steps of a training through a base model, which imports diffusers."""
    from adctl.detectors.registry import detector_class

    cls = detector_class(settings.arch)
    if not (cls.takes_base and cls.takes_labels):
        return None
    from adctl.training.step_forecast import forecast_step

    return forecast_step(plan, settings)


def settings_table(call: Call[TrainSettings]) -> dict[str, dict[str, Any]]:
    """Return every setting, those of the detector included, for --print-config."""
    from adctl.training.plan import effective_settings

    if call.settings.task == "classify":
        from adctl.classification.training.train import effective_settings as of_classifier
        from adctl.cli.classifier_text import refuse_grid

        refuse_grid(call.settings)
        return of_classifier(call.loaded)
    _refuse_grid(call.settings)
    return effective_settings(call.loaded)


def _refuse_grid(settings: TrainSettings) -> None:
    from adctl.training.grid import is_grid

    if settings.update is not None:
        raise UsageError("--dry-run and --print-config do not work with --update.", "Leave them out.")
    if is_grid(settings):
        raise UsageError(
            "--dry-run and --print-config work for one training only.", "Give one --arch, --category and --seed."
        )


def _show(call: Call[TrainSettings], result: TrainResult | CrossValidationResult | GridResult | None) -> int:
    from adctl.training.single_run import TrainResult

    if isinstance(result, TrainResult):
        call.finish(result, lambda: _text(result) if result.update is None else _updated(result))
        return 0
    from adctl.cli.cross_validation_text import cross_validation_json, cross_validation_text
    from adctl.cli.grid_text import grid_text
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult

    if isinstance(result, GridResult):
        call.finish(result, lambda: grid_text(result))
        return 1 if result.failed else 0
    if isinstance(result, CrossValidationResult):
        call.finish(cross_validation_json(result), lambda: cross_validation_text(result))
    return 0


def _text(result: TrainResult, *, next_step: bool = True) -> RenderableType:
    from adctl.cli.calibrate import false_alarms

    calibration = result.calibration
    phases = ", ".join(f"{title} {seconds:.1f} s" for title, seconds in result.fit.seconds.items())
    return rows(
        [
            ("model", str(result.model)),
            ("trained on", f"{result.images} good images in {result.seconds:.1f} s ({phases})"),
            *_left_out(result),
            *(_epochs(result) if result.fit.history else []),
            *([] if result.energy_j is None else [("energy", f"{result.energy_j:.0f} J, of the whole machine")]),
            ("network", _size(result.summary)),
            ("threshold", f"{calibration.threshold:.6g}, from {_calibration_images(calibration)}"),
            ("false alarms", false_alarms(calibration)),
            *_folds_offer(result),
            *_runtime(result.export),
            *([("next", "adctl score FOLDER --out heatmaps/")] if next_step else []),
        ]
    )


def _updated(result: TrainResult) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    from adctl.cli.update_text import update_text

    assert result.update is not None
    accept = rows([("next", f"adctl runs accept {result.run.name}")])
    return Group(_text(result, next_step=False), Padding(update_text(result.update), (1, 0, 0, 0)), accept)


def _left_out(result: TrainResult) -> list[tuple[str, str]]:
    """Name the images that are unlike the others."""
    names = [one.path for one in result.set_aside]
    if not names:
        return []
    more = f", and {len(names) - _SHOWN_IGNORED} more" if len(names) > _SHOWN_IGNORED else ""
    return [("left out", f"{len(names)} unlike the others: {', '.join(names[:_SHOWN_IGNORED])}{more}")]


def _calibration_images(calibration: Calibration) -> str:
    from adctl.cli.calibrate import copies_text

    if calibration.evidence.copies:
        return copies_text(calibration)
    if calibration.evidence.folds:
        return f"{calibration.good_images} good images, each scored as by a model that did not learn from it"
    return f"{calibration.good_images} held-out good images"


def _runtime(export: TrainedExport | None) -> list[tuple[str, str]]:
    """Describe the runtime that scoring will use, or the command that makes it faster."""
    if export is None:
        return []
    gain = "" if export.speedup is None else f"{export.speedup:.1f} times as fast as PyTorch here"
    if export.file is not None:
        return [("runtime", f"{export.runtime}, verified, {gain}: {export.file.name} ({export.seconds:.1f} s)")]
    takes = f", takes about {_duration(export.seconds)}" if export.seconds else f": {export.reason}"
    return [("faster", f"{export.command}{takes}{gain and f', then about {gain} (estimated on a small network)'}")]


def _folds_offer(result: TrainResult) -> list[tuple[str, str]]:
    """Suggest `calibrate --folds`, with its cost, if there are few images and some were held out."""
    images = result.images + result.calibration.good_images
    if result.calibration.evidence.folds or not result.fit.history or images >= _FEW_IMAGES:
        return []
    minutes = max(1, round(result.seconds * (_FOLDS + 1) / 60))
    price = f"trains {_FOLDS + 1} models, about {minutes} min"
    return [("few images", f"adctl calibrate --folds {_FOLDS} uses all {images} for model and threshold; it {price}")]


def _epochs(result: TrainResult) -> list[tuple[str, str]]:
    fit = result.fit
    early = ", stopped early" if fit.stopped_early else ""
    speed = sum(epoch.images_per_second for epoch in fit.history) / len(fit.history)
    return [
        ("best epoch", f"{fit.best_epoch} of {len(fit.history)}{early}; {result.run / 'history.csv'}, loss.png"),
        ("speed", f"{speed:.1f} images/s, batches of {fit.global_batch_size}, precision {fit.precision}"),
    ]


def _size(summary: ModelSummary) -> str:
    return (
        f"{summary.layers} layers, {summary.parameters / 1e6:.1f} M parameters, "
        f"{summary.trainable / 1e6:.1f} M of them trained, "
        f"{summary.flops / 1e9:.2f} GFLOP per image, {summary.stored / 2**20:.0f} MiB stored"
    )


def _plan_json(
    plan: TrainingPlan, needs: ResourceEstimate | None, notes: Sequence[str], step: StepForecast | None
) -> dict[str, Any]:
    from adctl.data.groups import group_counts

    data = plan.dataset
    return {
        "dataset": {"name": data.name, "category": data.category, "layout": data.layout, "root": data.root},
        "train_images": len(data.train),
        "groups": group_counts(data.train),
        "test_images": data.test_counts,
        "masks": data.mask_count,
        "split": {part: len(getattr(plan.split, part)) for part in ("train", "validation", "calibration")},
        "ignored": [{"path": item.path, "reason": item.reason} for item in data.ignored],
        "notes": notes,
        "config": plan.config,
        "image_size": None if plan.size is None else {"size": plan.config.image_size, "reason": plan.size.reason},
        "device": {"name": str(plan.device.device), "reason": plan.device.reason},
        "forecast": needs,
        "step": step,
    }


def _plan_text(
    plan: TrainingPlan, needs: ResourceEstimate | None, notes: Sequence[str], step: StepForecast | None
) -> RenderableType:
    from adctl.data.groups import group_counts

    data, split = plan.dataset, plan.split
    groups = group_counts(data.train)
    defective = sum(count for label, count in data.test_counts.items() if label != "good")
    tests = ", ".join(f"{count} {label}" for label, count in data.test_counts.items()) or "none"
    ignored = [(f"ignored {item.path.name}", item.reason) for item in data.ignored[:_SHOWN_IGNORED]]
    if len(data.ignored) > _SHOWN_IGNORED:
        ignored.append(("ignored", f"and {len(data.ignored) - _SHOWN_IGNORED} more; --json lists them all"))
    return rows(
        [
            ("dataset", f"{data.root} ({data.layout} layout)"),
            ("good images", f"{len(data.train)}" + ("" if needs is None else f" in {_sizes(needs)}")),
            *([("groups", ", ".join(f"{name} ({count})" for name, count in groups.items()))] if groups else []),
            ("split", _split_text(split)),
            ("test images", tests),
            ("masks", f"{data.mask_count} for {defective} defective test images"),
            *((f"note {number}", note) for number, note in enumerate(notes, 1)),
            *ignored,
            *([("image size", str(plan.size))] if plan.size else []),
            ("detector", f"{type(plan.config).__name__.removesuffix('Config')}: {_options(plan)}"),
            ("device", f"{plan.device.device}: {plan.device.reason}"),
            *([] if needs is None else _needs(needs)),
            *([] if step is None else _steps(step)),
        ]
    )


def _needs(needs: ResourceEstimate) -> list[tuple[str, str]]:
    free = f"{needs.available / 2**30:.1f} GiB are free"
    return [
        ("memory", f"about {needs.memory / 2**30:.1f} GiB at the peak; {free}"),
        *([("disk", f"about {needs.disk / 2**30:.1f} GiB, temporary: memory is short")] if needs.disk else []),
        ("time", f"about {_duration(needs.seconds)}, measured with a few images"),
    ]


def _steps(step: StepForecast) -> list[tuple[str, str]]:
    """Describe the gradient steps through a base model on a GPU."""
    cost = {
        name: f"{one.memory / 2**30:.2f} GiB, {one.flops / 1e9:,.0f} GFLOP"
        for name, one in (("encoding", step.encoding), ("kept", step.kept), ("recomputed", step.recomputed))
    }
    return [
        ("prompts", f"{step.trained:,} of {step.parameters / 1e6:,.2f} M parameters are trained"),
        (f"step of {step.batch}", f"{cost['encoding']} with encoding; half precision, from shapes"),
        ("later steps", f"{cost['kept']} with kept latents"),
        ("with less memory", f"{cost['recomputed']} with --gradient-checkpointing"),
    ]


def _split_text(split: Split) -> str:
    parts = [f"{len(getattr(split, part))} for {part}" for part in ("train", "validation", "calibration")]
    if split.calibration:
        return ", ".join(parts)
    return f"{parts[0]}, and each of them out of fold for the threshold"


def _small_defects(plan: TrainingPlan, settings: TrainSettings) -> list[str]:
    """Return the advice on small defects, with the estimated resources of the larger size, if there is one."""
    if plan.advice is None:
        return []
    from pydantic import ValidationError

    from adctl.errors import AdctlError
    from adctl.image_sizes import doubled, size_text
    from adctl.training.resource_estimate import estimate_resources

    size = doubled(plan.config.image_size)
    try:
        config = type(plan.config)(**{**plan.config.model_dump(), "image_size": size})
        needs = estimate_resources(replace(plan, config=config), settings)
    except (AdctlError, ValidationError):  # some detectors do not take the size
        return [plan.advice]
    cost = f"about {_duration(needs.seconds)} and {needs.memory / 2**30:.1f} GiB at the peak"
    return [plan.advice, f"With --image-size {size_text(size)} the training would take {cost}."]


def _sizes(needs: ResourceEstimate) -> str:
    return f"{needs.width} x {needs.height} pixels (first image)"


def _options(plan: TrainingPlan) -> str:
    return ", ".join(f"{name} {value}" for name, value in plan.config.model_dump(mode="json").items())


def _duration(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004 - people count seconds up to there
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"  # noqa: PLR2004
