"""The server process: listening, TLS, signals and the orderly end."""

from __future__ import annotations

import gc
import importlib.util
import logging
import pkgutil
import socket
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adctl.config import ServeSettings
    from adctl.serve.state import Server
    from adctl.sinks.delivery import SinkStatus

log = logging.getLogger(__name__)

END_SECONDS = 15
"""Longest time for the work in hand after SIGTERM."""

_KEEP_ALIVE_SECONDS = 75


@dataclass(frozen=True)
class ServeResult:
    """Result of a server that has ended.

    Attributes:
        address: Address at which it listened.
        models: Names of the models that were loaded at the end.
        counts: Number of verdicts of each kind.
        missing: Number of verdicts that the history misses.
        seconds: Time that it ran.
        sinks: State of each sink at the end.
    """

    address: str
    models: tuple[str, ...]
    counts: dict[str, int]
    missing: int
    seconds: float
    sinks: tuple[SinkStatus, ...] = ()


def run_server(settings: ServeSettings, listens: Callable[[str], object] = lambda _: None) -> ServeResult:
    """Serve until SIGTERM or Ctrl-C; then finish the work in hand.

    Args:
        settings: Settings of the server.
        listens: Function that is called with the address before the models are opened.

    Raises:
        MissingExtraError: A package of the extra `serve` is not installed.
        AdctlError: A setting is not valid, a model cannot be opened, or the address is taken.
    """
    require_packages()
    _check_certificate(settings)
    with closing(listen(settings.host, settings.port)) as listening:
        address = address_of(settings.host, listening, scheme="http" if settings.tls_cert is None else "https")
        listens(address)
        if settings.workers > 1:
            run = pkgutil.resolve_name("adctl.serve.processes:run_processes")
            found: ServeResult = run(settings, listening, address)
            return found
        start = time.monotonic()
        server = serve_on(settings, listening, f"Listening on {address}. Press Ctrl-C to stop.")
    models = server.models.loaded
    counts = sum((Counter(model.counts) for model in models), Counter[str]())
    names = tuple(model.name for model in models)
    return ServeResult(
        address, names, dict(counts), server.history.writer.missing, time.monotonic() - start, server.outbox.status()
    )


def serve_on(
    settings: ServeSettings, listening: socket.socket, message: str = "", exchange: Path | None = None
) -> Server:
    """Serve on a socket until a signal, and return the state of the server that has ended.

    Args:
        settings: Settings of the server.
        listening: The socket.
        message: Text to log when the models are open.
        exchange: Folder by which several processes exchange events; None for one process alone.

    Raises:
        AdctlError: A setting is not valid, or a model cannot be opened.
    """
    import uvicorn

    from adctl.serve.app import create_app
    from adctl.serve.state import Server

    server = Server(settings, exchange)
    server.start()
    for model in server.models.loaded:
        log.info("Serving %s (%s on %s).", model.name, model.runtime.name, model.runtime.device)
    config = uvicorn.Config(create_app(server), **options(settings))
    gc.collect()
    gc.freeze()  # a collection of all that was loaded until now would stop every request for 50 ms, and find nothing
    if message:
        log.info("%s", message)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after the orderly end
        uvicorn.Server(config).run(sockets=[listening])
    return server


def require_packages() -> None:
    """Raise if a package of the extra is not installed.

    Raises:
        MissingExtraError: It is not; the message names it.
    """
    names = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
             "sse_starlette": "sse-starlette", "prometheus_client": "prometheus-client"}  # fmt: skip
    for module, package in names.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "serve")


def _check_certificate(settings: ServeSettings) -> None:
    """Raise if a file of certificate and key is missing, or only one of them is given."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together.", "Give both files.")
    for file in (settings.tls_cert, settings.tls_key):
        if file is not None and not file.is_file():
            raise UsageError(f"There is no file {file}.", "Check --tls-cert and --tls-key.")


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UsageError: The address is taken or does not exist.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}.",
            "Choose another --port or --host; --port 0 takes a free one.",
        ) from error


def address_of(host: str, listening: socket.socket, scheme: str = "http") -> str:
    """Return the address that clients use."""
    bracketed = f"[{host}]" if ":" in host else host
    return f"{scheme}://{bracketed}:{listening.getsockname()[1]}"


def options(settings: ServeSettings) -> dict[str, Any]:
    """Return the options of uvicorn."""
    from adctl.serve.connection import Connection

    return {
        "http": Connection,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": END_SECONDS,
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
    }
