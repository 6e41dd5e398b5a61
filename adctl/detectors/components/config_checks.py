"""Checks of detector settings that depend on each other. Knows no detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from pydantic import ValidationInfo


def require_multiple(model: str, image_size: int, step: int, reason: str) -> None:
    """Check that the image size is a multiple of a step which depends on other settings.

    The validator of a field cannot see later fields, and an error from the validator of the model names no field. The
    error raised here names `image_size`.

    Args:
        model: Name of the settings class.
        image_size: Image size, pixels.
        step: Divisor of the image size, pixels.
        reason: Reason for the step, for the message.

    Raises:
        ValidationError: The size is not a multiple; the message names the nearest sizes that are.
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


def check_heads(heads: int, info: ValidationInfo) -> int:
    """Check that the number of attention heads divides the setting `width`, and return it.

    Raises:
        ValueError: It does not.
    """
    width = info.data.get("width", heads)
    if width % heads:
        raise ValueError(f"must divide the width, {width}")
    return heads
