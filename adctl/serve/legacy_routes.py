"""Routes of early clients, which mean the same as those under /v1; they use the first model unless one is named."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from adctl.files import to_json
from adctl.serve import model_routes
from adctl.serve.answers import LegacyLoad, LoadRequest, ModelInfo, Name, ScoreAnswer, ServerStatus, problems
from adctl.serve.problems import ProblemError
from adctl.serve.score_routes import answer_to
from adctl.serve.scoring import Wish
from adctl.serve.security import MayChange, MayScore, Running
from adctl.serve.uploads import BODY

router = APIRouter(prefix="/api", tags=["other names"])

ModelName = Annotated[Name | None, Query(description="Model; the first one if left out.")]
_ERRORS = problems(400, 404, 408, 413, 415, 422, 503)


@router.post("/load_model", summary="As /v1/models/{name}/load", response_model=ModelInfo, responses=problems(400, 422))
def load_model(wanted: LegacyLoad, server: Running, caller: MayChange) -> dict[str, Any]:
    """Load a model from the folder of `--models`."""
    name = wanted.name or (PurePosixPath(wanted.model_path).stem if wanted.model_path else _first(server))
    return model_routes.load_model(name, server, caller, LoadRequest(path=wanted.model_path))


@router.get("/status", summary="As /v1/models and /readyz", response_model=ServerStatus, responses=problems())
def status(server: Running, caller: MayScore) -> dict[str, Any]:
    """Return the models and the state of the server."""
    writer = server.history.writer
    return {
        "status": "ok" if server.models.loaded else "no model is loaded",
        "models": model_routes.list_models(server, caller),
        "queue": server.admission.count,
        "history": {"missing": writer.missing, "reason": writer.reason},
    }


@router.post(
    "/test_image", summary="As /v1/models/{name}/score, of one image", response_model=ScoreAnswer, responses=_ERRORS,
    openapi_extra=BODY,
)  # fmt: skip
@router.post(
    "/batch_test", summary="As /v1/models/{name}/score, of several images", response_model=ScoreAnswer,
    responses=_ERRORS, openapi_extra=BODY,
)  # fmt: skip
async def score_images(request: Request, server: Running, caller: MayScore, model: ModelName = None) -> Response:
    """Score images."""
    wish = Wish(client=caller.name, request=request.state.request_id)
    answer, _ = await answer_to(server, model or _first(server), request, wish)
    return Response(to_json(answer), media_type="application/json")


def _first(server: Running) -> str:
    if not server.models.loaded:
        raise ProblemError(404, "No model is loaded.", "Load one with /api/load_model.")
    return server.models.loaded[0].name
