"""Rotated, shifted and otherwise altered copies of images, which stand in for more images. Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

_SHIFT = 0.04
"""Shift of an altered copy, as a share of the side."""

_TURN = math.radians(4)
_LIGHT = 0.08
"""Change of the brightness of an altered copy."""

_ALTERATIONS = tuple(
    (turn * _TURN, right * _SHIFT, down * _SHIFT, 1 + light * _LIGHT)
    for turn in (-1, 1)
    for right, down, light in ((-1, -1, 1), (-1, 1, -1), (1, -1, -1), (1, 1, 1), (0, 0, 1), (0, 0, -1))
)
"""Angle in radians, shift to the right and down as shares of the sides, and factor of the brightness."""

ALTERATIONS = len(_ALTERATIONS)
"""Number of different altered copies of an image."""


def rotated_copies(images: Tensor, count: int, colours: int) -> Tensor:
    """Return `count` copies of each image, rotated around its centre by equal angles of a full circle.

    Beyond the border the image is continued by reflection. Planes after the colours are masks: beyond the border they
    are 0.

    Args:
        images: Images [B,C,H,W].
        count: Number of copies of each, the unrotated one included.
        colours: Number of colour planes.

    Returns:
        Images [B*count,C,H,W]; the copies of an image follow each other, the unrotated one first.
    """
    copies = [images, *(_moved(images, 2 * math.pi * number / count, colours) for number in range(1, count))]
    return torch.stack(copies, 1).flatten(0, 1)


def altered(images: Tensor, number: int, colours: int) -> Tensor:
    """Return images [B,C,H,W] in [0, 1], slightly rotated, shifted, and brighter or darker.

    Args:
        images: Images.
        number: Number of the alteration, below `ALTERATIONS`.
        colours: Number of colour planes; the others are masks.
    """
    angle, right, down, light = _ALTERATIONS[number]
    moved = _moved(images, angle, colours, (right, down))
    return torch.cat([(light * moved[:, :colours]).clamp(max=1), moved[:, colours:]], 1)


def _moved(images: Tensor, angle: float, colours: int, shift: tuple[float, float] = (0, 0)) -> Tensor:
    """Rotate images [B,C,H,W] counter-clockwise by an angle in radians, after a shift by shares of width and height."""
    height, width = images.shape[-2:]
    cosine, sine = math.cos(angle), math.sin(angle)
    right, down = (-2 * share for share in shift)  # coordinates run from -1 to 1 along each side
    turn = [[cosine, -sine * height / width, right], [sine * width / height, cosine, down]]
    grid = F.affine_grid(images.new_tensor(turn).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    picture = F.grid_sample(images[:, :colours], grid, padding_mode="reflection", align_corners=False)
    if images.shape[1] == colours:
        return picture
    masks = F.grid_sample(images[:, colours:], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return torch.cat([picture, masks], 1)
