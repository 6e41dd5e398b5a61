"""Identifiers that increase even if the clock is set back."""

from __future__ import annotations

import os
import threading
import time

from adctl.run_folder import encode_id

_RANDOM_BITS = 80


class IncreasingIds:
    """Source of ULIDs, each larger than all before it.

    Args:
        after: Identifier that all are larger than, such as the last one of a table; empty if there is none.
    """

    def __init__(self, after: str = "") -> None:
        self._lock = threading.Lock()
        self._last = _decode(after) if after else 0

    def next(self) -> str:
        """Return a new identifier."""
        number = time.time_ns() // 1_000_000 << _RANDOM_BITS | int.from_bytes(os.urandom(10))
        with self._lock:
            # Within a millisecond, or after the clock was set back: a random step above the last one.
            if number <= self._last:
                number = self._last + 1 + int.from_bytes(os.urandom(4))
            self._last = number
        return encode_id(number >> _RANDOM_BITS, (number & (1 << _RANDOM_BITS) - 1).to_bytes(10))


def _decode(identifier: str) -> int:
    number = 0
    for character in identifier:
        number = number << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    return number
