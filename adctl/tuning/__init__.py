"""Tuning: settings that find generated defects on held-out good images best, without any real defect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.errors import MissingExtraError
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, TuneSettings
    from adctl.tuning.study import TuneResult


def tune(loaded: LoadedSettings[TuneSettings], reporter: Reporter = SILENT) -> TuneResult:
    """Search the best settings; see `adctl.tuning.study.tune`.

    Raises:
        MissingExtraError: Optuna is not installed.
    """
    try:
        from adctl.tuning import study
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise MissingExtraError("optuna", "tune") from error
    return study.tune(loaded, reporter)
