"""Dispatch of `train` to a single run, cross-validation or a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.engine.distributed import is_secondary_process
from adctl.errors import UsageError
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.training.cross_validation import CrossValidationResult, cross_validate, train_folds_in_turn
from adctl.training.fetch_missing import fetch_missing
from adctl.training.grid import GridResult, is_grid, train_grid, train_in_turn
from adctl.training.ray_training import train_combinations, train_folds
from adctl.training.resume import find_run
from adctl.training.single_run import TrainResult, train_once
from adctl.training.update import train_update

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, TrainSettings


def train(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT
) -> TrainResult | CrossValidationResult | GridResult | None:
    """Train a single run, the folds of a cross-validation, the combinations of a grid, or an update.

    Args:
        loaded: The settings and their origins.
        reporter: Receiver of progress.

    Returns:
        The result; None in secondary processes of a distributed training.

    Raises:
        OutputError: No folder can be made for the run.
        AdctlError: See `train_once`, `cross_validate`, `train_grid` and `train_update`.
    """
    settings = loaded.settings
    _check_only_for_classifiers(loaded)
    grid = is_grid(settings)
    if settings.resume is not None and not grid:
        settings = find_run(loaded)[1].settings
    if loaded.settings.resume is None:
        _check_folder(settings, may_exist=grid)
    if settings.update is not None:
        _check_ray(settings, several=False)
        return train_update(loaded, reporter)
    _check_only_for_updates(loaded)
    folds = settings.folds is not None and settings.fold is None
    _check_ray(settings, several=grid or folds)
    fetch_missing(settings, reporter)
    if grid:
        return train_grid(loaded, reporter, train_combinations if settings.ray else train_in_turn)
    if folds:
        return cross_validate(loaded, reporter, train_folds if settings.ray else train_folds_in_turn)
    return train_once(loaded, reporter)


def _check_ray(settings: TrainSettings, *, several: bool) -> None:
    if settings.ray is not None and not several:
        raise UsageError(
            "--ray spreads the trainings of a grid or of --folds, and this is a single training.",
            "Leave it out; on several machines, a single training is started by torchrun.",
        )


def _check_folder(settings: TrainSettings, *, may_exist: bool) -> None:
    """Raise if no new folder can be made for the run, before anything is fetched or read."""
    if is_secondary_process():
        return
    folder = run_folder.named_folder(settings.runs, settings.name or "run")
    if settings.name and not may_exist:
        run_folder.require_unused(folder)
    files.require_writable([folder])


def _check_only_for_classifiers(loaded: LoadedSettings[TrainSettings]) -> None:
    """Raise if settings are given that only a classifier has."""
    for name in ("balance", "focal_gamma", "label_smoothing", "mixup_alpha", "cutmix_alpha", "test_share"):
        if loaded.origins[name].startswith("--"):
            raise UsageError(f"{flag_name(name)} belongs to classifiers.", "Give --task classify too.")


def _check_only_for_updates(loaded: LoadedSettings[TrainSettings]) -> None:
    """Raise if settings are given that only an update has."""
    for name in ("recalibrate", "trust_reviews", "confirmed"):
        if loaded.origins[name].startswith("--"):
            raise UsageError(f"{flag_name(name)} belongs to --update, which is missing.", "Give --update MODEL too.")
