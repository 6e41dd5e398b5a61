"""What of a file has come so far, and bringing the rest of it over several connections at once.

Knows how a part and the note beside it look on disk; how to ask for bytes it is told.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from adctl import files
from adctl.errors import OutputError
from adctl.fetching.http import BadRangeError, PermanentError, RetryableError, read_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse
    from pathlib import Path

    Ask: TypeAlias = Callable[[int, int | None, "PartialDownload"], HTTPResponse]

_BLOCK = 1 << 18
_BETWEEN_SIGNS = 0.1
_BETWEEN_NOTES = 1.0
_FAREWELL = 0.5
"""Seconds that a connection is given to notice that it is no longer wanted."""


@dataclass
class Segment:
    """The bytes from `start` to before `end`, of which the first `done` are here."""

    start: int
    end: int
    done: int

    @property
    def left(self) -> int:
        """Bytes that are missing."""
        return self.end - self.start - self.done


@dataclass(frozen=True)
class PartialDownload:
    """How much of a file is here already, and how the server knows it again.

    Attributes:
        have: Bytes that are here.
        validator: The ETag or the date of change the server gave; None when it gave neither.
        total: The length it promised, if it did.
        pieces: What each connection brings; empty when one brings all, in order.
    """

    have: int = 0
    validator: str | None = None
    total: int | None = None
    pieces: tuple[Segment, ...] = ()


def read_partial(part: Path, note: Path, url: str) -> PartialDownload:
    """What an earlier try left; nothing when it was at another address or the two files do not fit together."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        pieces = tuple(Segment(*map(int, numbers)) for numbers in told["pieces"])
        length = part.stat().st_size
        same = told["url"] == _fingerprint(url)
        have = sum(piece.done for piece in pieces) if pieces else length
        begun = PartialDownload(have, told["validator"], told["total"], pieces)
    except (OSError, ValueError, TypeError, KeyError):
        return PartialDownload()
    reach = max((piece.start + piece.done for piece in pieces if piece.done), default=0)
    fits = (begun.total is None or have <= begun.total) and reach <= length and _cover(pieces, begun.total)
    return begun if same and fits else PartialDownload()


def _cover(pieces: tuple[Segment, ...], total: int | None) -> bool:
    """Whether pieces make up the whole file, each once."""
    marks = [piece.end for piece in pieces]
    starts = [piece.start for piece in pieces]
    sound = all(piece.done >= 0 and piece.left >= 0 for piece in pieces)
    return not pieces or (sound and starts == [0, *marks[:-1]] and marks[-1] == total)


def write_partial(note: Path, url: str, begun: PartialDownload) -> None:
    """Remember who sends a file and how far it is."""
    pieces = [[piece.start, piece.end, piece.done] for piece in begun.pieces]
    told = {"url": _fingerprint(url), "validator": begun.validator, "total": begun.total, "pieces": pieces}
    files.write_json(note, told)


def _fingerprint(url: str) -> str:
    """Tells addresses apart without keeping the secrets in them."""
    return hashlib.sha256(url.encode()).hexdigest()


class SegmentDownloader:
    """Brings the missing pieces of one file, several at once.

    Args:
        url: For the note.
        part: The file that grows.
        note: The note beside it.
        begun: Its pieces; their `done` is counted up.
        connections: At once.
        progress: Told (done, total), by the thread that calls `run`.
    """

    def __init__(
        self,
        url: str,
        part: Path,
        note: Path,
        begun: PartialDownload,
        connections: int,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self._url = url
        self._part = part
        self._note = note
        self._begun = begun
        self._connections = connections
        self._progress = progress
        self._stop = threading.Event()
        self._errors: list[Exception] = []

    def run(self, ask: Ask, first: HTTPResponse | None = None) -> None:
        """Bring what is missing.

        Args:
            ask: Sends a request for the bytes from one place to another.
            first: An answer that is open already, at the place where the first piece goes on.

        Raises:
            CutError: Some of it did not come; what came is kept.
            FailedError: It is not to be had here.
            OutputError: It cannot be written.
        """
        with files.output_errors(self._part):
            self._part.touch()
        waiting: queue.SimpleQueue[tuple[Segment, HTTPResponse | None]] = queue.SimpleQueue()
        for piece in self._begun.pieces:
            if piece.left:
                waiting.put((piece, first if piece is self._begun.pieces[0] else None))
        workers = [threading.Thread(target=self._work, args=(waiting, ask), daemon=True) for _ in range(self._wanted())]
        for worker in workers:
            worker.start()
        try:
            self._watch(workers)
        finally:
            self._stop.set()
            for worker in workers:
                worker.join(_FAREWELL)
            self._write_note()
        if self._errors:
            raise self._worst()

    def _wanted(self) -> int:
        return min(self._connections, sum(piece.left > 0 for piece in self._begun.pieces))

    def _watch(self, workers: list[threading.Thread]) -> None:
        noted = time.monotonic()
        while any(worker.is_alive() for worker in workers):
            next(worker for worker in workers if worker.is_alive() or worker is workers[-1]).join(_BETWEEN_SIGNS)
            if self._progress is not None:
                self._progress(sum(piece.done for piece in self._begun.pieces), self._begun.total)
            if time.monotonic() - noted > _BETWEEN_NOTES:
                self._write_note()
                noted = time.monotonic()

    def _write_note(self) -> None:
        write_partial(self._note, self._url, replace(self._begun, have=0))

    def _work(self, waiting: queue.SimpleQueue[tuple[Segment, HTTPResponse | None]], ask: Ask) -> None:
        while not self._stop.is_set():
            try:
                piece, response = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._bring(piece, response or ask(piece.start + piece.done, piece.end, self._begun))
            except RetryableError as cut:
                self._errors.append(cut)  # the other pieces may still come
                if isinstance(cut, BadRangeError):
                    self._stop.set()
            except Exception as error:  # noqa: BLE001 - handed to the thread that waits
                self._errors.append(error)
                self._stop.set()

    def _bring(self, piece: Segment, response: HTTPResponse) -> None:
        with response, files.output_errors(self._part), self._part.open("rb+") as stream:
            stream.seek(piece.start + piece.done)
            while piece.left and (block := read_block(response, min(_BLOCK, piece.left))):
                if self._stop.is_set():
                    return
                stream.write(block)
                stream.flush()  # what is counted must be there, also after a kill
                piece.done += len(block)
        if piece.left:
            at = piece.start + piece.done
            raise RetryableError(f"the connection was cut at byte {at} of {self._begun.total}")

    def _worst(self) -> Exception:
        """The error that says most about what to do next."""
        for kind in (OutputError, PermanentError, BadRangeError):
            for error in self._errors:
                if isinstance(error, kind):
                    return error
        cuts = [error for error in self._errors if isinstance(error, RetryableError)]
        others = [error for error in self._errors if not isinstance(error, RetryableError)]
        return others[0] if others else max(cuts, key=lambda cut: cut.wait)
