"""Scoring of files as they arrive in a folder: each file exactly once, also after a restart, and only complete files.

The folder is polled. File system events do not work on network shares, where factory cameras write, and are lost
when many files arrive at once. Polling finds every file, and is needed after a restart anyway.

A file is scored when its size and modification time have not changed for `settle` seconds, even if it was renamed in
that time. A new PNG or JPEG file that ends with the end marker of its format is scored at once. Files with names that
programs use for unfinished files are not scored. An unreadable file may still be growing, so it becomes an error row
only after ten times `settle` without a change. A changed file is scored again.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

from adctl import files, reading, run_folder
from adctl.data.colours import warn_of_colours
from adctl.data.datasets.folders import is_results
from adctl.data.depth import warn_of_depth
from adctl.data.images import IMAGE_SUFFIXES, JPEG_END, PNG_END
from adctl.errors import UsageError
from adctl.progress import SILENT, Reporter
from adctl.records import Sample, ScoredImage, Verdict
from adctl.run_folder import utc
from adctl.scoring.commissioning import COMMISSIONING, Commissioning
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.score import (
    DRIFTED,
    HeatmapWriter,
    ScoreResult,
    ScoreSummary,
    build_manifest,
    build_result,
    open_for_scoring,
    scored_rows,
    wants_heatmaps,
)
from adctl.scoring.score_set import CSV, JSONL, MANIFEST, write_manifest
from adctl.scoring.watch_log import LOG, Owner, Stamp, WatchLog, claimed_by_watch, file_id
from adctl.sinks.base import message_of
from adctl.sinks.delivery import Outbox
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.records import Calibration
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

_MIN_PAUSE = 0.25
"""Minimum seconds between two scans of the folder; after a slow scan the pause is longer."""

_PATIENCE = 10
"""Waiting time for an unreadable file, as a multiple of the settling time."""

_LONGEST_WAIT = 120.0
"""Seconds after which a file that still changes no longer keeps a watch with `watch_idle` from ending."""

_CHECKED = 16
"""Number of files whose depth and colour profile are checked."""

_UNFINISHED = (
    ".*", "~*", "*~", "tmp*", "*.tmp.*", "*.temp.*", "*.part.*", "*.partial.*", "*.crdownload.*", "*.filepart.*"
)  # fmt: skip
"""Name patterns of unfinished image files."""

DRIFT_WINDOW = 200
"""Number of the newest images that are compared with those of the calibration."""

DRIFT_EVERY = 20
"""Number of images between two comparisons."""

DRIFT_SIGNIFICANCE = 1e-4
"""Largest p-value that counts as drift: thousands of images are compared again and again."""

_END_MARKS = {b"\x89PNG": PNG_END, b"\xff\xd8\xff": JPEG_END}
"""First bytes of a format, and the last bytes of a complete file of that format."""


@dataclass(frozen=True)
class NewFile:
    """File to score.

    Attributes:
        path: Path of the file.
        key: Path relative to the watched folder, with forward slashes.
        stamp: Size and modification time when the file was selected.
        last_try: Whether the file becomes an error row if it cannot be read, because it has not changed for long.
    """

    path: Path
    key: str
    stamp: Stamp
    last_try: bool


@dataclass
class _PendingFile:
    """State of a file that is not scored yet.

    Attributes:
        stamp: Size and modification time.
        since: Time when this state was first found, in seconds of the monotonic clock.
        first: Time when the file was first found.
        tried: Whether scoring was tried in this state.
    """

    stamp: Stamp
    since: float
    first: float
    tried: bool = False


class Inbox:
    """Scanner of a folder for new and complete files.

    Args:
        folder: Folder to watch, with its subfolders.
        done: Stamp of each scored file by key; the caller adds entries as files are scored.
        settle: Seconds that a file must stay unchanged.
        without: Subfolder that is left out.
    """

    def __init__(self, folder: Path, done: dict[str, Stamp], *, settle: float, without: Path) -> None:
        self._folder = folder
        self._done = done
        self._settle = settle
        self._without = without.resolve()
        self._pending: dict[object, _PendingFile] = {}  # by inode and by key
        self._unreachable = False
        self._device: int | None = None
        self._told: set[Path] = set()

    def new_files(self) -> list[NewFile]:
        """Scan the folder once and return the files to score now, sorted by key."""
        now = time.monotonic()
        before, self._pending = self._pending, {}
        found = [file for path in self._files() if (file := self._new_file(path, before, now)) is not None]
        return sorted(found, key=lambda file: file.key)

    def _new_file(self, path: Path, before: dict[object, _PendingFile], now: float) -> NewFile | None:
        try:
            stat = path.stat()
        except OSError:  # the file was deleted or renamed after the folder was listed
            return None
        if not S_ISREG(stat.st_mode):  # a pipe would block, and a device has no end
            if path not in self._told and not _is_unfinished(path):
                self._told.add(path)
                log.warning("%s is ignored: it is a pipe, socket or device, and no regular file.", path)
            return None
        key, stamp, inode = path.relative_to(self._folder).as_posix(), Stamp.of(stat), (stat.st_dev, stat.st_ino)
        if self._done.get(key) == stamp:
            return None
        known = before.get(inode) or before.get(key)
        if known is None or known.stamp != stamp:
            pending, unchanged = _PendingFile(stamp, now, now if known is None else known.first), None
            ready = known is None and key not in self._done and _has_end_mark(path)
        else:
            pending, unchanged = known, now - known.since
            ready = not pending.tried and unchanged >= self._settle
        self._pending[inode] = pending
        if _is_unfinished(path):
            return None
        self._pending[key] = pending
        if now - pending.first > _LONGEST_WAIT and path not in self._told:
            self._told.add(path)
            log.warning("Waiting for %s, which has been changing for %.0f s.", path, now - pending.first)
        last_try = unchanged is not None and unchanged >= _PATIENCE * self._settle
        if not (ready or last_try):
            return None
        pending.tried = True
        return NewFile(path, key, stamp, last_try)

    def _files(self) -> Iterator[Path]:
        """Yield all files; unfinished files too, so that their settling time is known when they are renamed."""
        try:
            os.scandir(self._folder).close()
            device = self._folder.stat().st_dev
        except OSError as error:
            if not self._unreachable:
                log.warning("%s cannot be read (%s). Waiting until it can.", self._folder, error.strerror)
            self._unreachable = True
            return
        if self._unreachable:
            log.info("%s can be read again.", self._folder)
            self._unreachable = False
        if self._device not in (None, device):
            log.warning("%s was mounted or unmounted: it is another file system now.", self._folder)
        self._device = device
        for parent, folders, names in os.walk(self._folder):
            here = Path(parent)
            if here != self._folder and is_results(here):
                folders.clear()
                continue
            folders[:] = [name for name in folders if not self._is_excluded(here / name)]
            yield from (here / name for name in names)

    def _is_excluded(self, folder: Path) -> bool:
        return folder.name.startswith(".") or (folder.name == self._without.name and folder.resolve() == self._without)

    def waiting(self, longest: float = math.inf) -> int:
        """Return the number of images in the folder that are not scored yet.

        Args:
            longest: Seconds after which an image that still changes does not count.
        """
        now = time.monotonic()
        return sum(
            isinstance(key, str) and self._done.get(key) != file.stamp and now - file.first <= longest
            for key, file in self._pending.items()
        )


def _is_unfinished(path: Path) -> bool:
    name = path.name.lower()
    return path.suffix.lower() not in IMAGE_SUFFIXES or any(fnmatch.fnmatch(name, pattern) for pattern in _UNFINISHED)


def _has_end_mark(path: Path) -> bool:
    """Return whether a PNG or JPEG file ends with the end marker of its format; False for other formats."""
    try:
        with reading.open_regular(path) as stream:
            start = stream.read(4)
            stream.seek(-min(8, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            end = stream.read()
    except OSError:
        return False
    return any(start.startswith(head) and end.endswith(mark) for head, mark in _END_MARKS.items())


def watch(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
    """Score files as they arrive in `settings.watch`, until stopped.

    Ctrl-C, SIGTERM and the time limits end it in the same way: the results are complete, and the next start continues.

    Args:
        loaded: Settings and their origins; both are saved in `scores.json`.
        reporter: Receiver of progress reports; it can stop the watch.

    Raises:
        UsageError: The folder, model or device does not exist, or the results are of another model or folder.
        DataError: The file `watch.jsonl` is damaged.
        OutputError: The results cannot be written; rows written before the error are kept.
    """
    settings = loaded.settings
    assert settings.watch is not None
    model = find_model(settings.runs, settings.model)
    watched = _watched_folder(loaded)
    folder = settings.out or model.parent / "scores" / f"watch-{watched.name}"
    if watched.is_relative_to(folder.resolve()):
        raise UsageError(
            f"The folder of the results, {folder}, must not contain the watched folder {watched}.",
            "Choose another folder with --out.",
        )
    results = [folder / name for name in (MANIFEST, CSV, JSONL, LOG, COMMISSIONING)]
    files.require_replaceable(results, overwrite=settings.overwrite, claimed=claimed_by_watch(folder))
    log.debug("Model %s.", model)
    runtime = open_for_scoring(model, settings)
    start = time.perf_counter()
    owner = Owner(files.sha256_file(model), str(watched))
    with closing(Outbox(settings.runs, settings.sink)) as outbox, WatchLog(folder, owner) as watch_log:
        log.info("Watching %s. Files scored before: %d. Press Ctrl-C to stop.", watched, watch_log.rows)
        summary = _Watch(loaded, runtime, watch_log, model, watched, outbox).run(reporter)
    if watch_log.rows:
        run_folder.set_last(settings.runs, "scores", folder)
    return replace(build_result(model, folder, runtime, summary, start), sinks=outbox.status())


def _watched_folder(loaded: LoadedSettings[ScoreSettings]) -> Path:
    settings = loaded.settings
    assert settings.watch is not None
    if settings.images:
        raise UsageError("--watch cannot be used together with named images.", "Give either --watch or images.")
    if settings.maps and loaded.origins.get("maps", "default") != "default":
        raise UsageError(
            "--watch cannot save raw maps, because their file would be damaged if the process is killed.",
            "Leave out --maps.",
        )
    if settings.contaminated is not None and settings.commission is None:
        raise UsageError("--contaminated belongs to --commission, which is missing.", "Give --commission N too.")
    if not settings.watch.is_dir():
        raise UsageError(f"There is no folder {settings.watch} to watch.", "Create it first, or check the path.")
    return settings.watch.resolve()


class _Watch:
    """Loop that scans the folder, scores the new files and pauses."""

    def __init__(
        self,
        loaded: LoadedSettings[ScoreSettings],
        runtime: Runtime,
        watch_log: WatchLog,
        model: Path,
        watched: Path,
        outbox: Outbox,
    ) -> None:
        self._settings = loaded.settings
        self._outbox, self._model, self._watched = outbox, model, watched
        self._found = (0.0, 0.0)
        self._runtime = runtime
        self._log = watch_log
        self._manifest = build_manifest(loaded, model, runtime)
        self._inbox = Inbox(watched, watch_log.done, settle=self._settings.settle, without=watch_log.folder)
        self._names = HeatmapNames(watch_log.folder)
        self._written = {self._names.path(key) for key in watch_log.done}
        trained = runtime.header.calibration
        self._line = Commissioning(
            watch_log.folder, self._settings.commission, self._settings.contaminated, trained.views if trained else ()
        )
        self._summary = ScoreSummary(None, DRIFT_WINDOW, DRIFT_SIGNIFICANCE)
        if self._line.due:
            self._line.finish()
        self._use(None if self._line.missing else self._line.calibration or trained)
        self._drifted = False
        self._since_comparison = 0
        self._seen: list[Sample] = []
        depth = runtime.input.bit_depth
        self._checks: list[Callable[[list[Sample]], bool]] = [lambda seen: warn_of_depth(seen, depth), warn_of_colours]

    def run(self, reporter: Reporter) -> ScoreSummary:
        """Run until stopped, and return the summary of the files scored since the start."""
        with reporter.stage("watching") as update:
            try:
                self._loop(update)
            except KeyboardInterrupt:
                log.info("Stopped.")
        if self._inbox.waiting():
            log.warning(
                "Incomplete files that were not scored: %d. The next start scores them.",
                self._inbox.waiting(),
            )
        self._compare()
        self._publish(complete=True)
        return self._summary

    def _loop(self, update: Callable[[int, int | None], None]) -> None:
        started = last = time.monotonic()
        until = started + (self._settings.watch_for or float("inf"))
        if self._log.rows:
            self._publish(complete=False)
        while True:
            scan_started = time.monotonic()
            new_files = self._inbox.new_files()
            pause = max(_MIN_PAUSE, 2 * (time.monotonic() - scan_started))
            if new_files:
                self._score(new_files, until, update)
            if new_files or self._inbox.waiting(_LONGEST_WAIT):
                last = time.monotonic()
            idle = time.monotonic() - last
            if time.monotonic() >= until or idle >= (self._settings.watch_idle or float("inf")):
                return
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            update(self._log.rows, None)

    def _score(self, new_files: list[NewFile], until: float, update: Callable[[int, int | None], None]) -> None:
        """Score the new files, or as many as possible before the time limit."""
        while new_files and time.monotonic() < until:
            count = self._line.missing or len(new_files)
            self._score_some(new_files[:count], until, update)
            new_files = new_files[count:]

    def _score_some(self, new_files: list[NewFile], until: float, update: Callable[[int, int | None], None]) -> None:
        by_key = {file.key: file for file in new_files}

        def write(row: ScoredImage, _: NDArray[np.float32] | None, inputs: tuple[float, ...]) -> None:
            self._write(row, by_key[row.key], inputs)

        self._found = time.monotonic(), time.time()
        samples = [Sample(file.path, file.key) for file in new_files]
        self._check_first(samples)
        with closing(scored_rows(self._runtime, samples, self._settings, self._heatmaps, write)) as rows:
            for _ in rows:
                update(self._log.rows, None)
                if time.monotonic() >= until:
                    break
        self._log.sync()

    def _check_first(self, samples: list[Sample]) -> None:
        """Warn once if the first files hold values that are not read as they may be meant."""
        if len(self._seen) < _CHECKED:
            self._seen += samples[: _CHECKED - len(self._seen)]
            self._checks = [check for check in self._checks if not check(self._seen)]

    def _write(self, row: ScoredImage, file: NewFile, inputs: tuple[float, ...]) -> None:
        """Write the row unless the file changed while it was scored; a changed file is scored again."""
        try:
            if Stamp.of(file.path.stat()) != file.stamp:
                return
        except OSError:  # another program moved the file away, which does not matter if it was read before
            if row.error is not None:
                return
        if row.error is not None and not file.last_try:
            return
        self._send(row, file)
        self._log.add(row, file.stamp)
        self._summary.add(row, inputs)
        if self._line.missing:
            self._line.add(row, inputs)
            if self._line.due:
                self._use(self._line.finish())
                self._publish(complete=False)
        self._since_comparison += 1
        if self._since_comparison >= DRIFT_EVERY:
            self._compare()
        if self._log.rows == 1:
            self._publish(complete=False)
        level = logging.DEBUG if row.verdict is Verdict.GOOD else logging.INFO
        log.log(level, "%s: %s", row.key, row.error or f"{row.verdict}, score {row.score:.4g}")

    def _send(self, row: ScoredImage, file: NewFile) -> None:
        """Put the verdict into the spool, before the file counts as scored."""
        if not self._outbox:
            return
        digest = self._manifest["model"]["sha256"]
        moment, clock = self._found
        message = message_of(
            row, id=file_id(digest, row.key, file.stamp), triggered=utc(clock), source=self._watched.name,
            part=file.path.stem, lot=self._settings.lot, model=str(self._model), model_sha256=digest,
        )  # fmt: skip
        self._outbox.trigger(message["id"], moment)
        self._outbox.put([message])

    def _use(self, calibration: Calibration | None) -> None:
        """Judge by a calibration from now on; None gives no verdicts, while a line is commissioned."""
        self._runtime.header = replace(self._runtime.header, calibration=calibration)
        wanted, draw = wants_heatmaps(self._settings), self._settings.draw
        self._heatmaps = HeatmapWriter(self._names, calibration, draw, spare=self._is_foreign) if wanted else None
        self._summary.use(calibration)

    def _compare(self) -> None:
        """Say once that the images differ from those of the calibration, and once that they no longer do."""
        self._since_comparison = 0
        found = self._summary.drift()
        drifted = found is not None and found.drifted
        if found is not None and drifted and not self._drifted:
            log.warning("%s %s", DRIFTED, found.reason)
        elif self._drifted and not drifted:
            log.info("The images are like those of the calibration again.")
        if drifted != self._drifted:
            self._drifted = drifted
            self._publish(complete=False)

    def _is_foreign(self, heatmap: Path) -> bool:
        """Return whether a file of the user is in the place of a heatmap, and say so."""
        if heatmap in self._written or self._settings.overwrite or not heatmap.exists() or files.is_ours(heatmap):
            return False
        log.warning("%s exists already, and adctl did not write it: this image gets no heatmap.", heatmap)
        return True

    def _publish(self, *, complete: bool) -> None:
        if self._log.rows:  # a scored set has at least one row
            calibration = self._runtime.header.calibration
            drift = self._summary.drift()
            manifest = self._manifest | {"drift": asdict(drift) if drift else None}
            write_manifest(self._log.folder, manifest, calibration, rows=self._log.rows, complete=complete)
