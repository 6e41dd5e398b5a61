"""Documentation of the API as one page without scripts, made from the OpenAPI document."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterator

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { padding: 0.75rem; border: 1px solid; border-radius: 0.4rem; overflow-x: auto; }
summary { cursor: pointer; padding: 0.4rem 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
"""


@router.get("/docs")
def docs(request: Request) -> Response:
    """Return the page."""
    document = request.app.openapi()
    parts = "".join(_operations(document))
    title = escape(document["info"]["title"])
    return Response(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} API</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/docs.css"></head>'
        f"<body><main><h1>{title} API</h1><p>{escape(document['info']['description'])} The document for programs: "
        f'<a href="/openapi.json">openapi.json</a>. Send a key as <code>Authorization: Bearer KEY</code>.</p>'
        f"{parts}</main></body></html>",
        media_type="text/html; charset=utf-8",
    )


@router.get("/docs.css")
def style() -> Response:
    """Return the style sheet of the page."""
    return Response(_STYLE, media_type="text/css; charset=utf-8", headers={"Cache-Control": "max-age=3600"})


def _operations(document: dict[str, Any]) -> Iterator[str]:
    tag = None
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                yield f"<h2>{escape(tag.capitalize())}</h2>"
            yield _operation(path, method, operation)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    )
    table = f"<table><tr><th>Name</th><th>Place</th><th>Meaning</th></tr>{rows}</table>" if rows else ""
    body = _example(operation.get("requestBody", {}))
    answers: dict[str, dict[str, Any]] = operation["responses"]
    answer = next((one for status, one in answers.items() if status.startswith("2")), {})
    return (
        f'<details><summary><span class="method">{method.upper()}</span><code>{escape(path)}</code> '
        f"{escape(operation.get('summary', ''))}</summary><p>{escape(operation.get('description', ''))}</p>{table}"
        f"{_titled('Body', body)}{_titled('Answer', _example(answer))}</details>"
    )


def _titled(title: str, text: str) -> str:
    return f"<h3>{title}</h3><pre>{escape(text)}</pre>" if text else ""


def _example(content: dict[str, Any]) -> str:
    """Return the example of a body as JSON, or its content types."""
    kinds = content.get("content", {})
    shown = kinds.get("application/json")
    return json.dumps(shown["example"], indent=2) if shown else ", ".join(kinds)
