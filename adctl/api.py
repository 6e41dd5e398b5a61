"""The functions of `import adctl`: keywords in, a typed result out.

Each parameter is a setting of the command of the same name and is declared only there, in `adctl.config`. For settings
that a call does not give, the variables `ADCTL_*` and the file named by `ADCTL_CONFIG` apply, as on the command line.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from adctl.config import (
    BenchSettings,
    CalibrateSettings,
    DemoSettings,
    ExportSettings,
    FetchBundleSettings,
    FetchCheckSettings,
    FetchSettings,
    FetchVerifySettings,
    FetchWeightsSettings,
    LoadedSettings,
    ReportSettings,
    RunsAcceptSettings,
    RunsBestSettings,
    RunsListSettings,
    RunsRollbackSettings,
    SchemaSettings,
    ScoreSettings,
    TrainSettings,
    TuneSettings,
)
from adctl.errors import UsageError
from adctl.signatures import from_settings

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.benchmarking.bench import Benchmark
    from adctl.calibration.calibrate import CalibrateResult
    from adctl.classification.training.grid import ClassifierGridResult
    from adctl.classification.training.results import ClassifierResult
    from adctl.data.checks.check import CheckResult
    from adctl.demonstration import DemoResult
    from adctl.exporting.export import ExportResult
    from adctl.fetching.bundles import BundleInstallResult, BundleResult
    from adctl.fetching.datasets import FetchResult
    from adctl.fetching.verifying import VerifyResult
    from adctl.fetching.weights import FetchedWeights
    from adctl.reporting.classifier_report import ClassifierReport
    from adctl.reporting.compare import CompareResult
    from adctl.reporting.report import ReportResult
    from adctl.scoring.classify import KindsResult
    from adctl.scoring.model import Model
    from adctl.scoring.products import ProductsResult
    from adctl.scoring.score import ScoreResult
    from adctl.tracking.queries import RunRow
    from adctl.tracking.versions import AcceptedVersion
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult
    from adctl.training.single_run import TrainResult
    from adctl.tuning.study import TuneResult

_NAMES = "str | Sequence[str]"
_OF_PRODUCTS = (
    *("images", "model", "tta", "out", "heatmaps", "draw", "maps", "overwrite"),
    *("runtime", "precision", "device", "gpu", "batch_size", "workers", "runs"),
)
_OF_KINDS = (
    *("images", "model", "tta", "out", "overwrite", "runtime", "device", "gpu", "batch_size", "workers", "runs"),
)
_OF_KINDS_REPORT = ("scores", "title", "out", "overwrite", "fail_if", "junit", "sarif", "runs")
_WEIGHTS = "str | Mapping[str, float]"


@from_settings(
    TrainSettings,
    without=("seeds",),
    accepts={
        "arch": _NAMES,
        "category": f"{_NAMES} | None",
        "seed": "int | Sequence[int]",
        "backbone": f"{_NAMES} | None",
        "balance": _NAMES,
        "image_size": "int | str | Sequence[int]",
        "synthetic": f"{_NAMES} | None",
        "loss": f"{_WEIGHTS} | None",
        "error": f"{_WEIGHTS} | None",
    },
)
def train(
    loaded: LoadedSettings[TrainSettings],
) -> TrainResult | CrossValidationResult | GridResult | ClassifierResult | ClassifierGridResult:
    """Train a detector on good images and write one calibrated model file; or a classifier of labelled images.

    Returns:
        A `TrainResult`; with `task="classify"` a `ClassifierResult`, or with lists of backbones, heads, strategies,
        options or seeds a `ClassifierGridResult`; with `folds` a `CrossValidationResult`; with a list of detectors,
        categories or seeds a `GridResult`. In a distributed training only the first process returns;
        the others end here.

    Raises:
        AdctlError: The data, the settings or the output folder cannot be used.
    """
    from adctl.training.resume import task_of

    if task_of(loaded) == "classify":
        from adctl.classification.training.grid import train_classifiers

        return train_classifiers(loaded)
    from adctl.exporting.after_training import train_and_export as run

    result = run(loaded)
    if result is None:
        sys.exit()
    return result


@from_settings(TuneSettings, without=("seeds",))
def tune(loaded: LoadedSettings[TuneSettings]) -> TuneResult:
    """Search the settings that find generated defects best, and train with them.

    Returns:
        The best settings, measured again beside the defaults, with their file, the page and the model.

    Raises:
        AdctlError: The data or the settings cannot be used, or no trial succeeded.
    """
    from adctl.tuning import tune as run

    return run(loaded)


@from_settings(CalibrateSettings, accepts={"tta": f"{_NAMES} | None"})
def calibrate(loaded: LoadedSettings[CalibrateSettings]) -> CalibrateResult:
    """Choose a new threshold, from good images that the model was not trained on.

    Returns:
        The model file and its calibration.

    Raises:
        AdctlError: The model or the images cannot be used.
    """
    from adctl.calibration.calibrate import calibrate as run

    return run(loaded)


@from_settings(ScoreSettings, without=("fail_on_anomaly", "report"), accepts={"tta": f"{_NAMES} | None"})
def score(loaded: LoadedSettings[ScoreSettings]) -> ScoreResult:
    """Score images: an anomaly score, an anomaly map and a verdict for each.

    Returns:
        The result; iterating gives the row of each image.

    Raises:
        AdctlError: The model or the output folder cannot be used, or none of the images.
    """
    from adctl.scoring.registry import is_registry
    from adctl.scoring.score import score as run
    from adctl.scoring.watch import watch

    if is_registry(loaded.settings.model):
        raise UsageError("adctl.score takes one model.", "With a registry, call adctl.score_products.")
    if loaded.settings.source:
        from adctl.line.scoring import score_sources

        return score_sources(loaded)
    if loaded.settings.watch is not None:
        return watch(loaded)
    if loaded.settings.ray is not None:
        from adctl.scoring.ray_score import score as score_with_ray

        return score_with_ray(loaded)
    return run(loaded)


@from_settings(ScoreSettings, only=_OF_KINDS, accepts={"tta": f"{_NAMES} | None"})
def classify(loaded: LoadedSettings[ScoreSettings]) -> KindsResult:
    """Name the kind of each image with a classifier.

    Returns:
        The result; iterating gives the row of each image.

    Raises:
        AdctlError: The classifier or the output folder cannot be used, or none of the images.
    """
    from adctl.scoring.classify import classify_images
    from adctl.tracking.models import find_model

    return classify_images(loaded, find_model(loaded.settings.runs, loaded.settings.model))


@from_settings(ScoreSettings, only=_OF_PRODUCTS, accepts={"tta": f"{_NAMES} | None"})
def score_products(loaded: LoadedSettings[ScoreSettings]) -> ProductsResult:
    """Score images of several products, each with the model that a registry gives its product.

    Returns:
        The result of each product, and the images that belong to none.

    Raises:
        AdctlError: The registry, a model or the output folder cannot be used, or none of the images.
    """
    from adctl.scoring.products import score_products as run

    if loaded.settings.model is None:
        raise UsageError("adctl.score_products needs a registry.", "Give the TOML file as model.")
    return run(loaded)


@from_settings(ReportSettings, only=_OF_KINDS_REPORT, accepts={"scores": "StrPath | None"})
def report_classifier(loaded: LoadedSettings[ReportSettings]) -> ClassifierReport:
    """Evaluate the predictions of a classifier and write the page.

    Returns:
        The metrics, the page and the outcome of the gates.

    Raises:
        AdctlError: The predictions are damaged, or the page cannot be written.
    """
    from adctl import run_folder
    from adctl.reporting.classifier_report import report_classifier as run

    settings = loaded.settings
    return run(loaded, settings.scores[0] if settings.scores else run_folder.get_last(settings.runs, "scores"))


@from_settings(ReportSettings, without=("animation",), accepts={"scores": "StrPath | None"})
def report(loaded: LoadedSettings[ReportSettings]) -> ReportResult:
    """Evaluate scores and write the report.

    Returns:
        The metrics, the files and the outcome of the gates.

    Raises:
        AdctlError: The scores are damaged, or the report cannot be written.
    """
    from adctl.reporting.report import report as run

    return run(loaded)


@from_settings(
    ReportSettings,
    only=(
        "scores",
        "format",
        "title",
        "pixel_size",
        "ci_level",
        "ci_samples",
        "seed",
        "out",
        "figures",
        "animation",
        "runs",
    ),
    required=("scores",),
    accepts={"scores": "Sequence[StrPath]"},
)
def compare(loaded: LoadedSettings[ReportSettings]) -> CompareResult:
    """Compare scored sets on the images they share and write a page or LaTeX tables.

    Returns:
        The comparison and its files.

    Raises:
        AdctlError: The scores are damaged or share no image, or the page cannot be written.
    """
    from adctl.reporting.compare import compare as run

    return run(loaded)


@from_settings(ExportSettings)
def export(loaded: LoadedSettings[ExportSettings]) -> ExportResult:
    """Export a model for another runtime, and verify on images that its scores agree.

    Returns:
        The files, each with its comparison to PyTorch.

    Raises:
        AdctlError: The model or the images cannot be used, or an export does not score the same.
    """
    from adctl.exporting.export import export as run

    return run(loaded)


@from_settings(BenchSettings)
def bench(loaded: LoadedSettings[BenchSettings]) -> Benchmark:
    """Measure speed and memory of model files.

    Returns:
        The measurements and the outcome of the gates.

    Raises:
        AdctlError: A model or the images cannot be used.
    """
    from adctl.benchmarking.bench import bench as run

    return run(loaded)


@from_settings(DemoSettings)
def demo(loaded: LoadedSettings[DemoSettings]) -> DemoResult:
    """Run the whole workflow on generated zippers: fetch, train, calibrate, score, report.

    Returns:
        The model, the heatmaps, the report and its metrics.

    Raises:
        AdctlError: The results cannot be written.
    """
    from adctl.demonstration import demo as run

    return run(loaded)


# ---- fetching


@from_settings(FetchSettings, without=("verify",))
def fetch(loaded: LoadedSettings[FetchSettings]) -> FetchResult | BundleInstallResult:
    """Fetch a dataset to this computer, verified; or everything in a bundle.

    Returns:
        The dataset; with `source` alone, which names a bundle, everything that the bundle held.

    Raises:
        AdctlError: There is no such dataset, its licence was not accepted, or the download failed.
    """
    from adctl.fetching.bundles import install_bundle
    from adctl.fetching.datasets import fetch_dataset
    from adctl.fetching.download import Transfer

    settings = loaded.settings
    if settings.what is not None:
        return fetch_dataset(
            settings.what,
            categories=settings.category,
            source=settings.source,
            accept_license=settings.accept_license,
            force=settings.force,
            transfer=Transfer.of(settings),
        )
    if settings.source is None:
        raise UsageError("adctl.fetch needs the name of a dataset.", "Call adctl.fetch('demo'), for example.")
    return install_bundle(settings.source, accept_license=settings.accept_license, force=settings.force)


@from_settings(FetchWeightsSettings, required=("model_name",))
def fetch_weights(loaded: LoadedSettings[FetchWeightsSettings]) -> FetchedWeights:
    """Fetch the pretrained weights of a timm model.

    Returns:
        The file and its digest.

    Raises:
        AdctlError: timm has no such model, or the download failed.
    """
    from adctl.fetching.download import Transfer
    from adctl.fetching.weights import fetch_weights as run

    settings = loaded.settings
    return run(settings.model_name or "", source=settings.source, transfer=Transfer.of(settings))


@from_settings(FetchBundleSettings, required=("folder",))
def fetch_bundle(loaded: LoadedSettings[FetchBundleSettings]) -> BundleResult:
    """Pack adctl, datasets and weights into a folder for a computer without a network.

    Returns:
        The folder and its contents.

    Raises:
        AdctlError: An item does not exist or cannot be fetched, or the folder cannot be written.
    """
    from adctl.fetching.bundles import make_bundle

    return make_bundle(loaded.settings)


@from_settings(FetchCheckSettings, required=("folder",), without=("strict",))
def fetch_check(loaded: LoadedSettings[FetchCheckSettings]) -> list[CheckResult]:
    """Check a folder of images: list its problems and how to mend them.

    Returns:
        The findings, one result for each category.

    Raises:
        AdctlError: There is no such folder, it holds no images, or the sheet would replace a file of the user.
    """
    from adctl.data.checks.check import check_with_sheet

    return check_with_sheet(loaded.settings)


@from_settings(FetchVerifySettings)
def fetch_verify(loaded: LoadedSettings[FetchVerifySettings]) -> list[VerifyResult]:
    """Verify fetched files against their digests.

    Returns:
        One result for each category and each file of weights.

    Raises:
        AdctlError: Nothing of that was fetched.
    """
    from adctl.fetching.verifying import verify

    return verify(loaded.settings.what, categories=loaded.settings.category)


# ---- documents


@from_settings(SchemaSettings, required=("document",), accepts={"document": "str | Sequence[str]"})
def schema(loaded: LoadedSettings[SchemaSettings]) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints as JSON, or of a JSON file.

    Returns:
        The schema, in the dialect 2020-12.

    Raises:
        AdctlError: There is no such document.
    """
    from adctl.schemas import schema as run

    return run(" ".join(loaded.settings.document))


# ---- runs


@from_settings(RunsListSettings, without=("columns",))
def list_runs(loaded: LoadedSettings[RunsListSettings]) -> list[RunRow]:
    """Find runs in the index, the newest first.

    Returns:
        The runs; `run.get("image_auroc")` gives a column, a metric or a setting.

    Raises:
        AdctlError: A condition cannot be understood, or the database cannot be read.
    """
    from adctl.tracking.queries import find_runs

    settings = loaded.settings
    return find_runs(settings.runs, settings.where, settings.sort, settings.limit)


@from_settings(RunsBestSettings)
def best_run(loaded: LoadedSettings[RunsBestSettings]) -> Path:
    """Find the best run.

    Returns:
        Its model file.

    Raises:
        AdctlError: No run meets the conditions and has the metric, or the database cannot be read.
    """
    from adctl.tracking import queries

    settings = loaded.settings
    conditions = queries.conditions_of(settings)
    return queries.model_of(queries.best_run(settings.runs, settings.metric, conditions))


@from_settings(RunsAcceptSettings, required=("run",))
def accept_run(loaded: LoadedSettings[RunsAcceptSettings]) -> AcceptedVersion:
    """Let a name such as line3 mean another run, such as an update.

    Returns:
        The name, the run that it means now, and the one before.

    Raises:
        AdctlError: There is no such run, it has no model, or the versions cannot be written.
    """
    from adctl.tracking.versions import accept

    settings = loaded.settings
    assert settings.run is not None
    return accept(settings.runs, settings.run, settings.name)


@from_settings(RunsRollbackSettings, required=("name",))
def roll_back_run(loaded: LoadedSettings[RunsRollbackSettings]) -> AcceptedVersion:
    """Let a name mean the run that it meant before.

    Returns:
        The name, the run that it means now, and the one before.

    Raises:
        AdctlError: There is no such name or no earlier version, or the versions cannot be written.
    """
    from adctl.tracking.versions import roll_back

    settings = loaded.settings
    assert settings.name is not None
    return roll_back(settings.runs, settings.name)


# ---- models


@from_settings(
    ScoreSettings,
    only=("model", "runtime", "device", "gpu", "batch_size", "workers", "runs", "classifier", "classify"),
    positional=("model",),
)
def load(loaded: LoadedSettings[ScoreSettings]) -> Model:
    """Open a model for prediction.

    Returns:
        The model; its method `predict` takes images.

    Raises:
        AdctlError: There is no such model or device, or the file cannot be used.
    """
    from adctl.scoring.model import Model
    from adctl.tracking.models import find_model

    settings = loaded.settings
    classifier = None if settings.classifier is None else find_model(settings.runs, settings.classifier)
    return Model(
        find_model(settings.runs, settings.model),
        device=settings.device,
        gpu=settings.gpu,
        runtime=settings.runtime,
        batch_size=settings.batch_size,
        workers=settings.workers,
        classifier=classifier,
        classify=settings.classify,
    )
