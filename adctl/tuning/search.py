"""Search of a study: settings, ranges, sampler, pruner and the objective of a trial."""

from __future__ import annotations

import os
import socket
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.detectors.registry import detector_class
from adctl.errors import MissingExtraError
from adctl.tuning import storage
from adctl.tuning.objective import STEPS, Benchmark, development_benchmark, evaluate
from adctl.tuning.search_space import SearchSpace, search_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from adctl.config import TuneSettings

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""States of trials that have ended."""


@dataclass(frozen=True)
class Search:
    """Search of the settings of one detector.

    Attributes:
        settings: Settings of `adctl tune`.
        training: Settings of the trainings, before a trial changes them.
        space: Ranges.
        name: Name of the study.
        number: Number of this process among those that work on the study; it varies the seed of the sampler.
    """

    settings: TuneSettings
    training: TrainSettings
    space: SearchSpace
    name: str
    number: int

    @classmethod
    def of(cls, loaded: LoadedSettings[TuneSettings], number: int) -> Search:
        """Return the search that settings describe.

        Raises:
            UsageError: A setting or a range cannot be used.
        """
        settings = loaded.settings
        space = search_space(detector_class(settings.arch), settings.space, _fixed(loaded))
        name = settings.name or f"tune-{settings.arch}"
        return cls(settings, _training_settings(settings), space, name, number)

    def open_study(self) -> optuna.Study:
        """Open the study in the run database, or create it.

        Raises:
            UsageError: A study of this name has other objectives or another detector.
            DataError: The database cannot be used.
            MissingExtraError: A package of the method is not installed.
        """
        return storage.open_study(self.settings, self.name, self._sampler(), pruner_of(self.settings))

    def benchmark(self) -> AbstractContextManager[Benchmark]:
        """Return the context in which the images of the objective exist."""
        own = self.settings
        return development_benchmark(self.training, folds=own.splits, defects=own.defects, seed=own.seed)

    def objective(self, benchmark: Benchmark, trial: optuna.Trial) -> list[float]:
        """Measure the settings of a trial."""
        trial.set_user_attr("process", f"{socket.gethostname()} {os.getpid()}")
        values = self.space.settings_of(self.space.suggest(trial))

        def report(step: int, mean: float) -> None:
            trial.report(mean, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        objectives = self.settings.objective
        pruned = len(objectives) == 1 and self.settings.pruner != "none"
        return evaluate(benchmark, self.training, values, objectives, report if pruned else None)

    def default_params(self) -> dict[str, Any]:
        """Return the default settings, as the first trial, so that the search starts from them."""
        config = detector_class(self.training.arch).Config(**self.training.options)
        known = {name: getattr(config, name, None) for name in self.space.ranges}
        return {name: value for name, value in known.items() if value is not None and self.space.holds(name, value)}

    def _sampler(self) -> optuna.samplers.BaseSampler:
        seed = self.settings.seed + self.number  # processes with one seed would try the same
        makers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "grid": lambda: optuna.samplers.GridSampler(self.space.grid(), seed=seed),
        }
        try:
            return makers[self.settings.method]()
        except ImportError as error:
            raise MissingExtraError(str(error.name or error), "tune") from error


def pruner_of(settings: TuneSettings) -> optuna.pruners.BasePruner:
    """Return the rule that stops poor trials early."""
    if settings.pruner == "none" or len(settings.objective) > 1:
        return optuna.pruners.NopPruner()
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=settings.splits * STEPS)


def finished_trials(study: optuna.Study) -> int:
    """Return the number of trials that have ended."""
    return sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))


def _training_settings(settings: TuneSettings) -> TrainSettings:
    given = {name: getattr(settings, name) for name in names_of(TrainSettings)}
    return TrainSettings(**{**given, "defects": None})  # those of a training belong to an update


def _fixed(loaded: LoadedSettings[TuneSettings]) -> dict[str, Any]:
    """Return the settings that the user gave: they stay as they are."""
    given = {name: getattr(loaded.settings, name) for name in loaded.given if hasattr(loaded.settings, name)}
    return {**given, **loaded.settings.options}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's log for its own users."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, optuna.exceptions.ExperimentalWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        optuna.logging.set_verbosity(before)
