"""Routes of the page: one for each tab, signing in, and the files that pages need."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from adctl.serve.keys import Role
from adctl.serve.page import rendering
from adctl.serve.problems import ProblemError
from adctl.serve.security import LOCAL, identify

TABS: dict[str, Role] = {
    "live": "review",
    "try": "score",
    "threshold": "admin",
    "history": "review",
    "review": "review",
    "models": "admin",
    "train": "admin",
}
"""Tabs of the page, each with the role that it needs."""

_SIGN_IN = "/sign-in"
_UNAUTHORISED, _FORBIDDEN = 401, 403

router = APIRouter(include_in_schema=False)
"""Routes of the page."""


def _render(request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
    accepted = request.headers.get("accept-language")
    page = rendering.render(template, request.cookies, accepted, home="/", **values)
    return HTMLResponse(page, status, {"Cache-Control": "no-store"})


@router.get("/", response_class=HTMLResponse)
def live(request: Request) -> Response:
    """Return the first tab."""
    return show_tab(request, "live")


@router.get(_SIGN_IN, response_class=HTMLResponse)
def sign_in(request: Request) -> Response:
    """Return the form that asks for a key."""
    return _render(request, "sign_in.html", tab="sign_in", csrf=None)


def show_tab(request: Request, tab: str) -> Response:
    """Return a tab, the form for signing in if the caller is unknown, or a page that says which role is missing."""
    try:
        caller = identify(request)
    except ProblemError as error:
        if error.status_code != _UNAUTHORISED:
            raise
        return RedirectResponse(f"{_SIGN_IN}?next={request.url.path}", 303)
    allowed = [name for name, role in TABS.items() if caller.may(role)]
    if tab == "live" and tab not in allowed:
        return RedirectResponse(f"/{allowed[0]}", 303)
    facts: dict[str, Any] = {
        "tab": tab,
        "tabs": allowed,
        "csrf": caller.csrf,
        "signed_in": caller is not LOCAL,
        "caller": caller,
    }
    if tab in allowed:
        return _render(request, f"{tab}.html", **facts)
    if "text/html" in request.headers.get("accept", ""):
        return _render(request, "refused.html", _FORBIDDEN, needed=TABS[tab], **facts)
    raise ProblemError(_FORBIDDEN, f"The key '{caller.name}' may not open this page.", "Sign in with another key.")


def _add_tab(tab: str) -> None:
    def page(request: Request) -> Response:
        return show_tab(request, tab)

    router.add_api_route(f"/{tab}", page, response_class=HTMLResponse)


for _tab in TABS:
    _add_tab(_tab)

router.routes.append(Route(f"{rendering.ASSETS}/{{version}}/{{name}}", rendering.send_asset))
