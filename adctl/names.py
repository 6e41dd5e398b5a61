r"""Names from outside as text: for paths, terminals and tables.

File names, labels and keys of archives may hold any character, and bytes that are not UTF-8 (kept by Python as lone
surrogates). JSON documents keep them exactly; this module makes them safe elsewhere. In tables (CSV, Parquet) such a
byte is written as `\xfc`, and a backslash that seems to begin one as `\x5c`, so that `restored` gives the name back.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which terminals obey; characters that turn the direction of text; and lone surrogates."""

_SURROGATES = re.compile(r"[\ud800-\udfff]")

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:x(5c|[89a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}))")
"""Texts that stand for a backslash, a byte that is not UTF-8, or another lone surrogate."""

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


def escaped_name(text: str) -> str:
    r"""Return a name for a cell of a table that UTF-8 can encode; `restored` gives the name back.

    A byte that is not UTF-8 becomes `\xfc`, and a backslash before what reads like such an escape `\x5c`. On Windows,
    where backslashes divide paths and names have no such bytes, backslashes stay.
    """
    guarded = text if os.name == "nt" else _ESCAPED.sub(lambda found: rf"\x5c{found[0][1:]}", text)
    return encodable(guarded)


def restored(text: str) -> str:
    """Return a name from a table or a path from a database, with its bytes that are not UTF-8."""
    return text if os.name == "nt" else _ESCAPED.sub(_unescaped, text)


def _unescaped(found: re.Match[str]) -> str:
    if found[2]:
        return chr(int(found[2], 16))
    code = int(found[1], 16)
    return chr(code if code == ord("\\") else 0xDC00 + code)


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file; texts that spreadsheet programs take for formulas get an apostrophe."""
    if not isinstance(value, str):
        return value
    shown = printable(escaped_name(value))
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
