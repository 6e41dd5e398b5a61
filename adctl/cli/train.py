"""`adctl train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adctl.cli import options as opt
from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import TrainSettings
    from adctl.engine.model_summary import ModelSummary
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult
    from adctl.training.resource_estimate import ResourceEstimate
    from adctl.training.single_run import TrainingPlan, TrainResult

_SHOWN_IGNORED = 10


def train(
    ctx: typer.Context,
    arch: opt.Arch = None,
    data: opt.Data = None,
    dataset: opt.Dataset = None,
    category: opt.Category = None,
    good: Annotated[Path | None, opt.value("Plain folder of good images.", metavar="DIR")] = None,
    test: Annotated[Path | None, opt.value("Test images, loose or in one folder a label.", metavar="DIR")] = None,
    masks: Annotated[Path | None, opt.value("Ground-truth masks for --test.", metavar="DIR")] = None,
    backbone: Annotated[str | None, opt.value("timm model whose features are compared.")] = None,
    weights: Annotated[
        str | None, opt.value("Pretrained weights: .safetensors or .pth, or 'random'.", metavar="FILE")
    ] = None,
    image_size: Annotated[int | None, opt.value("Side images are resized to, pixels.", metavar="N")] = None,
    roi: Annotated[
        str | None, opt.value("Where to look: a rectangle in pixels, or a mask picture.", metavar="X,Y,W,H")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another option, such as coreset_ratio=0.1; with several detectors also patchcore.NAME=VALUE.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    calibration_share: Annotated[
        float | None,
        opt.value("Share of good images held out for the threshold.", default="0.2", metavar="X"),
    ] = None,
    validation_share: Annotated[
        float | None,
        opt.value("Share of good images held out to choose the epoch.", default="0.1", metavar="X"),
    ] = None,
    loss: Annotated[
        str | None, opt.value("Loss terms of an autoencoder and their weights.", metavar="mse=1,ssim=0.5")
    ] = None,
    error: Annotated[
        str | None, opt.value("Spaces of an autoencoder's map and their weights.", metavar="l2=0.15,features=0.85")
    ] = None,
    noise_level: Annotated[
        list[float] | None, opt.value("Of diffusion: share of its steps noised and undone; repeatable.", metavar="X")
    ] = None,
    epochs: Annotated[
        int | None,
        opt.value("Epochs of gradient training; left out, 20 or as many as make 1000 steps.", metavar="N"),
    ] = None,
    learning_rate: Annotated[
        float | None, opt.value("Peak learning rate of AdamW; 0.001 unless the detector knows better.", metavar="X")
    ] = None,
    weight_decay: Annotated[
        float | None, opt.value("Weight decay of AdamW; 0.0001 unless the detector knows better.", metavar="X")
    ] = None,
    schedule: Annotated[
        str | None,
        opt.value("Learning rate: cosine, step, plateau or constant; cosine unless the detector knows better."),
    ] = None,
    warmup: Annotated[
        float | None,
        opt.value("Share of the steps with a rising rate; 0.05 unless the detector knows better.", metavar="X"),
    ] = None,
    batch_size: opt.BatchSize = None,
    accumulate: Annotated[int | None, opt.value("Batches to one optimizer step.", default="1", metavar="N")] = None,
    clip: Annotated[float | None, opt.value("Largest norm of the gradient.", default="1.0", metavar="X")] = None,
    patience: Annotated[
        int | None, opt.value("Epochs without a better loss before stopping.", default="20", metavar="N")
    ] = None,
    ema: Annotated[
        float | None, opt.value("Decay of a running average of the weights; 0 keeps none.", default="0.0", metavar="X")
    ] = None,
    precision: Annotated[str | None, opt.value("Gradient arithmetic: auto, 32, 16 or bf16.", default="auto")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, about a third more time.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Compile the training step; pays in long trainings.")
    ] = None,
    devices: Annotated[
        str | None, opt.value("Devices that train together: how many, or which.", metavar="2 or 0,1")
    ] = None,
    augment: Annotated[
        str | None, opt.value("Augmentation: none, light, medium, heavy or custom.", default="none")
    ] = None,
    augmentation_library: Annotated[
        str | None, opt.value("That augments: torchvision or albumentations.", default="torchvision")
    ] = None,
    synthetic: Annotated[
        str | None, opt.value("Synthetic defects to undo: cutpaste, perlin, or cutpaste,perlin.")
    ] = None,
    checkpoint_epochs: Annotated[
        int | None, opt.value("Epochs between checkpoints.", default="10", metavar="N")
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, opt.value("Minutes between checkpoints.", default="5.0", metavar="X")
    ] = None,
    keep_checkpoints: Annotated[
        int | None, opt.value("Checkpoints that stay after training.", default="0", metavar="N")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard files.", show_default=False)
    ] = None,
    folds: Annotated[
        int | None, opt.value("Cross-validate: so many models, each held out from a part.", metavar="K")
    ] = None,
    fold: Annotated[int | None, opt.value("Only the model of this fold of --folds.", metavar="N")] = None,
    resume: Annotated[
        Path | None, opt.value("Go on with a run that was cut short: its folder or name.", metavar="RUN")
    ] = None,
    cache: Annotated[Path | None, opt.value("Keep decoded, resized images here.", metavar="DIR")] = None,
    seed: Annotated[
        str | None,
        opt.value(
            "Seed of everything random. Lists of seeds, detectors, categories: each with each.",
            default="0",
            metavar="N or 0,1,2",
        ),
    ] = None,
    device: opt.Device = None,
    gpu: opt.Gpu = None,
    workers: opt.Workers = None,
    runs: opt.Runs = None,
    name: Annotated[str | None, opt.value("Name of the run's folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what was understood, and stop.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print each setting and where it came from, and stop.")
    ] = False,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Learn what good parts look like: images to one calibrated model file."""
    call = Call(ctx)
    from adctl.config import TrainSettings

    loaded = call.settings(TrainSettings, options=_pairs(option or []), compile=compile_)
    if print_config or dry_run:
        _refuse_grid(loaded.settings)
    if print_config:
        from adctl.training.single_run import effective

        table = effective(loaded)
        call.finish(
            table,
            lambda: rows(((n, str(v["value"]), v["from"]) for n, v in table.items()), "setting", "value", "from"),
        )
    elif dry_run:
        from adctl.training.resource_estimate import estimate_resources
        from adctl.training.single_run import plan_training

        plan = plan_training(loaded.settings)
        needs = estimate_resources(plan, loaded.settings)
        call.finish(_plan_json(plan, needs), lambda: _plan_text(plan, needs))
    else:
        from adctl.training.train import train

        _show(call, train(loaded, call.reporter))


def _refuse_grid(settings: TrainSettings) -> None:
    from adctl.training.grid import is_grid

    if is_grid(settings):
        raise UsageError(
            "--dry-run and --print-config speak of one training.", "Give one --arch, --category and --seed."
        )


def _show(call: Call, result: TrainResult | CrossValidationResult | GridResult | None) -> None:
    from adctl.cli.folds import folds_json, folds_text
    from adctl.cli.grid import grid_text
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult

    if isinstance(result, GridResult):
        call.finish(result, lambda: grid_text(result))
        if result.failed:
            raise typer.Exit(1)
    elif isinstance(result, CrossValidationResult):
        call.finish(folds_json(result), lambda: folds_text(result))
    elif result is not None:
        call.finish(result, lambda: _text(result))


def _pairs(given: list[str]) -> dict[str, Any] | None:
    """NAME=VALUE strings to a table; values are read as JSON where they can be, as text otherwise."""
    import json

    table: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair} has no value.", "Write --set NAME=VALUE, such as --set coreset_ratio=0.1.")
        try:
            table[name.strip().replace("-", "_")] = json.loads(text)
        except ValueError:
            table[name.strip().replace("-", "_")] = text
    return table or None


def _text(result: TrainResult) -> RenderableType:
    from adctl.cli.calibrate import false_alarms

    calibration = result.calibration
    phases = ", ".join(f"{title} {seconds:.1f} s" for title, seconds in result.fit.seconds.items())
    return rows(
        [
            ("model", str(result.model)),
            ("learned from", f"{result.images} good images in {result.seconds:.1f} s ({phases})"),
            *(_epochs(result) if result.fit.history else []),
            ("network", _size(result.summary)),
            (
                "threshold",
                f"{calibration.threshold:.6g}, from {calibration.good_images} held-out good images",
            ),
            (
                "false alarms",
                false_alarms(calibration),
            ),
            ("next", "adctl score FOLDER --out heatmaps/"),
        ]
    )


def _epochs(result: TrainResult) -> list[tuple[str, str]]:
    fit = result.fit
    early = ", stopped early" if fit.stopped_early else ""
    speed = sum(epoch.images_per_second for epoch in fit.history) / len(fit.history)
    return [
        ("best epoch", f"{fit.best_epoch} of {len(fit.history)}{early}; {result.run / 'history.csv'}, loss.png"),
        ("speed", f"{speed:.1f} images/s, {fit.global_batch_size} to a step, {fit.precision}"),
    ]


def _size(summary: ModelSummary) -> str:
    return (
        f"{summary.layers} layers, {summary.parameters / 1e6:.1f} M parameters, "
        f"{summary.trainable / 1e6:.1f} M of them trained, "
        f"{summary.flops / 1e9:.2f} GFLOP an image, {summary.stored / 2**20:.0f} MiB stored"
    )


def _plan_json(plan: TrainingPlan, needs: ResourceEstimate) -> dict[str, Any]:
    data = plan.dataset
    return {
        "dataset": {"name": data.name, "category": data.category, "layout": data.layout, "root": data.root},
        "train_images": len(data.train),
        "test_images": data.test_counts,
        "masks": data.mask_count,
        "split": {part: len(getattr(plan.split, part)) for part in ("train", "validation", "calibration")},
        "ignored": [{"path": item.path, "reason": item.reason} for item in data.ignored],
        "notes": data.notes,
        "config": plan.config,
        "device": {"name": str(plan.device.device), "reason": plan.device.reason},
        "forecast": needs,
    }


def _plan_text(plan: TrainingPlan, needs: ResourceEstimate) -> RenderableType:
    data, split = plan.dataset, plan.split
    defective = sum(count for label, count in data.test_counts.items() if label != "good")
    tests = ", ".join(f"{count} {label}" for label, count in data.test_counts.items()) or "none"
    ignored = [(f"ignored {item.path.name}", item.reason) for item in data.ignored[:_SHOWN_IGNORED]]
    if len(data.ignored) > _SHOWN_IGNORED:
        ignored.append(("ignored", f"and {len(data.ignored) - _SHOWN_IGNORED} more; --json lists them all"))
    return rows(
        [
            ("data set", f"{data.root} ({data.layout} layout)"),
            ("good images", f"{len(data.train)} in {_sizes(needs)}"),
            (
                "split",
                ", ".join(f"{len(getattr(split, part))} for {part}" for part in ("train", "validation", "calibration")),
            ),
            ("test images", tests),
            ("masks", f"{data.mask_count} for {defective} defective test images"),
            *((f"note {number}", note) for number, note in enumerate(data.notes, 1)),
            *ignored,
            ("detector", f"{type(plan.config).__name__.removesuffix('Config')}: {_options(plan)}"),
            ("device", f"{plan.device.device}: {plan.device.reason}"),
            (
                "memory",
                f"about {needs.memory / 2**30:.1f} GiB at the peak; {needs.available / 2**30:.1f} GiB are free",
            ),
            *([("disk", f"about {needs.disk / 2**30:.1f} GiB, temporary: memory is short")] if needs.disk else []),
            ("time", f"about {_duration(needs.seconds)}, measured on one batch"),
        ]
    )


def _sizes(needs: ResourceEstimate) -> str:
    return f"{needs.width} x {needs.height} pixels (the first)"


def _options(plan: TrainingPlan) -> str:
    return ", ".join(f"{name} {value}" for name, value in plan.config.model_dump(mode="json").items())


def _duration(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004 - people count seconds up to there
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"  # noqa: PLR2004
