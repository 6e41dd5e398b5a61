"""adctl: visual anomaly detection from the command line and from Python.

Each function takes the settings of the command of the same name as keywords, does what the command does, and returns a
typed result:

    trained = adctl.train(good="parts/good", arch="padim")
    for row in adctl.score("parts/new", model=trained.model):
        print(row.path, row.score, row.verdict)

    model = adctl.load(trained.model)
    prediction = model.predict("parts/new/0.png")

Importing the package costs next to nothing: each name is loaded when it is first used. Parameters, types and texts for
editors and type checkers are in `__init__.pyi`, which `python tests/stub.py` makes from the settings.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "adctl.api": (
        *(
            "train",
            "tune",
            "calibrate",
            "score",
            "score_products",
            "classify",
            "report",
            "report_classifier",
            "compare",
            "export",
            "bench",
            "load",
        ),
        *("demo", "schema"),
        *("fetch", "fetch_weights", "fetch_bundle", "fetch_check", "fetch_verify"),
        *("list_runs", "best_run", "accept_run", "roll_back_run"),
    ),
    "adctl.benchmarking.bench": ("Benchmark",),
    "adctl.calibration.calibrate": ("CalibrateResult",),
    "adctl.classification.training.results": ("ClassifierResult",),
    "adctl.data.checks.check": ("CheckResult",),
    "adctl.demonstration": ("DemoResult",),
    "adctl.errors": (
        *("AdctlError", "DataError", "FetchError", "ImageError", "MissingExtraError", "ModelFileError"),
        *("OutputError", "PluginError", "TrainingError", "UsageError"),
    ),
    "adctl.evaluation.candidate": ("CandidateComparison", "compare_candidate"),
    "adctl.exporting.export": ("ExportResult",),
    "adctl.fetching.bundles": ("BundleResult", "BundleInstallResult"),
    "adctl.fetching.datasets": ("FetchResult",),
    "adctl.fetching.verifying": ("VerifyResult",),
    "adctl.fetching.weights": ("FetchedWeights",),
    "adctl.paths": ("StrPath",),
    "adctl.records": ("Box", "Calibration", "Verdict"),
    "adctl.reporting.compare": ("CompareResult",),
    "adctl.reporting.report": ("ReportResult",),
    "adctl.scoring.model": ("ImagePrediction", "Model"),
    "adctl.scoring.classify": ("KindsResult",),
    "adctl.reporting.classifier_report": ("ClassifierReport",),
    "adctl.classification.predictions": ("PredictedKind",),
    "adctl.classification.training.grid": ("ClassifierGridResult", "ClassifierGridRow"),
    "adctl.scoring.products": ("ProductsResult", "UnassignedImage"),
    "adctl.scoring.score": ("ScoreResult",),
    "adctl.scoring.score_set": ("AnomalyMaps", "ScoreRow", "open_maps"),
    "adctl.tracking.queries": ("RunRow",),
    "adctl.tracking.versions": ("AcceptedVersion",),
    "adctl.training.cross_validation": ("CrossValidationResult",),
    "adctl.training.grid": ("GridResult",),
    "adctl.training.reviews": ("UpdateResult",),
    "adctl.training.single_run": ("TrainResult",),
    "adctl.tuning.study": ("TuneResult",),
}
"""Modules with their public names."""

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 - all are texts


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'adctl' has no attribute '{name}'", name=name)
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
