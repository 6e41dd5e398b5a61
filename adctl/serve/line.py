"""The line of a server: parts of its sources are scored by served models, and their verdicts are recorded and sent."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl import reading
from adctl.data.loader import ArraySample
from adctl.line.intake import open_intake
from adctl.line.verdicts import fault_row
from adctl.records import Verdict
from adctl.scoring.watch_log import file_id
from adctl.serve.scoring import Upload, Wish
from adctl.sources.opening import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.config import ServeSettings
    from adctl.records import Sample
    from adctl.serve.history import History
    from adctl.serve.scoring import PartJob, Scored, Scorer
    from adctl.serve.served_models import ServedModel, ServedModels
    from adctl.sources.base import Part

log = logging.getLogger(__name__)

_WAIT = 0.2
_AHEAD = 8
"""Parts that are decoded and predicted at once; their verdicts keep the order of the triggers."""

_PATIENCE = 10.0
"""Longest time for the parts in hand at the end, in seconds."""


@dataclass(frozen=True)
class _Taken:
    """Part on its way.

    Attributes:
        part: The part.
        model: Model that judges it.
        wish: Facts for the history.
        job: Its images; None for a part without images.
        uses: Keeps the model open.
    """

    part: Part
    model: ServedModel
    wish: Wish
    job: PartJob | None
    uses: ExitStack


class Line:
    """Two threads: one takes parts and begins to score them, and one concludes them in order.

    A source that has the name of a served model is judged by it, and any other by the first model.

    Args:
        settings: Sources, trigger, and images of a part.
        models: Served models.
        scorer: Scorer of the server.
        history: History, which knows the files that were judged before.
        tell: Function that is called with each result and the name of its model.

    Raises:
        UsageError: A source or the trigger is not valid.
        MissingExtraError: A package is not installed.
        AdctlError: The history cannot be read.
    """

    def __init__(
        self,
        settings: ServeSettings,
        models: ServedModels,
        scorer: Scorer,
        history: History,
        tell: Callable[[Scored, str], None],
    ) -> None:
        self._settings, self._models, self._scorer, self._tell = settings, models, scorer, tell
        self._intake = open_intake(settings, {}, settings.runs)
        self._known = history.requests_of([source.name for source in self._intake.sources])
        self._jobs: queue.Queue[_Taken | None] = queue.Queue(_AHEAD)
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"adctl-line-{name}", daemon=True)
            for name, work in (("take", self._take), ("conclude", self._conclude))
        ]
        for thread in self._threads:
            thread.start()

    def trigger(self, source: str, part: str, lot: str) -> bool:
        """Take a part of a camera now; return False if it does not wait for requests.

        Raises:
            KeyError: There is no such source.
        """
        return self._intake.source(source).trigger(part, lot)

    def state(self) -> list[dict[str, Any]]:
        """Return name, address without passwords, and state of each source."""
        return [{"name": one.name, "address": shown(one.address), "state": one.state} for one in self._intake.sources]

    def close(self) -> None:
        """End the sources, and conclude the parts in hand."""
        self._ends.set()
        self._intake.close()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _take(self) -> None:
        while (part := self._intake.next(_WAIT)) is not None or not (self._ends.is_set() or self._intake.ended):
            try:
                if part is not None:
                    self._begin(part)
            except Exception:
                log.exception("The part was not judged.")
        self._jobs.put(None)

    def _begin(self, part: Part) -> None:
        request = "" if part.live or not part.stamp.size else file_id("", part.key, part.stamp)
        if request in self._known:
            self._intake.source(part.source).done(part)
            return
        model = self._models.get(part.source) or next(iter(self._models.loaded), None)
        if model is None:
            log.error("No model is loaded, so %s is not judged.", part.key)
            self._intake.source(part.source).retry(part)
            return
        try:
            uploads = [_upload_of(sample) for sample in part.samples]
        except OSError as error:
            uploads, part = [], replace(part, samples=(), fault=f"The file cannot be read: {error}.")
        wish = Wish(
            lot=part.lot, part=part.part, client=part.source, request=request, triggered=(part.triggered, part.time),
            frames=max(1, len(uploads)),
        )  # fmt: skip
        uses = ExitStack()
        uses.enter_context(model.use())
        job = self._scorer.begin_part(model, uploads, wish) if uploads else None
        self._jobs.put(_Taken(part, model, wish, job, uses))

    def _conclude(self) -> None:
        while (taken := self._jobs.get()) is not None:
            try:
                with taken.uses:
                    self._conclude_one(taken)
            except Exception:
                log.exception("The part %s was not judged.", taken.part.key)

    def _conclude_one(self, taken: _Taken) -> None:
        part, source = taken.part, self._intake.source(taken.part.source)
        scored = self._scored(taken)
        if scored.row.verdict is Verdict.ERROR and not part.last_try:  # the file may still be growing
            source.retry(part)
            return
        self._scorer.record(scored, taken.model, taken.wish)
        source.done(part)
        self._tell(scored, taken.model.name)
        level = logging.DEBUG if scored.row.verdict is Verdict.GOOD else logging.INFO
        log.log(level, "%s: %s", part.key, scored.row.error or f"{scored.row.verdict}, score {scored.row.score:.4g}")

    def _scored(self, taken: _Taken) -> Scored:
        if taken.job is None:
            return self._scorer.without_score(fault_row(taken.part))
        try:
            return self._scorer.end_part(taken.job, self._settings.combine, self._settings.deadline)
        except Exception as error:  # a part without a verdict must not pass as a good one
            log.exception("The part %s was not judged.", taken.part.key)
            reason = f"Internal error: {type(error).__name__}."
            return self._scorer.without_score(fault_row(replace(taken.part, fault=reason)))


def _upload_of(sample: Sample) -> Upload:
    """Return an image of a part; the file of one that comes from a folder is read.

    Raises:
        OSError: It cannot be read.
    """
    if isinstance(sample, ArraySample):
        return Upload(sample.key, b"", sample.array)
    with reading.open_regular(sample.path) as stream:
        return Upload(sample.key, stream.read())
