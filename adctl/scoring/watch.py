"""Scoring files as they arrive in a folder: each exactly once, also across kills and restarts, and never half of one.

The folder is looked at again and again rather than subscribed to: the file system's events do not cross a network
share, where factory cameras write, and are dropped when many files come at once; looking finds every file whatever
was missed, and is needed after a restart anyway.

A file is taken once its size and time of change have stood still for `settle` seconds, whatever it was called
meanwhile; a PNG or JPEG that is new and ends with its format's end mark is taken at once, as one that was renamed
into place does. Names that programs give to unfinished files are waited out. A file that cannot be read may still be
growing: it becomes an error row only after ten times `settle` without change. A changed file is a new one.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import UsageError
from adctl.progress import SILENT, Reporter
from adctl.records import Sample, ScoredImage, Verdict
from adctl.scoring.score import (
    HeatmapWriter,
    ScoreResult,
    ScoreSummary,
    manifest_of,
    open_model,
    result_of,
    scored_rows,
    wants_heatmaps,
)
from adctl.scoring.score_set import write_manifest
from adctl.scoring.watch_log import Owner, Stamp, WatchLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

_LOOK = 0.25
"""Seconds between two looks at the folder, at least; a look that takes long is followed by a longer pause."""

_PATIENCE = 10
"""How many times the settling time a file that cannot be read may take to become readable."""

_UNFINISHED = (
    ".*", "~*", "*~", "tmp*", "*.tmp.*", "*.temp.*", "*.part.*", "*.partial.*", "*.crdownload.*", "*.filepart.*"
)  # fmt: skip
"""Names of unfinished files, besides those whose endings are no image's."""

_END_MARKS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}
"""How files of a format begin, and end once they are whole."""


@dataclass(frozen=True)
class NewFile:
    """A file to score.

    Attributes:
        path: Where it lies.
        key: Its path below the folder watched, with forward slashes.
        stamp: Its state when it was taken.
        last_try: Whether it stood still so long that it is what it is, even if it cannot be read.
    """

    path: Path
    key: str
    stamp: Stamp
    last_try: bool


@dataclass
class _Seen:
    """What is known of a file that is not scored yet.

    Attributes:
        stamp: Its state.
        since: When it was first seen in it, seconds of the monotonic clock.
        tried: Whether it was taken in this state already.
    """

    stamp: Stamp
    since: float
    tried: bool = False


class Inbox:
    """The files of a folder that are new and whole.

    Args:
        folder: Watched, with its subfolders.
        done: Files scored already, by key, and their states; grows as they are scored.
        settle: Seconds a file must stand still.
        without: A folder in it that is left out.
    """

    def __init__(self, folder: Path, done: dict[str, Stamp], *, settle: float, without: Path) -> None:
        self._folder = folder
        self._done = done
        self._settle = settle
        self._without = without.resolve()
        self._seen: dict[object, _Seen] = {}  # by inode and by key
        self._out_of_reach = False

    def arrivals(self) -> list[NewFile]:
        """Look once: files to score now, sorted by key."""
        now = time.monotonic()
        before, self._seen = self._seen, {}
        found = [arrival for path in self._files() if (arrival := self._arrival(path, before, now)) is not None]
        return sorted(found, key=lambda arrival: arrival.key)

    def _arrival(self, path: Path, before: dict[object, _Seen], now: float) -> NewFile | None:
        try:
            stat = path.stat()
        except OSError:  # it has gone, or been renamed, since the folder was read
            return None
        key, stamp, inode = path.relative_to(self._folder).as_posix(), Stamp.of(stat), (stat.st_dev, stat.st_ino)
        if self._done.get(key) == stamp:
            return None
        known = before.get(inode) or before.get(key)
        if known is None or known.stamp != stamp:
            seen, stood = _Seen(stamp, now), None
            ready = known is None and key not in self._done and _ends_whole(path)
        else:
            seen, stood = known, now - known.since
            ready = not seen.tried and stood >= self._settle
        self._seen[inode] = seen
        if _is_unfinished(path):
            return None
        self._seen[key] = seen
        last_try = stood is not None and stood >= _PATIENCE * self._settle
        if not (ready or last_try):
            return None
        seen.tried = True
        return NewFile(path, key, stamp, last_try)

    def _files(self) -> Iterator[Path]:
        """Images and unfinished files, whose standing still counts once they get their final names."""
        try:
            os.scandir(self._folder).close()
        except OSError as error:
            if not self._out_of_reach:
                log.warning("%s is out of reach (%s): waiting for it.", self._folder, error.strerror)
            self._out_of_reach = True
            return
        if self._out_of_reach:
            log.info("%s is there again.", self._folder)
            self._out_of_reach = False
        for parent, folders, names in os.walk(self._folder):
            here = Path(parent)
            folders[:] = [name for name in folders if not self._left_out(here / name)]
            yield from (here / name for name in names)

    def _left_out(self, folder: Path) -> bool:
        return folder.name.startswith(".") or (folder.name == self._without.name and folder.resolve() == self._without)

    def waiting(self) -> int:
        """How many images were seen that have no row yet."""
        return sum(isinstance(key, str) and self._done.get(key) != seen.stamp for key, seen in self._seen.items())


def _is_unfinished(path: Path) -> bool:
    name = path.name.lower()
    return path.suffix.lower() not in IMAGE_SUFFIXES or any(fnmatch.fnmatch(name, like) for like in _UNFINISHED)


def _ends_whole(path: Path) -> bool:
    """Whether a file ends with the end mark of its format, for the formats that have one."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(-min(8, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            end = stream.read()
    except OSError:
        return False
    return any(start.startswith(head) and end.endswith(mark) for head, mark in _END_MARKS.items())


def watch(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
    """Score files as they arrive in `settings.watch`, until stopped.

    Ctrl-C and SIGTERM end it like its limits do: what was scored is complete, and the next start goes on from there.

    Args:
        loaded: The settings and their origins; both are kept in `scores.json`.
        reporter: Asked now and then whether to stop.

    Raises:
        UsageError: There is no such folder, model or device; or the results there belong to something else.
        DataError: The journal is damaged.
        OutputError: The results cannot be written; rows written before are kept.
    """
    settings = loaded.settings
    assert settings.watch is not None
    model = run_folder.find_model(settings.runs, settings.model)
    watched = _folder(loaded)
    folder = settings.out or model.parent / "scores" / f"watch-{watched.name}"
    if watched.is_relative_to(folder.resolve()):
        raise UsageError(
            f"Results in {folder} would lie among the images of {watched}.", "Choose another folder with --out."
        )
    log.info("Model %s.", model)
    runtime = open_model(model, settings.device, settings.gpu, settings.runtime, settings.tta)
    start = time.perf_counter()
    with WatchLog(folder, Owner(files.sha256_file(model), str(watched))) as journal:
        log.info("Watching %s; %d files are scored already. Ctrl-C stops.", watched, journal.rows)
        tally = _Watch(loaded, runtime, journal, model, watched).run(reporter)
    if journal.rows:
        run_folder.set_last(settings.runs, "scores", folder)
    return result_of(model, folder, runtime, tally, start)


def _folder(loaded: LoadedSettings[ScoreSettings]) -> Path:
    settings = loaded.settings
    assert settings.watch is not None
    if settings.images:
        raise UsageError("--watch names the folder, so no other images can be given.", "Give one of them.")
    if settings.maps and loaded.origins.get("maps", "default") != "default":
        raise UsageError("--watch keeps no raw maps: their file does not survive a kill.", "Leave --maps out.")
    if not settings.watch.is_dir():
        raise UsageError(f"There is no folder {settings.watch} to watch.", "Make it first, or check the path.")
    return settings.watch.resolve()


class _Watch:
    """The loop: look, score what has come, pause."""

    def __init__(
        self, loaded: LoadedSettings[ScoreSettings], runtime: Runtime, journal: WatchLog, model: Path, watched: Path
    ) -> None:
        self._settings = loaded.settings
        self._runtime = runtime
        self._journal = journal
        self._manifest = manifest_of(loaded, model, runtime)
        self._inbox = Inbox(watched, journal.done, settle=self._settings.settle, without=journal.folder)
        calibration = runtime.header.calibration
        wanted = wants_heatmaps(self._settings)
        self._pictures = HeatmapWriter(journal.folder, calibration, self._settings.draw) if wanted else None
        self._tally = ScoreSummary(calibration)

    def run(self, reporter: Reporter) -> ScoreSummary:
        """Go on until stopped; what came since the start."""
        with reporter.stage("watching") as update:
            try:
                self._loop(update)
            except KeyboardInterrupt:
                log.info("Stopped.")
        if self._inbox.waiting():
            log.warning("%d files were not whole yet; the next start takes them up.", self._inbox.waiting())
        self._publish(complete=True)
        return self._tally

    def _loop(self, update: Callable[[int, int | None], None]) -> None:
        begun = last = time.monotonic()
        until = begun + (self._settings.watch_for or float("inf"))
        if self._journal.rows:
            self._publish(complete=False)
        while True:
            looked = time.monotonic()
            arrivals = self._inbox.arrivals()
            pause = max(_LOOK, 2 * (time.monotonic() - looked))
            if arrivals:
                self._score(arrivals, until, update)
            if arrivals or self._inbox.waiting():
                last = time.monotonic()
            idle = time.monotonic() - last
            if time.monotonic() >= until or idle >= (self._settings.watch_idle or float("inf")):
                return
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            update(self._journal.rows, None)

    def _score(self, arrivals: list[NewFile], until: float, update: Callable[[int, int | None], None]) -> None:
        """Score what has come, or as much of it as there is time for."""
        by_key = {arrival.key: arrival for arrival in arrivals}

        def write(row: ScoredImage, _: NDArray[np.float32] | None) -> None:
            self._write(row, by_key[row.key])

        samples = [Sample(arrival.path, arrival.key) for arrival in arrivals]
        with closing(scored_rows(self._runtime, samples, self._settings, self._pictures, write)) as rows:
            for _ in rows:
                update(self._journal.rows, None)
                if time.monotonic() >= until:
                    break
        self._journal.sync()

    def _write(self, row: ScoredImage, arrival: NewFile) -> None:
        """Keep a row if it tells of the file as it was taken; otherwise the file will be taken again."""
        try:
            if Stamp.of(arrival.path.stat()) != arrival.stamp:
                return
        except OSError:  # moved on by whoever comes next, which is no matter once it was read
            if row.error is not None:
                return
        if row.error is not None and not arrival.last_try:
            return
        self._journal.add(row, arrival.stamp)
        self._tally.add(row)
        if self._journal.rows == 1:
            self._publish(complete=False)
        level = logging.DEBUG if row.verdict is Verdict.GOOD else logging.INFO
        log.log(level, "%s: %s", row.key, row.error or f"{row.verdict}, score {row.score:.4g}")

    def _publish(self, *, complete: bool) -> None:
        if self._journal.rows:  # a set without rows is none
            calibration = self._runtime.header.calibration
            drift = self._tally.drift()
            manifest = self._manifest | {"drift": asdict(drift) if drift else None}
            write_manifest(self._journal.folder, manifest, calibration, rows=self._journal.rows, complete=complete)
