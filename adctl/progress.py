"""Progress-reporting interface. The base class is silent; the command line shows progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Update(Protocol):
    """Receiver of the progress of a stage."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report progress.

        Args:
            done: Amount of work that is done.
            total: Amount of work in total; None if it is unchanged or unknown.
            note: Text beside the progress, such as the loss.
        """


class Reporter:
    """Silent progress reporter, and the base class of those that show progress."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Update]:
        """Start a stage, and yield a function `update(done, total, note)` to call as the work advances."""
        del title, total, in_bytes
        yield _ignore


def _ignore(done: int, total: int | None = None, note: str = "") -> None:
    del done, total, note


SILENT = Reporter()
