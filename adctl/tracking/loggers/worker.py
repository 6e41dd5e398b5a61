"""The process of one logger: `python -m adctl.tracking.loggers.worker NAME`.

It reads calls from its standard input, one JSON document a line. If a call fails, it writes the reason to its standard
output and ends with exit code 1.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.tracking.loggers.base import LoggedRun, new_logger, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adctl.tracking.loggers.base import Logger

_LONGEST = 300


def encode(method: str, **arguments: Any) -> bytes:
    """Return a call of a method of a logger as a line for the process."""
    texts = {name: _to_json(value) for name, value in arguments.items()}
    return json.dumps({"method": method, "arguments": texts}).encode() + b"\n"


def serve(logger: Logger, lines: Iterable[bytes]) -> None:
    """Make the calls; if the sender ends without finishing, its training has failed."""
    finished = False
    for line in lines:
        call = json.loads(line)
        arguments = {name: _from_json(name, value) for name, value in call["arguments"].items()}
        getattr(logger, call["method"])(**arguments)
        finished = call["method"] == "finish"
    if not finished:
        logger.finish(succeeded=False)


def reason_of(error: BaseException) -> str:
    """Return an error in one short line without secrets."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return str(without_secrets(text))[:_LONGEST]


def _to_json(value: Any) -> Any:
    if isinstance(value, LoggedRun):
        return vars(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, Path) else value


def _from_json(name: str, value: Any) -> Any:
    """Return an argument as `_to_json` got it, by its name."""
    if name == "run":
        return LoggedRun(**value)
    if name == "png":
        return base64.b64decode(value)
    return Path(value) if name == "model" else value


def main(name: str) -> int:
    """Serve one logger; libraries that print write to nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which then ends this process
    with (
        os.fdopen(os.dup(1), "w", encoding="utf-8") as answers,
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
    ):
        os.dup2(nowhere.fileno(), 1)
        try:
            serve(new_logger(name), sys.stdin.buffer)
        except BaseException as error:  # noqa: BLE001 - a library may raise anything, and the training must know
            answers.write(reason_of(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
