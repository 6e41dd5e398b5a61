"""Trainings on a Ray cluster: the combinations of a grid, or the folds of a cross-validation.

The folder of runs and the images lie where all nodes see them, at the same paths. A process trains combinations of one
category as long as there are some, because they share the features of frozen backbones.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.errors import TrainingError
from adctl.ray_cluster import Caller, Pool, Worker, cluster, require_shared
from adctl.training.cross_validation import ScoredFold, train_fold
from adctl.training.grid import Combination, GridRow, name_of, train_one

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.config import LoadedSettings, TrainSettings
    from adctl.progress import Reporter

log = logging.getLogger(__name__)

TRIES = 3
"""Ends of its process after which a training has failed."""

_NONE = object()


class Trainer(Worker):
    """Process that trains.

    Args:
        caller: Process of the command.
        loaded: Settings of the grid or the cross-validation.
        folder: Its folder.

    Raises:
        UsageError: This node has another version of adctl, or does not see the folder.
    """

    def __init__(self, caller: Caller, loaded: LoadedSettings[TrainSettings], folder: Path) -> None:
        super().__init__(caller)
        require_shared(folder)
        self._loaded, self._folder = loaded, folder
        self._failed_loggers: set[str] = set()
        self._sharing = shared_features()
        self._store = self._sharing.__enter__()  # as long as the process
        self._category: str | None = None

    def train(self, one: Combination) -> GridRow:
        """Train one combination of a grid."""
        if one.category != self._category:
            self._store.clear()
            self._category = one.category
        before = self._store.hits
        row = train_one(self._loaded, one, self._folder, self._failed_loggers)
        return replace(row, shared=self._store.hits - before)

    def fold(self, number: int, *, labelled: bool) -> ScoredFold:
        """Train one fold."""
        return train_fold(self._folder, self._loaded, number, self._failed_loggers, labelled=labelled)


@dataclass
class _Task:
    """One training.

    Attributes:
        what: The combination, or the number of the fold.
        group: Trainings of one group share features.
        ends: Processes that ended while they trained it.
    """

    what: Any
    group: str | None = None
    ends: int = 0


def train_combinations(
    loaded: LoadedSettings[TrainSettings], missing: Sequence[Combination], folder: Path, reporter: Reporter
) -> Iterator[GridRow]:
    """Train combinations of a grid on the Ray cluster of the settings; yield the results as they come.

    Args:
        loaded: Settings of the grid.
        missing: The combinations.
        folder: Folder of the grid, which all nodes share.
        reporter: Receiver of progress.

    Raises:
        UsageError: The cluster cannot be used, or a node does not see the folder.
        MissingExtraError: Ray is not installed.
    """
    waiting = [_Task(one, one.category) for one in missing]
    groups: dict[Any, str | None] = {}

    def pick(worker: Any) -> int:
        own, taken = groups.get(worker, _NONE), list(groups.values())
        chosen = min(range(len(waiting)), key=lambda at: (waiting[at].group != own, waiting[at].group in taken))
        groups[worker] = waiting[chosen].group
        return chosen

    def send(worker: Any, task: _Task) -> Any:
        return worker.train.remote(task.what)

    count = 0
    with cluster(loaded.settings.ray or "") as ray, reporter.stage("combinations", len(missing)) as update:
        for task, result in _pool(ray, loaded, folder).run(waiting, send, pick):
            row = result
            if not isinstance(row, GridRow):
                if _repeated(task, waiting):
                    continue
                row = GridRow(**asdict(task.what), error=f"Its process ended {task.ends} times.")
            count += 1
            update(count, len(missing))
            if row.error is not None:
                log.warning("%s: %s", name_of(row.combination), row.error)
            yield row


def train_folds(
    run: Path, loaded: LoadedSettings[TrainSettings], reporter: Reporter, *, labelled: bool
) -> list[ScoredFold]:
    """Train the folds of a cross-validation on the Ray cluster of the settings.

    Args:
        run: Folder of the run, which all nodes share.
        loaded: Settings of the cross-validation.
        reporter: Receiver of progress.
        labelled: Whether there are labelled test images.

    Raises:
        UsageError: The cluster cannot be used, or a node does not see the folder.
        TrainingError: The process of a fold ended several times.
        MissingExtraError: Ray is not installed.
    """
    folds = loaded.settings.folds or 0
    waiting, found = [_Task(number) for number in range(1, folds + 1)], []

    def send(worker: Any, task: _Task) -> Any:
        return worker.fold.remote(task.what, labelled=labelled)

    with cluster(loaded.settings.ray or "") as ray, reporter.stage("folds", folds) as update:
        for task, scored in _pool(ray, loaded, run).run(waiting, send):
            if isinstance(scored, ScoredFold):
                found.append(scored)
                update(len(found), folds)
            elif not _repeated(task, waiting):
                raise TrainingError(
                    f"The process that trained fold {task.what} ended {task.ends} times.",
                    "Give it more memory, or fewer processes a node with --ray-cpus.",
                )
    return sorted(found, key=lambda one: one.fold.number)


def _pool(ray: Any, loaded: LoadedSettings[TrainSettings], folder: Path) -> Pool[_Task]:
    settings = loaded.settings
    gpu = 0.0 if settings.device == "cpu" else settings.ray_gpu
    return Pool(ray, Trainer, (loaded, folder.absolute()), cpus=settings.ray_cpus, gpu=gpu)


def _repeated(task: _Task, waiting: list[_Task]) -> bool:
    """Put a task back whose process ended, unless it is likely to be the cause."""
    task.ends += 1
    if task.ends >= TRIES:
        return False
    waiting.insert(0, task)
    return True
