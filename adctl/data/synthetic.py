"""Synthetic defects painted onto good images, each with its exact mask.

| kind       | defect                                                                | source                       |
|------------|-----------------------------------------------------------------------|------------------------------|
| `cutpaste` | a patch, or a thin rotated scar, cut from elsewhere in the same image | Li et al., CVPR 2021         |
| `perlin`   | a foreign texture, blended in where Perlin noise is high (DRAEM)      | Zavrtanik et al., ICCV 2021  |

DRAEM takes its textures from a dataset of photographs. Here they come from another image of the batch or from the image
itself, shifted and distorted, so that nothing needs to be downloaded. The position of the object is not known: defects
may be painted on the background. All random numbers come from torch's global CPU generator, on every device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms import v2

from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PaintedBatch = tuple[Tensor, Tensor]
"""Images [B,C,H,W] and the mask of their painted pixels, bool [B,H,W]."""

_MIN_CHANGE = 0.02
_MIN_PIXELS = 10
_ATTEMPTS = 6
"""A defect with a smaller mean change of grey value, or with fewer pixels, is drawn again, up to this many attempts."""

_PATCH_AREA = (0.02, 0.15)
_PATCH_ASPECT = 3.3
_SCAR_WIDTH = (2 / 256, 16 / 256)
_SCAR_LENGTH = (10 / 256, 25 / 256)
_SCAR_DEGREES = 45.0
_JITTER = 0.1
"""CutPaste, sections 2.2 and 2.3: sizes as shares of the image or its side; jitter of brightness and saturation."""

_LATTICE = 64
_COARSEST, _FINEST = 0, 5
_NARROWEST_CELL = 8
_THRESHOLD = 0.5
_OPACITY = (0.1, 1.0)
_DISTORTIONS = 3
"""DRAEM, section 3.1: binarised noise with 2^0 to 2^5 cells per axis; opacity; number of distortions of a texture."""


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of kinds, such as `cutpaste,perlin`.

    Raises:
        UsageError: A kind is unknown.
    """
    return check_kinds([part.strip() for part in text.split(",")])


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Check the names of kinds, and return them without repetitions.

    Raises:
        UsageError: A kind is unknown, or there is none.
    """
    if not kinds:
        raise UsageError("No kind of synthetic defect was given.", f"Known: {', '.join(sorted(PAINTERS))}.")
    for kind in kinds:
        if kind not in PAINTERS:
            raise unknown_name("synthetic defect", kind, PAINTERS)
    return tuple(dict.fromkeys(kinds))


def paint(images: Tensor, kinds: Sequence[str], probability: float = 0.5) -> PaintedBatch:
    """Paint a defect onto some of the images.

    Args:
        images: Tensor [B,C,H,W] of float32 in [0, 1], with C = 1 or 3; it is not modified.
        kinds: Kinds of defects; one is drawn for each image, all with equal probability.
        probability: Probability that an image gets a defect. An image on which no defect is visible, such as one of a
            single colour, gets none.

    Returns:
        Tensor [B,C,H,W] in [0, 1] and mask [B,H,W] of bool. The tensor differs from `images` exactly in the pixels of
        the mask.

    Raises:
        UsageError: A kind is unknown, or there is none.
    """
    painters = [PAINTERS[kind] for kind in check_kinds(kinds)]
    count = len(images)
    chosen = torch.randint(len(painters), (count,))
    chosen[torch.rand(count) >= probability] = -1
    result, masks = images.clone(), images.new_zeros((count, *images.shape[2:]), dtype=torch.bool)
    for number, painter in enumerate(painters):
        rows = torch.nonzero(chosen == number).flatten()
        for _ in range(_ATTEMPTS):
            if not len(rows):
                break
            selected = rows.to(images.device)
            painted, mask = painter(images, selected)
            visible = _visible(images[selected], painted, mask)
            result[selected[visible]], masks[selected[visible]] = painted[visible], mask[visible]
            rows = rows[~visible.cpu()]
    return result, masks


def cutpaste(images: Tensor, rows: Tensor | None = None) -> PaintedBatch:
    """Paste a piece of each image elsewhere in it: a patch or a rotated scar, with equal probability (CutPaste).

    Brightness and saturation of the piece change by up to 10 %; grey stays grey.

    Args:
        images: Tensor [B,C,H,W] in [0, 1].
        rows: Indices [n] of the images to paint; None paints all.

    Returns:
        Tensor [n,C,H,W] and mask [n,H,W] of bool.
    """
    selected = _rows(images, rows)
    originals = images[selected]
    count, _, height, width = originals.shape
    tall, wide, angle = (value.to(images.device) for value in _pieces(count, height, width))
    cos, sin = angle.cos(), angle.sin()
    reach_x = (wide * cos.abs() + tall * sin.abs()) / 2
    reach_y = (wide * sin.abs() + tall * cos.abs()) / 2
    x, y = _uniform_between(reach_x, width - reach_x), _uniform_between(reach_y, height - reach_y)
    across, down = _pixel_centres(images)
    across, down = across - x, down - y
    u, v = cos * across + sin * down, cos * down - sin * across
    mask = (u.abs() < wide / 2) & (v.abs() < tall / 2)
    column = (_uniform_between(wide / 2, width - wide / 2) + u).floor().long().clamp(0, width - 1)
    row = (_uniform_between(tall / 2, height - tall / 2) + v).floor().long().clamp(0, height - 1)
    source = (row * width + column).flatten(1).unsqueeze(1).expand(-1, originals.shape[1], -1)
    pieces = originals.flatten(2).gather(2, source).view_as(originals)
    return _paste(originals, _jittered(pieces), mask)


def perlin(images: Tensor, rows: Tensor | None = None) -> PaintedBatch:
    """Blend a foreign texture into each image where Perlin noise is high (DRAEM, equation 1).

    Args:
        images: Tensor [B,C,H,W] in [0, 1]; all of them serve as textures.
        rows: Indices [n] of the images to paint; None paints all.

    Returns:
        Tensor [n,C,H,W] and mask [n,H,W] of bool.
    """
    selected = _rows(images, rows)
    originals = images[selected]
    count, _, height, width = originals.shape
    finest = [max(_COARSEST, min(_FINEST, int(math.log2(max(1, side / _NARROWEST_CELL))))) for side in (height, width)]
    cells = torch.stack([2.0 ** torch.randint(_COARSEST, most + 1, (count,)) for most in finest], dim=1)
    noise = perlin_noise(cells, height, width, angle=_uniform((count,), -math.pi / 2, math.pi / 2))
    mask = (noise > _THRESHOLD).to(images.device)
    textures = torch.stack([_texture(images, int(row)) for row in selected])
    opacity = _uniform((count, 1, 1, 1), *_OPACITY).to(images.device)
    return _paste(originals, originals + opacity * (textures - originals), mask)


def perlin_noise(cells: Tensor, height: int, width: int, angle: Tensor | None = None) -> Tensor:
    """Generate Perlin's gradient noise (Perlin, "Improving Noise", SIGGRAPH 2002), one random field for each image.

    Args:
        cells: Tensor [B,2], number of lattice cells along the height and along the width.
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        angle: Tensor [B], rotation of the lattice, radians; None does not rotate.

    Returns:
        Tensor [B,H,W] in [-1, 1], on the CPU; 0 at the lattice points.
    """
    count = len(cells)
    rotation = (torch.zeros(count) if angle is None else angle).view(-1, 1, 1)
    y = ((torch.arange(height) + 0.5) / height - 0.5).view(1, -1, 1)
    x = ((torch.arange(width) + 0.5) / width - 0.5).view(1, 1, -1)
    offset = torch.rand(2, count, 1, 1) * _LATTICE
    down = (rotation.cos() * y - rotation.sin() * x) * cells[:, 0].view(-1, 1, 1) + offset[0]
    across = (rotation.cos() * x + rotation.sin() * y) * cells[:, 1].view(-1, 1, 1) + offset[1]
    gradient = torch.rand(count, _LATTICE * _LATTICE) * (2 * math.pi)
    top, left = down.floor(), across.floor()
    down, across = down - top, across - left

    def corner(below: int, beside: int) -> Tensor:
        """Return the dot product of a lattice corner's gradient and the offset from the corner."""
        place = ((top + below) % _LATTICE * _LATTICE + (left + beside) % _LATTICE).long()
        direction = gradient.gather(1, place.flatten(1)).view_as(place)
        return direction.cos() * (across - beside) + direction.sin() * (down - below)

    upper = torch.lerp(corner(0, 0), corner(0, 1), _fade(across))
    lower = torch.lerp(corner(1, 0), corner(1, 1), _fade(across))
    return torch.lerp(upper, lower, _fade(down)) * math.sqrt(2)


PAINTERS: dict[str, Callable[[Tensor, Tensor], PaintedBatch]] = {"cutpaste": cutpaste, "perlin": perlin}
"""Painting functions by kind of defect."""


def _rows(images: Tensor, rows: Tensor | None) -> Tensor:
    return torch.arange(len(images), device=images.device) if rows is None else rows


def _visible(originals: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """Return which of the defects are visible, bool [n]."""
    change = (painted - originals).abs().amax(1).flatten(1).sum(1)
    pixels = mask.flatten(1).sum(1)
    return (pixels >= _MIN_PIXELS) & (change >= _MIN_CHANGE * pixels)


def _paste(originals: Tensor, changed: Tensor, mask: Tensor) -> PaintedBatch:
    """Take the changed pixels inside the mask, and remove pixels that did not change from the mask."""
    painted = torch.where(mask.unsqueeze(1), changed.clamp(0, 1), originals)
    return painted, (painted != originals).any(1)


def _pieces(count: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw heights and widths of the pieces, pixels, and their rotation, radians; each [n,1,1]."""
    shape = (count, 1, 1)
    area = _uniform(shape, *_PATCH_AREA) * height * width
    aspect = torch.exp(_uniform(shape, -math.log(_PATCH_ASPECT), math.log(_PATCH_ASPECT)))
    side = min(height, width)
    scar = _coin_flips(shape)
    tall = torch.where(scar, _uniform(shape, *_SCAR_LENGTH) * side, (area * aspect).sqrt())
    wide = torch.where(scar, _uniform(shape, *_SCAR_WIDTH) * side, (area / aspect).sqrt())
    rotation = math.radians(_SCAR_DEGREES)
    angle = torch.where(scar, _uniform(shape, -rotation, rotation), torch.zeros(shape))
    return tall.round().clamp(2, height), wide.round().clamp(2, width), angle


def _jittered(pieces: Tensor) -> Tensor:
    shape = (len(pieces), 1, 1, 1)
    brightness, saturation = (_uniform(shape, 1 - _JITTER, 1 + _JITTER).to(pieces.device) for _ in range(2))
    grey = pieces.mean(1, keepdim=True)
    return brightness * (grey + saturation * (pieces - grey))


def _texture(images: Tensor, row: int) -> Tensor:
    """Return a texture [C,H,W]: another image of the batch or the image itself, shifted, mirrored and distorted."""
    other = (row + int(torch.randint(1, len(images), ()))) % len(images) if len(images) > 1 else row
    texture = images[other if _coin_flips(()) else row]
    shift = [int(torch.randint(side, ())) for side in texture.shape[1:]]
    texture = texture.roll(shift, (1, 2))
    texture = texture.flip([axis for axis in (1, 2) if _coin_flips(())])
    for number in torch.randperm(len(_DISTORT))[:_DISTORTIONS].tolist():
        texture = _DISTORT[number](texture)
    return texture


_DISTORT: tuple[Callable[[Tensor], Tensor], ...] = (
    v2.RandomSolarize(0.5, p=1.0),
    v2.RandomPosterize(2, p=1.0),
    v2.RandomEqualize(p=1.0),
    v2.RandomAutocontrast(p=1.0),
    v2.RandomAdjustSharpness(4.0, p=1.0),
    v2.ColorJitter(brightness=0.6),
    v2.ColorJitter(contrast=0.6, saturation=0.6, hue=0.5),
)


def _fade(share: Tensor) -> Tensor:
    return share**3 * (share * (share * 6 - 15) + 10)


def _coin_flips(shape: tuple[int, ...]) -> Tensor:
    """Draw True or False with equal probability."""
    return torch.randint(2, shape).bool()


def _uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def _uniform_between(low: Tensor, high: Tensor) -> Tensor:
    """Draw uniformly between two tensors; use their mean where `low` exceeds `high`."""
    share = torch.rand(low.shape).to(low.device)
    return torch.where(low <= high, low + share * (high - low), (low + high) / 2)


def _pixel_centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the x coordinates [1,1,W] and y coordinates [1,H,1] of the pixel centres, pixels."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    return x.view(1, 1, -1), y.view(1, -1, 1)
