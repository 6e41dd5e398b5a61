"""Tuning of a detector with Optuna: the study, its trials, and the choice of the best settings."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from adctl import files
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.errors import DataError, OutputError, UsageError
from adctl.names import printable
from adctl.progress import SILENT, Reporter
from adctl.run_folder import RUN, SETTINGS, named_folder, new_folder
from adctl.training.single_run import train_once
from adctl.tuning import storage
from adctl.tuning.objective import OBJECTIVES, Benchmark, development_benchmark, evaluate, with_values
from adctl.tuning.page import write_page
from adctl.tuning.ray_tuning import run_trials_on_cluster
from adctl.tuning.search import FINISHED, Search, finished_trials, quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.config import TuneSettings
    from adctl.training.single_run import TrainResult
    from adctl.tuning.search_space import SearchSpace

log = logging.getLogger(__name__)

BEST_PARAMS = "best_params.yaml"
PAGE = "tuning.html"

_REPEATED = 5
_REPEATS = 3
"""The best five settings and the default are measured again with this many fresh seeds."""
_JOIN = "_ADCTL_TUNE_PROCESS"
"""Environment variable with the number of a process that only works on trials; the command itself has none."""


@dataclass(frozen=True)
class Candidate:
    """Settings that were measured again with fresh folds and defects.

    Attributes:
        trial: Number of the trial; None for the default settings.
        params: Settings by name.
        mean: Mean of the first objective.
        error: Standard error of that mean.
    """

    trial: int | None
    params: dict[str, Any]
    mean: float
    error: float

    def values_text(self) -> str:
        """Return the settings as text."""
        items = self.params.items()
        return ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in items)


@dataclass(frozen=True)
class TuneResult:
    """Result of a tuning.

    Attributes:
        name: Name of the study.
        folder: Folder with the page and the best settings.
        objective: Names of the objectives.
        trials: Number of finished trials; `failed` and `pruned` are among them.
        failed: Number of failed trials.
        pruned: Number of trials that were stopped early.
        default: Default settings, measured again.
        candidates: Best settings, measured again, best first.
        chosen: Chosen settings.
        significant: Whether the gain over the default is larger than the noise.
        importances: Share of each setting in the differences between trials.
        pareto: Best compromises of several objectives; empty for one objective.
        params_file: File of the chosen settings, for `adctl train --config`.
        page: Page with the plots.
        model: Model trained with the chosen settings; None if none was wanted.
    """

    name: str
    folder: Path
    objective: tuple[str, ...]
    trials: int
    failed: int
    pruned: int
    default: Candidate
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    significant: bool
    importances: dict[str, float]
    pareto: tuple[dict[str, Any], ...]
    params_file: Path
    page: Path
    model: Path | None


def tune(loaded: LoadedSettings[TuneSettings], reporter: Reporter = SILENT) -> TuneResult:
    """Search the settings of a detector that find defects best, train with them, and explain the search.

    A study of the same name continues where it stopped; several processes and machines may work on it at once.

    Args:
        loaded: Settings.
        reporter: Receiver of progress.

    Raises:
        UsageError: A setting or a range cannot be used.
        DataError: There are too few images, or no trial succeeded.
        OutputError: The settings or the model cannot be written.
    """
    settings = loaded.settings
    _check(settings)
    search = Search.of(loaded, int(os.environ.get(_JOIN, "0")))
    training, space, name = search.training, search.space, search.name
    _check_folder(named_folder(settings.runs, name))
    with quiet_optuna(), shared_features(), storage.errors(settings.runs):
        study = search.open_study()
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(search.default_params())
        if settings.ray is None:
            with search.benchmark() as benchmark:
                _run_trials(study, search, benchmark, reporter)
        else:
            run_trials_on_cluster(study, loaded, reporter)
        if os.environ.get(_JOIN):
            raise SystemExit(0)
        finished = _completed(study)
        candidates, default = _measure_again(finished, settings, training, space, reporter)
    folder = _folder(settings, name)
    chosen = candidates[0]
    gain, noise = chosen.mean - default.mean, 2 * float(np.hypot(chosen.error, default.error))
    significant = gain > noise
    if not significant:
        chosen = default
        log.warning(
            "The gain over the default settings (%+.4f) is within the noise (%.4f): they are kept.", gain, noise
        )
    params_file = folder / BEST_PARAMS
    _write_params(params_file, settings, space, chosen.params)
    page = folder / PAGE
    with quiet_optuna():
        importances = _importances(study)
        try:
            write_page(page, study, candidates, default, importances, significant=significant)
        except OutputError as error:  # the settings are found, and a model can be trained with them
            log.warning("%s The page of the study is missing.", error.message)
    result = _train(loaded, training, space, chosen.params, reporter) if settings.final_model else None
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return TuneResult(
        name=name,
        folder=folder,
        objective=settings.objective,
        trials=sum(state in FINISHED for state in states),
        failed=states.count(TrialState.FAIL),
        pruned=states.count(TrialState.PRUNED),
        default=default,
        candidates=candidates,
        chosen=chosen,
        significant=significant,
        importances=importances,
        pareto=_pareto(study) if len(settings.objective) > 1 else (),
        params_file=params_file,
        page=page,
        model=None if result is None else result.model,
    )


def _check(settings: TuneSettings) -> None:
    for name in ("resume", "folds", "fold", "devices", "update", "contaminated"):
        if getattr(settings, name) is not None:
            raise UsageError(f"--{name} cannot be used in tuning.", "Leave it out; --splits sets the number of folds.")
    if settings.ray is not None and settings.jobs > 1:
        raise UsageError("--jobs starts processes on this machine, and --ray on a cluster.", "Give one of them.")
    unknown = [name for name in settings.objective if name not in OBJECTIVES]
    if unknown:
        raise UsageError(f"The objective '{unknown[0]}' is unknown.", f"Known: {', '.join(OBJECTIVES)}.")
    if settings.objective[0] == "latency_ms":
        raise UsageError("latency_ms alone says nothing about defects.", "Write it last: --objective ap,latency_ms")
    if len(set(settings.objective)) < len(settings.objective):
        raise UsageError("An objective was named twice.", "Name each once.")
    if len(settings.objective) > 1 and settings.pruner != "none":
        log.info("Trials with several objectives are not stopped early.")


def _run_trials(study: optuna.Study, search: Search, benchmark: Benchmark, reporter: Reporter) -> None:
    """Run trials until there are enough, or the time is over."""
    settings = search.settings
    with reporter.stage("tuning", settings.trials) as advance, _helpers(settings):
        advance(finished_trials(study), None)
        study.optimize(
            partial(search.objective, benchmark),
            timeout=settings.timeout,
            callbacks=[
                optuna.study.MaxTrialsCallback(settings.trials, states=FINISHED),
                lambda study, _: advance(finished_trials(study), None),
            ],
            catch=(Exception,),  # a trial that fails, whatever it raises, is recorded
            n_trials=max(0, settings.trials - finished_trials(study)),
        )


@contextmanager
def _helpers(settings: TuneSettings) -> Iterator[None]:
    """Run the same command in further processes, which work on the same study and write nothing else."""
    command = [sys.executable, *sys.orig_argv[1:]]
    if settings.jobs == 1 or os.environ.get(_JOIN):
        yield
        return
    processes = [
        subprocess.Popen(  # noqa: S603 - our own interpreter
            command, env={**os.environ, _JOIN: str(number)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for number in range(1, settings.jobs)
    ]
    try:
        yield
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.terminate()


def _completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the completed trials, best first; of several objectives, by the first.

    Raises:
        DataError: No trial succeeded.
    """
    done = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    if not done:
        reasons = {trial.system_attrs.get("fail_reason", "") for trial in study.get_trials()} - {""}
        raise DataError(
            f"No trial of the study '{study.study_name}' succeeded. {next(iter(reasons), '')}".strip(),
            "Check the data with 'adctl train --dry-run', or narrow the ranges with --space.",
        )
    return sorted(done, key=lambda trial: -trial.values[0])


def _measure_again(
    finished: Sequence[optuna.trial.FrozenTrial],
    settings: TuneSettings,
    training: TrainSettings,
    space: SearchSpace,
    reporter: Reporter,
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Measure the best settings and the default with fresh folds and defects: the best of many is lucky too."""
    chosen: dict[str, tuple[int, dict[str, Any]]] = {}
    for trial in finished:
        chosen.setdefault(repr(sorted(trial.params.items())), (trial.number, trial.params))
    tried: list[tuple[int | None, dict[str, Any]]] = [(None, {}), *list(chosen.values())[:_REPEATED]]
    table: list[list[float]] = [[] for _ in tried]
    with reporter.stage("measuring the best again", _REPEATS * len(tried)) as advance:
        for repeat in range(_REPEATS):
            seed = settings.seed + 1000 + repeat
            with development_benchmark(training, folds=1, defects=settings.defects, seed=seed) as benchmark:
                for row, (_, params) in enumerate(tried):
                    values = space.settings_of(params)
                    table[row] += evaluate(benchmark, training, values, settings.objective[:1])
                    advance(repeat * len(tried) + row + 1, None)
    found = [
        Candidate(number, params, float(np.mean(row)), float(np.std(row, ddof=1) / np.sqrt(len(row))))
        for (number, params), row in zip(tried, table, strict=True)
    ]
    return tuple(sorted(found[1:], key=lambda one: -one.mean)), found[0]


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each setting for the first objective; empty if there are too few trials."""
    try:
        target = (lambda trial: -float(trial.values[0])) if len(study.directions) > 1 else None  # Optuna takes low ones
        return {
            name: float(value) for name, value in optuna.importance.get_param_importances(study, target=target).items()
        }
    except (ValueError, RuntimeError, ImportError):
        return {}


def _pareto(study: optuna.Study) -> tuple[dict[str, Any], ...]:
    return tuple({"trial": trial.number, "values": trial.values, "params": trial.params} for trial in study.best_trials)


def _check_folder(folder: Path) -> None:
    """Raise if the results of the study cannot be written, or would lie in the folder of a training."""
    if (folder / RUN).exists() or (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is the run of a training.", "Choose another --name.")
    targets = (folder / PAGE, folder / BEST_PARAMS)
    for path in targets:
        if os.path.lexists(path) and not files.is_ours(path):
            raise UsageError(f"{path} exists already, and adctl did not write it.", "Choose another --name.")
    files.require_writable(targets)


def _folder(settings: TuneSettings, name: str) -> Path:
    folder = settings.runs / name
    return folder if folder.is_dir() else new_folder(settings.runs, name=name)


def _write_params(path: Path, settings: TuneSettings, space: SearchSpace, params: dict[str, Any]) -> None:
    import yaml

    values = space.settings_of(params)
    options = {**settings.options, **values.pop("options")}
    table = {"arch": settings.arch, **values, **({"options": options} if options else {})}
    text = yaml.safe_dump({"train": table}, sort_keys=False, allow_unicode=True)
    shown = printable(str(path))  # a line end in a path would begin a line of its own
    files.write_text(path, f"# Made by adctl tune; use it with: adctl train --config {shown}\n{text}")


def _train(
    loaded: LoadedSettings[TuneSettings],
    training: TrainSettings,
    space: SearchSpace,
    params: dict[str, Any],
    reporter: Reporter,
) -> TrainResult | None:
    values = space.settings_of(params)
    settings = replace(with_values(training, values), name=None)  # the name of a study is that of its folder
    origins = {name: loaded.origins.get(name, "tune") for name in names_of(TrainSettings)}
    origins |= dict.fromkeys(values, "tune")
    return train_once(LoadedSettings(settings, origins), reporter)
