"""Routes of trainings: upload images of good parts, start a training, watch it, stop it, use its model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from adctl.data.images import header_of
from adctl.serve.answers import Identifier, ModelInfo, Name, problems
from adctl.serve.image_store import SUFFIXES
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayChange, Running
from adctl.serve.trainings import DETECTORS, Training, Trainings
from adctl.serve.uploads import BODY, read_uploads

router = APIRouter(tags=["trainings"])

_MOST_FOLDERS = 500


class TrainingRequest(BaseModel):
    """Training to start: of a folder on the server, or of uploaded images."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    arch: Literal["patchcore", "padim", "simplenet"] = "patchcore"
    folder: Annotated[str, Field(max_length=1000)] | None = None
    upload: Identifier | None = None


class TrainingInfo(BaseModel):
    """Training with its state; see `adctl.serve.trainings.Training`."""

    id: str
    name: str
    arch: str
    state: Literal["running", "finished", "stopped", "failed"]
    started: str
    who: str
    seconds: float
    progress: dict[str, Any]
    model: str | None
    error: str | None
    updates: str | None


class TrainingList(BaseModel):
    """Trainings, and what a new one can use."""

    trainings: list[TrainingInfo]
    detectors: list[str]
    folders: list[str]


class Uploaded(BaseModel):
    """Set of uploaded images."""

    upload: str
    images: int


@router.get("/v1/trainings", summary="List the trainings", response_model=TrainingList, responses=problems(503))
def list_trainings(server: Running, caller: MayChange) -> dict[str, Any]:
    """Return the trainings, the newest first, the detectors, and the folders of `--train-from` that hold files."""
    del caller
    return {
        "trainings": [asdict(one) for one in server.trainings.all()],
        "detectors": list(DETECTORS),
        "folders": _folders(server.settings.train_from),
    }


@router.post(
    "/v1/trainings/images",
    summary="Upload images of good parts",
    response_model=Uploaded,
    responses=problems(400, 408, 413, 415, 422, 503),
    openapi_extra=BODY,
)
async def upload_images(
    request: Request, server: Running, caller: MayChange, upload: Identifier | None = None
) -> dict[str, Any]:
    """Add images to a set that a training can use: the bytes of one, or a form with several."""
    del caller
    identifier: str | None = upload
    count = 0
    for one in await read_uploads(request, server.max_upload):
        suffix = SUFFIXES[header_of(Path(one.name), one.data).format]
        identifier, count = server.trainings.add_image(identifier, one.data, suffix)
    return {"upload": identifier, "images": count}


@router.post(
    "/v1/trainings",
    summary="Start a training",
    status_code=201,
    response_model=TrainingInfo,
    responses=problems(400, 409, 422, 503),
)
def start_training(wanted: TrainingRequest, server: Running, caller: MayChange) -> dict[str, Any]:
    """Start `adctl train` in a process of its own; one at a time."""
    if (wanted.folder is None) == (wanted.upload is None):
        raise ProblemError(422, "Give 'folder' or 'upload', and only one of them.")
    require_idle(server.trainings)
    if wanted.upload is not None:
        images = server.trainings.uploaded(wanted.upload)
    else:
        images = _inside(server.settings.train_from, wanted.folder or "")
    arguments = ("--good", str(images), "--arch", wanted.arch)
    training = server.trainings.start(wanted.name, wanted.arch, caller.name, arguments)
    server.history.note(caller.name, "train", wanted.name, arch=wanted.arch, images=str(images))
    return asdict(training)


@router.get(
    "/v1/trainings/{id}", summary="Show a training", response_model=TrainingInfo, responses=problems(404, 422, 503)
)
def show_training(id: Identifier, server: Running, caller: MayChange) -> dict[str, Any]:  # noqa: A002 - in the path
    """Return the state and the progress of a training."""
    del caller
    return asdict(_training(server, id))


@router.post(
    "/v1/trainings/{id}/stop",
    summary="Stop a training",
    status_code=202,
    response_model=TrainingInfo,
    responses=problems(404, 422, 503),
)
def stop_training(id: Identifier, server: Running, caller: MayChange) -> dict[str, Any]:  # noqa: A002 - in the path
    """Ask for the end of a training; it ends within seconds."""
    training = _training(server, id)
    server.trainings.stop(id)
    server.history.note(caller.name, "stop training", training.name)
    return asdict(training)


@router.post(
    "/v1/trainings/{id}/activate",
    summary="Serve the model of a training",
    response_model=ModelInfo,
    responses=problems(404, 409, 422, 503),
)
def serve_training(id: Identifier, server: Running, caller: MayChange) -> dict[str, Any]:  # noqa: A002 - in the path
    """Serve the model of a finished training under its name: a new version if the name is served already."""
    training = _training(server, id)
    path = Path(training.model) if training.model else None
    if path is None or not path.is_file():
        raise ProblemError(409, f"The training of '{training.name}' has no model file.", "Train again.")
    model = server.models.activate(training.name, path, caller.name)
    server.history.note(caller.name, "activate", training.name, version=model.version.version, model=str(path))
    return model.describe()


def require_idle(trainings: Trainings) -> None:
    """Raise if a training is running.

    Raises:
        ProblemError: One is.
    """
    if any(one.state == "running" for one in trainings.all()):
        raise ProblemError(409, "Another training is running.", "Wait until it is done, or stop it.")


def _training(server: Running, identifier: str) -> Training:
    training = server.trainings.get(identifier)
    if training is None:
        raise ProblemError(404, f"There is no training {identifier}.", "See GET /v1/trainings.")
    return training


def _folders(root: Path | None) -> list[str]:
    """Return the folders below `root` that hold files, as relative paths."""
    if root is None or not root.is_dir():
        return []
    found = []
    for folder, _, names in os.walk(root):
        if names and Path(folder) != root:
            found.append(Path(folder).relative_to(root).as_posix())
        if len(found) >= _MOST_FOLDERS:
            break
    return sorted(found)


def _inside(root: Path | None, name: str) -> Path:
    """Return a folder below `root` that a client names, links resolved.

    Raises:
        ProblemError: There is none, or it lies elsewhere.
    """
    if root is None:
        raise ProblemError(
            400, "This server trains on no folders.", "Start it with --train-from DIR, or upload images."
        )
    top = root.resolve()
    try:
        folder = (top / name).resolve()
        usable = folder.is_relative_to(top) and folder.is_dir()
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise ProblemError(
            400, "There is no such folder of images.", "Give its path inside the folder of --train-from."
        )
    return folder
