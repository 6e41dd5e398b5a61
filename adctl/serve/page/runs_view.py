"""A read-only page on this machine over the index of runs: table, filters, curves, comparison, lineage."""

from __future__ import annotations

import csv
import math
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adctl import reading
from adctl.errors import AdctlError, MissingExtraError, UsageError
from adctl.serve import problems
from adctl.serve.guard import LOCAL_NAMES, add_headers
from adctl.serve.page import rendering
from adctl.serve.server import address_of, listen
from adctl.tracking import queries
from adctl.tracking.lineage import lineage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from adctl.config import RunsViewSettings

_CURVES = "history.csv"
_CONSTANT = ("epoch", "phase")
_SHOWN_METRICS = 4
_MOST = 10_000


def serve_runs(settings: RunsViewSettings, announce: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        settings: Address and port, and the folder of runs.
        announce: Function that is called with the address of the page when it can be opened.

    Raises:
        UsageError: The address is not one of this machine alone, or another program uses the port.
        MissingExtraError: The extra `serve` is not installed.
        AdctlError: The index cannot be read.
    """
    if settings.host not in LOCAL_NAMES:
        raise UsageError(
            f"'adctl runs view' asks for no key, so it cannot listen on {settings.host}.",
            "Leave --host out. To look from another machine, forward the port: ssh -L 8001:127.0.0.1:8001 SERVER",
        )
    try:
        import uvicorn

        app = create_app(settings.runs)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve") from error
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    with listen(settings.host, settings.port) as listener:
        announce(f"{address_of(settings.host, listener)}/")
        server.run([listener])


def create_app(runs: Path) -> Starlette:
    """Return the application of the page.

    Args:
        runs: Folder of the runs.

    Raises:
        AdctlError: The index cannot be read.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    queries.find_runs(runs, limit=1)
    view = _View(runs)
    return Starlette(
        routes=[
            Route("/", view.page),
            Route(f"{rendering.ASSETS}/{{version}}/{{name}}", rendering.send_asset),
            Route("/data/runs", view.runs),
            Route("/data/runs/{id}/curves", view.curves),
            Route("/data/runs/{id}/lineage", view.lineage),
        ],
        middleware=[Middleware(_Guard)],
        exception_handlers={AdctlError: _problem},  # type: ignore[dict-item]
    )


class _Guard:
    """Refuses requests under another name than this machine's, and sets the headers of each answer.

    Another site's page could otherwise reach this one under a name that leads to this machine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(message)
            await send(message)

        if scope["type"] == "http" and Request(scope).url.hostname not in LOCAL_NAMES:
            refused = problems.problem(421, "This page answers only under the name of this machine.")
            await refused(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


class _View:
    """Answers of the page.

    Args:
        runs: Folder of the runs.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def page(self, request: Request) -> Response:
        """Return the page."""
        from starlette.responses import HTMLResponse

        headers = request.headers
        return HTMLResponse(
            rendering.render(
                "runs.html", request.cookies, headers.get("accept-language"), tab="runs", home="/", csrf=None
            )
        )

    def runs(self, request: Request) -> Response:
        """Return the runs that meet the conditions, and the names of columns."""
        asked = request.query_params
        where = [asked["where"]] if asked.get("where") else []
        found = queries.find_runs(self._runs, where, asked.get("sort") or "-id", _limit(asked))
        metrics = list(dict.fromkeys(name for row in found for name in row.values["metrics"]))
        settings = sorted({name for row in found for name in row.values["settings"]})
        columns = [*queries.COLUMNS, *metrics[:_SHOWN_METRICS]]
        names = [name for name in (found[0].values if found else ()) if name not in ("metrics", "settings")]
        rows = [{**row.values, "state": row.state} for row in found]
        return _json({"runs": rows, "columns": columns, "known": [*names, *metrics, *settings]})

    def curves(self, request: Request) -> Response:
        """Return each column of the run's history as points (epoch, value)."""
        return _json(_read_curves(self._folder(request) / _CURVES))

    def lineage(self, request: Request) -> Response:
        """Return the lineage of a run as a tree."""
        return _json(asdict(lineage_of(self._folder(request))))

    def _folder(self, request: Request) -> Path:
        return queries.find_run(self._runs, request.path_params["id"]).folder


def _limit(asked: Mapping[str, str]) -> int:
    text = asked.get("limit") or "20"
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise UsageError(f"The limit '{text}' is not a number from 1 to {_MOST}.", "Choose another one.")
    return int(text)


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the columns of a `history.csv` as points; an absent or damaged file has none."""
    try:
        rows = list(csv.DictReader(reading.read_text(path).splitlines()))
    except (OSError, ValueError, csv.Error):
        return {}
    names = [name for name in (rows[0] if rows else ()) if name not in _CONSTANT]
    curves = {name: _points([row[name] for row in rows]) for name in names if name is not None}
    return {name: points for name, points in curves.items() if len({value for _, value in points}) > 1}


def _points(texts: Iterable[str | None]) -> list[tuple[float, float]]:
    """Return the finite numbers among texts with their epochs, from 1."""
    points: list[tuple[float, float]] = []
    for epoch, text in enumerate(texts, 1):
        with suppress(ValueError):
            value = float(text or "")
            if math.isfinite(value):
                points.append((epoch, value))
    return points


def _json(value: Any) -> Response:
    from pydantic_core import to_json
    from starlette.responses import Response

    return Response(to_json(value, inf_nan_mode="null", fallback=str), media_type="application/json")


async def _problem(_: Request, error: AdctlError) -> Response:
    return problems.of_error(error)
