"""Settings of each command, and the value and origin of each: flag > ADCTL_* > settings file > default.

One frozen dataclass a command declares its settings; flags, environment, files, documentation and the Python API
are all made from it. Constructing one checks nothing: `load` and `validated` do. Imports nothing heavy.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Interval, Len

from adctl.choices import DETECTORS, EXPORT_FORMATS, REPORT_FORMATS, RUNTIMES, formats_with
from adctl.errors import UsageError, unknown_name
from adctl.options import PREFIX, Option, declared_in, describe, flag_name, is_several, is_table, setting, switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic_core import ErrorDetails

Folder = Annotated[Path, "DIR"]
"""A text beside a type is its placeholder in the help."""
File = Annotated[Path, "FILE"]
Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Amount = Annotated[float, Gt(0)]
Seconds = Annotated[float, Gt(0), "SECONDS"]
Share = Annotated[float, Interval(gt=0, lt=1), "SHARE"]
"""Numbers between 0 and 1, both excluded."""
ShareOrOne = Annotated[float, Interval(gt=0, le=1), "SHARE"]
ShareOrZero = Annotated[float, Interval(ge=0, lt=1), "SHARE"]
AtLeastZero = Annotated[float, Ge(0)]
FoldCount = Annotated[int, Interval(ge=2, le=100)]
BatchSize = Literal["auto"] | Positive
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

OTHER_VARIABLES = {
    "ADCTL_CONFIG": "Settings file to use when --config is not given.",
    "ADCTL_DATA_DIR": "Folder of fetched datasets and weights.",
    "ADCTL_CATALOGUE": "JSON file with a catalogue of datasets to use instead of the built-in one.",
    "ADCTL_TEST_DATA": "Folder of datasets for the tests of adctl.",
}
"""Environment variables that are no settings, with their meaning."""

_ARCH = f"Detector: {', '.join(DETECTORS)}, or one of an installed package."
_LAST_MODEL = "the last model"
_LAST_GROUPS = ("Gates", "Output", "Compute", "Download", "General")


@dataclass(frozen=True, kw_only=True)
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

    def to_json(self) -> dict[str, Any]:
        """Return names and JSON-safe values."""
        return {name: _json_safe(value) for name, value in asdict(self).items()}

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the given values in the form that the fields take."""
        return values


@dataclass(frozen=True, kw_only=True)
class RunsSettings(CommandSettings):
    """Settings of commands that read or write runs."""

    runs: Folder = setting(Path("runs"), "Folder of all runs.", "Output")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(RunsSettings):
    """Settings of commands that take one model."""

    model: File | None = setting(None, "Model file, or folder or name of a run.", "Model", unset=_LAST_MODEL)


@dataclass(frozen=True, kw_only=True)
class GateSettings(RunsSettings):
    """Settings of commands that check limits."""

    fail_if: tuple[str, ...] = setting(
        (), "Exit with code 3 if this holds, such as 'image_auroc<0.95'; repeatable.", "Gates", metavar="CONDITION"
    )
    junit: File | None = setting(None, "JUnit XML file of the gates.", "Gates")


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(RunsSettings):
    """Settings of commands that compute with a model."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Device that computes.", "Compute")
    gpu: Natural | None = setting(None, "Number of the GPU; implies --device cuda.", "Compute")
    workers: Annotated[int, Interval(ge=0, le=64)] = setting(2, "Threads that read images.", "Compute")


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(ComputeSettings):
    """Settings of commands that choose a batch size."""

    batch_size: BatchSize = setting(
        "auto", "Images in one batch: a number, or auto.", "Compute", synonyms=("batch", "bs")
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings(RunsSettings):
    """Settings that name the images of a training."""

    data: Folder | None = setting(
        None,
        "Dataset in MVTec AD layout: the folder of a category, or the folder of all categories. Also an archive, a "
        "manifest or a remote folder.",
        "Data",
    )
    dataset: str | None = setting(None, "Dataset that 'adctl fetch' brought, such as demo or mvtec.", "Data")
    category: str | None = setting(
        None, "Category of the dataset, several with commas, or 'all' to train on each.", "Data"
    )
    good: Folder | None = setting(None, "Plain folder of good images.", "Data")
    test: Folder | None = setting(None, "Folder of test images, loose or in one folder for each label.", "Data")
    masks: Folder | None = setting(None, "Folder of ground-truth masks for --test.", "Data")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DeviceSettings, DataSettings):
    """Settings of `adctl train`."""

    command: ClassVar[str] = "train"
    summary: ClassVar[str] = "Train a detector on good images and write one calibrated model file."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl train --good parts/good --name line3",
        "adctl train --dataset mvtec --category zipper --arch padim",
        "adctl train --data parts --arch resnet --epochs 50 --loss mse=1,ssim=0.5",
    )
    switches: ClassVar[tuple[Option, ...]] = (
        switch("dry_run", "Show the data, the detector, and the memory and time needed, and stop.", "Output"),
    )

    fetch: bool = setting(
        False, "Fetch the dataset and the backbone's weights if they are missing, also with --dry-run.", "Data"
    )
    accept_license: bool = setting(False, "Accept the licence of the dataset for --fetch.", "Data")
    roi: str | None = setting(
        None, "Region of interest: a rectangle in pixels, or the file of a mask picture.", "Data", metavar="X,Y,W,H"
    )
    calibration_share: Share = setting(0.2, "Share of good images held out for the threshold.", "Data")
    validation_share: Share = setting(0.1, "Share of good images held out to choose the epoch.", "Data")
    cache: Folder | None = setting(None, "Folder that keeps decoded and resized images.", "Data")
    augment: Literal["none", "light", "medium", "heavy", "custom"] = setting(
        "none", "Augmentation of training images.", "Data", metavar="POLICY"
    )
    augmentations: tuple[dict[str, Any], ...] = setting(
        (), "Transforms of --augment custom; settings files only.", "Data", flag=""
    )
    augmentation_library: Literal["torchvision", "albumentations"] = setting(
        "torchvision", "Library that augments.", "Data"
    )
    synthetic: str | None = setting(
        None, "Synthetic defects to repair in training: cutpaste, perlin, or cutpaste,perlin.", "Data"
    )

    arch: str = setting("patchcore", _ARCH, "Detector", synonyms=("model", "detector", "method"))
    backbone: str | None = setting(None, "timm model that computes the features.", "Detector")
    weights: str | None = setting(
        None, "Pretrained weights: a .safetensors or .pth file, or 'random'.", "Detector", metavar="FILE"
    )
    image_size: Annotated[int, Interval(ge=32, le=4096)] | None = setting(
        None, "Height and width that images are resized to, in pixels.", "Detector", synonyms=("size", "imgsz")
    )
    options: dict[str, Any] = setting(
        {},
        "Another option of the detector, such as coreset_ratio=0.1; repeatable. With several detectors also "
        "patchcore.NAME=VALUE.",
        "Detector",
        flag="--set",
        metavar="NAME=VALUE",
    )
    error: str | None = setting(
        None, "Error spaces of an autoencoder's anomaly map, with weights.", "Detector", metavar="l2=0.15,features=0.85"
    )
    noise_level: tuple[float, ...] | None = setting(
        None, "Noise level of the diffusion autoencoder, as a share of its steps; repeatable.", "Detector"
    )

    seed: Natural = setting(
        0,
        "Seed of all random numbers. With lists of seeds, detectors or categories, one model for each combination.",
        "Training",
        metavar="N or 0,1,2",
    )
    seeds: tuple[Natural, ...] = setting((), "All seeds when --seed names several.", "Training", flag="")
    folds: FoldCount | None = setting(
        None, "Cross-validation: train this many models, each with another part held out.", "Training"
    )
    fold: Annotated[int, Interval(ge=1, le=100)] | None = setting(
        None, "Train only the model of this fold of --folds.", "Training"
    )
    epochs: Positive | None = setting(
        None,
        "Epochs of gradient training.",
        "Training",
        unset="20, or as many as make 1000 steps",
        synonyms=("num_epochs", "max_epochs", "n_epochs"),
    )
    loss: str | None = setting(
        None, "Loss terms of an autoencoder, with weights.", "Training", metavar="mse=1,ssim=0.5"
    )
    learning_rate: Amount | None = setting(
        None, "Highest learning rate of AdamW.", "Training", unset="0.001, or the detector's", synonyms=("lr",)
    )
    weight_decay: AtLeastZero | None = setting(
        None, "Weight decay of AdamW.", "Training", unset="0.0001, or the detector's", synonyms=("wd",)
    )
    schedule: Literal["cosine", "step", "plateau", "constant"] | None = setting(
        None, "Schedule of the learning rate.", "Training", metavar="NAME", unset="cosine, or the detector's"
    )
    warmup: ShareOrZero | None = setting(
        None, "Share of the steps over which the learning rate rises.", "Training", unset="0.05, or the detector's"
    )
    accumulate: Positive = setting(1, "Batches in one optimizer step.", "Training")
    clip: Amount = setting(1.0, "Largest norm of the gradient.", "Training")
    patience: Positive = setting(20, "Epochs without a better validation loss before training stops.", "Training")
    ema: ShareOrZero = setting(0.0, "Decay of the exponential moving average of the weights; 0 for none.", "Training")
    precision: Literal["auto", "32", "16", "bf16"] = setting("auto", "Precision of training.", "Training")
    gradient_checkpointing: bool = setting(
        False, "Use less memory and about a third more time, by recomputing activations.", "Training"
    )
    compile: bool = setting(
        False, "Compile the training step with torch.compile; faster in long trainings.", "Training"
    )
    devices: str | None = setting(
        None, "Devices that train together: how many, or which.", "Compute", metavar="2 or 0,1"
    )

    name: str | None = setting(None, "Name of the run's folder.", "Output")
    resume: Path | None = setting(None, "Continue an interrupted run: its folder or name.", "Output", metavar="RUN")
    checkpoint_epochs: Positive = setting(10, "Epochs between checkpoints.", "Output")
    checkpoint_minutes: Amount = setting(5.0, "Minutes between checkpoints.", "Output")
    keep_checkpoints: Natural = setting(0, "Checkpoints to keep after training.", "Output")
    tensorboard: bool = setting(True, "Write TensorBoard files.", "Output")

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


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(DeviceSettings, ModelSettings):
    """Settings of `adctl calibrate`."""

    command: ClassVar[str] = "calibrate"
    summary: ClassVar[str] = "Choose a new threshold, from good images that the model was not trained on."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl calibrate --max-false-alarm 0.01",
        "adctl calibrate --max-false-alarm 0.01 --warn-at 0.05",
        "adctl calibrate --model line3 --defects parts/bad --cost-miss 50 --cost-alarm 1",
    )

    good: Folder | None = setting(
        None, "Folder of other good images.", "Images", unset="the images held out at training"
    )
    defects: Folder | None = setting(None, "Folder of labelled defective images.", "Images")
    scores: Folder | None = setting(
        None, "Folder of labelled scores that 'adctl score' wrote, instead of images.", "Images"
    )
    folds: FoldCount | None = setting(
        None, "Train this many models, so that every good image is scored by a model not trained on it.", "Images"
    )
    learning_curve: bool = setting(False, "Estimate how many good images are enough.", "Images")
    tta: str | None = setting(
        None,
        "Test-time augmentation: views to average over, of hflip, vflip, rot90, transpose; or none.",
        "Images",
        metavar="VIEW,VIEW",
    )

    method: CalibrationMethod | None = setting(
        None, "Method of the threshold.", "Threshold", unset="the method whose level is given, else percentile"
    )
    max_false_alarm: Share | None = setting(
        None, "Highest rate of false alarms, guaranteed: method conformal, or tail.", "Threshold", metavar="RATE"
    )
    percentile: Annotated[float, Interval(gt=0, le=100)] | None = setting(
        None, "Percentile of good scores.", "Threshold", unset="99"
    )
    sigmas: Amount | None = setting(
        None,
        "Standard deviations above the mean, or above the median with method mad.",
        "Threshold",
        metavar="K",
        unset="3",
    )
    min_precision: ShareOrOne | None = setting(None, "Lowest share of defects among alarms.", "Threshold")
    min_recall: ShareOrOne | None = setting(None, "Lowest share of defects that are found.", "Threshold")
    cost_miss: AtLeastZero | None = setting(
        None, "Cost of a missed defect; the threshold of least cost wins.", "Threshold"
    )
    cost_alarm: AtLeastZero | None = setting(None, "Cost of a false alarm.", "Threshold")
    defect_rate: Share | None = setting(
        None, "Share of defective parts on the line, for costs.", "Threshold", unset="the share among the images"
    )
    threshold: Annotated[float, Interval(gt=float("-inf"), lt=float("inf"))] | None = setting(
        None, "The threshold itself, in units of the score.", "Threshold"
    )
    warn_at: Amount | None = setting(
        None, "Level of a second, lower threshold for warnings, by the same method.", "Threshold"
    )

    out: File | None = setting(None, "File of the calibrated model.", "Output")
    in_place: bool = setting(False, "Replace the model file itself.", "Output")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(DeviceSettings, ModelSettings):
    """Settings of `adctl score`."""

    command: ClassVar[str] = "score"
    summary: ClassVar[str] = "Score new images: an anomaly score, an anomaly map and a verdict for each."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl score parts/new --out heatmaps",
        "adctl score 'parts/new/*.png' --model line3 --json --fail-on-anomaly",
        "adctl score --watch inbox --model line3 --out results",
    )

    images: tuple[str, ...] = setting(
        (), "Folders, files or glob patterns.", "Images", argument=True, unset="test images of the model's dataset"
    )
    watch: Folder | None = setting(
        None, "Score images as they arrive in this folder, each once, also after a restart.", "Images"
    )
    watch_for: Seconds | None = setting(None, "Stop watching after this time.", "Images", unset="until Ctrl-C")
    watch_idle: Seconds | None = setting(None, "Stop watching when no image has arrived for this time.", "Images")
    settle: AtLeastZero = setting(
        2.0, "Time a watched file must stay unchanged before it is read.", "Images", metavar="SECONDS"
    )
    tta: str | None = setting(
        None,
        "Test-time augmentation: views to average over.",
        "Images",
        metavar="VIEW,VIEW",
        unset="the views of the calibration",
    )

    out: Folder | None = setting(None, "Folder for heatmaps and results.", "Output")
    heatmaps: bool | None = setting(None, "Write a heatmap picture of each image.", "Output", unset="on with --out")
    draw: Literal["none", "contours", "boxes", "both"] = setting(
        "none", "Mark anomalous regions on heatmaps.", "Output"
    )
    maps: bool = setting(True, "Keep raw anomaly maps in maps.h5, for the report.", "Output")
    fail_on_anomaly: bool = setting(False, "Exit with code 3 if an image is rejected.", "Output")

    runtime: RuntimeName = setting(
        "auto", "Runtime; auto is the fastest that was verified against PyTorch.", "Compute", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class ReportSettings(GateSettings):
    """Settings of `adctl report`."""

    command: ClassVar[str] = "report"
    summary: ClassVar[str] = "Report on scores as HTML, PDF, slides or tables, compare models, check limits in CI."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl report heatmaps --out report.html",
        "adctl report heatmaps --fail-if 'image_auroc<0.95' --junit gates.xml",
        "adctl report scores-a scores-b --animation maps.gif",
    )

    scores: tuple[Path, ...] = setting(
        (), "Folders that 'adctl score' wrote; several are compared.", "Report", argument=True, unset="the last scores"
    )
    format: tuple[ReportFormatName, ...] = setting(
        (), "Formats.", "Report", commas=True, unset="the ending of --out, else html"
    )
    title: str | None = setting(None, "Title of the report.", "Report", metavar="TEXT")
    findings: Annotated[int, Interval(ge=1, le=500)] = setting(
        12, "Images shown in md, pdf and pptx, mistakes first.", "Report"
    )
    reconstructions: bool = setting(False, "Show the autoencoder's reconstruction of each image.", "Report")
    ci: bool = setting(False, "Compute confidence intervals of pixel metrics too, by bootstrap.", "Report")
    ci_level: Share = setting(0.95, "Level of the confidence intervals.", "Report")
    ci_samples: Annotated[int, Interval(ge=100, le=100_000)] = setting(1000, "Bootstrap samples.", "Report")
    seed: Natural = setting(0, "Seed of all random numbers.", "Report")

    out: File | None = setting(None, "File of the report.", "Output")
    contact_sheet: File | None = setting(
        None, "PNG file of all images beside their heatmaps, worst mistakes first.", "Output"
    )
    animation: File | None = setting(None, "Animation of the compared maps: a .gif, .webp or .png file.", "Output")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings):
    """Settings of `adctl export`."""

    command: ClassVar[str] = "export"
    summary: ClassVar[str] = "Export the model for another runtime, and verify on images that its scores agree."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl export",
        "adctl export --model line3 --format onnx,openvino",
        "adctl export parts/test --format openvino --int8",
    )

    images: tuple[str, ...] = setting(
        (),
        "Images to verify the export on.",
        "Export",
        argument=True,
        unset="images held out at training, and test images",
    )
    format: Annotated[tuple[ExportFormatName, ...], Len(1)] = setting(("onnx",), "Formats.", "Export", commas=True)
    half: bool = setting(False, f"Store weights in half precision ({', '.join(formats_with('fp16'))}).", "Export")
    int8: bool = setting(False, f"Quantise the network to 8 bits ({', '.join(formats_with('int8'))}).", "Export")
    calibration: tuple[str, ...] = setting(
        (),
        "Good images that give the value ranges for --int8; repeatable.",
        "Export",
        metavar="DIR",
        unset="training images",
    )
    tolerance: Amount | None = setting(
        None, "Largest relative difference of scores.", "Export", unset="0.001; 0.01 with --half; 0.25 with --int8"
    )
    out: Path | None = setting(
        None, "File or folder for the export.", "Output", metavar="PATH", unset="beside the model"
    )


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ComputeSettings, GateSettings):
    """Settings of `adctl bench`."""

    command: ClassVar[str] = "bench"
    summary: ClassVar[str] = "Measure speed and memory of model files, and check limits in CI."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl bench line3 --out today.json",
        "adctl bench --out today.json --against last.json",
        "adctl bench --fail-if 'p95_ms>50' --markdown bench.md",
    )

    models: tuple[Path, ...] = setting(
        (), "Model files, measured in alternation.", "Measurement", argument=True, unset=_LAST_MODEL
    )
    runtime: tuple[RuntimeName, ...] = setting(
        (), "Runtimes, each measured with each model.", "Measurement", commas=True, unset="the file's own"
    )
    batch_sizes: tuple[Positive, ...] = setting((1, 4, 8), "Batch sizes for throughput.", "Measurement", commas=True)
    repeats: Annotated[int, Ge(3)] = setting(
        30, "Rounds, each with one batch of each size and five single images.", "Measurement"
    )
    images: tuple[str, ...] = setting(
        (),
        "Folder, file or glob pattern of images to score from disk; repeatable.",
        "Measurement",
        metavar="DIR",
        unset="test images of the model's dataset",
    )
    cold_starts: Natural = setting(3, "Processes started to measure cold start and memory.", "Measurement")

    against: File | None = setting(
        None, "JSON file of an earlier measurement; exit with code 3 if the model is slower beyond the noise.", "Gates"
    )
    out: File | None = setting(None, "JSON file of the measurements.", "Output")
    markdown: File | None = setting(None, "Markdown file of measurements and gates.", "Output")
    plot: File | None = setting(None, "PNG file of the measurements as a plot.", "Output")


@dataclass(frozen=True, kw_only=True)
class TransferSettings(CommandSettings):
    """Settings of downloads."""

    connections: Annotated[int, Interval(ge=1, le=32)] = setting(
        4, "Connections at once for one large file.", "Download"
    )
    attempts: Positive = setting(4, "Attempts at one address that bring nothing new before it fails.", "Download")
    timeout: Seconds = setting(30.0, "Time to wait for a server's answer.", "Download")
    backoff: AtLeastZero = setting(
        1.0, "Seconds before the second attempt; doubled for each further one.", "Download", flag=""
    )
    smallest_piece: Positive = setting(
        16 << 20, "Bytes of a file that are worth a connection of their own.", "Download", flag=""
    )


@dataclass(frozen=True, kw_only=True)
class FetchSettings(TransferSettings):
    """Settings of `adctl fetch`."""

    command: ClassVar[str] = "fetch"
    summary: ClassVar[str] = "Fetch datasets and backbone weights to this computer, verified."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl fetch --list",
        "adctl fetch demo",
        "adctl fetch mvtec --category zipper --accept-license",
    )
    switches: ClassVar[tuple[Option, ...]] = (switch("list", "List the datasets, or the details of one, and stop."),)

    what: str | None = setting(None, "Dataset, such as demo or mvtec.", "Dataset", argument=True, metavar="NAME")
    category: tuple[str, ...] = setting((), "Fetch only this category; repeatable.", "Dataset")
    source: Path | None = setting(
        None, "Archive, folder or bundle to fetch from, instead of the network.", "Dataset", flag="--from"
    )
    accept_license: bool = setting(False, "Accept the licence of the dataset.", "Dataset")
    force: bool = setting(False, "Fetch again even if it is here.", "Dataset")
    verify: bool = setting(
        False, "Verify fetched files against their digests, and stop; same as 'adctl fetch verify'.", "Dataset"
    )


@dataclass(frozen=True, kw_only=True)
class FetchCheckSettings(CommandSettings):
    """Settings of `adctl fetch check`."""

    command: ClassVar[str] = "fetch check"
    summary: ClassVar[str] = "Check a folder of images: list its problems and how to mend them."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl fetch check parts/good --sheet check.png",
        "adctl fetch check parts --strict --json",
    )

    folder: Folder | None = setting(None, "Folder, archive or manifest of images.", "Check", argument=True)
    sheet: File | None = setting(None, "PNG file that shows the problems as pictures.", "Check")
    strict: bool = setting(False, "Exit with code 1 on warnings too, not only on errors.", "Check")


@dataclass(frozen=True, kw_only=True)
class FetchBundleSettings(TransferSettings):
    """Settings of `adctl fetch bundle`."""

    command: ClassVar[str] = "fetch bundle"
    summary: ClassVar[str] = "Pack adctl, datasets and weights into a folder for a computer without a network."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl fetch bundle usb",
        "adctl fetch bundle usb --include mvtec/zipper --include weights/resnet18",
        "adctl fetch bundle usb --platform win_amd64 --python 3.12",
    )

    folder: Folder | None = setting(None, "New folder for the bundle.", "Bundle", argument=True)
    include: tuple[str, ...] = setting(
        (),
        "Item to pack: NAME, NAME/CATEGORY or weights/MODEL; repeatable.",
        "Bundle",
        metavar="ITEM",
        unset="all that was fetched",
    )
    wheels: bool = setting(True, "Pack adctl and the packages it needs.", "Bundle")
    requirement: str | None = setting(
        None, "Requirement that pip installs on the other computer.", "Bundle", unset="adctl"
    )
    platform: str | None = setting(None, "Platform of the other computer in pip's words, such as win_amd64.", "Bundle")
    python: str | None = setting(None, "Python of the other computer, such as 3.12.", "Bundle", metavar="VERSION")
    accept_license: bool = setting(False, "Accept the licences of the datasets.", "Bundle")


@dataclass(frozen=True, kw_only=True)
class FetchWeightsSettings(TransferSettings):
    """Settings of `adctl fetch weights`."""

    command: ClassVar[str] = "fetch weights"
    summary: ClassVar[str] = "Fetch the pretrained weights of a timm model."
    examples: ClassVar[tuple[str, ...]] = (
        "adctl fetch weights wide_resnet50_2",
        "adctl fetch weights resnet18 --from resnet18.safetensors",
    )

    model_name: str | None = setting(
        None, "timm model, such as wide_resnet50_2.", "Weights", argument=True, metavar="NAME"
    )
    source: Path | None = setting(
        None, "File or folder to fetch from, instead of the network.", "Weights", flag="--from"
    )


@dataclass(frozen=True, kw_only=True)
class FetchVerifySettings(CommandSettings):
    """Settings of `adctl fetch verify`."""

    command: ClassVar[str] = "fetch verify"
    summary: ClassVar[str] = "Verify fetched files against their digests."
    examples: ClassVar[tuple[str, ...]] = ("adctl fetch verify", "adctl fetch verify mvtec --category zipper")

    what: str | None = setting(None, "Dataset.", "Dataset", argument=True, metavar="NAME", unset="all that was fetched")
    category: tuple[str, ...] = setting((), "Verify only this category; repeatable.", "Dataset")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(DeviceSettings):
    """Settings of `adctl demo`."""

    command: ClassVar[str] = "demo"
    summary: ClassVar[str] = "Run the whole workflow on generated zippers: fetch, train, calibrate, score, report."
    examples: ClassVar[tuple[str, ...]] = ("adctl demo", "adctl demo --arch padim")

    arch: str = setting("patchcore", _ARCH, "Detector")
    epochs: Positive = setting(5, "Epochs of gradient training.", "Detector")
    seed: Natural = setting(0, "Seed of all random numbers.", "Detector")


COMMANDS: dict[str, type[CommandSettings]] = {
    cls.command: cls
    for cls in (
        FetchSettings,
        FetchCheckSettings,
        FetchBundleSettings,
        FetchWeightsSettings,
        FetchVerifySettings,
        TrainSettings,
        CalibrateSettings,
        ScoreSettings,
        ReportSettings,
        ExportSettings,
        BenchSettings,
        DemoSettings,
    )
}
"""Settings class of each command; a name with a space is a subcommand, such as `fetch check`."""

S = TypeVar("S", bound=CommandSettings)


def options_of(command: str) -> tuple[Option, ...]:
    """Return every option of a command, in the order of its help: settings, then switches.

    Args:
        command: A key of `COMMANDS`.
    """
    cls = COMMANDS[command]
    found = (*describe(cls), *cls.switches)
    groups = [*dict.fromkeys(option.group for option in found if option.group not in _LAST_GROUPS), *_LAST_GROUPS]
    return tuple(sorted(found, key=lambda option: groups.index(option.group)))


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
    """Construct settings from values as they come from files, texts or Python.

    Args:
        cls: The command's settings class.
        values: By name; the others keep their defaults.
        origins: Where each came from, for the message.

    Raises:
        UsageError: A value is out of bounds or a name unknown.
    """
    from pydantic import TypeAdapter, ValidationError

    known = names_of(cls)
    for name in values:
        if name not in known:
            raise _unknown(f"setting of adctl {cls.command}", name, [cls])
    prepared = cls.prepare(_lists(cls, values))
    try:
        return TypeAdapter(cls).validate_python(prepared)
    except ValidationError as error:
        raise UsageError(*_explain(error.errors(), origins or {})) from error


def _lists(cls: type[CommandSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with single ones made lists where a setting takes several."""
    declared, hints = declared_in(cls), get_type_hints(cls, include_extras=True)
    made = dict(values)
    for name, value in values.items():
        if is_several(hints[name]) and value is not None and not isinstance(value, list | tuple):
            split = declared[name].commas and isinstance(value, str)
            made[name] = [part.strip() for part in value.split(",")] if split else [value]
    return made


def _from_environment(cls: type[CommandSettings]) -> dict[str, Any]:
    names, hints = _names_of_all(COMMANDS.values()), get_type_hints(cls)
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or variable.upper() in OTHER_VARIABLES:
            continue
        if name not in names:
            raise _unknown("environment variable", variable, COMMANDS.values(), lambda name: PREFIX + name.upper())
        if name in names_of(cls):
            opening = "[" if is_several(hints[name]) else "{" if is_table(hints[name]) else None
            values[name] = _from_text(variable, text) if text[:1] == opening else text
    return values


def _from_text(variable: str, text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"The environment variable {variable} cannot be read: {error}.",
            "Write tables and lists as JSON, for example ADCTL_OPTIONS='{\"coreset_ratio\": 0.1}'.",
        ) from error


def _from_file(path: Path, cls: type[CommandSettings]) -> dict[str, Any]:
    """Return the settings that a file holds for one command; a setting at the top is for every command that has it."""
    document = _parse(path)
    tables = {command.split()[0] for command in COMMANDS}
    for table in tables:
        if not isinstance(document.get(table, {}), dict):
            raise UsageError(f"'{table}' in {path} must be a table of settings.", f"Write it as [{table}].")
    shared = {name: value for name, value in document.items() if name not in tables}
    table = cls.command.split()[0]
    own: dict[str, Any] = document.get(table, {})
    of_table = [other for other in COMMANDS.values() if other.command.split()[0] == table]
    for names, classes, place in ((shared, COMMANDS.values(), ""), (own, of_table, f" under [{table}]")):
        for name in names:
            if name not in _names_of_all(classes):
                raise _unknown(f"setting in {path}{place}", name, classes)
    return {name: value for name, value in (shared | own).items() if name in names_of(cls)}


def _parse(path: Path) -> dict[str, Any]:
    import json
    import tomllib

    import yaml

    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": json.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"The settings file {path} has an unknown ending.", "Use .toml, .yaml or .json.")
    try:
        document: Any = reader(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"The settings file {path} does not exist.", "Check the path given to --config.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"The settings file {path} cannot be read: {error}", "Correct the place it names.") from error
    if document is None:  # an empty YAML file
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"The settings file {path} must be a table of settings.", "Write 'name = value' lines.")
    return dict(document)


def _names_of_all(classes: Iterable[type[CommandSettings]]) -> set[str]:
    return {name for cls in classes for name in names_of(cls)}


def _unknown(
    kind: str,
    name: str,
    classes: Iterable[type[CommandSettings]],
    spelled: Callable[[str], str] = str,
) -> UsageError:
    """Return the error for an unknown name, with the closest known one; other words for a setting are understood."""
    meant = {spelled(other): spelled(own) for own, other in synonyms_of(classes)}.get(name)
    known = [spelled(own) for own in _names_of_all(classes)]
    if meant is None:
        return unknown_name(kind, name, known)
    return UsageError(f"Unknown {kind} '{name}'.", f"Did you mean '{meant}'?")


def synonyms_of(classes: Iterable[type[CommandSettings]]) -> list[tuple[str, str]]:
    """Return pairs of a setting's name and another word that users try for it."""
    return [(name, other) for cls in classes for name, one in declared_in(cls).items() for other in one.synonyms]


def _explain(errors: list[ErrorDetails], origins: Mapping[str, str]) -> tuple[str, str]:
    first = errors[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    origin = origins.get(name, "")
    place = f" (from {origin})" if origin not in ("", "default", flag_name(name)) else ""
    # A setting of several types gives one error for each of them.
    alike = [
        error["msg"] for error in errors if error["loc"][:1] == first["loc"][:1] and error["input"] == first["input"]
    ]
    reasons = [alike[0], *(text.removeprefix("Input should be ") for text in alike[1:])]
    reason = " or ".join(dict.fromkeys(reasons))
    message = f"The setting {flag_name(name)}{place} is not valid: {reason[0].lower()}{reason[1:]}."
    return f"{message} Got {first['input']!r} instead.", f"See 'adctl {_command_of(name)}--help' for what it takes."


def _command_of(name: str) -> str:
    owners = [command for command, cls in COMMANDS.items() if name in names_of(cls)]
    return f"{owners[0]} " if len(owners) == 1 else "COMMAND "


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_safe(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(one) for one in value]
    return str(value) if isinstance(value, Path) else value
