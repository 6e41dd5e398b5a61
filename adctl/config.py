"""Settings of each command, and where each value came from: flag > ADCTL_* > config file > default.

One class a command; the command line, the environment and the file all fill the same fields. Knows the
names and bounds of settings, nothing of what they do.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from adctl.errors import UsageError, unknown_name
from adctl.formats import EXPORT_FORMATS, REPORT_FORMATS, RUNTIMES

PREFIX = "ADCTL_"
Arch = str
BatchSize = Literal["auto"] | int
CalibrationMethod = Literal[
    "percentile", "sigma", "mad", "tail", "conformal", "f1", "precision", "recall", "cost", "fixed"
]
if TYPE_CHECKING:
    ExportFormatName = str
    ReportFormatName = str
    RuntimeName = str
else:  # the choices are the rows of a table, which a type checker cannot read
    ExportFormatName = Literal[*EXPORT_FORMATS]
    ReportFormatName = Literal[*REPORT_FORMATS]
    RuntimeName = Literal["auto", *RUNTIMES]


class CommandSettings(BaseSettings):
    """What all commands share."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True)
    command: ClassVar[str] = ""

    runs: Path = Field(Path("runs"), description="Folder of runs")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing behind the caller's back: `load` merges the sources and keeps track of them."""
        del settings_cls
        return (init_settings,)


class DeviceSettings(CommandSettings):
    """Where to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to compute")
    gpu: int | None = Field(None, ge=0, description="Number of the GPU; implies --device cuda")
    batch_size: BatchSize = Field("auto", description="Images at once")
    workers: int = Field(2, ge=0, le=64, description="Threads that read images")

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: BatchSize) -> BatchSize:
        if value != "auto" and value < 1:
            raise ValueError("must be 'auto' or at least 1")
        return value


class DataSettings(CommandSettings):
    """Which images."""

    data: Path | None = Field(None, description="Data set in MVTec AD layout: a category, or the folder of categories")
    dataset: str | None = Field(None, description="A data set that 'adctl fetch' brought, such as demo or mvtec")
    category: str | None = Field(None, description="Category of the data set, or all of them")
    good: Path | None = Field(None, description="Plain folder of good images")
    test: Path | None = Field(None, description="Folder of test images, loose or in one folder a label")
    masks: Path | None = Field(None, description="Folder of ground-truth masks for --test")


class TrainSettings(DeviceSettings, DataSettings):
    """`adctl train`."""

    command: ClassVar[str] = "train"

    arch: Arch = Field("patchcore", description="Detector")
    backbone: str | None = Field(None, description="timm model whose features are compared")
    weights: str | None = Field(None, description="Pretrained weights: a .safetensors or .pth file, or 'random'")
    image_size: int | None = Field(None, ge=32, le=4096, description="Side images are resized to, pixels")
    roi: str | None = Field(None, description="Region of interest: x,y,width,height in pixels, or a mask picture")
    options: dict[str, Any] = Field(default_factory=dict, description="Other options of the detector")
    calibration_share: float = Field(0.2, gt=0, lt=1, description="Share of good images held out for the threshold")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of good images held out to choose the epoch")
    seed: int = Field(0, ge=0, description="Seed of everything random; several as 0,1,2 train once for each")
    seeds: tuple[NonNegativeInt, ...] = Field((), description="Where --seed names several, all of them")

    loss: str | None = Field(None, description="Loss terms and weights of an autoencoder, as mse=1,ssim=0.5")
    error: str | None = Field(None, description="Spaces of an autoencoder's map and weights, as l2=0.15,features=0.85")
    noise_level: tuple[float, ...] | None = Field(
        None, description="Of diffusion: share of its steps noised and undone"
    )
    epochs: int | None = Field(None, ge=1, description="Epochs of gradient training")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate of AdamW")
    weight_decay: float | None = Field(None, ge=0, description="Weight decay of AdamW")
    schedule: Literal["cosine", "step", "plateau", "constant"] | None = Field(None, description="Of the learning rate")
    warmup: float | None = Field(None, ge=0, lt=1, description="Share of the steps over which the learning rate rises")
    accumulate: int = Field(1, ge=1, description="Batches to one optimizer step")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient")
    patience: int = Field(20, ge=1, description="Epochs without a better validation loss before stopping")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of a running average of the weights; 0 keeps none")
    precision: Literal["auto", "32", "16", "bf16"] = Field("auto", description="Arithmetic of gradient training")
    gradient_checkpointing: bool = Field(False, description="Compute activations again instead of keeping them")
    compile: bool = Field(False, description="Compile the training step with torch's compiler")
    devices: str | None = Field(None, description="Devices that train together: how many, or which as 0,1")

    augment: Literal["none", "light", "medium", "heavy", "custom"] = Field("none", description="Augmentation policy")
    augmentations: tuple[dict[str, Any], ...] = Field((), description="Of --augment custom: a list of transforms")
    augmentation_library: Literal["torchvision", "albumentations"] = Field("torchvision", description="That augments")
    synthetic: str | None = Field(
        None, description="Synthetic defects to paint and undo: cutpaste, perlin or cutpaste,perlin"
    )

    checkpoint_epochs: int = Field(10, ge=1, description="Epochs between checkpoints")
    checkpoint_minutes: float = Field(5.0, gt=0, description="Minutes between checkpoints")
    keep_checkpoints: int = Field(0, ge=0, description="Checkpoints that stay when training has finished")
    tensorboard: bool = Field(True, description="Write TensorBoard files beside history.csv")
    folds: int | None = Field(
        None, ge=2, le=100, description="Cross-validate: so many models, each held out from a part"
    )
    fold: int | None = Field(None, ge=1, le=100, description="Train the model of this fold of --folds alone")
    resume: Path | None = Field(None, description="Folder or name of a run to go on with")
    cache: Path | None = Field(None, description="Folder to keep decoded and resized images in")
    name: str | None = Field(None, description="Name of the run's folder")

    @model_validator(mode="before")
    @classmethod
    def _several_seeds(cls, values: Any) -> Any:
        """A list of seeds goes to `seeds`; where one of them is no seed, it alone goes on to be refused."""
        given = values.get("seed") if isinstance(values, dict) else None
        if isinstance(given, str) and "," in given:
            given = [part.strip() for part in given.split(",") if part.strip()] or [given]
        if not isinstance(given, list | tuple) or not given:
            return values
        wrong = next((one for one in given if not str(one).isdecimal()), None)
        if wrong is not None:
            return {**values, "seed": wrong}
        return {**values, "seed": given[0], "seeds": tuple(given)}


class CalibrateSettings(DeviceSettings):
    """`adctl calibrate`."""

    command: ClassVar[str] = "calibrate"

    model: Path | None = Field(None, description="Model file or run folder; the last one when left out")
    method: CalibrationMethod | None = Field(None, description="How to choose; by the level given, else percentile")
    percentile: float | None = Field(None, gt=0, le=100, description="Percentile of good scores")
    sigmas: float | None = Field(None, gt=0, description="Standard deviations above the middle of good scores")
    max_false_alarm: float | None = Field(None, gt=0, lt=1, description="Most false alarms among good images")
    min_precision: float | None = Field(None, gt=0, le=1, description="Share of alarms that must be defects")
    min_recall: float | None = Field(None, gt=0, le=1, description="Share of defects that must be found")
    cost_miss: float | None = Field(None, ge=0, description="Cost of a defective image that passes")
    cost_alarm: float | None = Field(None, ge=0, description="Cost of a false alarm")
    defect_rate: float | None = Field(None, gt=0, lt=1, description="Share of defective images on the line")
    threshold: float | None = Field(None, allow_inf_nan=False, description="The threshold itself, in score units")
    warn_at: float | None = Field(None, gt=0, description="Level of a second, lower threshold, by the same method")
    good: Path | None = Field(None, description="Other good images than those held out at training")
    defects: Path | None = Field(None, description="Labelled defective images")
    scores: Path | None = Field(None, description="Folder that 'adctl score' wrote, instead of images")
    folds: int | None = Field(None, ge=2, le=100, description="Fit so many times, and score every good image once")
    learning_curve: bool = Field(False, description="Find out how many good images are enough")
    tta: str | None = Field(None, description="Views to average over: hflip, vflip, rot90, transpose; or none")
    out: Path | None = Field(None, description="Where the calibrated model goes")
    in_place: bool = Field(False, description="Replace the model file itself")


class ScoreSettings(DeviceSettings):
    """`adctl score`."""

    command: ClassVar[str] = "score"

    images: tuple[str, ...] = Field((), description="Folders, files or globs")
    model: Path | None = Field(None, description="Model file or run folder; the last one when left out")
    out: Path | None = Field(None, description="Folder for heatmaps and results")
    heatmaps: bool | None = Field(None, description="Write heatmap pictures; on when --out is given")
    draw: Literal["none", "contours", "boxes", "both"] = Field("none", description="Around regions on heatmaps")
    maps: bool = Field(True, description="Keep raw anomaly maps in maps.h5")
    runtime: RuntimeName = Field("auto", description="What computes; auto: the fastest proved equal to torch")
    tta: str | None = Field(None, description="Views to average over; those of the calibration when left out")
    fail_on_anomaly: bool = Field(False, description="Exit with 3 when an image is rejected")
    watch: Path | None = Field(None, description="Folder whose images are scored as they arrive")
    watch_for: float | None = Field(None, gt=0, description="Stop watching after so many seconds")
    watch_idle: float | None = Field(None, gt=0, description="Stop watching when nothing came for so many seconds")
    settle: float = Field(2.0, ge=0, description="Seconds a watched file must stand still before it is read")


class ReportSettings(CommandSettings):
    """`adctl report`."""

    command: ClassVar[str] = "report"

    scores: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folder that 'adctl score' wrote, the last one when left out; several are compared"
    )
    animation: Path | None = Field(None, description="Moving picture of compared maps: .gif, .webp or .png")
    out: Path | None = Field(None, description="Where the report goes")
    title: str | None = Field(None, description="Title of the report")
    format: tuple[ReportFormatName, ...] = Field((), description="Formats; what --out ends in, or html, when left out")
    findings: int = Field(12, ge=1, le=500, description="Images shown in md, pdf and pptx")
    reconstructions: bool = Field(False, description="Show what an autoencoder makes of each image")
    contact_sheet: Path | None = Field(None, description="PNG file with all images beside their overlays")
    fail_if: tuple[str, ...] = Field((), description="Conditions that fail, as image_auroc<0.95")
    junit: Path | None = Field(None, description="JUnit XML file for the gates")
    ci: bool = Field(False, description="Give confidence intervals of pixel metrics too, by bootstrap")
    ci_level: float = Field(0.95, gt=0, lt=1, description="Level of the confidence intervals")
    ci_samples: int = Field(1000, ge=100, le=100_000, description="Times the images are drawn again for them")
    seed: int = Field(0, ge=0, description="Seed of everything random")

    @field_validator("scores", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


class ExportSettings(CommandSettings):
    """`adctl export`."""

    command: ClassVar[str] = "export"

    model: Path | None = Field(None, description="Model file or run folder; the last one when left out")
    format: tuple[ExportFormatName, ...] = Field(("onnx",), min_length=1, description="Formats")
    half: bool = Field(False, description="Store weights in half precision")
    int8: bool = Field(False, description="Quantise the network to eight bits")
    calibration: tuple[str, ...] = Field((), description="Good images for int8 to find ranges on")
    out: Path | None = Field(None, description="File, or folder, for what is exported")
    images: tuple[str, ...] = Field((), description="Images to verify the export on")
    tolerance: float | None = Field(None, gt=0, description="Largest relative difference of scores; by precision")


class BenchSettings(DeviceSettings):
    """`adctl bench`."""

    command: ClassVar[str] = "bench"

    models: tuple[Path, ...] = Field((), description="Model files; the last one when left out")
    runtime: tuple[RuntimeName, ...] = Field((), description="What computes; each file's own when left out")
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 4, 8), description="Batch sizes for throughput")
    repeats: int = Field(30, ge=3, description="Rounds, each with one call a batch size and five of single images")
    images: tuple[str, ...] = Field((), description="Folders, files or globs to read and score from disk")
    cold_starts: int = Field(3, ge=0, description="Processes started for cold start and memory")
    out: Path | None = Field(None, description="JSON file for the figures")
    against: Path | None = Field(None, description="Earlier JSON file; being slower beyond the noise fails")
    fail_if: tuple[str, ...] = Field((), description="Conditions that fail, as p95_ms>50")
    junit: Path | None = Field(None, description="JUnit XML file for the gates")
    markdown: Path | None = Field(None, description="Markdown file for figures and gates")
    plot: Path | None = Field(None, description="PNG file with the figures drawn")


class FetchSettings(CommandSettings):
    """`adctl fetch`."""

    command: ClassVar[str] = "fetch"

    what: str | None = Field(None, description="A data set, 'weights', 'bundle' or 'check'")
    name: str | None = Field(None, description="After 'weights': the timm model; after 'bundle' or 'check': a folder")
    category: tuple[str, ...] = Field((), description="Only these categories")
    source: Path | None = Field(None, description="Archive, folder or bundle to take it from instead of the network")
    accept_license: bool = Field(False, description="Accept the data set's licence")
    force: bool = Field(False, description="Fetch again what is there")
    verify: bool = Field(False, description="Hold what was fetched against its digests")

    attempts: int = Field(4, ge=1, description="Tries in a row at one address that bring nothing new")
    timeout: float = Field(30.0, gt=0, description="Seconds to wait for a server's answer")
    backoff: float = Field(1.0, ge=0, description="Seconds before the second try, doubled for each further one")
    connections: int = Field(4, ge=1, le=32, description="Connections at once for one large file")
    smallest_piece: int = Field(16 << 20, ge=1, description="Bytes that are worth a connection of their own")

    include: tuple[str, ...] = Field((), description="With 'bundle': NAME, NAME/CATEGORY or weights/MODEL")
    wheels: bool = Field(True, description="With 'bundle': gather adctl and what it needs too")
    requirement: str | None = Field(None, description="With 'bundle': what pip installs over there, instead of adctl")
    platform: str | None = Field(None, description="With 'bundle': pip's name of the other machine's platform")
    python: str | None = Field(None, description="With 'bundle': version of Python over there")
    sheet: Path | None = Field(None, description="With 'check': where the contact sheet goes")
    strict: bool = Field(False, description="With 'check': exit with 1 on warnings too")


class DemoSettings(DeviceSettings):
    """`adctl demo`."""

    command: ClassVar[str] = "demo"

    arch: Arch = Field("patchcore", description="Detector")
    epochs: int = Field(5, ge=1, description="Epochs of gradient training")
    seed: int = Field(0, ge=0, description="Seed of everything random")


COMMANDS: dict[str, type[CommandSettings]] = {
    cls.command: cls
    for cls in (
        FetchSettings,
        TrainSettings,
        CalibrateSettings,
        ScoreSettings,
        ReportSettings,
        ExportSettings,
        BenchSettings,
        DemoSettings,
    )
}

S = TypeVar("S", bound=CommandSettings)


@dataclass(frozen=True)
class LoadedSettings(Generic[S]):
    """Settings and where each came from.

    Attributes:
        settings: The effective settings.
        origins: For each name: `--flag`, `ADCTL_NAME`, the config file's path, or `default`.
    """

    settings: S
    origins: dict[str, str]

    def table(self) -> dict[str, dict[str, Any]]:
        """JSON-safe: name to value and origin; what is saved with a run and printed by --print-config."""
        values = self.settings.model_dump(mode="json")
        return {name: {"value": values[name], "from": self.origins[name]} for name in values}


def load(cls: type[S], flags: dict[str, Any], config: Path | None = None) -> LoadedSettings[S]:
    """Merge flags, environment, config file and defaults into one command's settings.

    Args:
        cls: The command's settings class.
        flags: What was typed; None means not typed.
        config: The file named by --config; `ADCTL_CONFIG` when None.

    Raises:
        UsageError: A value is out of bounds or a name unknown; says which, and where it came from.
    """
    config = config or (Path(given) if (given := os.environ.get(PREFIX + "CONFIG")) else None)
    sources: list[tuple[dict[str, Any], str]] = []
    if config is not None:
        sources.append((_from_file(config, cls), str(config)))
    sources.append((_from_environment(cls), "environment"))
    sources.append(({name: value for name, value in flags.items() if value is not None}, "flag"))

    values: dict[str, Any] = {}
    origins = dict.fromkeys(cls.model_fields, "default")
    for source, origin in sources:
        for name, value in source.items():
            both_tables = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if both_tables else value
            origins[name] = {"environment": PREFIX + name.upper(), "flag": flag_name(name)}.get(origin, origin)
    try:
        return LoadedSettings(cls(**values), origins)
    except ValidationError as error:
        raise UsageError(*_explain(error.errors()[0], origins)) from error


def flag_name(setting: str) -> str:
    """How a setting is typed."""
    return "--" + setting.replace("_", "-")


def _from_environment(cls: type[S]) -> dict[str, Any]:
    try:
        return dict(EnvSettingsSource(cls)())
    except ValueError as error:  # pydantic-settings: a table that is not JSON
        raise UsageError(
            f"An environment variable could not be read: {error}.",
            "Tables and lists are written as JSON, for example ADCTL_OPTIONS='{\"coreset_ratio\": 0.1}'.",
        ) from error


def _from_file(path: Path, cls: type[S]) -> dict[str, Any]:
    document = _parse(path)
    shared = {name: value for name, value in document.items() if name not in COMMANDS}
    for command in COMMANDS:
        if not isinstance(document.get(command, {}), dict):
            raise UsageError(f"'{command}' in {path} must be a table of settings.", f"Write it as [{command}].")
    known = {name for settings in COMMANDS.values() for name in settings.model_fields}
    for name in shared:
        if name not in known:
            raise unknown_name(f"setting in {path}", name, known)
    own: dict[str, Any] = document.get(cls.command, {})
    for name in own:
        if name not in cls.model_fields:
            raise unknown_name(f"setting in {path} under [{cls.command}]", name, cls.model_fields)
    # A setting at the top is meant for every command that has it.
    return {name: value for name, value in shared.items() if name in cls.model_fields} | own


def _parse(path: Path) -> dict[str, Any]:
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": json.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"The config file {path} has an unknown ending.", "Use .toml, .yaml or .json.")
    try:
        document: Any = reader(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"The config file {path} does not exist.", "Check the path given to --config.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"The config file {path} cannot be read: {error}", "Mend the place it names.") from error
    if document is None:  # an empty YAML file
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"The config file {path} must be a table of settings.", "Write 'name = value' lines.")
    return dict(document)


def _explain(error: ErrorDetails, origins: dict[str, str]) -> tuple[str, str]:
    name = str(error["loc"][0]) if error["loc"] else ""
    origin = origins.get(name, "")
    place = f" (from {origin})" if origin not in ("", "default", flag_name(name)) else ""
    reason = error["msg"][0].lower() + error["msg"][1:]
    return (
        f"The setting {flag_name(name)}{place} is not valid: {reason}. Got {error['input']!r} instead.",
        f"See 'adctl {_command_of(name)}--help' for what it takes.",
    )


def _command_of(name: str) -> str:
    owners = [command for command, cls in COMMANDS.items() if name in cls.model_fields]
    return f"{owners[0]} " if len(owners) == 1 else "COMMAND "
