"""Routes of the line: its sources and sinks, and triggers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adctl.serve.answers import LineState, Status, Text, problems
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayScore, Running

router = APIRouter(tags=["line"])


@router.get("/v1/line", summary="Show sources and sinks", response_model=LineState, responses=problems())
def show_line(server: Running, caller: MayScore) -> dict[str, Any]:
    """Return the state of each source and sink; times run from the trigger of a part to the acknowledgement."""
    del caller
    return {"sources": server.line.state() if server.line else [], "sinks": server.outbox.status()}


@router.post(
    "/v1/line/{source}/trigger", summary="Take a part now", status_code=202, response_model=Status,
    responses=problems(404, 409, 422),
)  # fmt: skip
def take_part(source: Text, server: Running, caller: MayScore, part: Text = "", lot: Text = "") -> dict[str, str]:
    """Take a part of a camera, if the server was started with `--trigger http`; its verdict goes to the sinks."""
    del caller
    try:
        taken = server.line is not None and server.line.trigger(source, part, lot)
    except KeyError as error:
        raise ProblemError(404, f"There is no source '{source}'.", "See GET /v1/line.") from error
    if not taken:
        raise ProblemError(409, f"{source} takes no parts by request.", "Start the server with --trigger http.")
    return {"status": "accepted"}
