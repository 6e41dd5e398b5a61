"""Interrupts: Ctrl-C and SIGTERM unwind the program, so that temporary files are removed.

Python drops an exception that a signal raises inside a destructor or a weak reference's callback; the request
is remembered, and raised again when progress is next reported.
"""

from __future__ import annotations

import signal
import sys

_requested = False


def install() -> None:
    """Handle both signals, and hide the message about an interrupt that Python dropped."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _dropped


def check() -> None:
    """Raise if an interrupt was requested.

    Raises:
        KeyboardInterrupt: An interrupt was requested.
    """
    if _requested:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    global _requested  # noqa: PLW0603 - one process, one request
    _requested = True
    raise KeyboardInterrupt


def _dropped(unraisable: sys.UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
