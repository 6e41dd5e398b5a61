"""How long work tells how far it is. The base class is silent; the command line shows bars.

Standard library only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reporter:
    """Takes note of stages and of how far each is; this one does nothing with it."""

    @contextmanager
    def stage(
        self, title: str, total: int | None = None, *, in_bytes: bool = False
    ) -> Iterator[Callable[[int, int | None], None]]:
        """Announce a stage; call what it gives with (done, total) now and then."""
        del title, total, in_bytes
        yield _ignore


def _ignore(done: int, total: int | None = None) -> None:
    del done, total


SILENT = Reporter()
