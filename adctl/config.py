"""Settings of each command, and the value and origin of each: flag > ADCTL_* > settings file > default.

One frozen dataclass a command declares its settings; flags, environment, files, documentation and the Python API
are all made from it. Constructing one checks nothing: `load` and `validated` do. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import MISSING, FrozenInstanceError, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    dataclass_transform,
    get_type_hints,
)

from adctl import documents, reading
from adctl.choices import BALANCES, DETECTORS, EXPORT_FORMATS, LOGGERS, REPORT_FORMATS, RUNTIMES, formats_with
from adctl.errors import UsageError, unknown_name
from adctl.image_sizes import ImageSize
from adctl.names import printable
from adctl.options import (
    PREFIX,
    SHARE,
    Bounds,
    Group,
    Option,
    declared_in,
    describe,
    flag_name,
    is_several,
    is_share,
    is_table,
    switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pydantic_core import ErrorDetails

Folder = Annotated[Path, "DIR"]
"""A text beside a type is its placeholder in the help."""
File = Annotated[Path, "FILE"]
Texts = tuple[str, ...]
Paths = tuple[Path, ...]
Positive = Annotated[int, Bounds(ge=1)]
Natural = Annotated[int, Bounds(ge=0)]
Amount = Annotated[float, Bounds(gt=0)]
Seconds = Annotated[float, Bounds(gt=0), "SECONDS"]
Share = Annotated[float, Bounds(gt=0, lt=1), SHARE]
"""Numbers between 0 and 1, both excluded; texts such as "2%" are understood."""
ShareOrOne = Annotated[float, Bounds(gt=0, le=1), SHARE]
ShareOrZero = Annotated[float, Bounds(ge=0, lt=1), SHARE]
AmountOrShare = Annotated[float, Bounds(gt=0), SHARE]
LessThanHalf = Annotated[float, Bounds(ge=0, lt=0.5), SHARE]
AtLeastZero = Annotated[float, Bounds(ge=0)]
FoldCount = Annotated[int, Bounds(ge=2, le=100)]
BatchSize = Literal["auto", "max"] | Positive
InferencePrecision = Literal["32", "tf32", "bf16", "16"]
CalibrationMethod = Literal[
    "smooth", "percentile", "sigma", "mad", "tail", "conformal", "f1", "precision", "recall", "cost", "fixed"
]
if TYPE_CHECKING:
    ExportFormatName = str
    LoggerName = str
    ReportFormatName = str
    RuntimeName = str
else:  # the choices are the rows of a table, which a type checker cannot read
    ExportFormatName = Literal[*EXPORT_FORMATS]
    LoggerName = Literal[*LOGGERS]
    ReportFormatName = Literal[*REPORT_FORMATS]
    RuntimeName = Literal["auto", *RUNTIMES]

C = TypeVar("C")

_REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/")
"""Start of an address, which is no path of this machine."""

_MOST_VALUES = 100_000
"""Largest number of values in a settings file."""

_SHOWN = 200
"""Characters of a path that an error message shows."""

OTHER_VARIABLES = {
    "ADCTL_CONFIG": "Settings file to use when --config is not given.",
    "ADCTL_DATA_DIR": "Folder of fetched datasets and weights.",
    "ADCTL_CATALOGUE": "JSON file with a catalogue of datasets to use instead of the built-in one.",
    "ADCTL_DATABASE_URL": "PostgreSQL server that keeps the index of runs, instead of runs.db in the folder of runs.",
    "ADCTL_SINK_PASSWORD": "Password for the address of a sink that names a user and no password.",
    "ADCTL_SINK_SECRET": "Secret that signs the requests of a webhook, as the Standard Webhooks specification says.",
    "ADCTL_PROGRESS": "With the value json, progress is written to stderr as lines of JSON.",
    "ADCTL_TEST_DATA": "Folder of datasets for the tests of adctl.",
}
"""Environment variables that are no settings, with their meaning."""

READERS = min(16, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2))
"""Default number of threads that read images."""

_ARCH = f"Detector: {', '.join(DETECTORS)}, or one of an installed package."
_LAST_GROUPS = ("Gates", "Output", "Compute", "Download", "General")

DATA = Group("Data")
DATASET = Group("Dataset")
INPUT = Group("Input")
DETECTOR = Group("Detector")
CLASSIFIER = Group("Classifier")
TRAINING = Group("Training")
THRESHOLD = Group("Threshold")
REPORT = Group("Report")
EXPORT = Group("Export")
MEASUREMENT = Group("Measurement")
CHECK = Group("Check")
BUNDLE = Group("Bundle")
WEIGHTS = Group("Weights")
DOCUMENT = Group("Document")
RUNS = Group("Runs")
SERVER = Group("Server")
LINE = Group("Line")
HISTORY = Group("History")
SECURITY = Group("Security")
TUNING = Group("Tuning")
GATES = Group("Gates")
OUTPUT = Group("Output")
COMPUTE = Group("Compute")
DOWNLOAD = Group("Download")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings_class(cls: type[C]) -> type[C]:
    """Make a class a frozen dataclass whose methods are those of `CommandSettings`: generated ones slow each start."""
    return dataclass(init=False, eq=False, repr=False)(cls)


@settings_class
class CommandSettings:
    """Settings and texts that all commands have.

    Attributes:
        command: Words that call it after `adctl`.
        summary: One sentence for the help.
        examples: Command lines for the end of the help, with comments.
        switches: Flags that choose an action and are no settings.
    """

    command: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()
    switches: ClassVar[tuple[Option, ...]] = ()

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - names_of(type(self)):
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        defaults = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(self)
        }
        self.__dict__.update(defaults | values)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to {name}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def to_json(self) -> dict[str, Any]:
        """Return names and JSON-safe values."""
        return {name: _json_safe(value) for name, value in asdict(self).items()}

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the given values in the form that the fields take."""
        return values


COMMANDS: dict[str, type[CommandSettings]] = {}
"""Settings class of each command; a name with a space is a subcommand, such as `fetch check`."""

S = TypeVar("S", bound=CommandSettings)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def command(name: str, summary: str, *examples: str, switches: tuple[Option, ...] = ()) -> Callable[[type[S]], type[S]]:
    """Return a decorator that makes a class the settings of a command, and enters it in `COMMANDS`."""

    def declare(cls: type[S]) -> type[S]:
        cls.command, cls.summary, cls.examples, cls.switches = name, summary, examples, switches
        settings = settings_class(cls)
        COMMANDS[name] = settings
        return settings

    return declare


@settings_class
class RunsSettings(CommandSettings):
    """Settings of commands that read or write runs."""

    runs: Folder = OUTPUT(Path("runs"), "Folder of all runs.")


@settings_class
class ModelSettings(RunsSettings):
    """Settings of commands that take one model."""

    model: File | None = INPUT(None, "Model file, or folder or name of a run.", unset="the last model")


_ANNOTATE = switch("annotate", "Print failed gates as annotations of GitHub Actions; automatic there.", "Gates")


@settings_class
class GateSettings(RunsSettings):
    """Settings of commands that check limits."""

    fail_if: Texts = GATES((), "Exit with code 3 if this holds; see the examples; repeatable.", "CONDITION")
    junit: File | None = GATES(None, "JUnit XML file of the gates.")
    sarif: File | None = GATES(None, "SARIF file of the failed gates, for code scanning.")


@settings_class
class OverwriteSettings(CommandSettings):
    """Settings of commands that write files to paths that the user gives."""

    overwrite: bool = OUTPUT(False, "Replace files in the place of the output that adctl did not write.")


@settings_class
class ComputeSettings(RunsSettings):
    """Settings of commands that compute with a model."""

    device: Literal["auto", "cpu", "cuda", "mps"] = COMPUTE("auto", "Device that computes.")
    gpu: Natural | None = COMPUTE(None, "Number of the GPU; implies --device cuda.")
    workers: Annotated[int, Bounds(ge=0, le=64)] = COMPUTE(
        READERS, "Threads that read images.", unset="one for each core, 2 to 16"
    )


@settings_class
class DeviceSettings(ComputeSettings):
    """Settings of commands that choose a batch size."""

    batch_size: BatchSize = COMPUTE(
        "auto",
        "Images in a batch: a number, auto, or max, which fills a GPU's memory.",
        synonyms=("batch", "bs"),
    )


@settings_class
class RaySettings(CommandSettings):
    """Settings of commands that work on several machines."""

    ray: str | None = COMPUTE(
        None, "Spread the work over a Ray cluster; auto: that of this machine, or a new one.", "ADDRESS"
    )
    ray_cpus: Positive | None = COMPUTE(
        None, "CPUs that one process of --ray takes.", unset="those of a node, or their share with several GPUs"
    )
    ray_gpu: ShareOrOne = COMPUTE(1.0, "Share of a GPU that one process of --ray takes.")


@settings_class
class LineSettings(CommandSettings):
    """Settings of commands that take parts from sources and send verdicts to sinks."""

    source: Texts = LINE(
        (), "Source of parts: folder, video file, rtsp://..., camera number, genicam:...; repeatable.", "[NAME=]SOURCE"
    )
    sink: Texts = LINE(
        (),
        "Peer that gets each verdict: mqtt://, http(s)://, modbus-tcp://, opc.tcp:// or csv:FILE; repeatable.",
        "ADDRESS",
    )
    trigger: str = LINE("interval=1", "When a camera takes a part: interval=SECONDS, motion or http=PORT.", "TRIGGER")
    frames: Positive = LINE(1, "Images of one part of a camera.")
    combine: Literal["worst", "median"] = LINE("worst", "Image of a part that decides, by its score.")
    debounce: AtLeastZero = LINE(0.0, "Time after a part in which a camera takes no other.", "SECONDS")
    lot: str = LINE("", "Lot of the parts.", "TEXT")
    settle: AtLeastZero = LINE(2.0, "Time a new file must stay unchanged before it is read.", "SECONDS")


@settings_class
class DataSettings(RunsSettings):
    """Settings that name the images of a training."""

    data: Folder | None = DATA(None, "Folder of one or all categories in MVTec AD layout; also an archive or manifest.")
    dataset: str | None = DATA(None, "Dataset that 'adctl fetch' brought, such as demo or mvtec.")
    category: str | None = DATA(None, "Category; several with commas, or 'all': one model for each.")
    one_model: bool = DATA(False, "Train one model of all the categories that --category names.")
    good: Folder | None = DATA(None, "Plain folder of good images.")
    test: Folder | None = DATA(None, "Folder of test images, loose or in one folder for each label.")
    masks: Folder | None = DATA(None, "Folder of ground-truth masks for --test.")
    group: str | None = DATA(
        None, "Groups held out as a whole: folder, day, or a name pattern such as 'lot{group}_'.", "HOW"
    )


@command(
    "train",
    "Train a detector on good images and write one calibrated model file.",
    "adctl train --good parts/good --name line3",
    "adctl train --dataset mvtec --category zipper --arch padim",
    "adctl train --data parts --arch resnet --epochs 50 --loss mse=1,ssim=0.5",
    "adctl train --task classify --data kinds --balance weights --name kinds",
    "adctl train --task classify --data kinds --set head=logistic,svm,forest --seed 0,1,2",
    switches=(switch("dry_run", "Show the data, the detector, and the memory and time needed, and stop.", "Output"),),
)
class TrainSettings(DeviceSettings, DataSettings, RaySettings):
    """Settings of `adctl train`."""

    fetch: bool = DATA(False, "Fetch a missing dataset and backbone, also with --dry-run.")
    accept_license: bool = DATA(False, "Accept the licence of the dataset for --fetch.")
    roi: str | None = DATA(None, "Region of interest: a rectangle in pixels, or a mask file.", "X,Y,W,H")
    new_groups: bool = DATA(False, "Set the threshold for good images of a new group, such as the next lot.")
    calibration_share: Share | None = DATA(
        None,
        "Share of good images held out for the threshold; without it, detectors fitted in one pass learn from all.",
        unset="0.2 with gradient training or tiles",
    )
    validation_share: Share = DATA(0.1, "Share of good images held out to choose the epoch.")
    contaminated: LessThanHalf | None = DATA(
        None, "Largest share of defective images among the good ones; images unlike all others are left out."
    )
    cache: Folder | None = DATA(None, "Folder that keeps decoded and resized images.")
    augment: Literal["none", "light", "medium", "heavy", "custom"] = DATA(
        "none", "Augmentation of training images.", "POLICY"
    )
    augmentations: tuple[dict[str, Any], ...] = DATA(
        (), "Transforms of --augment custom; settings files only.", flag=""
    )
    augmentation_library: Literal["torchvision", "albumentations"] = DATA("torchvision", "Library that augments.")
    update: Path | None = DATA(
        None, "Model that shall learn from the good images of --good too; it stays as it is.", "MODEL"
    )
    defects: Folder | None = DATA(
        None, "Known defects: patchcore, simplenet and padim learn from them; --update compares the models on them."
    )
    recalibrate: bool = DATA(
        False, "Learn nothing with --update: only set the threshold, with a guaranteed rate of false alarms."
    )
    confirmed: Texts = DATA((), "Image for --update that is good although it is unlike the others; repeatable.", "NAME")
    trust_reviews: bool = DATA(False, "Learn with --update from all images of --good, also those unlike the others.")
    auxiliary: Folder | None = DATA(None, "Labelled defects of other categories, from which prompts learn.")
    synthetic: str | None = DATA(None, "Synthetic defects to repair: cutpaste, perlin, or both with a comma.")

    arch: str = DETECTOR("patchcore", _ARCH, synonyms=("model", "detector", "method"))
    backbone: str | None = DETECTOR(None, "timm model that computes the features; of classifiers several with commas.")
    weights: str | None = DETECTOR(
        None, "Pretrained weights: .safetensors or .pth file, base model's folder, or 'random'.", "FILE"
    )
    image_size: Literal["auto"] | ImageSize | None = DETECTOR(
        "auto",
        "Size that images are resized to, in pixels: one number for a square, HEIGHTxWIDTH, or auto: the shape of the "
        "images.",
        "auto, 256 or 192x448",
        aliases=("--size",),
        synonyms=("size", "imgsz"),
    )
    options: dict[str, Any] = DETECTOR(
        {}, "Option of the detector, such as coreset_ratio=0.1; repeatable.", "NAME=VALUE", flag="--set"
    )
    error: str | None = DETECTOR(None, "Error spaces of an autoencoder's map, with weights.", "l2=0.15,features=0.85")
    noise_level: tuple[float, ...] | None = DETECTOR(
        None, "Noise level of the diffusion autoencoder, as a share of its steps; repeatable."
    )

    task: Literal["detect", "classify"] = CLASSIFIER(
        "detect", "Learn what is good, to detect anomalies; or learn from labelled images, to name their kind."
    )
    balance: str = CLASSIFIER(
        "none",
        f"Treatment of rare kinds: {', '.join(BALANCES)}; several with commas.",
        "STRATEGY",
    )
    focal_gamma: AtLeastZero = CLASSIFIER(2.0, "Exponent of the focal loss.")
    label_smoothing: ShareOrZero = CLASSIFIER(0.0, "Share of each label that is spread over all kinds.")
    mixup_alpha: AtLeastZero = CLASSIFIER(0.0, "Parameter of Mixup, with a tuned backbone; 0 for none.")
    cutmix_alpha: AtLeastZero = CLASSIFIER(0.0, "Parameter of CutMix, with a tuned backbone; 0 for none.")
    test_share: Share = CLASSIFIER(0.25, "Share held out to test, where the data have no test images of their own.")

    seed: Natural = TRAINING(0, "Seed of all random numbers; several with commas: one model for each.", "N or 0,1,2")
    seeds: tuple[Natural, ...] = TRAINING((), "All seeds when --seed names several.", flag="")
    folds: FoldCount | None = TRAINING(None, "Cross-validation: train this many models, each on other folds.")
    fold: Annotated[int, Bounds(ge=1, le=100)] | None = TRAINING(None, "Train only the model of this fold of --folds.")
    epochs: Natural | None = TRAINING(
        None,
        "Epochs of gradient training; 0 only for prompt.",
        unset="20, or as many as make 1000 steps",
        synonyms=("num_epochs", "max_epochs"),
    )
    loss: str | None = TRAINING(None, "Loss terms of an autoencoder, with weights.", "mse=1,ssim=0.5")
    learning_rate: Amount | None = TRAINING(
        None, "Highest learning rate of AdamW.", unset="0.001, or detector's", synonyms=("lr",)
    )
    weight_decay: AtLeastZero | None = TRAINING(
        None, "Weight decay of AdamW.", unset="0.0001, or detector's", synonyms=("wd",)
    )
    schedule: Literal["cosine", "step", "plateau", "constant"] | None = TRAINING(
        None, "Schedule of the learning rate.", "NAME", unset="cosine, or detector's"
    )
    warmup: ShareOrZero | None = TRAINING(
        None, "Share of steps with a rising learning rate.", unset="0.05, or detector's"
    )
    accumulate: Positive = TRAINING(1, "Batches in one optimizer step.")
    clip: Amount = TRAINING(1.0, "Largest norm of the gradient.")
    patience: Positive = TRAINING(20, "Epochs without a better validation loss before training stops.")
    ema: ShareOrZero = TRAINING(0.0, "Decay of the exponential moving average of the weights; 0 for none.")
    precision: Literal["auto", "32", "16", "bf16"] = TRAINING("auto", "Precision of training.")
    gradient_checkpointing: bool = TRAINING(False, "Recompute activations: less memory, about a third more time.")
    compile: bool = TRAINING(False, "Compile the training step with torch.compile; faster in long trainings.")
    devices: str | None = COMPUTE(None, "Devices that train together: how many, or which.", "2 or 0,1")

    name: str | None = OUTPUT(None, "Name of the run's folder.")
    resume: Path | None = OUTPUT(None, "Continue an interrupted run: its folder or name.", "RUN")
    checkpoint_epochs: Positive = OUTPUT(10, "Epochs between checkpoints.")
    checkpoint_minutes: Amount = OUTPUT(5.0, "Minutes between checkpoints.")
    keep_checkpoints: Natural = OUTPUT(0, "Checkpoints to keep after training.")
    log: tuple[LoggerName, ...] | None = OUTPUT(
        None, "Loggers of the training.", commas=True, unset="tensorboard for gradient training"
    )
    tensorboard: bool | None = OUTPUT(None, "Write TensorBoard files, whatever --log says.", unset="as --log says")
    export: Literal["auto", "always", "none"] = OUTPUT(
        "auto", "Export the model for a faster runtime after training; auto: where that is quick.", "WHEN"
    )

    def loggers(self, *, epochs: bool) -> tuple[str, ...]:
        """Return the names of the loggers.

        Args:
            epochs: Whether the detector learns by epochs; unless it is chosen, TensorBoard only records these.
        """
        names = self.log if self.log is not None else ("tensorboard",) if epochs else ()
        if self.tensorboard is None:
            return tuple(dict.fromkeys(names))
        others = tuple(name for name in dict.fromkeys(names) if name != "tensorboard")
        return ("tensorboard", *others) if self.tensorboard and (epochs or "tensorboard" in names) else others

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Move a list of seeds to `seeds`; if one of them is no seed, leave it alone in `seed` to be refused."""
        given = values.get("seed")
        if isinstance(given, str) and "," in given:
            given = [part.strip() for part in given.split(",") if part.strip()] or [given]
        if not isinstance(given, list | tuple) or not given:
            return values
        wrong = next((one for one in given if not str(one).isdecimal()), None)
        if wrong is not None:
            return {**values, "seed": wrong}
        return {**values, "seed": given[0], "seeds": tuple(given)}


@command(
    "tune",
    "Search the settings that find generated defects best, and train with them.",
    "adctl tune --good parts/good --arch padim --trials 40",
    "adctl tune --dataset mvtec --category zipper --space blur=0..2 --space image_size=192,256",
    "adctl tune --good parts/good --objective ap,latency_ms --timeout 3600",
)
class TuneSettings(TrainSettings):
    """Settings of `adctl tune`: those of `adctl train`, of which given ones are not searched, and the search."""

    trials: Positive = TUNING(40, "Trials in all; the same command with the same --name continues.")
    timeout: Seconds | None = TUNING(None, "Time after which no trial is started.")
    jobs: Positive = TUNING(1, "Processes that work on the study.")
    method: Literal["tpe", "gp", "cmaes", "random", "grid"] = TUNING("tpe", "Method of the search.")
    pruner: Literal["median", "hyperband", "none"] = TUNING("median", "Rule that stops poor trials early.")
    objective: Annotated[Texts, Bounds(min_length=1)] = TUNING(
        ("ap",), "Objectives: ap, auroc, latency_ms; several give a Pareto front.", "NAME", commas=True
    )
    splits: Annotated[int, Bounds(ge=1, le=10)] = TUNING(2, "Parts of the good images that are held out in turn.")
    space: dict[str, Any] = TUNING(
        {}, "Range of a setting: blur=0..2, ridge='1e-4..0.1 log', covariance=full,shared; repeatable.", "NAME=RANGE"
    )
    defects: Folder | None = TUNING(None, "Labelled defects that take the place of generated ones; no test images.")
    final_model: bool = TUNING(True, "Train a model with the best settings.")


@command(
    "calibrate",
    "Choose a new threshold, from good images that the model was not trained on.",
    "adctl calibrate --max-false-alarm 0.01",
    "adctl calibrate --max-false-alarm 0.01 --warn-at 0.05",
    "adctl calibrate --model line3 --defects parts/bad --cost-miss 50 --cost-alarm 1",
    "adctl calibrate --model line3 --line inbox --contaminated 0.05",
)
class CalibrateSettings(DeviceSettings, ModelSettings, OverwriteSettings):
    """Settings of `adctl calibrate`."""

    good: Folder | None = INPUT(None, "Folder of other good images.", unset="the held-out images")
    group: str | None = INPUT(None, "Groups of the images of --good: folder, day, or a name pattern.", "HOW")
    defects: Folder | None = INPUT(None, "Folder of labelled defective images.")
    scores: Folder | None = INPUT(None, "Folder of labelled scores from 'adctl score', instead of images.")
    line: Folder | None = INPUT(None, "Folder of the first parts of a line, unlabelled and mostly good.")
    contaminated: LessThanHalf | None = INPUT(None, "Largest share of defective parts in --line.", unset="0.05")
    recentre: bool = INPUT(True, "Move the usual features of the model to those of --line, if they are shifted.")
    folds: FoldCount | None = INPUT(None, "Train this many models: each good image is scored by one not trained on it.")
    learning_curve: bool = INPUT(False, "Estimate how many good images are enough.")
    tta: str | None = INPUT(None, "Average over views: hflip, vflip, rot90, transpose; or none.", "VIEW,VIEW")
    precision: InferencePrecision = COMPUTE("32", "Precision of the network on a CUDA GPU.")

    method: CalibrationMethod | None = THRESHOLD(
        None, "Method of the threshold.", unset="that of the level given, else smooth"
    )
    max_false_alarm: Share | None = THRESHOLD(
        None, "Highest rate of false alarms: guaranteed by method conformal, estimated by smooth or tail.", "RATE"
    )
    new_groups: bool = THRESHOLD(False, "Set the threshold for a new group, such as the next lot.")
    percentile: Annotated[float, Bounds(gt=0, le=100)] | None = THRESHOLD(
        None, "Percentile of good scores.", unset="99 with --method percentile"
    )
    sigmas: Amount | None = THRESHOLD(None, "Standard deviations above the mean, or median with mad.", "K", unset="3")
    min_precision: ShareOrOne | None = THRESHOLD(None, "Lowest share of defects among alarms.")
    min_recall: ShareOrOne | None = THRESHOLD(None, "Lowest share of defects that are found.")
    cost_miss: AtLeastZero | None = THRESHOLD(None, "Cost of a missed defect; the threshold of least cost wins.")
    cost_alarm: AtLeastZero | None = THRESHOLD(None, "Cost of a false alarm.")
    defect_rate: Share | None = THRESHOLD(
        None, "Share of defective parts on the line, for costs.", unset="as in the images"
    )
    threshold: Annotated[float, Bounds(allow_inf_nan=False)] | None = THRESHOLD(
        None, "The threshold itself, in units of the score."
    )
    warn_at: AmountOrShare | None = THRESHOLD(
        None, "Level of a second, lower threshold for warnings, by the same method.", "LEVEL"
    )

    out: File | None = OUTPUT(None, "File of the calibrated model.")
    in_place: bool = OUTPUT(False, "Replace the model file itself.")
    strict: bool = OUTPUT(False, "Fail if there are too few images for the rate of --max-false-alarm.")


@command(
    "score",
    "Score new images: an anomaly score, an anomaly map and a verdict for each.",
    "adctl score parts/new --out heatmaps",
    "adctl score 'parts/new/*.png' --model line3 --json --fail-on-anomaly",
    "adctl score --watch inbox --model line3 --out results",
)
class ScoreSettings(DeviceSettings, LineSettings, ModelSettings, OverwriteSettings, RaySettings):
    """Settings of `adctl score`."""

    model: File | None = INPUT(
        None, "Model file, folder or name of a run, or registry of products (.toml).", unset="the last model"
    )
    images: Texts = INPUT((), "Folders, files or glob patterns.", argument=True, unset="the test images")
    classifier: File | None = INPUT(None, "Classifier that names the defects of rejected images: file or run.")
    classify: Literal["rejected", "flagged", "all"] = INPUT(
        "rejected", "Images that --classifier names; flagged: also those to inspect."
    )
    watch: Folder | None = INPUT(None, "Score images as they arrive in this folder, each once.")
    watch_for: Seconds | None = INPUT(None, "Stop watching after this time.", unset="until Ctrl-C")
    watch_idle: Seconds | None = INPUT(None, "Stop watching when no image has arrived for this time.")
    commission: Annotated[int, Bounds(ge=20)] | None = INPUT(
        None, "Number of first parts of --watch that set the threshold anew; they get no verdict.", "N"
    )
    contaminated: LessThanHalf | None = INPUT(
        None, "Largest share of defective parts among those of --commission.", unset="0.05"
    )
    tta: str | None = INPUT(
        None, "Average over these views of each image.", "VIEW,VIEW", unset="those of the calibration"
    )

    out: Folder | None = OUTPUT(None, "Folder for heatmaps and results.")
    heatmaps: bool | None = OUTPUT(None, "Write a heatmap picture of each image.", unset="on with --out")
    draw: Literal["none", "contours", "boxes", "both"] = OUTPUT(
        "contours", "Marks around regions above the pixel threshold on heatmaps."
    )
    report: bool = OUTPUT(False, "Write report.html too, into the folder of the results.")
    maps: bool = OUTPUT(True, "Keep raw anomaly maps in maps.h5, for the report.")
    fail_on_anomaly: bool = OUTPUT(False, "Exit with code 3 if an image is rejected.")

    runtime: RuntimeName = COMPUTE("auto", "Runtime; auto: the fastest that was verified against PyTorch.", "NAME")
    precision: InferencePrecision = COMPUTE("32", "Precision of the network on a CUDA GPU.")


@command(
    "report",
    "Report on scores as HTML, PDF, slides or tables, compare models, check limits in CI.",
    "adctl report heatmaps --out report.html",
    "adctl report heatmaps --fail-if 'image_auroc<0.95' --junit gates.xml",
    "adctl report scores-a scores-b --animation maps.gif",
    switches=(_ANNOTATE,),
)
class ReportSettings(GateSettings, OverwriteSettings):
    """Settings of `adctl report`."""

    scores: Paths = REPORT(
        (), "Folders from 'adctl score'; several are compared.", argument=True, unset="the last scores"
    )
    format: tuple[ReportFormatName, ...] = REPORT((), "Formats.", commas=True, unset="the ending of --out, else html")
    title: str | None = REPORT(None, "Title of the report.", "TEXT")
    findings: Annotated[int, Bounds(ge=1, le=500)] = REPORT(12, "Images shown in md, pdf and pptx, mistakes first.")
    reconstructions: bool = REPORT(
        False, "Show the autoencoder's reconstruction of each image, or the attention to the prompts of prompt."
    )
    ci: bool = REPORT(False, "Compute confidence intervals of pixel metrics too, by bootstrap.")
    pixel_size: ImageSize | None = REPORT(
        None,
        "Size at which pixels are evaluated: 256, as in many papers, or HEIGHTxWIDTH.",
        "256 or 192x448",
        unset="that of each image, up to 1024",
    )
    ci_level: Share = REPORT(0.95, "Level of the confidence intervals.")
    ci_samples: Annotated[int, Bounds(ge=100, le=100_000)] = REPORT(1000, "Bootstrap samples.")
    seed: Natural = REPORT(0, "Seed of all random numbers.")

    out: File | None = OUTPUT(None, "File of the report.")
    contact_sheet: File | None = OUTPUT(None, "PNG file of all images beside their heatmaps, worst mistakes first.")
    figures: Folder | None = OUTPUT(None, "Folder for ROC, PR and histogram as SVG and PDF, for a paper.")
    animation: File | None = OUTPUT(None, "Animation of the compared maps: a .gif, .webp or .png file.")


@command(
    "export",
    "Export the model for another runtime, and verify on images that its scores agree.",
    "adctl export",
    "adctl export --model line3 --format onnx,openvino",
    "adctl export parts/test --format openvino --int8",
    "adctl export --model line3 --classifier kinds --format openvino",
)
class ExportSettings(ModelSettings, OverwriteSettings):
    """Settings of `adctl export`."""

    images: Texts = INPUT((), "Images to verify the export on.", argument=True, unset="held-out and test images")
    classifier: File | None = INPUT(
        None, "Classifier for the same graph, which then names defects too: file or run, with the detector's backbone."
    )
    format: Annotated[tuple[ExportFormatName, ...], Bounds(min_length=1)] = EXPORT(("onnx",), "Formats.", commas=True)
    half: bool = EXPORT(False, f"Store weights in half precision ({', '.join(formats_with('fp16'))}).")
    int8: bool = EXPORT(False, f"Quantise the network to 8 bits ({', '.join(formats_with('int8'))}).")
    calibration: Texts = INPUT((), "Good images for the ranges of --int8; repeatable.", "DIR", unset="training images")
    tolerance: Amount | None = EXPORT(
        None, "Largest relative difference of scores.", unset="0.001, --half 0.01, --int8 0.25"
    )
    out: Path | None = OUTPUT(None, "File or folder for the export.", "PATH", unset="beside the model")


@command(
    "bench",
    "Measure speed and memory of model files, and check limits in CI.",
    "adctl bench line3 --out today.json",
    "adctl bench --out today.json --against last.json",
    "adctl bench --fail-if 'p95_ms>50' --markdown bench.md",
    switches=(_ANNOTATE,),
)
class BenchSettings(ComputeSettings, GateSettings, OverwriteSettings):
    """Settings of `adctl bench`."""

    models: Paths = MEASUREMENT((), "Model files, measured in alternation.", argument=True, unset="the last model")
    model: File | None = MEASUREMENT(None, "Model file, or folder or name of a run; one more of the models.")
    runtime: tuple[RuntimeName, ...] = MEASUREMENT(
        (), "Runtimes, each measured with each model.", commas=True, unset="the file's own"
    )
    batch_sizes: tuple[Positive, ...] = MEASUREMENT((1, 4, 8), "Batch sizes for throughput.", commas=True)
    repeats: Annotated[int, Bounds(ge=3)] = MEASUREMENT(30, "Rounds of one batch of each size and five single images.")
    images: Texts = MEASUREMENT(
        (), "Folder, file or glob pattern of images; repeatable.", "DIR", unset="the test images"
    )
    cold_starts: Natural = MEASUREMENT(3, "Processes started to measure cold start and memory.")
    precision: InferencePrecision = COMPUTE("32", "Precision of the network on a CUDA GPU.")

    against: File | None = GATES(None, "Earlier JSON file; exit with code 3 if the model is slower beyond the noise.")
    out: File | None = OUTPUT(None, "JSON file of the measurements.")
    markdown: File | None = OUTPUT(None, "Markdown file of measurements and gates.")
    plot: File | None = OUTPUT(None, "PNG file of the measurements as a plot.")


@settings_class
class TransferSettings(CommandSettings):
    """Settings of downloads."""

    connections: Annotated[int, Bounds(ge=1, le=32)] = DOWNLOAD(4, "Connections at once for one large file.")
    attempts: Positive = DOWNLOAD(4, "Attempts at one address without progress.")
    timeout: Seconds = DOWNLOAD(30.0, "Time to wait for a server's answer.")
    backoff: AtLeastZero = DOWNLOAD(1.0, "Seconds before the second attempt; then doubled.", flag="")
    smallest_piece: Positive = DOWNLOAD(16 << 20, "Smallest part, in bytes, for a connection of its own.", flag="")


@command(
    "fetch",
    "Fetch datasets and backbone weights to this computer, verified.",
    "adctl fetch --list",
    "adctl fetch demo",
    "adctl fetch mvtec --category zipper --accept-license",
    switches=(switch("list", "List the datasets, or the details of one, and stop.", "Dataset"),),
)
class FetchSettings(TransferSettings):
    """Settings of `adctl fetch`."""

    what: str | None = DATASET(None, "Dataset, such as demo or mvtec.", argument=True, flag="NAME")
    category: Texts = DATASET((), "Fetch only this category; repeatable.")
    source: Path | None = DATASET(None, "Archive, folder or bundle to fetch from, not the network.", flag="--from")
    accept_license: bool = DATASET(False, "Accept the licence of the dataset.")
    force: bool = DATASET(False, "Fetch again even if it is here.")
    verify: bool = DATASET(False, "Verify fetched files against their digests; same as 'adctl fetch verify'.")


@command(
    "fetch check",
    "Check a folder of images: list its problems and how to mend them.",
    "adctl fetch check parts/good --sheet check.png",
    "adctl fetch check parts --strict --json",
)
class FetchCheckSettings(OverwriteSettings):
    """Settings of `adctl fetch check`."""

    folder: Folder | None = CHECK(None, "Folder, archive or manifest of images.", argument=True)
    group: str | None = CHECK(None, "Groups of the good images: folder, day, or a name pattern.", "HOW")
    sheet: File | None = CHECK(None, "PNG file that shows the problems as pictures.")
    strict: bool = CHECK(False, "Exit with code 1 on warnings too, not only on errors.")


@command(
    "fetch bundle",
    "Pack adctl, datasets and weights into a folder for a computer without a network.",
    "adctl fetch bundle usb",
    "adctl fetch bundle usb --include mvtec/zipper --include weights/resnet18",
    "adctl fetch bundle usb --platform win_amd64 --python 3.12",
)
class FetchBundleSettings(TransferSettings):
    """Settings of `adctl fetch bundle`."""

    folder: Folder | None = BUNDLE(None, "New folder for the bundle.", argument=True)
    include: Texts = BUNDLE(
        (), "NAME, NAME/CATEGORY or weights/MODEL to pack; repeatable.", "ITEM", unset="all that was fetched"
    )
    wheels: bool = BUNDLE(True, "Pack adctl and the packages it needs.")
    requirement: str | None = BUNDLE(None, "Requirement that pip installs on the other computer.", unset="adctl")
    platform: str | None = BUNDLE(None, "Platform of the other computer in pip's words, such as win_amd64.")
    python: str | None = BUNDLE(None, "Python of the other computer, such as 3.12.", "VERSION")
    accept_license: bool = BUNDLE(False, "Accept the licences of the datasets.")


@command(
    "fetch weights",
    "Fetch the pretrained weights of a timm model, or a base model.",
    "adctl fetch weights wide_resnet50_2",
    "adctl fetch weights resnet18 --from resnet18.safetensors",
    "adctl fetch weights sd-2-1-base",
)
class FetchWeightsSettings(TransferSettings):
    """Settings of `adctl fetch weights`."""

    model_name: str | None = WEIGHTS(
        None, "timm model, such as wide_resnet50_2, or base such as sd-2-1-base.", argument=True, flag="NAME"
    )
    source: Path | None = WEIGHTS(None, "File or folder to fetch from, instead of the network.", flag="--from")


@command(
    "fetch verify",
    "Verify fetched files against their digests.",
    "adctl fetch verify",
    "adctl fetch verify mvtec --category zipper",
)
class FetchVerifySettings(CommandSettings):
    """Settings of `adctl fetch verify`."""

    what: str | None = DATASET(None, "Dataset.", argument=True, flag="NAME", unset="all that was fetched")
    category: Texts = DATASET((), "Verify only this category; repeatable.")


@settings_class
class RunsListBaseSettings(RunsSettings):
    """Settings of commands that list runs."""

    where: Texts = RUNS((), "Only runs of which this holds; see the examples; repeatable.", "CONDITION")
    sort: str = RUNS("-id", "Column, metric or setting to sort by; with a minus sign the highest first.", "NAME")
    columns: Texts = RUNS((), "Columns, metrics and settings to show.", commas=True, unset="the usual ones")
    limit: Positive = RUNS(20, "Runs to show.")


@command("runs", "Find, compare and keep runs.", "adctl runs --where 'arch=patchcore and image_auroc>0.95'")
class RunsCommandSettings(RunsListBaseSettings):
    """Settings of `adctl runs`, which lists runs."""


@command(
    "runs list",
    "List runs, the newest first.",
    "adctl runs list --sort -image_auroc --columns name,image_auroc,seconds",
)
class RunsListSettings(RunsListBaseSettings):
    """Settings of `adctl runs list`."""


@command("runs show", "Show everything about one run.", "adctl runs show line3")
class RunsShowSettings(RunsSettings):
    """Settings of `adctl runs show`."""

    run: str | None = RUNS(None, "Name, identifier or folder of the run.", argument=True, unset="the newest run")


@command("runs compare", "Show in what runs differ: settings and metrics.", "adctl runs compare line3 line4")
class RunsCompareSettings(RunsSettings):
    """Settings of `adctl runs compare`."""

    names: Texts = RUNS((), "Names, identifiers or folders of runs.", argument=True)


@command(
    "runs best",
    "Print the model file of the best run.",
    "adctl runs best --category zipper",
    "adctl runs best --metric image_auroc --max 'p95_ms<30'",
)
class RunsBestSettings(RunsSettings):
    """Settings of `adctl runs best`."""

    metric: str = RUNS("image_auroc", "Metric that decides.", "NAME")
    where: Texts = RUNS((), "Only runs of which this holds; repeatable.", "CONDITION")
    max: Texts = RUNS((), "Limit of another metric; repeatable.", "CONDITION")
    arch: str | None = RUNS(None, "Only runs of this detector.")
    dataset: str | None = RUNS(None, "Only runs of this dataset.")
    category: str | None = RUNS(None, "Only runs of this category.")
    tag: str | None = RUNS(None, "Only runs with this tag.")


@command(
    "runs tag",
    "Give a run tags, or remove them.",
    "adctl runs tag line3 production",
    "adctl runs tag line3 --remove old",
)
class RunsTagSettings(RunsSettings):
    """Settings of `adctl runs tag`."""

    words: Texts = RUNS((), "Run, then tags.", argument=True, flag="RUN TAG...")
    remove: Texts = RUNS((), "Tag to remove; repeatable.", "TAG")


@command("runs note", "Write a note about a run.", "adctl runs note line3 'new lamp since Monday'")
class RunsNoteSettings(RunsSettings):
    """Settings of `adctl runs note`."""

    words: Texts = RUNS((), "Run, then the text; no text removes the note.", argument=True, flag="RUN TEXT")


@command(
    "runs accept",
    "Let a name such as line3 mean another run, such as an update.",
    "adctl runs accept line3-update",
    "adctl runs accept line3-update --as line3",
)
class RunsAcceptSettings(RunsSettings):
    """Settings of `adctl runs accept`."""

    run: str | None = RUNS(None, "Name, identifier or folder of the run.", argument=True)
    name: str | None = RUNS(None, "The name.", flag="--as", unset="that of the first model that it updates")


@command("runs rollback", "Let a name mean the run that it meant before.", "adctl runs rollback line3")
class RunsRollbackSettings(RunsSettings):
    """Settings of `adctl runs rollback`."""

    name: str | None = RUNS(None, "Name under which runs were accepted.", argument=True)


@command("runs lineage", "Show what a model was made from and what was made from it.", "adctl runs lineage line3")
class RunsLineageSettings(RunsSettings):
    """Settings of `adctl runs lineage`."""

    run: str | None = RUNS(None, "Run, model file or scored folder.", argument=True, unset="the newest run")


@command("runs export", "Write all runs as CSV or JSON.", "adctl runs export --out runs.csv")
class RunsExportSettings(OverwriteSettings, RunsSettings):
    """Settings of `adctl runs export`."""

    where: Texts = RUNS((), "Only runs of which this holds; repeatable.", "CONDITION")
    out: File = OUTPUT(Path("runs.csv"), "File that ends in .csv or .json.")


@command(
    "runs prune",
    "Remove old runs, except the best and those that are tagged, accepted, served or continued by others.",
    "adctl runs prune --keep-best 3 --older 30d --dry-run",
    switches=(switch("dry_run", "Only tell what would be removed.", "Runs"),),
)
class RunsPruneSettings(RunsSettings):
    """Settings of `adctl runs prune`."""

    keep_best: Natural = RUNS(3, "Best runs of each category that are kept.")
    metric: str = RUNS("image_auroc", "Metric that decides which are best.", "NAME")
    older: str | None = RUNS(None, "Remove only runs older than this, such as 30d.", "AGE")
    yes: bool = RUNS(False, "Remove without asking.")


@command("runs rm", "Remove runs.", "adctl runs rm 20261128-101500-padim-zipper")
class RunsRmSettings(RunsSettings):
    """Settings of `adctl runs rm`."""

    names: Texts = RUNS((), "Names, identifiers or folders of runs.", argument=True)
    yes: bool = RUNS(False, "Remove without asking, also runs that are tagged or served.")


@command("runs index", "Rebuild the index of runs from their folders.", "adctl runs index")
class RunsIndexSettings(RunsSettings):
    """Settings of `adctl runs index`."""


@command("runs view", "Show the runs on a page in the browser of this machine.", "adctl runs view --port 8001")
class RunsViewSettings(RunsSettings):
    """Settings of `adctl runs view`."""

    host: str = RUNS("127.0.0.1", "Address of this machine to listen on.", "ADDRESS")
    port: Annotated[int, Bounds(ge=0, le=65535)] = RUNS(8001, "Port to listen on; 0 takes a free one.")


@command(
    "serve",
    "Serve models over HTTP: an API, a page, the history of verdicts and a review loop.",
    "adctl serve line3",
    "adctl serve zip=runs/line3 --models runs --port 8000",
    "adctl serve line3 --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem",
)
class ServeSettings(LineSettings, RunsSettings):
    """Settings of `adctl serve`."""

    model: Texts = INPUT(
        (),
        "Model files, folders or names of runs, or registries (.toml); NAME=MODEL gives one a name.",
        argument=True,
        unset="last model",
    )
    models: Folder | None = INPUT(None, "Folder from which models may be loaded while the server runs.")
    classifier: File | None = INPUT(None, "Classifier that names the defects of rejected parts: file or run.")

    train_from: Folder | None = INPUT(None, "Folder whose subfolders of good images may be trained on from the page.")

    host: str = SERVER("127.0.0.1", "Address to listen on; any other than this machine's own needs a key.", "ADDRESS")
    port: Annotated[int, Bounds(ge=0, le=65535)] = SERVER(8000, "Port to listen on; 0 takes a free one.")
    queue: Positive = SERVER(12, "Images that may wait; a request beyond them is refused with 429.")
    deadline: Seconds = SERVER(30.0, "Longest time that a request may take.")
    max_upload: str = SERVER("64MB", "Largest body of a request.", "BYTES")
    max_pixels: Positive = SERVER(100_000_000, "Largest image, width x height.")

    data: Folder | None = HISTORY(None, "Folder of stored images, thumbnails and reviews.", unset="serve in --runs")
    store_images: Literal["none", "rejects", "all"] = HISTORY(
        "rejects", "Images to keep, with their maps; rejects: rejected and nearly rejected ones."
    )
    keep: str = HISTORY("30d", "Age at which verdicts and their images are removed.", "AGE")
    keep_bytes: str = HISTORY("20GB", "Size of the stored images above which the oldest are removed.", "BYTES")

    tls_cert: File | None = SECURITY(None, "PEM file of the certificate for HTTPS.")
    tls_key: File | None = SECURITY(None, "PEM file of its private key.")
    rate: Amount | None = SECURITY(None, "Requests per second that one key may make.", "N", unset="no limit")
    cors: Texts = SECURITY((), "Origin of another site whose pages may call the API; repeatable.", "ORIGIN")

    runtime: RuntimeName = COMPUTE("auto", "Runtime; auto: the fastest that was verified against PyTorch.", "NAME")
    precision: InferencePrecision = COMPUTE("32", "Precision of the network on a CUDA GPU.")
    device: Literal["auto", "cpu", "cuda", "mps"] = COMPUTE("auto", "Device that computes.")
    gpu: Natural | None = COMPUTE(None, "Number of the GPU; implies --device cuda.")
    workers: Annotated[int, Bounds(ge=1, le=64)] = COMPUTE(1, "Processes; each loads the models.")


@command("serve keys", "List the keys of the server.", "adctl serve keys")
class ServeKeysSettings(RunsSettings):
    """Settings of `adctl serve keys`, which lists keys."""


@command("serve keys list", "List the keys of the server.", "adctl serve keys list")
class ServeKeysListSettings(RunsSettings):
    """Settings of `adctl serve keys list`."""


@command(
    "serve keys add",
    "Make a key and show it once.",
    "adctl serve keys add camera1 --role score",
    "adctl serve keys add anna --role review",
)
class ServeKeysAddSettings(RunsSettings):
    """Settings of `adctl serve keys add`."""

    key_name: str | None = SECURITY(None, "Name of the key: a machine or a person.", argument=True, flag="NAME")
    role: Literal["score", "review", "admin"] = SECURITY("score", "Role; each may do what those before it may.")


@command("serve keys revoke", "Revoke a key.", "adctl serve keys revoke camera1")
class ServeKeysRevokeSettings(RunsSettings):
    """Settings of `adctl serve keys revoke`."""

    key_name: str | None = SECURITY(None, "Name of the key.", argument=True, flag="NAME")


@command(
    "demo",
    "Run the whole workflow on generated zippers: fetch, train, calibrate, score, report.",
    "adctl demo",
    "adctl demo --arch padim",
)
class DemoSettings(DeviceSettings):
    """Settings of `adctl demo`."""

    arch: str = DETECTOR("patchcore", _ARCH)
    epochs: Positive = DETECTOR(5, "Epochs of gradient training.")
    seed: Natural = DETECTOR(0, "Seed of all random numbers.")


@command(
    "demo line",
    "Run a production line in small: generated parts, a server that judges them, a broker and the page.",
    "adctl demo line",
    "adctl demo line --parts 60 --rate 5 --defective 20%",
    "adctl demo line --rtsp",
    "adctl demo line --model line3 --sink mqtt://broker/line3",
)
class DemoLineSettings(DeviceSettings):
    """Settings of `adctl demo line`."""

    model: File | None = INPUT(None, "Model file, or folder or name of a run.", unset="one trained at the start")
    parts: Positive | None = LINE(None, "End after so many parts.", unset="until Ctrl-C")
    rate: Amount = LINE(2.0, "Parts in a second.", "N")
    defective: ShareOrZero = LINE(0.15, "Share of defective parts.")
    rtsp: bool = LINE(False, "Show the parts to a camera, an RTSP stream by GStreamer, instead of writing files.")
    sink: Texts = LINE(
        (),
        "Peer that gets each verdict; repeatable.",
        "ADDRESS",
        unset="a broker of its own, if mosquitto is installed",
    )
    port: Annotated[int, Bounds(ge=0, le=65535)] = SERVER(8000, "Port of the page; 0 takes a free one.")
    seed: Natural = DETECTOR(0, "Seed of all random numbers.")


@command(
    "schema",
    "Print the JSON Schema of what a command prints with --json, or of a JSON file.",
    "adctl schema",
    "adctl schema score",
    "adctl schema fetch check",
    "adctl schema scores.json",
)
class SchemaSettings(CommandSettings):
    """Settings of `adctl schema`."""

    document: Texts = DOCUMENT((), "Command or file, as in the list of documents.", argument=True, unset="the list")


COMMON_OPTIONS = (
    switch("config", "Settings file: TOML, YAML or JSON. Flags and ADCTL_* variables override it.", metavar="FILE"),
    switch("print_config", "Print each setting, its value and its origin, and stop."),
    switch("json", "Print one JSON document on stdout and nothing else there."),
    switch("quiet", "Print only errors, and with --json the document.", short="-q"),
    switch("verbose", "Print device, runtime and model too, and tracebacks of internal errors.", short="-v"),
)
"""Options that every command has; none is a setting."""


@cache
def options_of(command: str) -> tuple[Option, ...]:
    """Return every option of a command, in the order of its help: settings, then switches.

    Args:
        command: A key of `COMMANDS`.
    """
    cls = COMMANDS[command]
    found = (*describe(cls), *cls.switches)
    groups = [*dict.fromkeys(option.group for option in found if option.group not in _LAST_GROUPS), *_LAST_GROUPS]
    return tuple(sorted(found, key=lambda option: (groups.index(option.group), not option.argument)))


def names_of(cls: type[CommandSettings]) -> tuple[str, ...]:
    """Return the names of a class's settings."""
    return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class LoadedSettings(Generic[S]):
    """Settings with the origin of each.

    Attributes:
        settings: The effective settings.
        origins: For each name: `--flag`, `ADCTL_NAME`, the settings file's path, or `default`.
    """

    settings: S
    origins: dict[str, str]

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that are not left at their defaults."""
        return frozenset(name for name, origin in self.origins.items() if origin != "default")

    def table(self) -> dict[str, dict[str, Any]]:
        """Return value and origin of each setting, JSON-safe; saved with a run and printed by --print-config."""
        values = self.settings.to_json()
        return {name: {"value": values[name], "from": self.origins[name]} for name in values}


def load(cls: type[S], flags: Mapping[str, Any], config: Path | None = None) -> LoadedSettings[S]:
    """Merge flags, environment, settings file and defaults into the settings of one command.

    Args:
        cls: The command's settings class.
        flags: Values given on the command line or from Python; None means not given.
        config: The file named by --config; `ADCTL_CONFIG` when None.

    Raises:
        UsageError: A value is out of bounds or a name unknown; the message says which, and its origin.
    """
    config = config or (Path(given) if (given := os.environ.get(PREFIX + "CONFIG")) else None)
    sources: list[tuple[dict[str, Any], str]] = []
    if config is not None:
        sources.append((_from_file(config, cls), str(config)))
    sources.append((_from_environment(cls), "environment"))
    sources.append(({name: value for name, value in flags.items() if value is not None}, "flag"))

    values: dict[str, Any] = {}
    origins = dict.fromkeys(names_of(cls), "default")
    for source, origin in sources:
        for name, value in source.items():
            both_tables = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if both_tables else value
            origins[name] = {"environment": PREFIX + name.upper(), "flag": flag_name(name)}.get(origin, origin)
    return LoadedSettings(validated(cls, values, origins), origins)


def validated(cls: type[S], values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> S:
    """Create settings from values of settings files, the environment, flags or Python, and check them.

    Args:
        cls: The command's settings class.
        values: Values by name; other settings keep their defaults.
        origins: Origin of each value by name, for error messages.

    Raises:
        UsageError: A value is out of bounds, or a name is unknown.
    """
    from pydantic import TypeAdapter, ValidationError

    known = names_of(cls)
    for name in values:
        if name not in known:
            raise _unknown(f"setting of adctl {cls.command}", name, [cls])
    prepared = cls.prepare(_without_percent(cls, _lists(cls, values)))
    try:
        settings = TypeAdapter(cls).validate_python(prepared)
    except ValidationError as error:
        raise _explain(cls, error.errors(), origins or {}) from error
    _check_paths(settings)
    return settings


def _check_paths(settings: CommandSettings) -> None:
    """Raise if a path cannot be looked up: its name is too long or impossible, or a folder on it may not be entered."""
    for name, value in vars(settings).items():
        for path in value if isinstance(value, tuple) else (value,):
            if not isinstance(path, Path) or _REMOTE.match(str(path)):
                continue
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
                flag = declared_in(type(settings))[name].flag or flag_name(name)
                shown = printable(f"{str(path)[:_SHOWN]}..." if len(str(path)) > _SHOWN else str(path))
                raise UsageError(f"The path of {flag} cannot be used: {reason}: {shown}", "Check the path.") from error


def _lists(cls: type[CommandSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, with lists for the settings that take several."""
    declared, hints = declared_in(cls), get_type_hints(cls, include_extras=True)
    listed = dict(values)
    for name, value in values.items():
        if is_several(hints[name]) and value is not None and not isinstance(value, list | tuple):
            split = declared[name].commas and isinstance(value, str)
            listed[name] = [part.strip() for part in value.split(",")] if split else [value]
    return listed


def _without_percent(cls: type[CommandSettings], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, with shares for percentages such as "2%"; other texts are left alone to be refused."""
    hints = get_type_hints(cls, include_extras=True)
    shares = dict(values)
    for name, value in values.items():
        if isinstance(value, str) and value.endswith("%") and is_share(hints[name]):
            with suppress(ValueError):
                shares[name] = round(float(value[:-1]) / 100, 12)
    return shares


def _from_environment(cls: type[CommandSettings]) -> dict[str, Any]:
    names, hints = _names_of_all(COMMANDS.values()), get_type_hints(cls)
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or variable.upper() in OTHER_VARIABLES:
            continue
        if name not in names:
            meant = _closest(name, COMMANDS.values())
            guess = f"Did you mean '{PREFIX}{meant.upper()}'? " if meant else ""
            raise UsageError(f"Unknown environment variable '{variable}'.", f"{guess}Correct it, or unset it.")
        if name in names_of(cls):
            opening = "[" if is_several(hints[name]) else "{" if is_table(hints[name]) else None
            values[name] = _from_text(variable, text) if text[:1] == opening else text
    return values


def _from_text(variable: str, text: str) -> Any:

    try:
        return documents.parse_json(text)
    except ValueError as error:
        raise UsageError(
            f"The environment variable {variable} cannot be read: {error}.",
            "Write tables and lists as JSON, for example ADCTL_OPTIONS='{\"coreset_ratio\": 0.1}'.",
        ) from error


def _from_file(path: Path, cls: type[CommandSettings]) -> dict[str, Any]:
    """Return the settings that a file holds for one command; a setting at the top is for every command that has it."""
    document = _parse(path)
    # `runs` is a setting and a command: a table is for the command.
    also_settings = _names_of_all(COMMANDS.values())
    commands = {command.split()[0] for command in COMMANDS}
    tables = {name for name in commands if isinstance(document.get(name), dict) or name not in also_settings}
    for table in tables:
        if not isinstance(document.get(table, {}), dict):
            raise UsageError(f"'{table}' in {path} must be a table of settings.", f"Write it as [{table}].")
    shared = {name: value for name, value in document.items() if name not in tables}
    table = cls.command.split()[0]
    own: dict[str, Any] = document.get(table, {}) if table in tables else {}
    of_table = [other for other in COMMANDS.values() if other.command.split()[0] == table]
    for names, classes, place in ((shared, COMMANDS.values(), ""), (own, of_table, f" under [{table}]")):
        for name in names:
            if name not in _names_of_all(classes):
                raise _unknown(f"setting in {path}{place}", name, classes)
    return {name: value for name, value in (shared | own).items() if name in names_of(cls)}


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    import yaml

    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": documents.parse_json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"The settings file {path} has an unknown ending.", "Use .toml, .yaml or .json.")
    try:
        document: Any = reader(reading.read_text(path))
        _require_few_values(document)
    except FileNotFoundError as error:
        raise UsageError(f"The settings file {path} does not exist.", "Check the path given to --config.") from error
    except Exception as error:  # readers of YAML and TOML refuse odd texts in their own ways, deep nesting among them
        raise UsageError(f"The settings file {path} cannot be read: {error}", "Correct the place it names.") from error
    if document is None:  # an empty YAML file
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"The settings file {path} must be a table of settings.", "Write 'name = value' lines.")
    return dict(document)


def _require_few_values(value: Any, before: int = 0) -> int:
    """Return the number of values in a document and before it; raise a `ValueError` if anchors repeat without end."""
    count = before + 1
    if count > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES} values")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        count = _require_few_values(inner, count)
    return count


def _names_of_all(classes: Collection[type[CommandSettings]]) -> set[str]:
    return {name for cls in classes for name in names_of(cls)}


def _unknown(kind: str, name: str, classes: Collection[type[CommandSettings]]) -> UsageError:
    """Return the error for an unknown name, with the closest known one; common other words are understood."""
    meant = {other: own for own, other in synonyms_of(classes)}.get(name)
    if meant is None:
        return unknown_name(kind, name, _names_of_all(classes))
    return UsageError(f"Unknown {kind} '{name}'.", f"Did you mean '{meant}'?")


def _closest(name: str, classes: Collection[type[CommandSettings]]) -> str | None:
    words = {other: own for own, other in synonyms_of(classes)} | {own: own for own in _names_of_all(classes)}
    close = difflib.get_close_matches(name, words, n=1)
    return words[close[0]] if close else None


def synonyms_of(classes: Collection[type[CommandSettings]]) -> list[tuple[str, str]]:
    """Return pairs of a setting's name and another word that users try for it."""
    return [(name, other) for cls in classes for name, one in declared_in(cls).items() for other in one.synonyms]


def _explain(cls: type[CommandSettings], errors: list[ErrorDetails], origins: Mapping[str, str]) -> UsageError:
    first = errors[0]
    name = str(first["loc"][0])
    flag = declared_in(cls)[name].flag or flag_name(name)
    origin = origins.get(name, "")
    place = f" (from {origin})" if origin not in ("", "default", flag_name(name)) else ""
    # A setting of several types gives one error for each of them.
    same_value = [error for error in errors if error["loc"][0] == name and repr(error["input"]) == repr(first["input"])]
    reasons = [error["msg"].split(", unable to parse")[0].removeprefix("Input should be ") for error in same_value]
    reason = " or ".join(dict.fromkeys(reasons)).replace("a valid integer", "a whole number")
    must = f"it must be {reason}" if same_value[0]["msg"].startswith("Input should be ") else reason
    message = f"The setting {flag}{place} is not valid: {must}. Got {first['input']!r} instead."
    return UsageError(message, _percent_meant(cls, name, first["input"]) or f"See 'adctl {cls.command} --help'.")


def _percent_meant(cls: type[CommandSettings], name: str, given: Any) -> str | None:
    """Return what a share above 1 means and how to write it as a percentage; None for other values."""
    if not is_share(get_type_hints(cls, include_extras=True)[name]):
        return None
    try:
        value = float(given)
    except (TypeError, ValueError):
        return None
    # A percentage was converted before, so that a number that is exactly 1 may have been "100%".
    meant = 1 < value < 100 or (value == 1 and isinstance(given, str))  # noqa: PLR2004
    return f"{value:g} means {100 * value:g} %; write {value / 100:g} or {value:g}%." if meant else None


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_safe(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(one) for one in value]
    return str(value) if isinstance(value, Path) else value
