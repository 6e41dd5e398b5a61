"""Routes of the versions of a served model: list, activate, roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from adctl.serve.answers import ModelInfo, Name, problems
from adctl.serve.problems import ProblemError
from adctl.serve.row_writer import Row
from adctl.serve.score_routes import model_of
from adctl.serve.security import MayChange, MayReview, Running
from adctl.serve.threshold_choice import previous

router = APIRouter(tags=["models"])


class VersionInfo(BaseModel):
    """Version that a served model has or had.

    Attributes:
        version: Number.
        active: Whether it is in use.
        model_digest: SHA-256 of the model file.
        threshold: Threshold that was set by hand for it; null for that of its calibration.
        since: Time of its last activation.
        changed_by: Caller who activated it.
        present: Whether its file is still there.
    """

    version: int
    active: bool
    model_digest: str
    threshold: float | None
    since: str
    changed_by: str
    present: bool


class Lineage(BaseModel):
    """Images, file and calibration of a served model."""

    dataset: str
    category: str
    training_images: int
    training_digest: str
    model_digest: str
    calibration_digest: str
    calibration_images: int
    adctl_version: str


class Activation(BaseModel):
    """Version to use."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=1_000_000_000)]


@router.get(
    "/v1/models/{name}/versions",
    summary="List the versions of a model",
    response_model=list[VersionInfo],
    responses=problems(404, 422, 503),
)
def list_versions(name: Name, server: Running, caller: MayReview) -> list[dict[str, Any]]:
    """Return each version with its last state, the newest first."""
    del caller
    rows = _rows(server, name)
    return [
        {
            "version": number,
            "active": number == rows[0]["version"] and server.models.get(name) is not None,
            "model_digest": row["model_sha256"],
            "threshold": row["threshold"],
            "since": row["since"],
            "changed_by": row["changed_by"],
            "present": Path(row["model"]).is_file(),
        }
        for number, row in sorted(_newest(rows).items(), reverse=True)
    ]


@router.get(
    "/v1/models/{name}/lineage",
    summary="Tell where a model comes from",
    response_model=Lineage,
    responses=problems(404, 422),
)
def show_lineage(name: Name, server: Running, caller: MayReview) -> dict[str, Any]:
    """Return the images that the model learned from, its file and its calibration."""
    del caller
    model = model_of(server, name)
    training = model.runtime.header.training
    return {
        "dataset": training.dataset,
        "category": training.category,
        "training_images": training.images,
        "training_digest": training.digest,
        "model_digest": model.version.model_digest,
        "calibration_digest": model.calibration_digest,
        "calibration_images": model.calibration.good_images if model.calibration else 0,
        "adctl_version": model.runtime.header.adctl_version,
    }


@router.post(
    "/v1/models/{name}/activate",
    summary="Use another version",
    response_model=ModelInfo,
    responses=problems(404, 409, 422, 503),
)
def activate(name: Name, wanted: Activation, server: Running, caller: MayChange) -> dict[str, Any]:
    """Use a version of the model from now on, with the threshold that it had last."""
    row = _newest(_rows(server, name)).get(wanted.version)
    if row is None:
        raise ProblemError(404, f"The model '{name}' has no version {wanted.version}.", "List them with GET.")
    return _use(server, name, row, caller.name, "activate")


@router.post(
    "/v1/models/{name}/rollback",
    summary="Return to the version before",
    response_model=ModelInfo,
    responses=problems(404, 409, 422, 503),
)
def roll_back(name: Name, server: Running, caller: MayChange) -> dict[str, Any]:
    """Use the version that was in use before the present one; several calls go further back."""
    rows = _rows(server, name)
    earlier = previous([row["version"] for row in reversed(rows)])
    if not earlier:
        raise ProblemError(409, f"The model '{name}' has no earlier version.")
    return _use(server, name, _newest(rows)[earlier[0]], caller.name, "rollback")


def _rows(server: Running, name: str) -> list[Row]:
    rows = server.history.served(name)
    if not rows:
        raise ProblemError(404, f"There is no model '{name}'.", "See GET /v1/models.")
    return rows


def _newest(rows: list[Row]) -> dict[int, Row]:
    """Return the newest row of each version."""
    return {row["version"]: row for row in reversed(rows)}


def _use(server: Running, name: str, row: Row, who: str, action: str) -> dict[str, Any]:
    path = Path(row["model"])
    if not path.is_file():
        raise ProblemError(409, f"The file of version {row['version']} is no longer there: {path.name}.", "Restore it.")
    model = server.models.activate(name, path, who, row["threshold"])
    server.history.note(who, action, name, version=model.version.version, model=str(path))
    return model.describe()
