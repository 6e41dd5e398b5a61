"""Storage of studies in the run database, so that a study continues after it was killed and several processes join."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
from sqlalchemy.pool import QueuePool

from adctl.errors import DataError, UsageError
from adctl.tracking import DATABASE_FILE, SERVER_VARIABLE, database
from adctl.tuning.objective import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adctl.config import TuneSettings

_HEARTBEAT_SECONDS = 60
_WAIT_SECONDS = 60


def open_study(
    settings: TuneSettings, name: str, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """Open a study, or create it.

    Raises:
        UsageError: A study of this name has other objectives or another detector.
        DataError: The database cannot be used.
    """
    with database.transaction(settings.runs):
        pass  # checks and creates the database
    keep = optuna.storages.RDBStorage(
        *_place(settings.runs),
        heartbeat_interval=_HEARTBEAT_SECONDS,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1),
    )
    directions = [OBJECTIVES[objective] for objective in settings.objective]
    study = optuna.create_study(
        storage=keep, study_name=name, sampler=sampler, pruner=pruner, directions=directions, load_if_exists=True
    )
    described = {"arch": settings.arch, "objective": list(settings.objective)}
    if study.user_attrs and study.user_attrs != described:
        raise UsageError(
            f"The study '{name}' is about {study.user_attrs}, not about {described}.", "Give another --name."
        )
    for key, value in described.items():
        study.set_user_attr(key, value)
    return study


def _place(runs: Path) -> tuple[str, dict[str, Any] | None]:
    """Return the address of the database, and options of its engine: an address would cut a path at `?` or `{`."""
    if SERVER_VARIABLE in os.environ:
        return database.address(runs), None
    path = runs.absolute() / DATABASE_FILE
    connect = partial(sqlite3.connect, path, timeout=_WAIT_SECONDS, check_same_thread=False)
    return "sqlite://", {"creator": connect, "poolclass": QueuePool}


@contextmanager
def errors(runs: Path) -> Iterator[None]:
    """Raise a `DataError` when the database of the studies, below a folder of runs, cannot be read or written."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, UnboundLocalError) as error:
        # Optuna 5 hides its own error behind an UnboundLocalError in a `finally` clause.
        failed = error.__context__ if isinstance(error, UnboundLocalError) else error
        if not isinstance(failed, optuna.exceptions.StorageInternalError):
            raise
        reason = str(getattr(failed.__cause__, "orig", failed)).splitlines()[0]
        raise DataError(
            f"Cannot use {database.where(runs)}: {reason}.",
            "Check the disk and the database; the same command continues the study.",
        ) from error
