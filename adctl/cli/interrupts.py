"""Interrupts: Ctrl-C, SIGTERM and SIGHUP unwind the program, so that results are kept and temporary files removed.

A second signal ends the program at once. Python drops an exception that a signal raises inside a destructor or a weak
reference's callback; the request is remembered, and raised again when progress is next reported.
"""

from __future__ import annotations

import os
import signal
import sys

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_OFFSET = 128
"""Exit codes of signals start here, as in a shell."""

_requested = 0


def install() -> None:
    """Handle the signals, and hide the message about an interrupt that Python dropped."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP, and so does adctl then.
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, _interrupt)
    sys.unraisablehook = _dropped


def check() -> None:
    """Raise if an interrupt was requested.

    Raises:
        KeyboardInterrupt: An interrupt was requested.
    """
    if _requested:
        raise KeyboardInterrupt


def exit_code() -> int:
    """Return the exit code of the signal that was received: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return _OFFSET + (_requested or signal.SIGINT)


def _interrupt(number: int, _: object) -> None:
    global _requested  # noqa: PLW0603 - one process, one request
    if _requested:
        os._exit(_OFFSET + number)
    _requested = number
    raise KeyboardInterrupt


def _dropped(unraisable: sys.UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
