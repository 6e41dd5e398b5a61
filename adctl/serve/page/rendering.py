"""Pages as HTML: Jinja2 templates with sentences of one language, and the files that they need."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from adctl.serve.page.translation import COOKIE, LANGUAGES, preferred_language, translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment
    from starlette.requests import Request
    from starlette.responses import Response

ASSETS = "/page"
"""Address of the files that pages need."""

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Media types of these files by suffix."""


def render(template: str, cookies: Mapping[str, str], accepted: str | None, **values: Any) -> str:
    """Return a page as HTML in the language that the browser wants.

    Args:
        template: Name of the template.
        cookies: Cookies of the request.
        accepted: Its header `Accept-Language`, or None.
        values: Values for the template.
    """
    language = preferred_language(cookies.get(COOKIE), accepted)
    sentences = translation(language)
    return (
        _environment()
        .get_template(template)
        .render(
            t=sentences,
            messages=sentences.own,
            said=sentences.said,
            language=language,
            languages=LANGUAGES,
            asset=asset_address,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("adctl.serve.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def assets() -> dict[str, bytes]:
    """Return the files that pages need, by name."""
    folder = resources.files(__package__) / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(tuple(TYPES))}


@cache
def _version() -> str:
    """Return a text that changes with any of the files, so that browsers keep them until then."""
    joined = b"".join(name.encode() + content for name, content in sorted(assets().items()))
    return hashlib.sha256(joined).hexdigest()[:12]


def asset_address(name: str) -> str:
    """Return the address of a file; modules import each other below the same address."""
    return f"{ASSETS}/{_version()}/{name}"


def send_asset(request: Request) -> Response:
    """Return a file that pages need; its address holds a version, so that it may be kept for ever."""
    from starlette.responses import Response

    name = request.path_params["name"]
    content = assets().get(name)
    if content is None:
        return Response("There is no such file.", 404, media_type="text/plain")
    kept = "public, max-age=31536000, immutable" if request.path_params["version"] == _version() else "no-cache"
    return Response(content, headers={"Cache-Control": kept}, media_type=TYPES[f".{name.rpartition('.')[2]}"])
