"""The application: routes, errors, and the layers around them."""

from __future__ import annotations

import pkgutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from adctl import __version__
from adctl.serve import problems
from adctl.serve.fast_route import FastRoute
from adctl.serve.guard import Guard
from adctl.serve.openapi import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adctl.serve.state import Server

_ROUTERS = (
    "adctl.serve.score_routes:router",
    "adctl.serve.model_routes:router",
    "adctl.serve.version_routes:router",
    "adctl.serve.threshold_routes:router",
    "adctl.serve.training_routes:router",
    "adctl.serve.candidate_routes:router",
    "adctl.serve.line_routes:router",
    "adctl.serve.history_routes:router",
    "adctl.serve.review_routes:router",
    "adctl.serve.system_routes:router",
    "adctl.serve.legacy_routes:router",
    "adctl.serve.page.pages:router",
    "adctl.serve.docs_routes:router",
)
"""Groups of routes, as `module:router`; the first are found soonest."""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which has examples."""
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema


def create_app(server: Server) -> FastAPI:
    """Create the application.

    Args:
        server: State of the server; the application starts it, and stops it at its end.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.stop()

    app = _App(
        title="adctl",
        version=__version__,
        description="Visual anomaly detection: scores, verdicts and their history.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.state.server = server
    problems.install(app)
    for name in _ROUTERS:
        app.include_router(pkgutil.resolve_name(name))
    app.add_middleware(FastRoute)
    if server.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Guard, server=server)
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{'_'.join(sorted(route.methods or ()))}_{route.path_format}".lower()
