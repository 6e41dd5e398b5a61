"""A logger in a process of its own, which can neither delay nor end the training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from adctl.tracking.loggers import worker

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.tracking.loggers.base import LoggedRun

_FINISH_SECONDS, _FAILED_SECONDS = 60.0, 10.0
"""Maximum wait for the process after a training, and after a training that failed."""


class LoggerFailedError(Exception):
    """The process of a logger has ended, or has not finished in time."""


class ProcessLogger:
    """Logger in another process. Calls are sent and not waited for; `finish` waits for a limited time.

    Args:
        name: Name of the logger in `adctl.choices.LOGGERS`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, run: LoggedRun) -> None:
        """Start the process."""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-P", "-m", worker.__name__, self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        threading.Thread(target=self._write, args=(self._process,), daemon=True).start()
        self._send("start", run=run)

    def log_metrics(self, values: dict[str, float], epoch: int | None) -> None:
        """Send metrics."""
        self._send("log_metrics", values=values, epoch=epoch)

    def log_picture(self, name: str, png: bytes, epoch: int | None) -> None:
        """Send a picture."""
        self._send("log_picture", name=name, png=png, epoch=epoch)

    def log_text(self, name: str, text: str, epoch: int) -> None:
        """Send a text."""
        self._send("log_text", name=name, text=text, epoch=epoch)

    def log_model(self, model: Path) -> None:
        """Send the path of the model file."""
        self._send("log_model", model=model.absolute())

    def finish(self, *, succeeded: bool) -> None:
        """Wait until everything is written or sent, for a minute at most.

        Raises:
            LoggerFailedError: The logger has failed, or has not finished in time.
        """
        assert self._process is not None
        limit = _FINISH_SECONDS if succeeded else _FAILED_SECONDS
        try:
            self._send("finish", succeeded=succeeded)
            self._lines.put(b"")
            if self._process.wait(limit):
                raise LoggerFailedError(self._reason())
        except subprocess.TimeoutExpired:
            raise LoggerFailedError(f"it has not finished within {limit:.0f} seconds") from None
        finally:
            self._end()

    def _send(self, method: str, **arguments: Any) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            reason = self._reason()
            self._end()
            raise LoggerFailedError(reason)
        self._lines.put(worker.encode(method, **arguments))

    def _reason(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        reason = self._process.stdout.read().decode(errors="replace")
        return reason or f"its process ended with exit code {self._process.returncode}"

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        """Write lines until an empty one; a process that has ended reads no more."""
        assert process.stdin is not None
        with suppress(OSError), process.stdin as stream:
            while line := self._lines.get():
                stream.write(line)
                stream.flush()

    def _end(self) -> None:
        """End the process and those that it started, and the thread that writes to it."""
        assert self._process is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            with suppress(OSError):
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
        self._lines.put(b"")
        self._process.stdout.close()
