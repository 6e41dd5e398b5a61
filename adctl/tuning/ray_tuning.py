"""Trials on a Ray cluster: each process runs one trial at a time and shares the study in the run database.

The run database and the images lie where all nodes see them; a database on several machines is best PostgreSQL. A trial
whose process ends has failed, and the study goes on.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import optuna
from optuna.trial import TrialState

from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.ray_cluster import Caller, Lost, Pool, Worker, cluster, require_shared
from adctl.tuning.search import Search, finished_trials, quiet_optuna

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, TuneSettings
    from adctl.progress import Reporter

log = logging.getLogger(__name__)

_TASK = "task"
"""Attribute of a trial that names the task which runs it."""


class TrialWorker(Worker):
    """Process that runs trials.

    Args:
        caller: Process of the command.
        loaded: Settings.

    Raises:
        UsageError: This node has another version of adctl, or does not see the folder of runs.
    """

    def __init__(self, caller: Caller, loaded: LoadedSettings[TuneSettings]) -> None:
        super().__init__(caller)
        require_shared(loaded.settings.runs)
        self._contexts = ExitStack()  # they are open as long as the process
        self._contexts.enter_context(quiet_optuna())
        self._contexts.enter_context(shared_features())
        self._search = Search.of(loaded, caller.number)
        self._study = self._search.open_study()
        self._benchmark = self._contexts.enter_context(self._search.benchmark())

    def run(self, task: str) -> None:
        """Run one trial.

        Args:
            task: Name of the task, which the trial gets as an attribute.
        """

        def objective(trial: optuna.Trial) -> list[float]:
            trial.set_user_attr(_TASK, task)
            return self._search.objective(self._benchmark, trial)

        try:
            self._study.optimize(objective, n_trials=1, catch=(Exception,))
        except ValueError as error:  # two processes took one waiting trial, and the other has stored its result
            log.info("%s", error)


def run_trials_on_cluster(study: optuna.Study, loaded: LoadedSettings[TuneSettings], reporter: Reporter) -> None:
    """Run trials on the Ray cluster of the settings until there are enough, or the time is over.

    Args:
        study: The study, with the first trial enqueued.
        loaded: Settings.
        reporter: Receiver of progress.

    Raises:
        UsageError: The cluster cannot be used, or a node does not see the folder of runs.
        MissingExtraError: Ray is not installed.
    """
    settings = loaded.settings
    waiting = [uuid4().hex for _ in range(settings.trials - finished_trials(study))]
    given = len(waiting)
    end = None if settings.timeout is None else time.monotonic() + settings.timeout
    gpu = 0.0 if settings.device == "cpu" else settings.ray_gpu

    def send(worker: Any, task: str) -> Any:
        return worker.run.remote(task)

    with cluster(settings.ray or "") as ray, reporter.stage("tuning", settings.trials) as advance:
        pool: Pool[str] = Pool(ray, TrialWorker, (loaded,), cpus=settings.ray_cpus, gpu=gpu)
        for task, result in pool.run(waiting, send):
            if isinstance(result, Lost):
                _fail(study, task)
            finished = finished_trials(study)
            advance(finished, None)
            given -= 1
            if given < settings.trials - finished:  # a trial was done twice, or did not begin
                waiting.append(uuid4().hex)
                given += 1
            exhausted = isinstance(study.sampler, optuna.samplers.GridSampler) and study.sampler.is_exhausted(study)
            if exhausted or (end is not None and time.monotonic() > end):
                waiting.clear()


def _fail(study: optuna.Study, task: str) -> None:
    """Mark the trial of a process that ended as failed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(_TASK) == task:
            study.tell(trial.number, state=TrialState.FAIL)
