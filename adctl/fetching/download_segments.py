"""State of a partial download, and the download of its remaining segments over several connections at once."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from adctl import documents, files, reading
from adctl.errors import OutputError
from adctl.fetching.http import BadRangeError, PermanentError, RetryableError, read_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse
    from pathlib import Path

    Ask: TypeAlias = Callable[[int, int | None, "PartialDownload"], HTTPResponse]

_BLOCK = 1 << 18
_PROGRESS_INTERVAL = 0.1
_STATE_INTERVAL = 1.0
_STOP_TIMEOUT = 0.5
"""Seconds to wait for each thread to end after it was asked to stop."""


@dataclass
class Segment:
    """The bytes from `start` up to `end`, of which the first `done` have been received."""

    start: int
    end: int
    done: int

    @property
    def left(self) -> int:
        """Number of bytes not yet received."""
        return self.end - self.start - self.done


@dataclass(frozen=True)
class PartialDownload:
    """State of a partly received file.

    Attributes:
        have: Number of bytes received.
        validator: ETag or modification date by which the server recognises the file; None if it gave neither.
        total: Length stated by the server, or None.
        segments: Segments of the file; empty if one connection receives it in order.
    """

    have: int = 0
    validator: str | None = None
    total: int | None = None
    segments: tuple[Segment, ...] = ()


def read_partial(part: Path, state: Path, url: str) -> PartialDownload:
    """Read the state of an earlier download; empty if it was from another address or does not fit the part."""
    try:
        stored = documents.parse_json(reading.read_bytes(state))
        segments = tuple(Segment(*map(int, numbers)) for numbers in stored["pieces"])
        length = part.stat().st_size
        same_address = stored["url"] == _fingerprint(url)
        have = sum(segment.done for segment in segments) if segments else length
        partial = PartialDownload(have, stored["validator"], stored["total"], segments)
    except (OSError, ValueError, TypeError, KeyError):
        return PartialDownload()
    reach = max((segment.start + segment.done for segment in segments if segment.done), default=0)
    fits = (partial.total is None or have <= partial.total) and reach <= length and _cover(segments, partial.total)
    return partial if same_address and fits else PartialDownload()


def _cover(segments: tuple[Segment, ...], total: int | None) -> bool:
    """Return whether segments cover the whole file without overlap."""
    ends = [segment.end for segment in segments]
    starts = [segment.start for segment in segments]
    valid = all(segment.done >= 0 and segment.left >= 0 for segment in segments)
    return not segments or (valid and starts == [0, *ends[:-1]] and ends[-1] == total)


def write_partial(state: Path, url: str, partial: PartialDownload) -> None:
    """Write the state of a download to its state file."""
    segments = [[segment.start, segment.end, segment.done] for segment in partial.segments]
    stored = {"url": _fingerprint(url), "validator": partial.validator, "total": partial.total, "pieces": segments}
    files.write_json(state, stored)


def _fingerprint(url: str) -> str:
    """Return a digest of the address, so that its secrets are not stored."""
    return hashlib.sha256(url.encode()).hexdigest()


class SegmentDownloader:
    """Downloads the remaining segments of one file, several at once.

    Args:
        url: Address, for the state file.
        part: File that receives the data.
        state: State file of the part.
        partial: State of the download; the `done` of its segments is counted up.
        connections: Number of connections at once.
        progress: Called with (done, total) in the thread that calls `run`.
    """

    def __init__(
        self,
        url: str,
        part: Path,
        state: Path,
        partial: PartialDownload,
        connections: int,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self._url = url
        self._part = part
        self._state = state
        self._partial = partial
        self._connections = connections
        self._progress = progress
        self._stop = threading.Event()
        self._errors: list[Exception] = []

    def run(self, ask: Ask, first: HTTPResponse | None = None) -> None:
        """Download all remaining segments.

        Args:
            ask: Function that requests a range of bytes.
            first: Open response that continues the first segment.

        Raises:
            RetryableError: Some data did not arrive; the data received is kept.
            PermanentError: This address does not give the file.
            OutputError: The part cannot be written.
        """
        with files.output_errors(self._part):
            self._part.touch()
        waiting: queue.SimpleQueue[tuple[Segment, HTTPResponse | None]] = queue.SimpleQueue()
        unfinished = [segment for segment in self._partial.segments if segment.left]
        for segment in unfinished:
            waiting.put((segment, first if segment is self._partial.segments[0] else None))
        count = min(self._connections, len(unfinished))
        workers = [threading.Thread(target=self._work, args=(waiting, ask), daemon=True) for _ in range(count)]
        for worker in workers:
            worker.start()
        try:
            self._watch(workers)
        finally:
            self._stop.set()
            for worker in workers:
                worker.join(_STOP_TIMEOUT)
            self._write_state()
        if self._errors:
            raise self._main_error()

    def _watch(self, workers: list[threading.Thread]) -> None:
        """Report progress and write the state until all threads have ended, and report progress once after that."""
        written = time.monotonic()
        while any(worker.is_alive() for worker in workers):
            next(worker for worker in workers if worker.is_alive() or worker is workers[-1]).join(_PROGRESS_INTERVAL)
            self._report()
            if time.monotonic() - written > _STATE_INTERVAL:
                self._write_state()
                written = time.monotonic()
        self._report()  # short downloads can end before the loop begins

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(sum(segment.done for segment in self._partial.segments), self._partial.total)

    def _write_state(self) -> None:
        write_partial(self._state, self._url, replace(self._partial, have=0))

    def _work(self, waiting: queue.SimpleQueue[tuple[Segment, HTTPResponse | None]], ask: Ask) -> None:
        while not self._stop.is_set():
            try:
                segment, response = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._receive(segment, response or ask(segment.start + segment.done, segment.end, self._partial))
            except RetryableError as error:
                self._errors.append(error)  # the other segments may still succeed
                if isinstance(error, BadRangeError):
                    self._stop.set()
            except Exception as error:  # noqa: BLE001 - raised again in the thread that calls `run`
                self._errors.append(error)
                self._stop.set()

    def _receive(self, segment: Segment, response: HTTPResponse) -> None:
        with response, files.output_errors(self._part), self._part.open("rb+") as stream:
            stream.seek(segment.start + segment.done)
            while segment.left and (block := read_block(response, min(_BLOCK, segment.left))):
                if self._stop.is_set():
                    return
                stream.write(block)
                stream.flush()  # counted bytes must be in the file, even if the process is killed
                segment.done += len(block)
        if segment.left:
            position = segment.start + segment.done
            raise RetryableError(f"the connection was cut at byte {position} of {self._partial.total}")

    def _main_error(self) -> Exception:
        """Return the error that decides the next step: the most severe one, or the one with the longest wait."""
        for kind in (OutputError, PermanentError, BadRangeError):
            for error in self._errors:
                if isinstance(error, kind):
                    return error
        retryable = [error for error in self._errors if isinstance(error, RetryableError)]
        others = [error for error in self._errors if not isinstance(error, RetryableError)]
        return others[0] if others else max(retryable, key=lambda error: error.wait)
