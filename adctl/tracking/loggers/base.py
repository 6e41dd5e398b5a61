"""Interface of a logger. Standard library only: the processes of loggers import it."""

from __future__ import annotations

import os
import pkgutil
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from adctl.choices import LOGGERS

if TYPE_CHECKING:
    from pathlib import Path

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
"""Names of environment variables whose values are never shown."""
_SHORTEST_SECRET = 6


@dataclass(frozen=True)
class LoggedRun:
    """Description of a run for a logger.

    Attributes:
        name: Name of the run's folder.
        folder: The folder, absolute.
        group: Name of the grid or cross-validation that the run belongs to; None for a single run.
        parameters: Settings that differ from their defaults, and the configuration of the detector; JSON-safe.
    """

    name: str
    folder: str
    group: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


class Logger(Protocol):
    """Receiver of everything about one run; any of its methods may raise anything."""

    def start(self, run: LoggedRun) -> None:
        """Begin the record of a run."""

    def log_metrics(self, values: dict[str, float], epoch: int | None) -> None:
        """Record metrics of an epoch, or of the whole run if `epoch` is None."""

    def log_picture(self, name: str, png: bytes, epoch: int | None) -> None:
        """Record a picture of an epoch, or of the whole run if `epoch` is None."""

    def log_text(self, name: str, text: str, epoch: int) -> None:
        """Record a text in Markdown of an epoch."""

    def log_model(self, model: Path) -> None:
        """Record the model file as an artifact."""

    def finish(self, *, succeeded: bool) -> None:
        """End the record; return when everything has been written or sent."""


def new_logger(name: str) -> Logger:
    """Return a new logger by its name in `adctl.choices.LOGGERS`."""
    logger: Logger = pkgutil.resolve_name(LOGGERS[name].logger)()
    return logger


def without_secrets(value: Any) -> Any:
    """Return a JSON-safe value with `***` for passwords in addresses and for secrets of the environment."""
    if isinstance(value, str):
        text = _CREDENTIALS.sub("***", value)
        for secret in (found for name, found in os.environ.items() if _SECRET.search(name)):
            text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
        return text
    if isinstance(value, dict):
        return {name: without_secrets(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return value
