"""The loggers of one run: everything is sent to each; one that fails is left out with a warning."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from adctl.choices import LOGGERS
from adctl.engine.training_log import PICTURE, FolderTrainingLog, contact_sheet_png, scalars
from adctl.errors import MissingExtraError
from adctl.tracking.loggers.base import LoggedRun, new_logger, without_secrets
from adctl.tracking.loggers.process import LoggerFailedError, ProcessLogger
from adctl.tracking.loggers.worker import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from adctl.engine.history import Epoch
    from adctl.engine.phases import Explanation
    from adctl.engine.training_log import Preview
    from adctl.tracking.loggers.base import Logger

log = logging.getLogger(__name__)

PREVIEW = "validation"
"""Name of the pictures of validation images."""


class Loggers:
    """The loggers of one run.

    Args:
        names: Names from `adctl.choices.LOGGERS`.
        group: Name of the grid or cross-validation that the run belongs to.
        failed: Names of loggers that failed in an earlier run of the group and are left out; grows.

    Raises:
        MissingExtraError: The package of a logger is not installed.
    """

    def __init__(self, names: Sequence[str], group: str | None = None, failed: set[str] | None = None) -> None:
        for spec in map(LOGGERS.__getitem__, names):
            if importlib.util.find_spec(spec.package) is None:
                raise MissingExtraError(spec.package, spec.extra)
        self._group = group
        self._failed = set() if failed is None else failed
        self._names = tuple(name for name in names if name not in self._failed)
        self._running: dict[str, Logger] = {}
        self._sent = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process of a distributed training gets: the loggers that write files themselves."""
        running = {name: one for name, one in self._running.items() if not isinstance(one, ProcessLogger)}
        return {**vars(self), "_running": running}

    @property
    def any(self) -> bool:
        """Whether a logger is running."""
        return bool(self._running)

    def start(self, folder: Path, parameters: dict[str, Any]) -> None:
        """Start the loggers.

        Args:
            folder: Folder of the run.
            parameters: Settings and configuration, JSON-safe; passwords are left out.
        """
        run = LoggedRun(folder.name, str(folder.absolute()), self._group, without_secrets(parameters))
        for name in self._names:
            self._running[name] = ProcessLogger(name) if LOGGERS[name].extra else new_logger(name)
        self._each(lambda one: one.start(run))

    def log_epoch(self, history: list[Epoch], preview: Preview | None) -> None:
        """Record the last epoch, and a picture of validation images if there is one."""
        self._catch_up(history[:-1])
        last = history[-1]
        self._each(partial(_log_scalars, last))
        self._sent = len(history)
        if preview is not None and self._running:
            png = contact_sheet_png(preview)
            self._each(lambda one: one.log_picture(PREVIEW, png, last.number))
            self._log_explanation(preview.shown, last.number)

    def _log_explanation(self, shown: Explanation | None, epoch: int) -> None:
        """Record the mean statistics of the pictures, and the words nearest to learnt tokens."""
        if shown is not None and shown.values:
            values = {f"attention/{name}": float(value.mean()) for name, value in shown.values.items()}
            self._each(lambda one: one.log_metrics(values, epoch))
        if shown is not None and shown.words:
            table = "\n".join(("| token | nearest words |", "|---|---|", *(f"| {a} | {b} |" for a, b in shown.words)))
            self._each(lambda one: one.log_text("words", table, epoch))

    def log_metrics(self, values: dict[str, float]) -> None:
        """Record metrics of the whole run."""
        if values:
            self._each(lambda one: one.log_metrics(values, None))

    def log_result(self, folder: Path, model: Path, history: list[Epoch], values: dict[str, float]) -> None:
        """Record a finished training: missing epochs, metrics, the chart of the loss and the model file."""
        self._catch_up(history)
        self.log_metrics(values)
        picture = folder / PICTURE
        if history and picture.is_file():
            png = picture.read_bytes()
            self._each(lambda one: one.log_picture(picture.stem, png, None))
        self._each(lambda one: one.log_model(model))

    def finish(self, *, succeeded: bool) -> None:
        """End the records."""
        self._each(lambda one: one.finish(succeeded=succeeded))
        self._running.clear()

    def _catch_up(self, history: Sequence[Epoch]) -> None:
        """Send epochs before a resume, or those of a distributed training, to loggers that have not seen them."""
        for epoch in history[self._sent :]:
            self._each(partial(_log_scalars, epoch), apart=True)
        self._sent = max(self._sent, len(history))

    def _each(self, call: Callable[[Logger], None], *, apart: bool = False) -> None:
        """Call all loggers, or those in processes of their own; one that fails is left out from then on."""
        for name, logger in list(self._running.items()):
            if apart and not isinstance(logger, ProcessLogger):
                continue
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001 - a logger must not end a training, whatever it raises
                del self._running[name]
                self._failed.add(name)
                reason = str(error) if isinstance(error, LoggerFailedError) else reason_of(error)
                log.warning("The logger %s failed, and the training goes on without it: %s", name, reason)


def _log_scalars(epoch: Epoch, logger: Logger) -> None:
    logger.log_metrics(scalars(epoch), epoch.number)


@contextmanager
def finished(loggers: Loggers) -> Iterator[Loggers]:
    """End the records of the loggers after the block: as failed if it raises."""
    succeeded = False
    try:
        yield loggers
        succeeded = True
    finally:
        loggers.finish(succeeded=succeeded)


class LoggedTrainingLog(FolderTrainingLog):
    """Training log in the folder of a run that sends each epoch to loggers too.

    Args:
        folder: Folder of the run.
        loggers: Started loggers.
    """

    def __init__(self, folder: Path, loggers: Loggers) -> None:
        super().__init__(folder)
        self._loggers = loggers
        self.wants_pictures = loggers.any

    def epoch(self, history: list[Epoch], preview: Preview | None) -> None:
        """Update the files, then the loggers."""
        super().epoch(history, preview)
        self._loggers.log_epoch(history, preview)
