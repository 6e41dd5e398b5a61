"""Metrics for Prometheus."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """Counters and gauges of one server process; with several processes, the metrics are those of all together."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.verdicts = Counter("adctl_verdicts", "Verdicts.", ("model", "verdict"), registry=registry)
        self.stages = Histogram(
            "adctl_stage_seconds", "Time of each stage of a request.", ("stage",), registry=registry, buckets=_SECONDS
        )
        self.refused = Counter("adctl_refused", "Refused requests.", ("reason",), registry=registry)
        self.requests = Counter("adctl_requests", "Requests.", ("status",), registry=registry)
        self.queue = Gauge(
            "adctl_queue_length", "Images that wait or are scored.", registry=registry, multiprocess_mode="livesum"
        )
        self.missing = Gauge(
            "adctl_history_missing", "Verdicts that the history misses.", registry=registry, multiprocess_mode="livesum"
        )
        self.drifted = Gauge(
            "adctl_drifted", "1 if the images differ from those of the calibration.", ("model",), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.model = Gauge(
            "adctl_model_info", "1 for each model in use.", ("model", "model_digest", "calibration_digest", "version"),
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

        self.sinks = Histogram(
            "adctl_sink_seconds", "Time from the trigger of a part to the acknowledgement of a sink.", ("sink",),
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.waiting = Gauge(
            "adctl_sink_waiting", "Verdicts that wait for a sink.", ("sink",), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip

        # Finding the child of a label each time costs more than counting.
        self._status = cache(lambda status: self.requests.labels(str(status)))
        self._stage = cache(self.stages.labels)
        self._verdict = cache(self.verdicts.labels)

    def count(self, status: int) -> None:
        """Count an answer."""
        self._status(status).inc()

    def count_verdict(self, model: str, verdict: str) -> None:
        """Count a verdict."""
        self._verdict(model, verdict).inc()

    def observe_sink(self, sink: str, seconds: float) -> None:
        """Note the time from a trigger to a sink."""
        self.sinks.labels(sink).observe(seconds)

    def observe(self, milliseconds: Mapping[str, float]) -> None:
        """Note the milliseconds of each stage of a request."""
        for stage, value in milliseconds.items():
            self._stage(stage).observe(value / 1000)

    def page(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
