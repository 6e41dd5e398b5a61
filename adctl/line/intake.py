"""Threads of the sources, and the queue of parts that they fill."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.errors import AdctlError
from adctl.sources.camera import CameraOptions
from adctl.sources.opening import open_sources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import LineSettings
    from adctl.scoring.watch_log import Stamp
    from adctl.sources.base import Part, Source

log = logging.getLogger(__name__)

_LARGEST = 32
"""Parts with images that may wait. A live part beyond them cannot be judged in time, and is an error; files wait."""


class Intake:
    """Parts of several sources.

    Args:
        sources: The sources; each runs in a thread.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._by_name = {source.name: source for source in sources}
        self._queue: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_LARGEST)
        self._running = len(self.sources)
        for source in self.sources:
            threading.Thread(target=self._run, args=(source,), name=f"adctl-source-{source.name}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether all sources have ended and no part waits."""
        return self._running == 0 and self._queue.empty()

    def next(self, seconds: float) -> Part | None:
        """Return the next part; None if there is none for some seconds, or if a source has ended."""
        try:
            part = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if part is not None and part.samples:
            self._room.release()
        return part

    def source(self, name: str) -> Source:
        """Return the source of a name.

        Raises:
            KeyError: There is none.
        """
        return self._by_name[name]

    def close(self) -> None:
        """End all sources."""
        for source in self.sources:
            source.close()

    def _run(self, source: Source) -> None:
        try:
            for part in source.parts():
                self._queue.put(self._admitted(part, source) if part.samples else part)
        except AdctlError as error:
            source.state = f"ended: {error.message}"
            log.error("%s: %s", source.name, error.message)  # noqa: TRY400 - a message, no traceback
        except Exception:
            source.state = "ended by an internal error"
            log.exception("The source %s ended.", source.name)
        self._running -= 1
        self._queue.put(None)

    def _admitted(self, part: Part, source: Source) -> Part:
        if not part.live:
            while not self._room.acquire(timeout=0.2):
                if source.stops.is_set():
                    break
            return part
        if self._room.acquire(blocking=False):
            return part
        return replace(part, samples=(), fault=f"Parts come faster than they are judged: {_LARGEST} wait already.")


def open_intake(settings: LineSettings, done: dict[str, Stamp], without: Path) -> Intake:
    """Open the sources of a command, and start to take their parts.

    Args:
        settings: Sources, trigger, and images of a part.
        done: Stamp of each file that was scored before, by the key of its part.
        without: Folder of the results.

    Raises:
        UsageError: A source or the trigger is not valid.
        MissingExtraError: A package is not installed.
    """
    options = CameraOptions(settings.trigger, settings.frames, settings.debounce, settings.lot)
    return Intake(open_sources(settings.source, options, done=done, settle=settings.settle, without=without))
