"""adctl: visual anomaly detection from the command line and from Python.

Each function takes the settings of the command of the same name as keywords (see `adctl.config`), does what the
command does, and returns a typed result:

    trained = adctl.train(good="parts/good", arch="padim")
    scored = adctl.score(images=["parts/new"], model=trained.model)

Importing the package costs next to nothing; each function loads what it needs when it is called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["bench", "calibrate", "compare", "demo", "export", "report", "score", "train"]

_FUNCTIONS = {
    "train": "adctl.training.train:train",
    "calibrate": "adctl.calibration.calibrate:calibrate",
    "score": "adctl.scoring.score:score",
    "report": "adctl.reporting.report:report",
    "compare": "adctl.reporting.compare:compare",
    "export": "adctl.exporting.export:export",
    "bench": "adctl.benchmarking.bench:bench",
    "demo": "adctl.demo:demo",
}


class _Callable(ModuleType):
    """A package of a function's name, such as `adctl.reporting`: once imported it stands in the function's place."""

    def __call__(self, **settings: Any) -> Any:
        return _call(self.__name__.rpartition(".")[2], settings)


class _Package(ModuleType):
    """Makes packages that take the place of functions callable like them."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FUNCTIONS and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _call(command: str, settings: dict[str, Any], function: str | None = None) -> Any:
    from adctl.config import COMMANDS, load

    module, _, name = _FUNCTIONS[function or command].partition(":")
    return getattr(importlib.import_module(module), name)(load(COMMANDS[command], settings))


def train(**settings: Any) -> Any:
    """Learn what good parts look like; see `adctl.training.single_run.TrainResult`.

    With `folds` see `adctl.training.cross_validation.CrossValidationResult`; with several detectors, categories or
    seeds see `adctl.training.grid.GridResult`.
    """
    return _call("train", settings)


def calibrate(**settings: Any) -> Any:
    """Choose the threshold again; see `adctl.calibration.calibrate.CalibrateResult`."""
    return _call("calibrate", settings)


def score(**settings: Any) -> Any:
    """Score images; see `adctl.scoring.score.ScoreResult`."""
    return _call("score", settings)


def report(**settings: Any) -> Any:
    """Evaluate scores and write the report; see `adctl.reporting.report.ReportResult`."""
    return _call("report", settings)


def compare(**settings: Any) -> Any:
    """Compare several scored sets, with the settings of `report`; see `adctl.reporting.compare.CompareResult`."""
    return _call("report", settings, "compare")


def export(**settings: Any) -> Any:
    """Export a model, verified; see `adctl.exporting.export.ExportResult`."""
    return _call("export", settings)


def bench(**settings: Any) -> Any:
    """Measure model files; see `adctl.benchmarking.bench.BenchResult`."""
    return _call("bench", settings)


def demo(**settings: Any) -> Any:
    """Run everything on generated zippers; see `adctl.demo.DemoResult`."""
    return _call("demo", settings)
