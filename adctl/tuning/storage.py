"""Storage of studies in the run database, so that a study continues after it was killed and several processes join."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from adctl.errors import UsageError
from adctl.tracking import database
from adctl.tuning.objective import OBJECTIVES

if TYPE_CHECKING:
    from adctl.config import TuneSettings

_HEARTBEAT_SECONDS = 60


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
        database.address(settings.runs),
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
