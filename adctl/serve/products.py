"""Product of an image that a client sends, by the registry of the server."""

from __future__ import annotations

import asyncio
import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from adctl.errors import DataError, UsageError
from adctl.scoring.products import too_far, usual_score
from adctl.serve.problems import ProblemError

if TYPE_CHECKING:
    from adctl.serve.scoring import Upload
    from adctl.serve.state import Server


def product_of(server: Server, file: str) -> str | None:
    """Return the product that the path or name of an image tells; None if the nearest one is wanted.

    Raises:
        ProblemError: The server has no registry, or no product or several fit.
    """
    registry = server.models.registry
    if registry is None:
        raise ProblemError(404, "This server has no registry of products.", "Start it with adctl serve registry.toml.")
    try:
        product = registry.product_of(PurePosixPath(file.replace("\\", "/"))) if file else None
    except UsageError as error:
        raise ProblemError(422, error.message, error.remedy) from error
    if product is None and not registry.nearest:
        known = ", ".join(registry.products)
        raise ProblemError(422, f"No product has a pattern or a folder that fits '{file}'.", f"Products: {known}.")
    return product


async def nearest_product(server: Server, uploads: list[Upload]) -> str:
    """Return the product whose model finds an image least unusual, see `adctl.scoring.products`.

    Raises:
        ProblemError: There are several images, the image is unreadable or unlike all products, or a model that is
            loaded has no calibration.
    """
    registry = server.models.registry
    assert registry is not None
    if len(uploads) != 1:
        raise ProblemError(
            422, f"The product of {len(uploads)} images cannot be found.", "Send one a request, or name it with 'file'."
        )
    models = [model for model in server.models.loaded if model.name in registry.products]
    try:
        usual = [usual_score(model.name, model.version.path, model.calibration) for model in models]
    except DataError as error:
        raise ProblemError(422, error.message, error.remedy) from error
    scores = await asyncio.gather(*(server.scorer.predict(model, uploads[0]) for model in models))
    distances = [
        math.inf if score is None or math.isnan(score) else score / unit
        for score, unit in zip(scores, usual, strict=True)
    ]
    best = min(range(len(models)), key=distances.__getitem__)
    reason = too_far(registry, models[best].name, distances[best])
    if reason is not None:
        raise ProblemError(422, f"The image belongs to no product: {reason}.", "Name its product with 'file'.")
    return models[best].name
