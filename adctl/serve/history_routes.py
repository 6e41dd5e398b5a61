"""Routes of the history: verdicts with their images, maps, heatmaps and thumbnails."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response

from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.heatmaps import map_layer
from adctl.scoring.png import encode_png
from adctl.serve.answers import (
    BINARY,
    Finite,
    HistoryPage,
    Identifier,
    Name,
    Text,
    VerdictAnswer,
    VerdictName,
    problems,
)
from adctl.serve.history import Filters
from adctl.serve.image_store import MAP, MEDIA_TYPES, THUMBNAIL
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayReview, Running

if TYPE_CHECKING:
    from numpy.typing import NDArray

router = APIRouter(tags=["history"])

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/v1/history", summary="Find verdicts", response_model=HistoryPage, responses=problems(422, 503))
def find(
    server: Running,
    caller: MayReview,
    model: Name | None = None,
    verdict: VerdictName | None = None,
    lot: Text | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    min_score: Finite | None = None,
    q: Annotated[Text | None, Query(description="Text in the name, lot or part.")] = None,
    kind: Annotated[Text | None, Query(description="Kind of defect by the classifier.")] = None,
    cursor: Annotated[Identifier | None, Query(description="Cursor of the page before.")] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return verdicts, the newest first. Times without an offset are UTC."""
    del caller
    filters = Filters(model, verdict, lot, as_stored(since), as_stored(until), min_score, q, kind)
    verdicts, following = server.history.find(filters, cursor, limit)
    return {"verdicts": verdicts, "cursor": following}


def as_stored(time: datetime | None) -> str | None:
    """Return a time as the history writes it; years that it cannot hold are cut."""
    if time is None:
        return None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    try:
        return aware.astimezone(UTC).isoformat(timespec="milliseconds")
    except OverflowError:
        return aware.replace(tzinfo=UTC).isoformat(timespec="milliseconds")


@router.get(
    "/v1/history/{id}", summary="Show a verdict", response_model=VerdictAnswer, responses=problems(404, 422, 503)
)
def show(id: Identifier, server: Running, caller: MayReview) -> dict[str, Any]:  # noqa: A002 - the name in the path
    """Return one verdict with its newest review."""
    del caller
    return verdict_of(server, id)


def verdict_of(server: Running, identifier: str) -> dict[str, Any]:
    """Return a verdict.

    Raises:
        ProblemError: There is none.
    """
    found = server.history.get(identifier)
    if found is None:
        raise ProblemError(404, f"There is no verdict {identifier}.", "It may have been removed; see --keep.")
    return found


@router.get(
    "/v1/history/{id}/heatmap",
    summary="Get the heatmap of a verdict",
    response_class=Response,
    responses={200: {"content": {"image/png": BINARY}}, **problems(404, 422, 503)},
)
def get_heatmap(id: Identifier, server: Running, caller: MayReview) -> Response:  # noqa: A002 - the name in the path
    """Return the anomaly map in colours (PNG) to lay over the image: transparent where nothing is unusual."""
    del caller
    entry = verdict_of(server, id)
    path = server.images.path(id, MAP)
    if not path.is_file():
        raise ProblemError(404, f"The map of {id} is not stored.", "See --store-images and --keep-bytes.")
    cells = np.load(path, allow_pickle=False).astype(np.float32)
    picture = encode_png(map_layer(cells, _scale(server, entry, cells), entry["height"], entry["width"]))
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _scale(server: Running, entry: dict[str, Any], cells: NDArray[np.float32]) -> ColourScale:
    """Return the colours of the model that made the map; those of its own values if that model is not loaded."""
    model = server.models.get(entry["model"])
    if model is not None and model.scale is not None and model.version.model_digest == entry["model_sha256"]:
        return model.scale
    return ColourScale.from_values(cells)


@router.get(
    "/v1/history/{id}/{part}",
    summary="Get the image, thumbnail or map of a verdict",
    response_class=FileResponse,
    responses={
        200: {"content": dict.fromkeys(("image/png", "image/jpeg", "application/x-npy"), BINARY)},
        **problems(404, 422, 503),
    },
)
def get_file(
    id: Identifier,  # noqa: A002 - the name in the path
    part: Literal["image", "thumbnail", "map"],
    server: Running,
    caller: MayReview,
) -> FileResponse:
    """Return the image as it came, its thumbnail (JPEG), or its anomaly map (NumPy file [h,w] of float16)."""
    del caller
    entry = verdict_of(server, id)
    server.images.wait(id)
    path = (
        server.images.find_image(id, entry["image"])
        if part == "image"
        else server.images.path(id, MAP if part == "map" else THUMBNAIL)
    )
    if path is None or not path.is_file():
        raise ProblemError(404, f"The {part} of {id} is not stored.", "See --store-images and --keep-bytes.")
    kinds = {"map": "application/x-npy", "thumbnail": "image/jpeg"}
    return FileResponse(
        path,
        media_type=kinds.get(part) or MEDIA_TYPES[entry["image"]],
        headers={"Cache-Control": "private, max-age=3600", "Content-Security-Policy": "default-src 'none'; sandbox"},
    )
