"""Dispatch of `train`: one training, the folds of one, or a grid of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.progress import SILENT, Reporter
from adctl.training import resume
from adctl.training.cross_validation import CrossValidationResult, cross_validate
from adctl.training.fetch_missing import fetch_missing
from adctl.training.grid import GridResult, is_grid, train_grid
from adctl.training.single_run import TrainResult, train_once

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, TrainSettings


def train(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT
) -> TrainResult | CrossValidationResult | GridResult | None:
    """Train once, fold by fold, or each combination of a grid.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Returns:
        What was made; None in processes that were started beside the first.

    Raises:
        AdctlError: As `train_once`, `cross_validate` and `train_grid` do.
    """
    settings = loaded.settings
    grid = is_grid(settings)
    if settings.resume is not None and not grid:
        settings = resume.settings_of(resume.find_run(loaded), loaded).settings
    fetch_missing(settings, reporter)
    if grid:
        return train_grid(loaded, reporter)
    if settings.folds is not None and settings.fold is None:
        return cross_validate(loaded, reporter)
    return train_once(loaded, reporter)
