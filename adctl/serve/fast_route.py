"""Short way of requests for scores: FastAPI's routing and validation take longer than all else before decoding."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from adctl.errors import AdctlError
from adctl.serve.answers import Finite, Text
from adctl.serve.problems import of_error
from adctl.serve.score_routes import respond
from adctl.serve.scoring import MapFormat, Wish
from adctl.serve.security import admit, server_of

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"/v1/models/([A-Za-z0-9_.-]{1,100})/score")


class _Query(BaseModel):
    map: MapFormat = "none"
    threshold: Finite | None = None
    lot: Text = ""
    part: Text = ""


_DEFAULT = _Query()


class FastRoute:
    """ASGI middleware that answers valid requests for scores as `score_routes.score` does, and passes on all others.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        query = _parse(scope["query_string"]) if match is not None else None
        if match is None or query is None:
            await self._app(scope, receive, send)
            return
        response = await _answer(match[1], Request(scope, receive), query)
        await response(scope, receive, send)


def _parse(query: bytes) -> _Query | None:
    """Return the parameters of a request; None if they are not valid."""
    if not query:
        return _DEFAULT
    try:
        return _Query.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError:
        return None


async def _answer(name: str, request: Request, query: _Query) -> Response:
    try:
        caller = admit(request, "score")
        wish = Wish(query.map, query.threshold, query.lot, query.part, caller.name, request.state.request_id)
        return await respond(server_of(request), name, request, wish)
    except (HTTPException, AdctlError) as error:
        return of_error(error)
