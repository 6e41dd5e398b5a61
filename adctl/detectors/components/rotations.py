"""Rotated copies of images, from which a detector learns parts that lie at any angle. Tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


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
    copies = [images, *(_rotated(images, 2 * math.pi * number / count, colours) for number in range(1, count))]
    return torch.stack(copies, 1).flatten(0, 1)


def _rotated(images: Tensor, angle: float, colours: int) -> Tensor:
    """Rotate images [B,C,H,W] counter-clockwise by an angle in radians."""
    height, width = images.shape[-2:]
    cosine, sine = math.cos(angle), math.sin(angle)
    # Coordinates run from -1 to 1 along each side, so that sides of different length need a factor.
    turn = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    grid = F.affine_grid(images.new_tensor(turn).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    picture = F.grid_sample(images[:, :colours], grid, padding_mode="reflection", align_corners=False)
    if images.shape[1] == colours:
        return picture
    masks = F.grid_sample(images[:, colours:], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return torch.cat([picture, masks], 1)
