"""Routes for models: list, load and unload."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adctl.serve.answers import LoadRequest, ModelInfo, Name, problems
from adctl.serve.security import MayChange, MayScore, Running

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", response_model=list[ModelInfo], responses=problems(422))
def list_models(server: Running, caller: MayScore) -> list[dict[str, Any]]:
    """Return the loaded models, then those that were unloaded."""
    del caller
    unloaded = [
        {
            **dict.fromkeys(ModelInfo.model_fields),
            "name": version.name,
            "model_digest": version.model_digest,
            "version": version.version,
            "loaded": False,
        }
        for version in server.models.unloaded
    ]
    return [*(model.describe() for model in server.models.loaded), *unloaded]


@router.post(
    "/v1/models/{name}/load", summary="Load or reload a model", response_model=ModelInfo, responses=problems(400, 422)
)
def load_model(name: Name, server: Running, caller: MayChange, wanted: LoadRequest | None = None) -> dict[str, Any]:
    """Load a model file from the folder of `--models`, or reload the present one; running requests do not fail."""
    path = wanted.path if wanted else None
    model = server.models.load(name, path, caller.name)
    server.history.note(caller.name, "load", name, path=str(model.version.path), version=model.version.version)
    return model.describe()


@router.post("/v1/models/{name}/unload", summary="Unload a model", status_code=204, responses=problems(400, 422))
def unload_model(name: Name, server: Running, caller: MayChange) -> None:
    """Close a model after its last request."""
    server.models.unload(name)
    server.history.note(caller.name, "unload", name)
