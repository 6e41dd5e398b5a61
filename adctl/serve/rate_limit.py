"""Limit of requests per second."""

from __future__ import annotations

import time

_FEWEST = 1.0


class RateLimit:
    """Token bucket for each key.

    Args:
        rate: Requests per second; None for no limit. As many may come at once, and at least one.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        if self._rate is None:
            return 0.0
        most, now = max(self._rate, _FEWEST), time.monotonic()
        tokens, before = self._buckets.get(name, (most, now))
        tokens = min(most, tokens + (now - before) * self._rate)
        if tokens < 1:
            self._buckets[name] = (tokens, now)
            return (1 - tokens) / self._rate
        self._buckets[name] = (tokens - 1, now)
        return 0.0
