"""Callers and their rights: keys, and sessions of the page."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from adctl.serve.keys import ROLES, Role
from adctl.serve.problems import ProblemError, busy
from adctl.serve.sessions import COOKIE, CSRF_HEADER
from adctl.serve.state import Server

if TYPE_CHECKING:
    from adctl.serve.keys import Key

_SAFE = {"GET", "HEAD", "OPTIONS"}
_SAME_SITE = {"same-origin", "none"}

_bearer = HTTPBearer(auto_error=False, description="Key from `adctl serve keys add`.", scheme_name="key")


@dataclass(frozen=True)
class Caller:
    """Caller of a request.

    Attributes:
        name: Name of the key; `local` on a server without keys.
        role: Role.
        csrf: Token that the page must send with changes; empty outside of a session.
    """

    name: str
    role: Role
    csrf: str = ""

    def may(self, role: Role) -> bool:
        """Return whether the caller has at least a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = Caller("local", "admin")
"""Caller of a server without keys, which only this machine reaches."""


async def running(request: Request) -> Server:
    """Return the server that answers a request; a coroutine, because FastAPI calls functions in a thread."""
    return server_of(request)


def server_of(request: Request) -> Server:
    """Return the server that answers a request."""
    server: Server = request.app.state.server
    return server


Running = Annotated[Server, Depends(running)]
"""Dependency: the server that answers."""


def identify(request: Request) -> Caller:
    """Return who makes a request.

    Raises:
        ProblemError: The key is missing or wrong, or another site made the request.
    """
    server = server_of(request)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if given and scheme.lower() == "bearer":
        return _of_key(server.keys.check(given.strip()))
    if request.method not in _SAFE:
        _refuse_other_sites(request, server.settings.cors)
    if not server.needs_key:
        return LOCAL
    cookie = request.cookies.get(COOKIE, "")
    key_id = server.sessions.key_of(cookie) if cookie else None
    caller = _of_key(server.keys.get(key_id) if key_id else None, server.sessions.csrf(cookie))
    sent = request.headers.get(CSRF_HEADER, "")
    if request.method not in _SAFE and not hmac.compare_digest(sent.encode(), caller.csrf.encode()):
        raise ProblemError(403, f"The header {CSRF_HEADER} is missing or wrong.", "Load the page again.")
    return caller


def _of_key(key: Key | None, csrf: str = "") -> Caller:
    if key is None:
        raise ProblemError(
            401,
            "A key is needed: it is missing, wrong or revoked.",
            "Send it as 'Authorization: Bearer KEY'; 'adctl serve keys add NAME' makes one.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Caller(key.name, key.role, csrf)


def _refuse_other_sites(request: Request, allowed: tuple[str, ...]) -> None:
    """Refuse a change that a page of another site sent: browsers say where a request comes from."""
    origin = request.headers.get("origin")
    if origin in allowed:
        return
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site", "none") not in _SAME_SITE:
        raise ProblemError(403, "A page of another site made this request.", "Name its origin with --cors.")


def admit(request: Request, role: Role) -> Caller:
    """Return the caller, who has at least a role and is within the limit of requests.

    Raises:
        ProblemError: The caller is unknown, may not do this, or makes too many requests.
    """
    caller = identify(request)
    server = server_of(request)
    if not caller.may(role):
        raise ProblemError(403, f"The key '{caller.name}' has the role {caller.role}; this needs {role}.")
    seconds = server.rate.take(caller.name)
    if seconds:
        server.telemetry.refused.labels("rate").inc()
        raise busy(f"The key '{caller.name}' makes too many requests.", seconds)
    return caller


class Require:
    """Dependency that admits callers with at least a role.

    Args:
        role: The role.
    """

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request, _: Annotated[object, Depends(_bearer)]) -> Caller:
        """Return the caller; see `admit`."""
        return admit(request, self.role)


MayScore = Annotated[Caller, Depends(Require("score"))]
MayReview = Annotated[Caller, Depends(Require("review"))]
MayChange = Annotated[Caller, Depends(Require("admin"))]
"""Dependencies: the caller, who has at least the role score, review or admin."""
