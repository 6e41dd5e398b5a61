"""Names from outside as text: for paths, terminals and tables.

File names, labels and keys of archives may hold any character, and bytes that are not UTF-8 (kept by Python as lone
surrogates). JSON documents keep them exactly; this module makes them safe elsewhere.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which terminals obey; characters that turn the direction of text; and lone surrogates."""

_SURROGATES = re.compile(r"[\ud800-\udfff]")

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")

_BYTES = range(0xDC80, 0xDD00)
"""Surrogates that stand for the bytes 0x80 to 0xFF."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters and bytes that are not UTF-8, such as `\x1b` and `\xfc`.

    Args:
        text: Text to show.
        keep: Control characters that stay, such as line ends.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(ord(found[0])), text)


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can encode: bytes of file names that are not UTF-8 are escaped, such as `\xfc`."""
    return _SURROGATES.sub(lambda found: _escaped(ord(found[0])), text)


def storable(text: str) -> str:
    """Return a text that databases can hold: surrogates and NUL are escaped; `restored` gives a path back."""
    return _UNSTORABLE.sub(lambda found: _escaped(ord(found[0])), text)


def restored(text: str) -> str:
    """Return a path from a database with its bytes that are not UTF-8."""
    return _ESCAPED_BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), text)


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file; texts that spreadsheet programs take for formulas get an apostrophe."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if value.startswith(_FORMULA) else shown


def safe_name(key: str) -> PurePosixPath:
    """Return a relative path for the name of an image that never leaves the folder it is joined to.

    Parts such as `..`, drives and leading slashes are replaced or removed.
    """
    parts = [part for part in re.split(r"[/\\]", key) if part not in ("", ".")]
    names = ["__" if part == ".." else re.sub(r"[\0:]", "_", part) for part in parts]
    return PurePosixPath(*names or "_")


def _escaped(code: int) -> str:
    if code in _BYTES:
        code -= _BYTES.start - 0x80
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - one byte
