"""Which image sizes a network's halvings or patches allow, refused where the user set them. Knows no detector."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


def require_multiple(model: str, image_size: int, step: int, reason: str) -> None:
    """Refuse an image size that is no multiple of a step which other settings decide.

    A field's own validator cannot see the fields after it, and a model's validator blames no field: the error
    made here names `image_size`.

    Args:
        model: Name of the settings class.
        image_size: Pixels.
        step: What has to divide it, pixels.
        reason: Where the step comes from.

    Raises:
        ValidationError: It is not a multiple; the message names the nearest sizes that are.
    """
    if image_size % step == 0:
        return
    below = image_size // step * step
    problem = PydanticCustomError(
        "image_size_multiple",
        "must be a multiple of {step}, {reason}: {sizes}",
        {"step": step, "reason": reason, "sizes": f"{below} or {below + step}" if below else str(step)},
    )
    raise ValidationError.from_exception_data(
        model, [InitErrorDetails(type=problem, loc=("image_size",), input=image_size)]
    )
