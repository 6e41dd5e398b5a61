"""Progress-reporting interface. The base class is silent; the command line shows progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reporter:
    """Silent progress reporter, and the base class of those that show progress."""

    @contextmanager
    def stage(
        self, title: str, total: int | None = None, *, in_bytes: bool = False
    ) -> Iterator[Callable[[int, int | None], None]]:
        """Start a stage, and yield a function `update(done, total)` to call as the work advances."""
        del title, total, in_bytes
        yield _ignore


def _ignore(done: int, total: int | None = None) -> None:
    del done, total


SILENT = Reporter()
