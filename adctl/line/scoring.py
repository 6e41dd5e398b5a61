"""Scoring of the parts of several sources, one verdict each, into a scored set and to sinks."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl import files, run_folder
from adctl.config import LoadedSettings, ScoreSettings
from adctl.data.images import write_png
from adctl.data.loader import ArraySample, load_image
from adctl.errors import UsageError
from adctl.line.intake import open_intake
from adctl.line.verdicts import deciding, fault_row, part_id
from adctl.progress import SILENT, Reporter, Update
from adctl.records import ScoredImage, Verdict
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.heatmaps import LARGEST
from adctl.scoring.predict import predict_loaded
from adctl.scoring.score import (
    HeatmapWriter,
    ScoreResult,
    ScoreSummary,
    build_manifest,
    build_result,
    open_for_scoring,
    to_row,
    wants_heatmaps,
)
from adctl.scoring.score_set import CSV, JSONL, MANIFEST, write_manifest
from adctl.scoring.watch import DRIFT_SIGNIFICANCE, DRIFT_WINDOW, watch
from adctl.scoring.watch_log import LOG, Owner, WatchLog, claimed_by_watch
from adctl.sinks.base import message_of
from adctl.sinks.delivery import Outbox
from adctl.sources.opening import is_folder, shown, split_name
from adctl.thresholds.decision import DecisionRule
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.sources.base import Part

log = logging.getLogger(__name__)

_WAIT = 0.2
_GREY = 2


def score_sources(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
    """Score the parts of `settings.source` as they come; a single folder is watched as with `settings.watch`.

    Ctrl-C, SIGTERM, the time limits and the end of all sources end it.

    Args:
        loaded: Settings and their origins.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A source, a sink, the model or the device does not exist.
        MissingExtraError: A package is not installed.
        OutputError: The results cannot be written.
        DataError: The spool cannot be written.
    """
    settings = loaded.settings
    if settings.watch is not None or settings.images:
        raise UsageError("--source cannot be used together with --watch or named images.", "Give one of them.")
    if settings.ray is not None:
        raise UsageError("--source cannot be used together with --ray.", "Leave one of them out.")
    if len(settings.source) == 1 and is_folder(settings.source[0]):
        values = {**vars(settings), "watch": Path(split_name(settings.source[0])[1])}
        return watch(LoadedSettings(ScoreSettings(**values), loaded.origins), reporter)
    if settings.commission is not None:
        raise UsageError(
            "--commission needs a single folder of images.", "Commission with --watch, or adctl calibrate."
        )
    model = find_model(settings.runs, settings.model)
    folder = settings.out or model.parent / "scores" / "line"
    results = [folder / name for name in (MANIFEST, CSV, JSONL, LOG)]
    files.require_replaceable(results, overwrite=settings.overwrite, claimed=claimed_by_watch(folder))
    runtime = open_for_scoring(model, settings)
    start = time.perf_counter()
    owner = Owner(files.sha256_file(model), ", ".join(map(shown, settings.source)))
    with closing(Outbox(settings.runs, settings.sink)) as outbox, WatchLog(folder, owner) as watch_log:
        summary = _Line(loaded, runtime, watch_log, model, outbox).run(reporter)
    if watch_log.rows:
        run_folder.set_last(settings.runs, "scores", folder)
    return replace(build_result(model, folder, runtime, summary, start), sinks=outbox.status())


class _Line:
    """Loop that takes parts, judges them, and stores and sends their verdicts."""

    def __init__(
        self, loaded: LoadedSettings[ScoreSettings], runtime: Runtime, watch_log: WatchLog, model: Path, outbox: Outbox
    ) -> None:
        self._settings = settings = loaded.settings
        self._runtime, self._log, self._outbox, self._model = runtime, watch_log, outbox, model
        self._manifest = build_manifest(loaded, model, runtime)
        calibration = runtime.header.calibration
        self._rule = DecisionRule(calibration) if calibration else None
        self._images = HeatmapNames(watch_log.folder / "images")
        heatmaps = HeatmapWriter(HeatmapNames(watch_log.folder), calibration, settings.draw)
        self._heatmaps = heatmaps if wants_heatmaps(settings) else None
        self._summary = ScoreSummary(calibration, DRIFT_WINDOW, DRIFT_SIGNIFICANCE)
        self._intake = open_intake(settings, watch_log.done, watch_log.folder)

    def run(self, reporter: Reporter) -> ScoreSummary:
        """Run until stopped, and return the summary of the parts."""
        names = ", ".join(f"{source.name} ({shown(source.address)})" for source in self._intake.sources)
        log.info("Taking parts from %s. Press Ctrl-C to stop.", names)
        with reporter.stage("parts") as update, closing(self._intake):
            try:
                self._loop(update)
            except KeyboardInterrupt:
                log.info("Stopped.")
        self._publish(complete=True)
        return self._summary

    def _loop(self, update: Update) -> None:
        last = started = time.monotonic()
        until = started + (self._settings.watch_for or float("inf"))
        idle = self._settings.watch_idle or float("inf")
        while not self._intake.ended and time.monotonic() < until and time.monotonic() - last < idle:
            part = self._intake.next(min(_WAIT, max(0.0, until - time.monotonic())))
            if part is not None:
                self._judge(part)
                last = time.monotonic()
            update(self._log.rows)

    def _judge(self, part: Part) -> None:
        row, inputs, sample = self._row(part)
        source = self._intake.source(part.source)
        if row.error is not None and not part.last_try:  # the file may still be growing
            source.retry(part)
            return
        row = replace(row, path=self._keep(row, sample))
        digest = self._manifest["model"]["sha256"]
        if self._outbox:
            message = message_of(
                row, id=part_id(part, digest), triggered=part.time, source=part.source, part=part.part, lot=part.lot,
                frames=max(1, len(part.samples)), model=str(self._model), model_sha256=digest,
            )  # fmt: skip
            self._outbox.trigger(message["id"], part.triggered)
            self._outbox.put([message])
        self._log.add(row, part.stamp)
        self._summary.add(row, inputs)
        source.done(part)
        if self._log.rows == 1:
            self._publish(complete=False)
        level = logging.DEBUG if row.verdict is Verdict.GOOD else logging.INFO
        log.log(level, "%s: %s", row.key, row.error or f"{row.verdict}, score {row.score:.4g}")

    def _row(self, part: Part) -> tuple[ScoredImage, tuple[float, ...], Sample | None]:
        """Return the row of the image that decides, the statistics of that image, and the image."""
        if not part.samples:
            return fault_row(part), (), None
        display = LARGEST if self._heatmaps else None
        items = [load_image(sample, self._runtime.input, display) for sample in part.samples]
        predicted = predict_loaded(self._runtime, items, len(items))
        scored = [(to_row(one, self._rule), one) for one in predicted]
        row, one = deciding(scored, lambda pair: pair[0], self._settings.combine)
        target = self._heatmaps.target(one) if self._heatmaps else None
        if self._heatmaps and target:
            self._heatmaps.write(one, row, target)
        return row, one.inputs, one.item.sample

    def _keep(self, row: ScoredImage, sample: Sample | None) -> str:
        """Store the image of a camera's part unless it is good, and return the path of the part's image."""
        if not isinstance(sample, ArraySample) or row.verdict is Verdict.GOOD:
            return row.path
        path = self._images.path(row.key)
        files.make_folder(path.parent)
        image = sample.array.astype(np.uint8)
        write_png(path, np.stack([image] * 3, axis=-1) if image.ndim == _GREY else image)
        return str(path)

    def _publish(self, *, complete: bool) -> None:
        if self._log.rows:
            calibration = self._runtime.header.calibration
            write_manifest(self._log.folder, self._manifest, calibration, rows=self._log.rows, complete=complete)
