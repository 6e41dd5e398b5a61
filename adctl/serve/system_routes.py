"""Routes of the server itself: health, metrics, events, sessions and the documentation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from sse_starlette.sse import EventSourceResponse

from adctl.files import to_json
from adctl.serve.answers import AuditPage, Identifier, LoginRequest, Readiness, Session, Status, problems
from adctl.serve.problems import ProblemError
from adctl.serve.security import Caller, MayChange, MayReview, MayScore, Running, identify
from adctl.serve.sessions import COOKIE, SECONDS

router = APIRouter(tags=["server"])

_PING_SECONDS = 15
_SEND_SECONDS = 10
_EVENTS: dict[int | str, Any] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get("/livez", summary="Tell whether the process runs", response_model=Status)
async def live() -> dict[str, str]:
    """Return at once."""
    return {"status": "ok"}


@router.get(
    "/readyz", summary="Tell whether images can be scored", response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not now."}},
)  # fmt: skip
def ready(server: Running) -> Response:
    """Return 200 if models are loaded and work is taken; tell what the history misses."""
    writer = server.history.writer
    models = [model.name for model in server.models.loaded]
    is_ready = bool(models) and not server.closing
    state = {
        "status": "ready" if is_ready else "closing" if server.closing else "no model is loaded",
        "models": models,
        "history": {"missing": writer.missing, "reason": writer.reason},
        "images": {"failed": server.images.failed},
    }
    return Response(to_json(state), 200 if is_ready else 503, media_type="application/json")


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse, responses=problems())
def metrics(server: Running, caller: MayScore) -> Response:
    """Return the metrics in the text format of Prometheus."""
    del caller
    return Response(server.telemetry.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get(
    "/v1/events", summary="Watch events", response_class=EventSourceResponse, responses={**_EVENTS, **problems(422)}
)
async def events(
    server: Running,
    caller: MayReview,
    last_event_id: Annotated[Identifier | None, Header(description="Event that the client has last.")] = None,
) -> EventSourceResponse:
    """Send events as they come: `verdict`, `drift`, `model` and `review`, each with JSON."""
    del caller
    return EventSourceResponse(server.events.listen(last_event_id), ping=_PING_SECONDS, send_timeout=_SEND_SECONDS)


@router.get("/v1/audit", summary="Show who changed what", response_model=AuditPage, responses=problems(422, 503))
def audit(server: Running, caller: MayChange, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """Return the newest entries of the audit log, the newest first."""
    del caller
    return {"entries": server.history.audit(limit)}


@router.get("/v1/session", summary="Tell who calls", response_model=Session, responses=problems())
def show_session(server: Running, request: Request) -> dict[str, Any]:
    """Return name and role of the caller, and the token that the page must send with changes."""
    return _session(server, identify(request))


@router.post("/v1/session", summary="Begin a session", response_model=Session, responses=problems(422))
def begin_session(server: Running, request: Request, response: Response, wanted: LoginRequest) -> dict[str, Any]:
    """Set the cookie of the page, which stands for the key."""
    key = server.keys.check(wanted.key)
    if key is None:
        raise ProblemError(401, "The key is wrong or revoked.", headers={"WWW-Authenticate": "Bearer"})
    cookie = server.sessions.start(key.id)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, cookie, SECONDS, httponly=True, samesite="strict", secure=secure)
    server.history.note(key.name, "login", "page")
    return _session(server, Caller(key.name, key.role, server.sessions.csrf(cookie)))


@router.delete("/v1/session", summary="End a session", status_code=204, responses=problems())
def end_session(request: Request, response: Response) -> None:
    """Remove the cookie of the page."""
    identify(request)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def _session(server: Running, caller: Caller) -> dict[str, Any]:
    return {"name": caller.name, "role": caller.role, "csrf": caller.csrf, "needs_key": server.needs_key}
