"""Public functions, result types and errors of adctl. Made by `python tests/stub.py`; do not edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from adctl.benchmarking.bench import Benchmark as Benchmark
from adctl.calibration.calibrate import CalibrateResult as CalibrateResult
from adctl.classification.predictions import PredictedKind as PredictedKind
from adctl.classification.training.grid import ClassifierGridResult as ClassifierGridResult
from adctl.classification.training.grid import ClassifierGridRow as ClassifierGridRow
from adctl.classification.training.results import ClassifierResult as ClassifierResult
from adctl.data.checks.check import CheckResult as CheckResult
from adctl.demonstration import DemoResult as DemoResult
from adctl.errors import AdctlError as AdctlError
from adctl.errors import DataError as DataError
from adctl.errors import FetchError as FetchError
from adctl.errors import ImageError as ImageError
from adctl.errors import MissingExtraError as MissingExtraError
from adctl.errors import ModelFileError as ModelFileError
from adctl.errors import OutputError as OutputError
from adctl.errors import PluginError as PluginError
from adctl.errors import TrainingError as TrainingError
from adctl.errors import UsageError as UsageError
from adctl.evaluation.candidate import CandidateComparison as CandidateComparison
from adctl.evaluation.candidate import compare_candidate as compare_candidate
from adctl.exporting.export import ExportResult as ExportResult
from adctl.fetching.bundles import BundleInstallResult as BundleInstallResult
from adctl.fetching.bundles import BundleResult as BundleResult
from adctl.fetching.datasets import FetchResult as FetchResult
from adctl.fetching.verifying import VerifyResult as VerifyResult
from adctl.fetching.weights import FetchedWeights as FetchedWeights
from adctl.paths import StrPath as StrPath
from adctl.records import Box as Box
from adctl.records import Calibration as Calibration
from adctl.records import Verdict as Verdict
from adctl.reporting.classifier_report import ClassifierReport as ClassifierReport
from adctl.reporting.compare import CompareResult as CompareResult
from adctl.reporting.report import ReportResult as ReportResult
from adctl.scoring.classify import KindsResult as KindsResult
from adctl.scoring.model import ImagePrediction as ImagePrediction
from adctl.scoring.model import Model as Model
from adctl.scoring.products import ProductsResult as ProductsResult
from adctl.scoring.products import UnassignedImage as UnassignedImage
from adctl.scoring.score import ScoreResult as ScoreResult
from adctl.scoring.score_set import AnomalyMaps as AnomalyMaps
from adctl.scoring.score_set import ScoreRow as ScoreRow
from adctl.scoring.score_set import open_maps as open_maps
from adctl.tracking.queries import RunRow as RunRow
from adctl.tracking.versions import AcceptedVersion as AcceptedVersion
from adctl.training.cross_validation import CrossValidationResult as CrossValidationResult
from adctl.training.grid import GridResult as GridResult
from adctl.training.reviews import UpdateResult as UpdateResult
from adctl.training.single_run import TrainResult as TrainResult
from adctl.tuning.study import TuneResult as TuneResult

__version__: str
__all__ = [
    "AcceptedVersion",
    "AdctlError",
    "AnomalyMaps",
    "Benchmark",
    "Box",
    "BundleInstallResult",
    "BundleResult",
    "CalibrateResult",
    "Calibration",
    "CandidateComparison",
    "CheckResult",
    "ClassifierGridResult",
    "ClassifierGridRow",
    "ClassifierReport",
    "ClassifierResult",
    "CompareResult",
    "CrossValidationResult",
    "DataError",
    "DemoResult",
    "ExportResult",
    "FetchError",
    "FetchResult",
    "FetchedWeights",
    "GridResult",
    "ImageError",
    "ImagePrediction",
    "KindsResult",
    "MissingExtraError",
    "Model",
    "ModelFileError",
    "OutputError",
    "PluginError",
    "PredictedKind",
    "ProductsResult",
    "ReportResult",
    "RunRow",
    "ScoreResult",
    "ScoreRow",
    "StrPath",
    "TrainResult",
    "TrainingError",
    "TuneResult",
    "UnassignedImage",
    "UpdateResult",
    "UsageError",
    "Verdict",
    "VerifyResult",
    "__version__",
    "accept_run",
    "bench",
    "best_run",
    "calibrate",
    "classify",
    "compare",
    "compare_candidate",
    "demo",
    "export",
    "fetch",
    "fetch_bundle",
    "fetch_check",
    "fetch_verify",
    "fetch_weights",
    "list_runs",
    "load",
    "open_maps",
    "report",
    "report_classifier",
    "roll_back_run",
    "schema",
    "score",
    "score_products",
    "train",
    "tune",
]

class _TrainSettings(TypedDict, total=False):
    data: StrPath | None
    dataset: str | None
    one_model: bool
    good: StrPath | None
    test: StrPath | None
    masks: StrPath | None
    group: str | None
    fetch: bool
    accept_license: bool
    roi: StrPath | None
    new_groups: bool
    calibration_share: float | None
    validation_share: float
    contaminated: float | None
    cache: StrPath | None
    augment: Literal["none", "light", "medium", "heavy", "custom"]
    augmentations: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    augmentation_library: Literal["torchvision", "albumentations"]
    update: StrPath | None
    defects: StrPath | None
    recalibrate: bool
    confirmed: str | Sequence[str]
    trust_reviews: bool
    auxiliary: StrPath | None
    synthetic: str | Sequence[str] | None
    backbone: str | Sequence[str] | None
    weights: StrPath | None
    image_size: int | str | Sequence[int]
    options: Mapping[str, Any] | None
    error: str | Mapping[str, float] | None
    noise_level: float | Sequence[float] | None
    task: Literal["detect", "classify"]
    balance: str | Sequence[str]
    focal_gamma: float
    label_smoothing: float
    mixup_alpha: float
    cutmix_alpha: float
    test_share: float
    epochs: int | None
    loss: str | Mapping[str, float] | None
    learning_rate: float | None
    weight_decay: float | None
    schedule: Literal["cosine", "step", "plateau", "constant"] | None
    warmup: float | None
    accumulate: int
    clip: float
    patience: int
    ema: float
    precision: Literal["auto", "32", "16", "bf16"]
    gradient_checkpointing: bool
    compile: bool
    runs: StrPath
    name: str | None
    resume: StrPath | None
    checkpoint_epochs: int
    checkpoint_minutes: float
    keep_checkpoints: int
    log: Literal["tensorboard", "mlflow", "wandb"] | Sequence[Literal["tensorboard", "mlflow", "wandb"]] | None
    tensorboard: bool | None
    export: Literal["auto", "always", "none"]
    ray: str | None
    ray_cpus: int | None
    ray_gpu: float
    device: Literal["auto", "cpu", "cuda", "mps"]
    gpu: int | None
    workers: int
    batch_size: Literal["auto", "max"] | int
    devices: str | None

@overload
def train(  # type: ignore[overload-overlap]
    *,
    arch: str | list[str] | tuple[str, ...] = "patchcore",
    category: Literal["all"],
    seed: int | list[int] | tuple[int, ...] = 0,
    **settings: Unpack[_TrainSettings],
) -> GridResult: ...

@overload
def train(
    *,
    data: StrPath | None = None,
    dataset: str | None = None,
    category: str | None = None,
    one_model: bool = False,
    good: StrPath | None = None,
    test: StrPath | None = None,
    masks: StrPath | None = None,
    group: str | None = None,
    fetch: bool = False,
    accept_license: bool = False,
    roi: StrPath | None = None,
    new_groups: bool = False,
    calibration_share: float | None = None,
    validation_share: float = 0.1,
    contaminated: float | None = None,
    cache: StrPath | None = None,
    augment: Literal["none", "light", "medium", "heavy", "custom"] = "none",
    augmentations: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    augmentation_library: Literal["torchvision", "albumentations"] = "torchvision",
    update: StrPath | None = None,
    defects: StrPath | None = None,
    recalibrate: bool = False,
    confirmed: str | Sequence[str] = (),
    trust_reviews: bool = False,
    auxiliary: StrPath | None = None,
    synthetic: str | Sequence[str] | None = None,
    arch: str = "patchcore",
    backbone: str | Sequence[str] | None = None,
    weights: StrPath | None = None,
    image_size: int | str | Sequence[int] = "auto",
    options: Mapping[str, Any] | None = None,
    error: str | Mapping[str, float] | None = None,
    noise_level: float | Sequence[float] | None = None,
    task: Literal["detect", "classify"] = "detect",
    balance: str | Sequence[str] = "none",
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    test_share: float = 0.25,
    seed: int = 0,
    folds: None = None,
    fold: None = None,
    epochs: int | None = None,
    loss: str | Mapping[str, float] | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["cosine", "step", "plateau", "constant"] | None = None,
    warmup: float | None = None,
    accumulate: int = 1,
    clip: float = 1.0,
    patience: int = 20,
    ema: float = 0.0,
    precision: Literal["auto", "32", "16", "bf16"] = "auto",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    runs: StrPath = "runs",
    name: str | None = None,
    resume: StrPath | None = None,
    checkpoint_epochs: int = 10,
    checkpoint_minutes: float = 5.0,
    keep_checkpoints: int = 0,
    log: Literal["tensorboard", "mlflow", "wandb"] | Sequence[Literal["tensorboard", "mlflow", "wandb"]] | None = None,
    tensorboard: bool | None = None,
    export: Literal["auto", "always", "none"] = "auto",
    ray: str | None = None,
    ray_cpus: int | None = None,
    ray_gpu: float = 1.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    devices: str | None = None,
) -> TrainResult:
    """Train a detector on good images and write one calibrated model file; or a classifier of labelled images.

    Args:
        data: Folder of one or all categories in MVTec AD layout; also an archive or manifest.
        dataset: Dataset that 'adctl fetch' brought, such as demo or mvtec.
        category: Category; several as a list, or 'all': one model for each.
        one_model: Train one model of all the categories that `category` names.
        good: Plain folder of good images.
        test: Folder of test images, loose or in one folder for each label.
        masks: Folder of ground-truth masks for `test`.
        group: Groups held out as a whole: folder, day, or a name pattern such as 'lot{group}_'.
        fetch: Fetch a missing dataset and backbone.
        accept_license: Accept the licence of the dataset for `fetch`.
        roi: Region of interest: a rectangle in pixels, or a mask file.
        new_groups: Set the threshold for good images of a new group, such as the next lot.
        calibration_share: Share of good images held out for the threshold; without it, detectors fitted in one pass
            learn from all. Above 0, below 1. Default: 0.2 with gradient training or tiles.
        validation_share: Share of good images held out to choose the epoch. Above 0, below 1.
        contaminated: Largest share of defective images among the good ones; images unlike all others are left out.
            At least 0, below 0.5.
        cache: Folder that keeps decoded and resized images.
        augment: Augmentation of training images. Choices: none, light, medium, heavy, custom.
        augmentations: Transforms of `augment` custom; settings files only.
        augmentation_library: Library that augments.
        update: Model that shall learn from the good images of `good` too; it stays as it is.
        defects: Known defects: patchcore, simplenet and padim learn from them; `update` compares the models on
            them.
        recalibrate: Learn nothing with `update`: only set the threshold, with a guaranteed rate of false alarms.
        confirmed: Image for `update` that is good although it is unlike the others.
        trust_reviews: Learn with `update` from all images of `good`, also those unlike the others.
        auxiliary: Labelled defects of other categories, from which prompts learn.
        synthetic: Synthetic defects to repair: cutpaste, perlin, or a list of both.
        arch: Detector: clip, cnn, composition, diffusion, dinomaly, efficientad, ensemble, padim, patchcore,
            prompt, resnet, simplenet, vit, or one of an installed package.
        backbone: timm model that computes the features; of classifiers several as a list.
        weights: Pretrained weights: .safetensors or .pth file, base model's folder, or 'random'.
        image_size: Size that images are resized to, in pixels: one number for a square, HEIGHTxWIDTH, or auto: the
            shape of the images.
        options: Option of the detector, such as coreset_ratio=0.1.
        error: Error spaces of an autoencoder's map, with weights.
        noise_level: Noise level of the diffusion autoencoder, as a share of its steps.
        task: Learn what is good, to detect anomalies; or learn from labelled images, to name their kind.
        balance: Treatment of rare kinds: none, weights, class-balanced, focal, oversample, undersample; several as
            a list.
        focal_gamma: Exponent of the focal loss. At least 0.
        label_smoothing: Share of each label that is spread over all kinds. At least 0, below 1.
        mixup_alpha: Parameter of Mixup, with a tuned backbone; 0 for none. At least 0.
        cutmix_alpha: Parameter of CutMix, with a tuned backbone; 0 for none. At least 0.
        test_share: Share held out to test, where the data have no test images of their own. Above 0, below 1.
        seed: Seed of all random numbers; several as a list: one model for each. At least 0.
        folds: Cross-validation: train this many models, each on other folds. At least 2, at most 100.
        fold: Train only the model of this fold of `folds`. At least 1, at most 100.
        epochs: Epochs of gradient training; 0 only for prompt. At least 0. Default: 20, or as many as make 1000
            steps.
        loss: Loss terms of an autoencoder, with weights.
        learning_rate: Highest learning rate of AdamW. Above 0. Default: 0.001, or detector's.
        weight_decay: Weight decay of AdamW. At least 0. Default: 0.0001, or detector's.
        schedule: Schedule of the learning rate. Choices: cosine, step, plateau, constant. Default: cosine, or
            detector's.
        warmup: Share of steps with a rising learning rate. At least 0, below 1. Default: 0.05, or detector's.
        accumulate: Batches in one optimizer step. At least 1.
        clip: Largest norm of the gradient. Above 0.
        patience: Epochs without a better validation loss before training stops. At least 1.
        ema: Decay of the exponential moving average of the weights; 0 for none. At least 0, below 1.
        precision: Precision of training.
        gradient_checkpointing: Recompute activations: less memory, about a third more time.
        compile: Compile the training step with torch.compile; faster in long trainings.
        runs: Folder of all runs.
        name: Name of the run's folder.
        resume: Continue an interrupted run: its folder or name.
        checkpoint_epochs: Epochs between checkpoints. At least 1.
        checkpoint_minutes: Minutes between checkpoints. Above 0.
        keep_checkpoints: Checkpoints to keep after training. At least 0.
        log: Loggers of the training. Choices: tensorboard, mlflow, wandb. Default: tensorboard for gradient
            training.
        tensorboard: Write TensorBoard files, whatever `log` says. Default: as `log` says.
        export: Export the model for a faster runtime after training; auto: where that is quick. Choices: auto,
            always, none.
        ray: Spread the work over a Ray cluster; auto: that of this machine, or a new one.
        ray_cpus: CPUs that one process of `ray` takes. At least 1. Default: those of a node, or their share with
            several GPUs.
        ray_gpu: Share of a GPU that one process of `ray` takes. Above 0, at most 1.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        devices: Devices that train together: how many, or which.

    Returns:
        A `TrainResult`; with `task="classify"` a `ClassifierResult`, or with lists of backbones, heads, strategies,
        options or seeds a `ClassifierGridResult`; with `folds` a `CrossValidationResult`; with a list of detectors,
        categories or seeds a `GridResult`. In a distributed training only the first process returns;
        the others end here.

    Raises:
        AdctlError: The data, the settings or the output folder cannot be used.
    """

@overload
def train(
    *,
    arch: str = "patchcore",
    category: str | None = None,
    seed: int = 0,
    folds: int,
    fold: None = None,
    **settings: Unpack[_TrainSettings],
) -> CrossValidationResult: ...

@overload
def train(
    *,
    arch: str = "patchcore",
    category: str | None = None,
    seed: int = 0,
    folds: int,
    fold: int,
    **settings: Unpack[_TrainSettings],
) -> TrainResult: ...

@overload
def train(
    *,
    arch: list[str] | tuple[str, ...],
    category: str | list[str] | tuple[str, ...] | None = None,
    seed: int | list[int] | tuple[int, ...] = 0,
    **settings: Unpack[_TrainSettings],
) -> GridResult: ...

@overload
def train(
    *,
    arch: str | list[str] | tuple[str, ...] = "patchcore",
    category: list[str] | tuple[str, ...],
    seed: int | list[int] | tuple[int, ...] = 0,
    **settings: Unpack[_TrainSettings],
) -> GridResult: ...

@overload
def train(
    *,
    arch: str | list[str] | tuple[str, ...] = "patchcore",
    category: str | list[str] | tuple[str, ...] | None = None,
    seed: list[int] | tuple[int, ...],
    **settings: Unpack[_TrainSettings],
) -> GridResult: ...

def tune(
    *,
    data: StrPath | None = None,
    dataset: str | None = None,
    category: str | None = None,
    one_model: bool = False,
    good: StrPath | None = None,
    test: StrPath | None = None,
    masks: StrPath | None = None,
    group: str | None = None,
    fetch: bool = False,
    accept_license: bool = False,
    roi: StrPath | None = None,
    new_groups: bool = False,
    calibration_share: float | None = None,
    validation_share: float = 0.1,
    contaminated: float | None = None,
    cache: StrPath | None = None,
    augment: Literal["none", "light", "medium", "heavy", "custom"] = "none",
    augmentations: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    augmentation_library: Literal["torchvision", "albumentations"] = "torchvision",
    update: StrPath | None = None,
    recalibrate: bool = False,
    confirmed: str | Sequence[str] = (),
    trust_reviews: bool = False,
    auxiliary: StrPath | None = None,
    synthetic: str | None = None,
    defects: StrPath | None = None,
    trials: int = 40,
    timeout: float | None = None,
    jobs: int = 1,
    method: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe",
    pruner: Literal["median", "hyperband", "none"] = "median",
    objective: str | Sequence[str] = ("ap",),
    splits: int = 2,
    space: Mapping[str, Any] | None = None,
    final_model: bool = True,
    arch: str = "patchcore",
    backbone: str | None = None,
    weights: StrPath | None = None,
    image_size: Literal["auto"] | int | int | Sequence[int] | None = "auto",
    options: Mapping[str, Any] | None = None,
    error: str | None = None,
    noise_level: float | Sequence[float] | None = None,
    task: Literal["detect", "classify"] = "detect",
    balance: str = "none",
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    test_share: float = 0.25,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    epochs: int | None = None,
    loss: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["cosine", "step", "plateau", "constant"] | None = None,
    warmup: float | None = None,
    accumulate: int = 1,
    clip: float = 1.0,
    patience: int = 20,
    ema: float = 0.0,
    precision: Literal["auto", "32", "16", "bf16"] = "auto",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    runs: StrPath = "runs",
    name: str | None = None,
    resume: StrPath | None = None,
    checkpoint_epochs: int = 10,
    checkpoint_minutes: float = 5.0,
    keep_checkpoints: int = 0,
    log: Literal["tensorboard", "mlflow", "wandb"] | Sequence[Literal["tensorboard", "mlflow", "wandb"]] | None = None,
    tensorboard: bool | None = None,
    export: Literal["auto", "always", "none"] = "auto",
    ray: str | None = None,
    ray_cpus: int | None = None,
    ray_gpu: float = 1.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    devices: str | None = None,
) -> TuneResult:
    """Search the settings that find generated defects best, and train with them.

    Args:
        data: Folder of one or all categories in MVTec AD layout; also an archive or manifest.
        dataset: Dataset that 'adctl fetch' brought, such as demo or mvtec.
        category: Category; several as a list, or 'all': one model for each.
        one_model: Train one model of all the categories that `category` names.
        good: Plain folder of good images.
        test: Folder of test images, loose or in one folder for each label.
        masks: Folder of ground-truth masks for `test`.
        group: Groups held out as a whole: folder, day, or a name pattern such as 'lot{group}_'.
        fetch: Fetch a missing dataset and backbone.
        accept_license: Accept the licence of the dataset for `fetch`.
        roi: Region of interest: a rectangle in pixels, or a mask file.
        new_groups: Set the threshold for good images of a new group, such as the next lot.
        calibration_share: Share of good images held out for the threshold; without it, detectors fitted in one pass
            learn from all. Above 0, below 1. Default: 0.2 with gradient training or tiles.
        validation_share: Share of good images held out to choose the epoch. Above 0, below 1.
        contaminated: Largest share of defective images among the good ones; images unlike all others are left out.
            At least 0, below 0.5.
        cache: Folder that keeps decoded and resized images.
        augment: Augmentation of training images. Choices: none, light, medium, heavy, custom.
        augmentations: Transforms of `augment` custom; settings files only.
        augmentation_library: Library that augments.
        update: Model that shall learn from the good images of `good` too; it stays as it is.
        recalibrate: Learn nothing with `update`: only set the threshold, with a guaranteed rate of false alarms.
        confirmed: Image for `update` that is good although it is unlike the others.
        trust_reviews: Learn with `update` from all images of `good`, also those unlike the others.
        auxiliary: Labelled defects of other categories, from which prompts learn.
        synthetic: Synthetic defects to repair: cutpaste, perlin, or a list of both.
        defects: Labelled defects that take the place of generated ones; no test images.
        trials: Trials in all; the same command with the same `name` continues. At least 1.
        timeout: Time after which no trial is started. Above 0.
        jobs: Processes that work on the study. At least 1.
        method: Method of the search.
        pruner: Rule that stops poor trials early.
        objective: Objectives: ap, auroc, latency_ms; several give a Pareto front.
        splits: Parts of the good images that are held out in turn. At least 1, at most 10.
        space: Range of a setting: blur=0..2, ridge='1e-4..0.1 log', covariance=full,shared.
        final_model: Train a model with the best settings.
        arch: Detector: clip, cnn, composition, diffusion, dinomaly, efficientad, ensemble, padim, patchcore,
            prompt, resnet, simplenet, vit, or one of an installed package.
        backbone: timm model that computes the features; of classifiers several as a list.
        weights: Pretrained weights: .safetensors or .pth file, base model's folder, or 'random'.
        image_size: Size that images are resized to, in pixels: one number for a square, HEIGHTxWIDTH, or auto: the
            shape of the images.
        options: Option of the detector, such as coreset_ratio=0.1.
        error: Error spaces of an autoencoder's map, with weights.
        noise_level: Noise level of the diffusion autoencoder, as a share of its steps.
        task: Learn what is good, to detect anomalies; or learn from labelled images, to name their kind.
        balance: Treatment of rare kinds: none, weights, class-balanced, focal, oversample, undersample; several as
            a list.
        focal_gamma: Exponent of the focal loss. At least 0.
        label_smoothing: Share of each label that is spread over all kinds. At least 0, below 1.
        mixup_alpha: Parameter of Mixup, with a tuned backbone; 0 for none. At least 0.
        cutmix_alpha: Parameter of CutMix, with a tuned backbone; 0 for none. At least 0.
        test_share: Share held out to test, where the data have no test images of their own. Above 0, below 1.
        seed: Seed of all random numbers; several as a list: one model for each. At least 0.
        folds: Cross-validation: train this many models, each on other folds. At least 2, at most 100.
        fold: Train only the model of this fold of `folds`. At least 1, at most 100.
        epochs: Epochs of gradient training; 0 only for prompt. At least 0. Default: 20, or as many as make 1000
            steps.
        loss: Loss terms of an autoencoder, with weights.
        learning_rate: Highest learning rate of AdamW. Above 0. Default: 0.001, or detector's.
        weight_decay: Weight decay of AdamW. At least 0. Default: 0.0001, or detector's.
        schedule: Schedule of the learning rate. Choices: cosine, step, plateau, constant. Default: cosine, or
            detector's.
        warmup: Share of steps with a rising learning rate. At least 0, below 1. Default: 0.05, or detector's.
        accumulate: Batches in one optimizer step. At least 1.
        clip: Largest norm of the gradient. Above 0.
        patience: Epochs without a better validation loss before training stops. At least 1.
        ema: Decay of the exponential moving average of the weights; 0 for none. At least 0, below 1.
        precision: Precision of training.
        gradient_checkpointing: Recompute activations: less memory, about a third more time.
        compile: Compile the training step with torch.compile; faster in long trainings.
        runs: Folder of all runs.
        name: Name of the run's folder.
        resume: Continue an interrupted run: its folder or name.
        checkpoint_epochs: Epochs between checkpoints. At least 1.
        checkpoint_minutes: Minutes between checkpoints. Above 0.
        keep_checkpoints: Checkpoints to keep after training. At least 0.
        log: Loggers of the training. Choices: tensorboard, mlflow, wandb. Default: tensorboard for gradient
            training.
        tensorboard: Write TensorBoard files, whatever `log` says. Default: as `log` says.
        export: Export the model for a faster runtime after training; auto: where that is quick. Choices: auto,
            always, none.
        ray: Spread the work over a Ray cluster; auto: that of this machine, or a new one.
        ray_cpus: CPUs that one process of `ray` takes. At least 1. Default: those of a node, or their share with
            several GPUs.
        ray_gpu: Share of a GPU that one process of `ray` takes. Above 0, at most 1.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        devices: Devices that train together: how many, or which.

    Returns:
        The best settings, measured again beside the defaults, with their file, the page and the model.

    Raises:
        AdctlError: The data or the settings cannot be used, or no trial succeeded.
    """

def calibrate(
    *,
    model: StrPath | None = None,
    good: StrPath | None = None,
    group: str | None = None,
    defects: StrPath | None = None,
    scores: StrPath | None = None,
    line: StrPath | None = None,
    contaminated: float | None = None,
    recentre: bool = True,
    folds: int | None = None,
    learning_curve: bool = False,
    tta: str | Sequence[str] | None = None,
    method: Literal["smooth", "percentile", "sigma", "mad", "tail", "conformal", "f1", "precision", "recall", "cost", "fixed"] | None = None,
    max_false_alarm: float | None = None,
    new_groups: bool = False,
    percentile: float | None = None,
    sigmas: float | None = None,
    min_precision: float | None = None,
    min_recall: float | None = None,
    cost_miss: float | None = None,
    cost_alarm: float | None = None,
    defect_rate: float | None = None,
    threshold: float | None = None,
    warn_at: float | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    in_place: bool = False,
    strict: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    precision: Literal["32", "tf32", "bf16", "16"] = "32",
) -> CalibrateResult:
    """Choose a new threshold, from good images that the model was not trained on.

    Args:
        model: Model file, or folder or name of a run. Default: the last model.
        good: Folder of other good images. Default: the held-out images.
        group: Groups of the images of `good`: folder, day, or a name pattern.
        defects: Folder of labelled defective images.
        scores: Folder of labelled scores from 'adctl score', instead of images.
        line: Folder of the first parts of a line, unlabelled and mostly good.
        contaminated: Largest share of defective parts in `line`. At least 0, below 0.5. Default: 0.05.
        recentre: Move the usual features of the model to those of `line`, if they are shifted.
        folds: Train this many models: each good image is scored by one not trained on it. At least 2, at most 100.
        learning_curve: Estimate how many good images are enough.
        tta: Average over views: hflip, vflip, rot90, transpose; or none.
        method: Method of the threshold. Choices: smooth, percentile, sigma, mad, tail, conformal, f1, precision,
            recall, cost, fixed. Default: that of the level given, else smooth.
        max_false_alarm: Highest rate of false alarms: guaranteed by method conformal, estimated by smooth or tail.
            Above 0, below 1.
        new_groups: Set the threshold for a new group, such as the next lot.
        percentile: Percentile of good scores. Above 0, at most 100. Default: 99 with `method` percentile.
        sigmas: Standard deviations above the mean, or median with mad. Above 0. Default: 3.
        min_precision: Lowest share of defects among alarms. Above 0, at most 1.
        min_recall: Lowest share of defects that are found. Above 0, at most 1.
        cost_miss: Cost of a missed defect; the threshold of least cost wins. At least 0.
        cost_alarm: Cost of a false alarm. At least 0.
        defect_rate: Share of defective parts on the line, for costs. Above 0, below 1. Default: as in the images.
        threshold: The threshold itself, in units of the score.
        warn_at: Level of a second, lower threshold for warnings, by the same method. Above 0.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: File of the calibrated model.
        in_place: Replace the model file itself.
        strict: Fail if there are too few images for the rate of `max_false_alarm`.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        precision: Precision of the network on a CUDA GPU.

    Returns:
        The model file and its calibration.

    Raises:
        AdctlError: The model or the images cannot be used.
    """

def score(
    images: StrPath | Sequence[StrPath] = (),
    *,
    model: StrPath | None = None,
    classifier: StrPath | None = None,
    classify: Literal["rejected", "flagged", "all"] = "rejected",
    watch: StrPath | None = None,
    watch_for: float | None = None,
    watch_idle: float | None = None,
    commission: int | None = None,
    contaminated: float | None = None,
    tta: str | Sequence[str] | None = None,
    source: str | Sequence[str] = (),
    sink: str | Sequence[str] = (),
    trigger: str = "interval=1",
    frames: int = 1,
    combine: Literal["worst", "median"] = "worst",
    debounce: float = 0.0,
    lot: str = "",
    settle: float = 2.0,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    heatmaps: bool | None = None,
    draw: Literal["none", "contours", "boxes", "both"] = "contours",
    maps: bool = True,
    ray: str | None = None,
    ray_cpus: int | None = None,
    ray_gpu: float = 1.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    runtime: Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"] = "auto",
    precision: Literal["32", "tf32", "bf16", "16"] = "32",
) -> ScoreResult:
    """Score images: an anomaly score, an anomaly map and a verdict for each.

    Args:
        images: Folders, files or glob patterns. Default: the test images.
        model: Model file, folder or name of a run, or registry of products (.toml). Default: the last model.
        classifier: Classifier that names the defects of rejected images: file or run.
        classify: Images that `classifier` names; flagged: also those to inspect.
        watch: Score images as they arrive in this folder, each once.
        watch_for: Stop watching after this time. Above 0. Default: until Ctrl-C.
        watch_idle: Stop watching when no image has arrived for this time. Above 0.
        commission: Number of first parts of `watch` that set the threshold anew; they get no verdict. At least 20.
        contaminated: Largest share of defective parts among those of `commission`. At least 0, below 0.5. Default:
            0.05.
        tta: Average over these views of each image. Default: those of the calibration.
        source: Source of parts: folder, video file, rtsp://..., camera number, genicam:....
        sink: Peer that gets each verdict: mqtt://, http(s)://, modbus-tcp://, opc.tcp:// or csv:FILE.
        trigger: When a camera takes a part: interval=SECONDS, motion or http=PORT.
        frames: Images of one part of a camera. At least 1.
        combine: Image of a part that decides, by its score.
        debounce: Time after a part in which a camera takes no other. At least 0.
        lot: Lot of the parts.
        settle: Time a new file must stay unchanged before it is read. At least 0.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: Folder for heatmaps and results.
        heatmaps: Write a heatmap picture of each image. Default: on with `out`.
        draw: Marks around regions above the pixel threshold on heatmaps.
        maps: Keep raw anomaly maps in maps.h5, for the report.
        ray: Spread the work over a Ray cluster; auto: that of this machine, or a new one.
        ray_cpus: CPUs that one process of `ray` takes. At least 1. Default: those of a node, or their share with
            several GPUs.
        ray_gpu: Share of a GPU that one process of `ray` takes. Above 0, at most 1.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        runtime: Runtime; auto: the fastest that was verified against PyTorch. Choices: auto, torch, torch-compile,
            onnxruntime, openvino, torchscript, torch-export.
        precision: Precision of the network on a CUDA GPU.

    Returns:
        The result; iterating gives the row of each image.

    Raises:
        AdctlError: The model or the output folder cannot be used, or none of the images.
    """

def score_products(
    images: StrPath | Sequence[StrPath] = (),
    *,
    model: StrPath | None = None,
    tta: str | Sequence[str] | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    heatmaps: bool | None = None,
    draw: Literal["none", "contours", "boxes", "both"] = "contours",
    maps: bool = True,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    runtime: Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"] = "auto",
    precision: Literal["32", "tf32", "bf16", "16"] = "32",
) -> ProductsResult:
    """Score images of several products, each with the model that a registry gives its product.

    Args:
        images: Folders, files or glob patterns. Default: the test images.
        model: Model file, folder or name of a run, or registry of products (.toml). Default: the last model.
        tta: Average over these views of each image. Default: those of the calibration.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: Folder for heatmaps and results.
        heatmaps: Write a heatmap picture of each image. Default: on with `out`.
        draw: Marks around regions above the pixel threshold on heatmaps.
        maps: Keep raw anomaly maps in maps.h5, for the report.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        runtime: Runtime; auto: the fastest that was verified against PyTorch. Choices: auto, torch, torch-compile,
            onnxruntime, openvino, torchscript, torch-export.
        precision: Precision of the network on a CUDA GPU.

    Returns:
        The result of each product, and the images that belong to none.

    Raises:
        AdctlError: The registry, a model or the output folder cannot be used, or none of the images.
    """

def classify(
    images: StrPath | Sequence[StrPath] = (),
    *,
    model: StrPath | None = None,
    tta: str | Sequence[str] | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    runtime: Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"] = "auto",
) -> KindsResult:
    """Name the kind of each image with a classifier.

    Args:
        images: Folders, files or glob patterns. Default: the test images.
        model: Model file, folder or name of a run, or registry of products (.toml). Default: the last model.
        tta: Average over these views of each image. Default: those of the calibration.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: Folder for heatmaps and results.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        runtime: Runtime; auto: the fastest that was verified against PyTorch. Choices: auto, torch, torch-compile,
            onnxruntime, openvino, torchscript, torch-export.

    Returns:
        The result; iterating gives the row of each image.

    Raises:
        AdctlError: The classifier or the output folder cannot be used, or none of the images.
    """

def report(
    scores: StrPath | None = None,
    *,
    format: Literal["html", "md", "json", "csv", "tex", "pdf", "pptx"] | Sequence[Literal["html", "md", "json", "csv", "tex", "pdf", "pptx"]] = (),
    title: str | None = None,
    findings: int = 12,
    reconstructions: bool = False,
    ci: bool = False,
    pixel_size: int | int | Sequence[int] | None = None,
    ci_level: float = 0.95,
    ci_samples: int = 1000,
    seed: int = 0,
    fail_if: str | Sequence[str] = (),
    junit: StrPath | None = None,
    sarif: StrPath | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    contact_sheet: StrPath | None = None,
    figures: StrPath | None = None,
) -> ReportResult:
    """Evaluate scores and write the report.

    Args:
        scores: Folders from 'adctl score'; several are compared. Default: the last scores.
        format: Formats. Choices: html, md, json, csv, tex, pdf, pptx. Default: the ending of `out`, else html.
        title: Title of the report.
        findings: Images shown in md, pdf and pptx, mistakes first. At least 1, at most 500.
        reconstructions: Show the autoencoder's reconstruction of each image, or the attention to the prompts of
            prompt.
        ci: Compute confidence intervals of pixel metrics too, by bootstrap.
        pixel_size: Size at which pixels are evaluated: 256, as in many papers, or HEIGHTxWIDTH. Default: that of
            each image, up to 1024.
        ci_level: Level of the confidence intervals. Above 0, below 1.
        ci_samples: Bootstrap samples. At least 100, at most 100000.
        seed: Seed of all random numbers. At least 0.
        fail_if: A gate fails if this holds; see the examples.
        junit: JUnit XML file of the gates.
        sarif: SARIF file of the failed gates, for code scanning.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: File of the report.
        contact_sheet: PNG file of all images beside their heatmaps, worst mistakes first.
        figures: Folder for ROC, PR and histogram as SVG and PDF, for a paper.

    Returns:
        The metrics, the files and the outcome of the gates.

    Raises:
        AdctlError: The scores are damaged, or the report cannot be written.
    """

def report_classifier(
    scores: StrPath | None = None,
    *,
    title: str | None = None,
    fail_if: str | Sequence[str] = (),
    junit: StrPath | None = None,
    sarif: StrPath | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
) -> ClassifierReport:
    """Evaluate the predictions of a classifier and write the page.

    Args:
        scores: Folders from 'adctl score'; several are compared. Default: the last scores.
        title: Title of the report.
        fail_if: A gate fails if this holds; see the examples.
        junit: JUnit XML file of the gates.
        sarif: SARIF file of the failed gates, for code scanning.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: File of the report.

    Returns:
        The metrics, the page and the outcome of the gates.

    Raises:
        AdctlError: The predictions are damaged, or the page cannot be written.
    """

def compare(
    scores: Sequence[StrPath],
    *,
    format: Literal["html", "md", "json", "csv", "tex", "pdf", "pptx"] | Sequence[Literal["html", "md", "json", "csv", "tex", "pdf", "pptx"]] = (),
    title: str | None = None,
    pixel_size: int | int | Sequence[int] | None = None,
    ci_level: float = 0.95,
    ci_samples: int = 1000,
    seed: int = 0,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    figures: StrPath | None = None,
    animation: StrPath | None = None,
) -> CompareResult:
    """Compare scored sets on the images they share and write a page or LaTeX tables.

    Args:
        scores: Folders from 'adctl score'; several are compared. Default: the last scores.
        format: Formats. Choices: html, md, json, csv, tex, pdf, pptx. Default: the ending of `out`, else html.
        title: Title of the report.
        pixel_size: Size at which pixels are evaluated: 256, as in many papers, or HEIGHTxWIDTH. Default: that of
            each image, up to 1024.
        ci_level: Level of the confidence intervals. Above 0, below 1.
        ci_samples: Bootstrap samples. At least 100, at most 100000.
        seed: Seed of all random numbers. At least 0.
        runs: Folder of all runs.
        out: File of the report.
        figures: Folder for ROC, PR and histogram as SVG and PDF, for a paper.
        animation: Animation of the compared maps: a .gif, .webp or .png file.

    Returns:
        The comparison and its files.

    Raises:
        AdctlError: The scores are damaged or share no image, or the page cannot be written.
    """

def export(
    images: StrPath | Sequence[StrPath] = (),
    *,
    model: StrPath | None = None,
    classifier: StrPath | None = None,
    calibration: StrPath | Sequence[StrPath] = (),
    format: Literal["onnx", "openvino", "torchscript", "pt2"] | Sequence[Literal["onnx", "openvino", "torchscript", "pt2"]] = ("onnx",),
    half: bool = False,
    int8: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
) -> ExportResult:
    """Export a model for another runtime, and verify on images that its scores agree.

    Args:
        images: Images to verify the export on. Default: held-out and test images.
        model: Model file, or folder or name of a run. Default: the last model.
        classifier: Classifier for the same graph, which then names defects too: file or run, with the detector's
            backbone.
        calibration: Good images for the ranges of `int8`. Default: training images.
        format: Formats. Choices: onnx, openvino, torchscript, pt2.
        half: Store weights in half precision (onnx, openvino).
        int8: Quantise the network to 8 bits (onnx, openvino).
        tolerance: Largest relative difference of scores. Above 0. Default: 0.001, `half` 0.01, `int8` 0.25.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: File or folder for the export. Default: beside the model.

    Returns:
        The files, each with its comparison to PyTorch.

    Raises:
        AdctlError: The model or the images cannot be used, or an export does not score the same.
    """

def bench(
    models: StrPath | Sequence[StrPath] = (),
    *,
    model: StrPath | None = None,
    runtime: Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"] | Sequence[Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"]] = (),
    batch_sizes: int | Sequence[int] = (1, 4, 8),
    repeats: int = 30,
    images: StrPath | Sequence[StrPath] = (),
    cold_starts: int = 3,
    fail_if: str | Sequence[str] = (),
    junit: StrPath | None = None,
    sarif: StrPath | None = None,
    against: StrPath | None = None,
    overwrite: bool = False,
    runs: StrPath = "runs",
    out: StrPath | None = None,
    markdown: StrPath | None = None,
    plot: StrPath | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    precision: Literal["32", "tf32", "bf16", "16"] = "32",
) -> Benchmark:
    """Measure speed and memory of model files.

    Args:
        models: Model files, measured in alternation. Default: the last model.
        model: Model file, or folder or name of a run; one more of the models.
        runtime: Runtimes, each measured with each model. Choices: auto, torch, torch-compile, onnxruntime,
            openvino, torchscript, torch-export. Default: the file's own.
        batch_sizes: Batch sizes for throughput. At least 1.
        repeats: Rounds of one batch of each size and five single images. At least 3.
        images: Folder, file or glob pattern of images. Default: the test images.
        cold_starts: Processes started to measure cold start and memory. At least 0.
        fail_if: A gate fails if this holds; see the examples.
        junit: JUnit XML file of the gates.
        sarif: SARIF file of the failed gates, for code scanning.
        against: Earlier JSON file; a gate fails if the model is slower beyond the noise.
        overwrite: Replace files in the place of the output that adctl did not write.
        runs: Folder of all runs.
        out: JSON file of the measurements.
        markdown: Markdown file of measurements and gates.
        plot: PNG file of the measurements as a plot.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        precision: Precision of the network on a CUDA GPU.

    Returns:
        The measurements and the outcome of the gates.

    Raises:
        AdctlError: A model or the images cannot be used.
    """

def load(
    model: StrPath | None = None,
    *,
    classifier: StrPath | None = None,
    classify: Literal["rejected", "flagged", "all"] = "rejected",
    runs: StrPath = "runs",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
    runtime: Literal["auto", "torch", "torch-compile", "onnxruntime", "openvino", "torchscript", "torch-export"] = "auto",
) -> Model:
    """Open a model for prediction.

    Args:
        model: Model file, folder or name of a run, or registry of products (.toml). Default: the last model.
        classifier: Classifier that names the defects of rejected images: file or run.
        classify: Images that `classifier` names; flagged: also those to inspect.
        runs: Folder of all runs.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.
        runtime: Runtime; auto: the fastest that was verified against PyTorch. Choices: auto, torch, torch-compile,
            onnxruntime, openvino, torchscript, torch-export.

    Returns:
        The model; its method `predict` takes images.

    Raises:
        AdctlError: There is no such model or device, or the file cannot be used.
    """

def demo(
    *,
    arch: str = "patchcore",
    epochs: int = 5,
    seed: int = 0,
    runs: StrPath = "runs",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    gpu: int | None = None,
    workers: int = ...,
    batch_size: Literal["auto", "max"] | int = "auto",
) -> DemoResult:
    """Run the whole workflow on generated zippers: fetch, train, calibrate, score, report.

    Args:
        arch: Detector: clip, cnn, composition, diffusion, dinomaly, efficientad, ensemble, padim, patchcore,
            prompt, resnet, simplenet, vit, or one of an installed package.
        epochs: Epochs of gradient training. At least 1.
        seed: Seed of all random numbers. At least 0.
        runs: Folder of all runs.
        device: Device that computes.
        gpu: Number of the GPU; implies `device` cuda. At least 0.
        workers: Threads that read images. At least 0, at most 64. Default: one for each core, 2 to 16.
        batch_size: Images in a batch: a number, auto, or max, which fills a GPU's memory. At least 1.

    Returns:
        The model, the heatmaps, the report and its metrics.

    Raises:
        AdctlError: The results cannot be written.
    """

def schema(
    document: str | Sequence[str],
) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints as JSON, or of a JSON file.

    Args:
        document: Command or file, as in the list of documents. Default: the list.

    Returns:
        The schema, in the dialect 2020-12.

    Raises:
        AdctlError: There is no such document.
    """

@overload
def fetch(
    what: str,
    *,
    category: str | Sequence[str] = (),
    source: StrPath | None = None,
    accept_license: bool = False,
    force: bool = False,
    connections: int = 4,
    attempts: int = 4,
    timeout: float = 30.0,
    backoff: float = 1.0,
    smallest_piece: int = 16777216,
) -> FetchResult:
    """Fetch a dataset to this computer, verified; or everything in a bundle.

    Args:
        what: Dataset, such as demo or mvtec.
        category: Fetch only this category.
        source: Archive, folder or bundle to fetch from, not the network.
        accept_license: Accept the licence of the dataset.
        force: Fetch again even if it is here.
        connections: Connections at once for one large file. At least 1, at most 32.
        attempts: Attempts at one address without progress. At least 1.
        timeout: Time to wait for a server's answer. Above 0.
        backoff: Seconds before the second attempt; then doubled. At least 0.
        smallest_piece: Smallest part, in bytes, for a connection of its own. At least 1.

    Returns:
        The dataset; with `source` alone, which names a bundle, everything that the bundle held.

    Raises:
        AdctlError: There is no such dataset, its licence was not accepted, or the download failed.
    """

@overload
def fetch(
    *,
    source: StrPath,
    accept_license: bool = False,
    force: bool = False,
) -> BundleInstallResult: ...

def fetch_weights(
    model_name: str,
    *,
    source: StrPath | None = None,
    connections: int = 4,
    attempts: int = 4,
    timeout: float = 30.0,
    backoff: float = 1.0,
    smallest_piece: int = 16777216,
) -> FetchedWeights:
    """Fetch the pretrained weights of a timm model.

    Args:
        model_name: timm model, such as wide_resnet50_2, or base such as sd-2-1-base.
        source: File or folder to fetch from, instead of the network.
        connections: Connections at once for one large file. At least 1, at most 32.
        attempts: Attempts at one address without progress. At least 1.
        timeout: Time to wait for a server's answer. Above 0.
        backoff: Seconds before the second attempt; then doubled. At least 0.
        smallest_piece: Smallest part, in bytes, for a connection of its own. At least 1.

    Returns:
        The file and its digest.

    Raises:
        AdctlError: timm has no such model, or the download failed.
    """

def fetch_bundle(
    folder: StrPath,
    *,
    include: str | Sequence[str] = (),
    wheels: bool = True,
    requirement: str | None = None,
    platform: str | None = None,
    python: str | None = None,
    accept_license: bool = False,
    connections: int = 4,
    attempts: int = 4,
    timeout: float = 30.0,
    backoff: float = 1.0,
    smallest_piece: int = 16777216,
) -> BundleResult:
    """Pack adctl, datasets and weights into a folder for a computer without a network.

    Args:
        folder: New folder for the bundle.
        include: NAME, NAME/CATEGORY or weights/MODEL to pack. Default: all that was fetched.
        wheels: Pack adctl and the packages it needs.
        requirement: Requirement that pip installs on the other computer. Default: adctl.
        platform: Platform of the other computer in pip's words, such as win_amd64.
        python: Python of the other computer, such as 3.12.
        accept_license: Accept the licences of the datasets.
        connections: Connections at once for one large file. At least 1, at most 32.
        attempts: Attempts at one address without progress. At least 1.
        timeout: Time to wait for a server's answer. Above 0.
        backoff: Seconds before the second attempt; then doubled. At least 0.
        smallest_piece: Smallest part, in bytes, for a connection of its own. At least 1.

    Returns:
        The folder and its contents.

    Raises:
        AdctlError: An item does not exist or cannot be fetched, or the folder cannot be written.
    """

def fetch_check(
    folder: StrPath,
    *,
    group: str | None = None,
    sheet: StrPath | None = None,
    overwrite: bool = False,
) -> list[CheckResult]:
    """Check a folder of images: list its problems and how to mend them.

    Args:
        folder: Folder, archive or manifest of images.
        group: Groups of the good images: folder, day, or a name pattern.
        sheet: PNG file that shows the problems as pictures.
        overwrite: Replace files in the place of the output that adctl did not write.

    Returns:
        The findings, one result for each category.

    Raises:
        AdctlError: There is no such folder, it holds no images, or the sheet would replace a file of the user.
    """

def fetch_verify(
    what: str | None = None,
    *,
    category: str | Sequence[str] = (),
) -> list[VerifyResult]:
    """Verify fetched files against their digests.

    Args:
        what: Dataset. Default: all that was fetched.
        category: Verify only this category.

    Returns:
        One result for each category and each file of weights.

    Raises:
        AdctlError: Nothing of that was fetched.
    """

def list_runs(
    *,
    where: str | Sequence[str] = (),
    sort: str = "-id",
    limit: int = 20,
    runs: StrPath = "runs",
) -> list[RunRow]:
    """Find runs in the index, the newest first.

    Args:
        where: Only runs of which this holds; see the examples.
        sort: Column, metric or setting to sort by; with a minus sign the highest first.
        limit: Runs to show. At least 1.
        runs: Folder of all runs.

    Returns:
        The runs; `run.get("image_auroc")` gives a column, a metric or a setting.

    Raises:
        AdctlError: A condition cannot be understood, or the database cannot be read.
    """

def best_run(
    *,
    metric: str = "image_auroc",
    where: str | Sequence[str] = (),
    max: str | Sequence[str] = (),
    arch: str | None = None,
    dataset: str | None = None,
    category: str | None = None,
    tag: str | None = None,
    runs: StrPath = "runs",
) -> Path:
    """Find the best run.

    Args:
        metric: Metric that decides.
        where: Only runs of which this holds.
        max: Limit of another metric.
        arch: Only runs of this detector.
        dataset: Only runs of this dataset.
        category: Only runs of this category.
        tag: Only runs with this tag.
        runs: Folder of all runs.

    Returns:
        Its model file.

    Raises:
        AdctlError: No run meets the conditions and has the metric, or the database cannot be read.
    """

def accept_run(
    run: str,
    *,
    name: str | None = None,
    runs: StrPath = "runs",
) -> AcceptedVersion:
    """Let a name such as line3 mean another run, such as an update.

    Args:
        run: Name, identifier or folder of the run.
        name: The name. Default: that of the first model that it updates.
        runs: Folder of all runs.

    Returns:
        The name, the run that it means now, and the one before.

    Raises:
        AdctlError: There is no such run, it has no model, or the versions cannot be written.
    """

def roll_back_run(
    name: str,
    *,
    runs: StrPath = "runs",
) -> AcceptedVersion:
    """Let a name mean the run that it meant before.

    Args:
        name: Name under which runs were accepted.
        runs: Folder of all runs.

    Returns:
        The name, the run that it means now, and the one before.

    Raises:
        AdctlError: There is no such name or no earlier version, or the versions cannot be written.
    """
