"""User-facing exceptions, each with a remedy and an exit code.

    AdctlError                 1
    ├── UsageError             2  the command cannot be run as typed: unknown name, missing path, conflicting flags
    ├── DataError              1  images, masks or folders are missing, invalid or inconsistent
    │   └── ImageError         1  one image cannot be used; scoring records it and continues
    ├── ModelFileError         1  a model file is truncated, not written by adctl, too new or not fitted
    ├── OutputError            1  results cannot be written: full disk, read-only folder
    ├── FetchError             1  a download failed, or the downloaded data is not as expected
    ├── TrainingError          1  training cannot continue
    ├── PluginError            1  another package that provides a detector cannot be used
    └── MissingExtraError      1  an optional dependency is not installed

The command line prints the message and the remedy, and exits with the code.
This module depends on no other module of the package.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class AdctlError(Exception):
    """Base class of the errors that a user can understand and fix.

    Args:
        message: One sentence that says what is wrong and where.
        remedy: One sentence that says how to fix it; empty when the message is enough.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(AdctlError):
    """The command cannot be run as typed."""

    exit_code: ClassVar[int] = 2


class DataError(AdctlError):
    """Images, masks or folders are missing, invalid or inconsistent."""


class ImageError(DataError):
    """One image cannot be used."""


class ModelFileError(AdctlError):
    """A model file cannot be used."""


class OutputError(AdctlError):
    """Results cannot be written."""


class FetchError(AdctlError):
    """A download failed, or the downloaded data is not as expected."""


class TrainingError(AdctlError):
    """Training a detector cannot continue."""


class PluginError(AdctlError):
    """Another package that provides a detector cannot be used."""


class MissingExtraError(AdctlError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package '{package}', which is not installed.",
            f"Install it with: pip install 'adctl[{extra}]'",
        )


def unknown_name(kind: str, name: str, known: Iterable[str], origins: Mapping[str, str] | None = None) -> UsageError:
    """Return the error for an unknown name; it lists the known names and suggests the most similar one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f"Did you mean '{close[0]}'? " if close else ""
    listed = [f"{one} ({origins[one]})" if origins and one in origins else one for one in names]
    return UsageError(f"Unknown {kind} '{name}'.", f"{suggestion}Known: {', '.join(listed) or 'none'}.")
