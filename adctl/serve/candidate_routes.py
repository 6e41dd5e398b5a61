"""Routes of candidates: a model that reviewed parts made, compared with the present one before its use."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from adctl import files, run_folder
from adctl.errors import DataError
from adctl.model_file import SUFFIX
from adctl.serve.answers import Identifier, ModelInfo, Name, problems
from adctl.serve.problems import ProblemError
from adctl.serve.row_writer import Row
from adctl.serve.score_routes import model_of
from adctl.serve.security import MayChange, Running
from adctl.serve.training_routes import TrainingInfo, require_idle

router = APIRouter(tags=["candidates"])

_UPDATE = "update.json"
_PAGE = 500


class CandidateRequest(BaseModel):
    """Candidate to make.

    Attributes:
        kind: `learn` learns from the reviewed good parts; `recalibrate` only sets the threshold by them.
        confirmed: Reviewed parts that are good beyond doubt, although they are unlike the others.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["learn", "recalibrate"] = "learn"
    confirmed: Annotated[list[Identifier], Field(max_length=1000)] = []


class Candidate(BaseModel):
    """Training of a candidate, and its result once it has ended: see `update.json` of its run."""

    training: TrainingInfo
    update: dict[str, Any] | None
    accepted: bool


class CandidateList(BaseModel):
    """Number of reviewed parts by label, and the candidates of a model, the newest first."""

    reviewed: dict[str, int]
    candidates: list[Candidate]


@router.get(
    "/v1/models/{name}/candidates",
    summary="List the candidates of a model",
    response_model=CandidateList,
    responses=problems(404, 422, 503),
)
def list_candidates(name: Name, server: Running, caller: MayChange) -> dict[str, Any]:
    """Return how many parts of the model are reviewed, and its candidates with their comparisons."""
    del caller
    counts = Counter(review["label"] for review in _reviews(server, name))
    accepted = {row["model"] for row in server.history.served(name)}
    found = [one for one in server.trainings.all() if one.updates is not None and one.name == name]
    return {
        "reviewed": {label: counts[label] for label in ("good", "defect", "unsure")},
        "candidates": [
            {"training": asdict(one), "update": _result(one.model), "accepted": one.model in accepted} for one in found
        ],
    }


@router.post(
    "/v1/models/{name}/candidates",
    summary="Make a candidate from reviewed parts",
    status_code=201,
    response_model=TrainingInfo,
    responses=problems(404, 409, 422, 503),
)
def make_candidate(
    name: Name, server: Running, caller: MayChange, wanted: CandidateRequest | None = None
) -> dict[str, Any]:
    """Start `adctl train --update` on the reviewed parts of the model; those labelled defect are never learned from."""
    wanted = wanted or CandidateRequest()
    model = model_of(server, name)
    require_idle(server.trainings)
    source = _trainable(model.version.path)
    good, defects, keys = _collect(server, name)
    arguments = ["--update", str(source), "--good", str(good), *(["--defects", str(defects)] if defects else [])]
    if wanted.kind == "recalibrate":
        arguments.append("--recalibrate")
    for identifier in wanted.confirmed:
        if identifier in keys:
            arguments += ["--confirmed", keys[identifier]]
    training = server.trainings.start(name, model.runtime.header.arch, caller.name, arguments, source)
    server.history.note(caller.name, "make candidate", name, kind=wanted.kind, training=training.id, images=len(keys))
    return asdict(training)


@router.post(
    "/v1/models/{name}/candidates/{id}/accept",
    summary="Accept a candidate",
    response_model=ModelInfo,
    responses=problems(404, 409, 422, 503),
)
def accept_candidate(
    name: Name,
    id: Identifier,  # noqa: A002 - the name in the path
    server: Running,
    caller: MayChange,
) -> dict[str, Any]:
    """Serve the candidate as a new version; the present one stays, and `rollback` returns to it."""
    training = server.trainings.get(id)
    if training is None or training.updates is None or training.name != name:
        raise ProblemError(404, f"The model '{name}' has no candidate {id}.", "List them with GET.")
    if training.model is None or not Path(training.model).is_file():
        raise ProblemError(409, f"The candidate {id} has no model file.", "Make another one.")
    model = server.models.activate(name, Path(training.model), caller.name)
    server.history.note(caller.name, "accept candidate", name, training=id, version=model.version.version)
    return model.describe()


def _trainable(path: Path) -> Path:
    """Return the model file that can learn: the one from which an exported file was made.

    Raises:
        ProblemError: It is not there.
    """
    found = path.with_suffix(SUFFIX)
    if not found.is_file():
        raise ProblemError(
            409, f"{path.name} is an exported model, and {found.name} is not beside it.", "Put it there."
        )
    return found


def _reviews(server: Running, name: str) -> list[Row]:
    """Return the newest review of each verdict of a model."""
    found: list[Row] = []
    cursor = None
    while True:
        rows, cursor = server.history.reviews(name, None, cursor, _PAGE)
        found += rows
        if cursor is None:
            return found


def _collect(server: Running, name: str) -> tuple[Path, Path | None, dict[str, str]]:
    """Put the reviewed images of one model into folders of their own.

    Returns:
        The folder of good images, that of defects or None, and the names of the good files by verdict.

    Raises:
        ProblemError: There is no reviewed good image.
        OutputError: The folders cannot be written.
    """
    folder = server.trainings.reviewed(run_folder.new_id())
    keys: dict[str, str] = {}
    for review in _reviews(server, name):
        source = server.images.folder / review["image"]
        if not review["image"] or review["label"] == "unsure" or not source.is_file():
            continue
        good = review["label"] == "good"
        target = folder / ("good" if good else f"defect/{review['kind']}") / source.name
        files.make_folder(target.parent)
        with files.output_errors(target):
            shutil.copyfile(source, target)
        if good:
            keys[review["verdict_id"]] = target.name
    if not keys:
        raise ProblemError(
            409, f"No part of '{name}' that is reviewed as good has a stored image.", "Review parts first."
        )
    defects = folder / "defect"
    return folder / "good", defects if defects.is_dir() else None, keys


def _result(model: str | None) -> dict[str, Any] | None:
    if model is None:
        return None
    try:
        return run_folder.read_json(Path(model).with_name(_UPDATE))
    except DataError:  # the folder was changed by hand
        return None
