"""Route of heatmaps: the stored anomaly map of a verdict as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Response

from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.heatmaps import map_layer
from adctl.scoring.png import encode_png
from adctl.serve.answers import Identifier, problems
from adctl.serve.history_routes import verdict_of
from adctl.serve.image_store import MAP
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayReview, Running

router = APIRouter(tags=["history"])


@router.get(
    "/v1/history/{id}/heatmap",
    summary="Get the heatmap of a verdict",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **problems(404, 422, 503)},
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


def _scale(server: Running, entry: dict[str, Any], cells: np.ndarray[Any, np.dtype[np.float32]]) -> ColourScale:
    """Return the colours of the model that made the map; those of its own values if that model is not loaded."""
    model = server.models.get(entry["model"])
    if model is not None and model.scale is not None and model.version.model_digest == entry["model_sha256"]:
        scale: ColourScale = model.scale
        return scale
    return ColourScale.from_values(cells)
