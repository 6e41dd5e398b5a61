"""Dispatch of `train` to a single run, cross-validation or a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.engine.distributed import is_secondary_process
from adctl.progress import SILENT, Reporter
from adctl.training.cross_validation import CrossValidationResult, cross_validate
from adctl.training.fetch_missing import fetch_missing
from adctl.training.grid import GridResult, is_grid, train_grid
from adctl.training.resume import find_run
from adctl.training.single_run import TrainResult, train_once

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, TrainSettings


def train(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT
) -> TrainResult | CrossValidationResult | GridResult | None:
    """Train a single run, the folds of a cross-validation, or the combinations of a grid.

    Args:
        loaded: The settings and their origins.
        reporter: Receiver of progress.

    Returns:
        The result; None in secondary processes of a distributed training.

    Raises:
        OutputError: No folder can be made for the run.
        AdctlError: See `train_once`, `cross_validate` and `train_grid`.
    """
    settings = loaded.settings
    grid = is_grid(settings)
    if settings.resume is not None and not grid:
        settings = find_run(loaded)[1].settings
    _check_folder(settings, may_exist=grid)
    fetch_missing(settings, reporter)
    if grid:
        return train_grid(loaded, reporter)
    if settings.folds is not None and settings.fold is None:
        return cross_validate(loaded, reporter)
    return train_once(loaded, reporter)


def _check_folder(settings: TrainSettings, *, may_exist: bool) -> None:
    """Raise if no new folder can be made for the run, before anything is fetched or read."""
    if settings.resume is not None or is_secondary_process():
        return
    folder = run_folder.named_folder(settings.runs, settings.name or "run")
    if settings.name and not may_exist:
        run_folder.require_unused(folder)
    files.require_writable([folder])
