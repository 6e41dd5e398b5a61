"""Everything that a running server holds."""

from __future__ import annotations

import ipaddress
import logging
import threading
from typing import TYPE_CHECKING, Any

from adctl.errors import UsageError
from adctl.serve.events import Events
from adctl.serve.guard import LOCAL_NAMES
from adctl.serve.history import History
from adctl.serve.image_store import ImageStore
from adctl.serve.keys import Keys
from adctl.serve.line import Line
from adctl.serve.rate_limit import RateLimit
from adctl.serve.retention import Retention
from adctl.serve.scoring import Scorer
from adctl.serve.served_models import ServedModels
from adctl.serve.sessions import Sessions
from adctl.serve.sizes import parse_bytes
from adctl.serve.telemetry import Telemetry
from adctl.serve.trainings import Trainings
from adctl.sinks.delivery import Outbox

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import ServeSettings
    from adctl.serve.scoring import Scored

log = logging.getLogger(__name__)

_KEY_SECONDS = 2.0
"""Seconds between two readings of the keys, after which a revoked key ends."""


_TOLD = ("id", "time", "model", "name", "lot", "part", "verdict", "score", "threshold", "p_value", "image")
"""Columns of a verdict that its event has."""


class Admission:
    """Counts the images that are worked on, up to a limit.

    Args:
        limit: Largest number.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def enter(self) -> bool:
        """Take a place; return whether there was one."""
        if self.count >= self.limit:
            return False
        self.count += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.count -= 1


class Server:
    """State of a running server.

    Args:
        settings: Settings of `adctl serve`.
        exchange: Folder by which several processes exchange events; None for one process alone.

    Attributes:
        settings: The settings.
        max_upload: Largest body in bytes.
        allowed_hosts: Host names that requests may name; empty for any.
        needs_key: Whether every request needs a key.
        images: Files below the data folder.
        outbox: Sinks that get the verdicts.
        line: Sources whose parts are judged; None for none.
        history: Verdicts, reviews, versions and the audit log.
        keys: Valid keys.
        sessions: Sessions of the page.
        events: Events for pages that watch.
        telemetry: Metrics.
        models: Models by name.
        scorer: Threads that decode and finish.
        trainings: Trainings that the page started.
        admission: Places for images.
        rate: Limit of requests by key.
        closing: Whether the server takes no new work.

    Raises:
        AdctlError: A setting is not valid, or the database or the data folder cannot be used.
    """

    def __init__(self, settings: ServeSettings, exchange: Path | None = None) -> None:
        if settings.source and settings.workers > 1:
            raise UsageError(
                "--source cannot be used together with --workers: each process would take each part.",
                "Leave out --workers, or start a second server.",
            )
        self.settings = settings
        self.max_upload = parse_bytes(settings.max_upload, "--max-upload")
        self.images = ImageStore((settings.data or settings.runs / "serve").absolute())
        self.telemetry = Telemetry()
        self.outbox = Outbox(settings.runs, settings.sink, self.telemetry.observe_sink)
        self.history = History(settings.runs, self.outbox)
        self.keys = Keys(settings.runs)
        self.sessions = Sessions(self.images.folder)
        local = is_loopback(settings.host)
        self.allowed_hosts = {*LOCAL_NAMES, settings.host.lower()} if local else set()
        self._requires_key = not local
        if self._requires_key and not self.keys:
            raise UsageError(
                f"--host {settings.host} opens the server to other machines, which needs a key.",
                "Make one: adctl serve keys add NAME --role admin. For HTTPS, give --tls-cert and --tls-key.",
            )
        self.events = Events()
        if exchange is not None:
            self.events.share(exchange)
        self.models = ServedModels(settings, self.history, self.tell)
        self.scorer = Scorer(settings, self.images, self.history, self.outbox)
        self.line: Line | None = None
        self.trainings = Trainings(settings.runs, self.images.folder / "trainings", self.tell)
        self.admission = Admission(settings.queue)
        self.rate = RateLimit(settings.rate)
        self.closing = False
        self._retention = Retention(settings, self.history, self.images)
        self._ends = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="adctl-housekeeper", daemon=True)

    @property
    def needs_key(self) -> bool:
        """Whether every request needs a key: if other machines reach the server, or if there are keys."""
        return self._requires_key or bool(self.keys)

    def start(self) -> None:
        """Open the models and start the background work.

        Raises:
            AdctlError: A model cannot be found or opened.
        """
        self.models.open_given()
        if self.settings.source:
            self.line = Line(self.settings, self.models, self.scorer, self.history, self.count)
        self._housekeeper.start()

    def stop(self) -> None:
        """End the background work, and write what waits."""
        self._ends.set()
        if self.line is not None:
            self.line.close()
        self.trainings.close()
        self.models.close()
        self.scorer.close()
        self.history.close()
        self.outbox.close()
        self.events.close()

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Send an event to the pages that watch, and count it."""
        self.events.publish(self.history.ids.next(), kind, data)
        if kind == "drift":
            self.telemetry.drifted.labels(data["name"]).set(data["drifted"])
        if kind == "model":
            self._show_models()

    def count(self, scored: Scored, model: str) -> None:
        """Count a recorded verdict, and send its event."""
        entry = scored.entry or {}
        self.telemetry.count_verdict(model, entry["verdict"])
        self.events.publish(scored.id, "verdict", {name: entry[name] for name in _TOLD})

    def _show_models(self) -> None:
        gauge = self.telemetry.model
        if self.settings.workers == 1:  # several processes share their metrics, which cannot be cleared
            gauge.clear()
        for model in self.models.loaded:
            version = model.version
            gauge.labels(model.name, version.model_digest, model.calibration_digest, version.version).set(1)

    def _keep_house(self) -> None:
        while not self._ends.wait(_KEY_SECONDS):
            try:
                self.keys.refresh()
                self.telemetry.missing.set(self.history.writer.missing)
                for sink in self.outbox.status():
                    self.telemetry.waiting.labels(sink.name).set(sink.waiting)
                self._retention.run_if_due()
                if self.settings.workers > 1:
                    self.models.follow()
            except Exception as error:  # noqa: BLE001 - the server goes on; the next turn tries again
                log.warning("Housekeeping failed: %s", error)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
