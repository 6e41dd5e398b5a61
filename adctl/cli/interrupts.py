"""A polite stop: Ctrl-C and SIGTERM unwind the program, so that temporary files go.

Python drops an exception that a signal raises inside a destructor or a weak reference's callback; what was asked
for is remembered, and raised again at the next sign of progress.
"""

from __future__ import annotations

import signal
import sys

_asked = False


def install() -> None:
    """Take the two signals, and say nothing of a stop that Python had to drop."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _dropped


def check() -> None:
    """Stop here when a stop was asked for.

    Raises:
        KeyboardInterrupt: It was.
    """
    if _asked:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    global _asked  # noqa: PLW0603 - there is one process, and so one such wish
    _asked = True
    raise KeyboardInterrupt


def _dropped(unraisable: sys.UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
