"""Every error a user can meet, each with its remedy and its exit code.

    AdctlError                 1
    ├── UsageError             2  what was typed cannot be done: unknown name, missing path, clashing flags
    ├── DataError              1  images, masks or folders are not what they should be
    │   └── ImageError         1  one image cannot be used; scoring records it and goes on
    ├── ModelFileError         1  a model file is truncated, foreign, too new or not fitted
    ├── OutputError            1  results cannot be written: full disk, read-only folder
    ├── FetchError             1  a download failed, or what came is not what was promised
    ├── TrainingError          1  fitting cannot go on
    └── MissingExtraError      1  an optional dependency is not installed

The command line prints the message and the remedy and exits with the code; nothing else catches them.
Knows nothing of the rest of the package.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class AdctlError(Exception):
    """Something the user can understand and mend.

    Args:
        message: What is wrong and where, in one sentence.
        remedy: What to do about it, in one sentence; may be empty when the message says it all.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(AdctlError):
    """What was asked for cannot be done as typed."""

    exit_code: ClassVar[int] = 2


class DataError(AdctlError):
    """Images, masks or folders are not what they should be."""


class ImageError(DataError):
    """One image cannot be used."""


class ModelFileError(AdctlError):
    """A model file cannot be used."""


class OutputError(AdctlError):
    """Results cannot be written."""


class FetchError(AdctlError):
    """A download failed, or what came is not what was promised."""


class TrainingError(AdctlError):
    """Fitting a detector cannot go on."""


class MissingExtraError(AdctlError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package '{package}', which is not installed.",
            f"Install it with: pip install 'adctl[{extra}]'",
        )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not on a list, with the list and the likeliest meaning."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return UsageError(f"Unknown {kind} '{name}'.", f"{guess}Known: {', '.join(names) or 'none'}.")
