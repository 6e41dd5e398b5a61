"""Checks of detector settings that depend on each other. Knows no detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from adctl.image_sizes import both_sides, size_text

if TYPE_CHECKING:
    from pydantic import ValidationInfo


def require_multiple(model: str, image_size: int | tuple[int, int], step: int, reason: str) -> None:
    """Check that both sides of the input are multiples of a step which depends on other settings.

    The validator of a field cannot see later fields, and an error from the validator of the model names no field. The
    error raised here names `image_size`.

    Args:
        model: Name of the settings class.
        image_size: Size of the input, pixels.
        step: Divisor of both sides, pixels.
        reason: Reason for the step, for the message.

    Raises:
        ValidationError: The size is not a multiple; the message names the nearest sizes that are.
    """
    sides = both_sides(image_size)
    if all(side % step == 0 for side in sides):
        return
    below, above = (_multiples(sides, step, up=up) for up in (False, True))
    problem = PydanticCustomError(
        "image_size_multiple",
        "must be a multiple of {step}, {reason}: {sizes}",
        {"step": step, "reason": reason, "sizes": above if below is None else f"{below} or {above}"},
    )
    raise ValidationError.from_exception_data(
        model, [InitErrorDetails(type=problem, loc=("image_size",), input=image_size)]
    )


def _multiples(sides: tuple[int, int], step: int, *, up: bool) -> str | None:
    """Return the nearest size below or above whose sides are multiples of a step; None if a side would be 0."""
    height, width = (side if side % step == 0 else (side // step + up) * step for side in sides)
    return size_text((height, width)) if height and width else None


def check_heads(heads: int, info: ValidationInfo) -> int:
    """Check that the number of attention heads divides the setting `width`, and return it.

    Raises:
        ValueError: It does not.
    """
    width = info.data.get("width", heads)
    if width % heads:
        raise ValueError(f"must divide the width, {width}")
    return heads
