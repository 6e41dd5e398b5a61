"""Several server processes on one socket: each loads the models; one that dies is started again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import tempfile
import time
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adctl import files
from adctl.errors import AdctlError
from adctl.serve.server import END_SECONDS, ServeResult, serve_on
from adctl.serve.state import Server
from adctl.sinks.opening import open_sinks

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnProcess

    from adctl.config import ServeSettings

log = logging.getLogger(__name__)

_SHORT_SECONDS = 5.0
"""Life of a process below which it counts as failed at its start, and is not started again at once."""


def run_processes(settings: ServeSettings, listening: socket.socket, address: str) -> ServeResult:
    """Serve with several processes until interrupted.

    Raises:
        AdctlError: A setting is not valid, or no process could start.
    """
    began = time.monotonic()
    open_sinks(settings.sink)
    Server(replace(settings, sink=())).stop()  # refuses wrong settings, and makes the tables and the secret of sessions
    log.info("Listening on %s with %d processes. Press Ctrl-C to stop.", address, settings.workers)
    with tempfile.TemporaryDirectory(prefix="adctl-") as folder:
        metrics, events = (files.make_folder(Path(folder, name)) for name in ("metrics", "events"))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        start = partial(_start, settings, listening, events if hasattr(socket, "AF_UNIX") else None)
        processes = [start() for _ in range(settings.workers)]
        try:
            while True:
                _replace_dead(processes, start)
        except KeyboardInterrupt:
            pass
        finally:
            _end(processes)
    return ServeResult(address, settings.model, {}, 0, time.monotonic() - began)


_Started: TypeAlias = "tuple[SpawnProcess, float]"


def _start(settings: ServeSettings, listening: socket.socket, events: Path | None) -> _Started:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings.to_json(), listening, events))
    process.start()
    return process, time.monotonic()


def _replace_dead(processes: list[_Started], start: Callable[[], _Started]) -> None:
    """Wait until a process ends, and start another one in its place."""
    wait([process.sentinel for process, _ in processes])
    for index, (process, started) in enumerate(processes):
        if process.is_alive():
            continue
        log.error("A server process ended with code %s.", process.exitcode)
        if process.exitcode == AdctlError.exit_code:
            raise AdctlError("The server processes cannot start.", "The reason is above.")
        if time.monotonic() - started < _SHORT_SECONDS:
            time.sleep(_SHORT_SECONDS)
        processes[index] = start()


def _end(processes: list[_Started]) -> None:
    for process, _ in processes:
        process.terminate()
    until = time.monotonic() + END_SECONDS + 5
    for process, _ in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


def _work(values: dict[str, Any], listening: socket.socket, events: Path | None) -> None:
    from adctl.config import ServeSettings, validated

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        serve_on(validated(ServeSettings, values), listening, exchange=events)
    except AdctlError as error:
        log.error("%s %s", error.message, error.remedy)  # noqa: TRY400 - a message, no traceback
        raise SystemExit(AdctlError.exit_code) from error
