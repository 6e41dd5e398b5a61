"""Text about sinks, shared by commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adctl.sinks.delivery import SinkStatus


def describe_sink(status: SinkStatus) -> str:
    """Return the state of a sink in words."""
    parts = [f"{status.delivered} delivered"]
    if status.p95_ms is not None:
        parts.append(f"{status.median_ms:.0f} ms after the trigger (95 %: {status.p95_ms:.0f} ms)")
    parts += [f"{count} {word}" for count, word in ((status.waiting, "waiting"), (status.expired, "too late")) if count]
    return ", ".join(parts) + (f"; {status.error}" if status.error else "")
