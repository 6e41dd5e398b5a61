"""Amounts of bytes written as text."""

from __future__ import annotations

import re

from adctl.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def parse_bytes(text: str, flag: str) -> int:
    """Parse a number of bytes such as `64MB`, `20 GB` or `1000000`.

    Raises:
        UsageError: The text is no number of bytes; the message names the flag.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{flag} {text} is not a number of bytes.", "Write it as 64MB, 20GB or 1000000.")
    return int(float(match[1]) * _FACTORS[match[2].lower()])
