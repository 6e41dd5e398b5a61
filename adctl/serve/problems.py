"""Errors as problem details (RFC 9457, application/problem+json)."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adctl.errors import AdctlError, DataError, ImageError, ModelFileError, OutputError, UsageError
from adctl.files import to_json
from adctl.names import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.requests import Request

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}


class ProblemError(HTTPException):
    """An error that the client is told.

    Args:
        status: HTTP status code.
        detail: One sentence that says what is wrong.
        remedy: One sentence that says how to mend it.
        headers: Further headers of the answer.
        extra: Further members of the problem.
    """

    def __init__(
        self, status: int, detail: str, remedy: str = "", *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.remedy = remedy
        self.extra = extra


def busy(detail: str, seconds: float = 1.0) -> ProblemError:
    """Return the error for too many requests."""
    return ProblemError(
        429, detail, "Try again after the seconds in Retry-After.", headers={"Retry-After": str(math.ceil(seconds))}
    )


def problem(
    status: int, detail: str, *, remedy: str = "", headers: Mapping[str, str] | None = None, **extra: Any
) -> Response:
    """Return the response for a problem.

    Args:
        status: HTTP status code.
        detail: One sentence that says what is wrong.
        remedy: One sentence that says how to mend it; left out if empty.
        headers: Further headers.
        extra: Further members.
    """
    return Response(to_json(members_of(status, detail, remedy, **extra)), status, dict(headers or {}), MEDIA_TYPE)


def members_of(status: int, detail: str, remedy: str = "", **extra: Any) -> dict[str, Any]:
    """Return the members of a problem; see `problem`."""
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    members = {"type": "about:blank", "title": title, "status": status, "detail": printable(detail), **extra}
    if remedy:
        members["remedy"] = printable(remedy)
    return members


def of_error(error: Exception) -> Response:
    """Return the response for an exception."""
    if isinstance(error, ProblemError):
        return problem(error.status_code, error.detail, remedy=error.remedy, headers=error.headers, **error.extra)
    if isinstance(error, HTTPException):
        return problem(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return problem(422, "The request is not valid.", errors=[_plain(one) for one in error.errors()])
    if isinstance(error, AdctlError):
        return problem(_status_of(error), error.message, remedy=error.remedy)
    log.error("Internal error: %s: %s", type(error).__name__, error, exc_info=error)
    return problem(500, "The server made an error, which is in its log.")


def _status_of(error: AdctlError) -> int:
    if isinstance(error, ImageError | ModelFileError):
        return 422
    if isinstance(error, DataError | OutputError):  # the database or the disk
        return 503
    return 400 if isinstance(error, UsageError) else 500


def _plain(error: Any) -> dict[str, Any]:
    """Return where and why a value is refused; the value itself may be a secret or large."""
    return {"where": [str(part) for part in error["loc"]], "reason": str(error["msg"])}


def install(app: FastAPI) -> None:
    """Answer every error of an application with problem details."""

    async def handle(_: Request, error: Exception) -> Response:
        return of_error(error)

    for kind in (HTTPException, RequestValidationError, AdctlError, Exception):
        app.add_exception_handler(kind, handle)
