"""Generated defects with exact masks, painted on good images at their original resolution.

They stand in for real defects where a choice must be made without any: of settings, of a detector, of an image size.
Seventeen kinds change structure (scratch, crack, chip, missing, ...), surface (fray, blur, texture, ...) or light and
colour (stain, exposure, colour). Sizes and strengths are log-uniform, from hardly visible to obvious. Images have any
height, width, number of channels and type of numbers. Defects that detectors are trained with are those of
`adctl.data.synthetic`, and share no code with these.

Inside, an image is [H,W,C] in float32, in units of its own contrast: 0 is black, and 1 is the spread of its values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from adctl.data.object_area import object_area
from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Random: TypeAlias = np.random.Generator
Change = tuple[Plane, Plane]
"""Changed image [H,W,C] and the coverage [H,W] by the defect, in [0, 1]."""

STRENGTHS = (0.15, 1.2)
"""Weakest and strongest defect; 1 changes a pixel by about the whole contrast of a textured image."""
BORDER = 8
"""Distance from the border of the part or of the image within which a border defect has its centre, pixels."""
BORDER_SHARE = 0.2
"""Share of the defects that are border defects, in addition to those that lie there by chance."""

_SMALLEST_SIDE = 16
_MAX_BYTES = 2
_COVERED = 0.2
"""Coverage above which a pixel belongs to the mask."""
_FAINTEST = 0.05
"""Smallest mean change over the mask on a textured image, in units of contrast."""
_TEXTURED = 0.05
"""Deviation of the fine texture of a textured image, in units of contrast; on smoother ones defects are weaker."""
_SMOOTHEST = 0.4
"""Smallest factor of the strength, on images without texture."""
_FEWEST = 5
"""Smallest mask, pixels."""
_ATTEMPTS = 12
_STRONGER = 1.2
"""Factor of the strength after an attempt that was not visible."""
_LEVELS = 16
"""Smallest contrast of integers; an image of one value has none of its own."""
_BRIGHTNESS = 0.4
"""Smallest contrast, as a share of the image's brightest level."""


@dataclass(frozen=True)
class GeneratedDefect:
    """A good image with one defect.

    Attributes:
        image: Image of the shape and type of the good one.
        mask: Mask [H,W], true exactly where a value differs from the good image.
        kind: Name from `KINDS`.
        strength: Strength of the defect, as in `STRENGTHS`.
        at_border: Whether the mask reaches within `BORDER` pixels of the border of the part or of the image.
    """

    image: NDArray[Any]
    mask: Mask
    kind: str
    strength: float
    at_border: bool


@dataclass(frozen=True)
class _Scene:
    """Good image, and where its defect is centred.

    Attributes:
        values: Image [H,W,C] in units of contrast.
        area: Pixels [H,W] of the part.
        centre: Row and column of the defect's centre, pixels.
    """

    values: Plane
    area: Mask
    centre: tuple[float, float]

    @cached_property
    def length(self) -> float:
        """Size of the part: the root of its area, pixels."""
        return math.sqrt(float(self.area.sum()))

    @cached_property
    def white(self) -> float:
        """Level of the brightest values."""
        return float(np.percentile(self.values, 99.5))

    @cached_property
    def offsets(self) -> tuple[Plane, Plane]:
        """Vertical and horizontal distances [H,W] from the centre, pixels."""
        height, width = self.area.shape
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        return y - np.float32(self.centre[0]), x - np.float32(self.centre[1])


def paint(
    image: NDArray[Any], kind: str, seed: int | Sequence[int], *, strength: float | None = None
) -> GeneratedDefect:
    """Paint one defect on a good image.

    Args:
        image: Image [H,W] or [H,W,C] of integers or floating-point numbers; sides of at least 16 pixels.
        kind: Name from `KINDS`.
        seed: Random seed; the same arguments give the same values.
        strength: Strength of the defect; None draws it from `STRENGTHS`. A defect that would not be visible is drawn
            again, a little stronger.

    Returns:
        The changed image and its mask; the given image stays as it is.

    Raises:
        UsageError: The kind is unknown, or the image cannot be painted on.
    """
    painter = _painter(kind)
    _check(image)
    rng = np.random.default_rng(seed)
    area = object_area(image)
    low, unit = _range(image)
    values = ((image.reshape(*area.shape, -1) - low) / unit).astype(np.float32)
    if strength is None:
        strength = _log_uniform(rng, *STRENGTHS)
    edge = _edge_distance(area)
    at_border = _chance(rng, BORDER_SHARE)
    visibility = _visibility(values, area)
    for _ in range(_ATTEMPTS):
        scene = _Scene(values, area, _place(rng, area, edge, at_border=at_border or kind == "chip"))
        changed, cover = painter(scene, rng, strength * visibility)
        mask = cover > _COVERED
        result = _as_given(image, changed * np.float32(unit) + np.float32(low), mask, unit)
        if _visible(image, result, mask, visibility * unit):
            break
        strength *= _STRONGER
    return GeneratedDefect(result, mask, kind, strength, bool((edge[mask] <= BORDER).any()))


def _painter(kind: str) -> Callable[[_Scene, Random, float], Change]:
    if kind not in KINDS:
        raise unknown_name("kind of generated defect", kind, KINDS)
    return KINDS[kind]


def _check(image: NDArray[Any]) -> None:
    if image.ndim not in (2, 3) or min(image.shape[:2]) < _SMALLEST_SIDE or image.size == 0:
        raise UsageError(
            f"Defects are painted on images [H,W] or [H,W,C] with sides of at least {_SMALLEST_SIDE} pixels. "
            f"Got an array of shape {image.shape} instead.",
            "Give an image in its original resolution.",
        )
    if image.dtype.kind not in "uif" or (image.dtype.kind != "f" and image.dtype.itemsize > _MAX_BYTES):
        raise UsageError(
            f"An image of type {image.dtype} cannot be painted on.", "Give 8-bit, 16-bit or floating-point numbers."
        )


def _range(image: NDArray[Any]) -> tuple[float, float]:
    """Return the value of black and the unit of contrast."""
    low = min(0.0, float(image.min()))
    dark, bright = (float(value) for value in np.percentile(image, (1, 99)))
    return low, max(bright - dark, _BRIGHTNESS * (bright - low), 1e-6 if image.dtype.kind == "f" else _LEVELS)


def _visibility(values: Plane, area: Mask) -> float:
    """Return a factor of the strength: a change that texture hides is obvious on a smooth surface."""
    fine = np.sqrt(_blurred((values - _blurred(values, 2.0)) ** 2, 4.0).mean(axis=2))
    return float(np.clip(math.sqrt(np.median(fine[area]) / _TEXTURED), _SMOOTHEST, 1.0))


def _as_given(image: NDArray[Any], values: Plane, mask: Mask, unit: float) -> NDArray[Any]:
    """Return values [H,W,C] in shape and type of the image; each pixel of the mask differs from the image."""
    given = image.reshape(values.shape)
    if image.dtype.kind == "f":
        result, step = values.astype(image.dtype), image.dtype.type(unit / 256)
        top = np.inf
    else:
        limits = np.iinfo(image.dtype)
        result, step = np.clip(np.rint(values), limits.min, limits.max).astype(image.dtype), image.dtype.type(1)
        top = limits.max
    result = np.where(mask[..., None], result, given)
    same = mask & (result == given).all(axis=2)
    first = given[..., 0][same]
    result[..., 0][same] = np.where(first < top, first + np.minimum(step, top - first), first - step)
    return result.reshape(image.shape)


def _visible(image: NDArray[Any], result: NDArray[Any], mask: Mask, unit: float) -> bool:
    if mask.sum() < _FEWEST:
        return False
    change = np.abs(result[mask].astype(np.float64) - image[mask]).reshape(int(mask.sum()), -1).max(axis=1)
    return bool(change.mean() >= _FAINTEST * unit)


# ---- places and shapes


def _edge_distance(area: Mask) -> Plane:
    """Return the distance [H,W] of each pixel to the border of the part or of the image; 0 outside of the part."""
    framed = cv2.copyMakeBorder(area.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    return np.asarray(cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _place(rng: Random, area: Mask, edge: Plane, *, at_border: bool) -> tuple[float, float]:
    """Draw the centre of a defect."""
    rows, columns = np.nonzero(area & (edge <= BORDER) if at_border else area)
    chosen = int(rng.integers(len(rows)))
    return float(rows[chosen]), float(columns[chosen])


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _noise(rng: Random, shape: tuple[int, int], cell: float) -> Plane:
    """Return smooth noise [H,W] with a deviation of about 1 and details of the given size, pixels."""
    height, width = (max(2, math.ceil(side / cell) + 2) for side in shape)
    knots = rng.normal(0, 1.3, (min(height, shape[0] + 2), min(width, shape[1] + 2))).astype(np.float32)
    return np.asarray(cv2.resize(knots, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _blurred(values: Plane, sigma: float) -> Plane:
    """Return an image [H,W] or [H,W,C] after Gaussian smoothing, each channel by itself."""
    planes = values.reshape(*values.shape[:2], -1)
    smooth = [cv2.GaussianBlur(planes[..., channel], (0, 0), sigma) for channel in range(planes.shape[2])]
    return np.stack(smooth, axis=2).reshape(values.shape).astype(np.float32)


def _blob(
    scene: _Scene, rng: Random, size: float, *, ragged: float = 0.3, soft: float = 0.15, aspect: float = 2.5
) -> Plane:
    """Return the coverage by a ragged ellipse at the centre.

    Args:
        scene: Good image.
        rng: Random numbers.
        size: Mean diameter, pixels.
        ragged: Irregularity of the outline, as a share of the radius.
        soft: Width of the outline, as a share of the radius.
        aspect: Largest ratio of the ellipse's axes.
    """
    angle, stretch = rng.uniform(0, math.pi), math.sqrt(_log_uniform(rng, 1, aspect))
    y, x = scene.offsets
    along = (math.cos(angle) * x + math.sin(angle) * y) / stretch
    across = (math.cos(angle) * y - math.sin(angle) * x) * stretch
    radius = max(size / 2, 1.0)
    outline = np.hypot(along, across) / radius
    outline += ragged * (0.7 * _noise(rng, outline.shape, radius) + 0.3 * _noise(rng, outline.shape, radius / 3))
    return _inside(scene, np.clip((1 - outline) / max(soft, 1 / radius) + 0.5, 0, 1))


def _inside(scene: _Scene, cover: NDArray[Any]) -> Plane:
    """Return the coverage without the pixels outside of the part."""
    return np.asarray(cover * scene.area, np.float32)


def _line(scene: _Scene, points: NDArray[Any], width: float, fade: NDArray[Any] | None = None) -> Plane:
    """Return the coverage by a line through points [n,2] of x and y, pixels; fade [n-1] is that of each piece."""
    canvas = np.zeros(scene.area.shape, np.uint8)
    fixed = np.rint(points * 16).astype(np.int32)
    shades = np.full(len(points) - 1, 255) if fade is None else np.rint(fade * 255)
    thickness = max(1, round(width))
    for start, end, shade in zip(fixed[:-1], fixed[1:], shades, strict=True):
        cv2.line(canvas, start.tolist(), end.tolist(), int(shade), thickness, cv2.LINE_AA, shift=4)
    return _inside(scene, canvas.astype(np.float32) / 255)


def _path(rng: Random, scene: _Scene, length: float, *, step: float, turn: float, bend: float) -> NDArray[Any]:
    """Return points [n,2] of x and y of a path through the centre.

    Args:
        rng: Random numbers.
        scene: Good image.
        length: Length, pixels.
        step: Distance between points, pixels.
        turn: Deviation of the direction from point to point, radians.
        bend: Deviation of the change of direction over the whole path, radians.
    """
    count = max(3, round(length / step))
    turns = rng.normal(0, turn, count) + rng.normal(0, bend) / count
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * step
    points = np.cumsum(steps, axis=0)
    return np.asarray(points - points[int(rng.integers(count))] + np.array(scene.centre[::-1]))


def _mix(below: Plane, above: Plane | float, cover: Plane) -> Plane:
    return np.asarray(below + (above - below) * cover[..., None], np.float32)


def _chance(rng: Random, probability: float) -> bool:
    return bool(rng.random() < probability)


def _sign(rng: Random, bright: float = 0.5) -> float:
    return 1.0 if _chance(rng, bright) else -1.0


def _tint(rng: Random, scene: _Scene, amount: float) -> Plane:
    """Return a factor near 1 for each channel [C]; all 1 for grey images."""
    channels = scene.values.shape[2]
    return np.asarray(np.ones(1) if channels == 1 else np.exp(rng.normal(0, amount, channels)), np.float32)


def _shifted(scene: _Scene, rng: Random) -> Plane:
    """Return the image as it looks at another place of the part, moved to the centre."""
    rows, columns = np.nonzero(scene.area)
    chosen = rng.integers(len(rows), size=16)
    distances = np.hypot(rows[chosen] - scene.centre[0], columns[chosen] - scene.centre[1])
    other = chosen[int(rng.choice(np.argsort(distances)[8:]))]
    return _warped(scene.values, rows[other] - scene.centre[0], columns[other] - scene.centre[1])


def _warped(values: Plane, down: Any, right: Any) -> Plane:
    """Return the image with each pixel taken from another place, that many pixels down and right; mirrored outside."""
    height, width = values.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    maps = (x + np.float32(right)), (y + np.float32(down))
    planes = [
        cv2.remap(values[..., channel], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for channel in range(values.shape[2])
    ]
    return np.stack(planes, axis=2).astype(np.float32)


# ---- kinds: structure


def _scratch(scene: _Scene, rng: Random, strength: float) -> Change:
    """Straight or slightly bent lines with fading ends, bright or dark, sometimes with a shadow beside them."""
    length = _log_uniform(rng, 0.08, 0.9) * scene.length
    width = _log_uniform(rng, 1, max(2.0, 0.02 * scene.length))
    points = _path(rng, scene, length, step=max(2.0, length / 40), turn=0.01, bend=0.5)
    fade = np.clip(np.sin(np.linspace(0.15, math.pi - 0.15, len(points) - 1)) * 1.8, 0.25, 1)
    cover = np.zeros(scene.area.shape, np.float32)
    for _ in range(1 if _chance(rng, 0.7) else int(rng.integers(2, 6))):
        cover = np.maximum(cover, _line(scene, points, width, fade))
        points = points + rng.normal(0, 3 * width + 2, 2)
    sign = _sign(rng, 0.6)
    changed = scene.values + sign * strength * cover[..., None] * _tint(rng, scene, 0.1)
    if _chance(rng, 0.5):
        shadow = np.roll(cover, (1, 1), (0, 1)) * scene.area
        changed, cover = changed - sign * 0.5 * strength * shadow[..., None], np.maximum(cover, 0.6 * shadow)
    return changed, cover


def _crack(scene: _Scene, rng: Random, strength: float) -> Change:
    """A thin, jagged, branching line, dark or seldom bright."""
    length = _log_uniform(rng, 0.08, 1.0) * scene.length
    width = _log_uniform(rng, 1, 3)
    trunk = _path(rng, scene, length, step=3, turn=0.3, bend=0.8)
    cover = _line(scene, trunk, width)
    for _ in range(int(rng.integers(5))):
        start = trunk[int(rng.integers(len(trunk)))]
        branch = _path(rng, scene, length * rng.uniform(0.1, 0.5), step=3, turn=0.35, bend=0.8)
        cover = np.maximum(cover, _line(scene, branch - branch[0] + start, max(1, width - 1)))
    cover *= np.clip(0.75 + 0.35 * _noise(rng, cover.shape, 12), 0.1, 1)
    level = -1.0 if _chance(rng, 0.85) else 1.0
    changed = scene.values + level * 1.3 * strength * cover[..., None] * np.clip(scene.values, 0.4, 1)
    return changed, cover


def _dent(scene: _Scene, rng: Random, strength: float) -> Change:
    """A bump or a dent: one side brighter and the other side darker."""
    cover = _blob(scene, rng, _log_uniform(rng, 0.03, 0.4) * scene.length, soft=0.8)
    slope_y, slope_x = np.gradient(_blurred(cover, 1.5))
    angle = rng.uniform(0, 2 * math.pi)
    shade = np.asarray(math.cos(angle) * slope_x + math.sin(angle) * slope_y, np.float32)
    shade /= max(float(np.abs(shade).max()), 1e-6)
    changed = scene.values + strength * (0.8 * scene.values + 0.4) * shade[..., None]
    return changed, np.maximum(cover, np.abs(shade) * scene.area)


def _pit(scene: _Scene, rng: Random, strength: float) -> Change:
    """One or several small dark holes, sometimes with a bright rim."""
    changed, cover = scene.values, np.zeros(scene.area.shape, np.float32)
    for _ in range(1 if _chance(rng, 0.6) else int(rng.integers(2, 6))):
        size = max(3.0, _log_uniform(rng, 0.012, 0.1) * scene.length)
        away = rng.normal(0, 1.2 * size, 2) * (cover.max() > 0)
        place = _moved(scene, float(away[0]), float(away[1]))
        hole = _blob(place, rng, size, soft=0.4, aspect=1.8)
        changed = _mix(changed, changed * 0.3 - 0.2, hole * min(1.0, 2 * strength))
        cover = np.maximum(cover, hole)
        if _chance(rng, 0.5):
            rim = np.clip(np.roll(hole, (1, 1), (0, 1)) - hole, 0, 1) * scene.area
            changed, cover = changed + 0.6 * strength * rim[..., None], np.maximum(cover, rim)
    return changed, cover


def _moved(scene: _Scene, down: float, right: float) -> _Scene:
    """Return the scene with its centre moved."""
    return replace(scene, centre=(scene.centre[0] + down, scene.centre[1] + right))


def _missing(scene: _Scene, rng: Random, strength: float) -> Change:
    """Structure that is not there: the mean of the surroundings with their fine grain."""
    size = _log_uniform(rng, 0.06, 0.4) * scene.length
    cover = _blob(scene, rng, size, ragged=0.2)
    outside = ((cover < _COVERED) & scene.area).astype(np.float32)
    weights = _blurred(outside, max(2.0, size / 3))[..., None]
    mean = scene.values[scene.area].mean(axis=0)
    smooth = (_blurred(scene.values * outside[..., None], max(2.0, size / 3)) + 1e-3 * mean) / (weights + 1e-3)
    grain = _shifted(scene, rng)
    filled = smooth + 0.5 * (grain - _blurred(grain, 2.0)) + _sign(rng) * 0.15 * strength
    return _mix(scene.values, filled.astype(np.float32), cover * min(1.0, 0.4 + strength)), cover


def _patch(scene: _Scene, rng: Random, size: float) -> Plane:
    """Return the coverage by a rectangle, rotated or not, or by a ragged ellipse."""
    if _chance(rng, 0.4):
        return _blob(scene, rng, size, soft=0.05)
    angle = 0.0 if _chance(rng, 0.5) else rng.uniform(0, math.pi)
    stretch = math.sqrt(_log_uniform(rng, 1 / 4, 4))
    y, x = scene.offsets
    along = np.abs(math.cos(angle) * x + math.sin(angle) * y) - size / 2 / stretch
    across = np.abs(math.cos(angle) * y - math.sin(angle) * x) - size / 2 * stretch
    return _inside(scene, np.clip(0.5 - np.maximum(along, across), 0, 1))


def _misplaced(scene: _Scene, rng: Random, strength: float) -> Change:
    """A piece of the part from another place."""
    cover = _patch(scene, rng, _log_uniform(rng, 0.06, 0.4) * scene.length)
    other = _shifted(scene, rng) * (1 + 0.2 * strength * rng.normal()) + 0.1 * strength * _sign(rng)
    return _mix(scene.values, other.astype(np.float32), cover * min(1.0, 0.4 + strength)), cover


def _rotated(scene: _Scene, rng: Random, strength: float) -> Change:
    """A piece of the part, rotated or mirrored in its place."""
    cover = _patch(scene, rng, _log_uniform(rng, 0.1, 0.5) * scene.length)
    angle, mirror = rng.uniform(0.25, 2 * math.pi - 0.25), _sign(rng)
    y, x = scene.offsets
    source_x = mirror * (math.cos(angle) * x + math.sin(angle) * y)
    source_y = math.cos(angle) * y - math.sin(angle) * x
    turned = _warped(scene.values, source_y - y, source_x - x) + 0.1 * strength * _sign(rng)
    return _mix(scene.values, turned.astype(np.float32), cover * min(1.0, 0.4 + strength)), cover


def _chip(scene: _Scene, rng: Random, strength: float) -> Change:
    """Material broken off at the border: background, or darkness where there is none, with a bright edge."""
    size = _log_uniform(rng, 0.04, 0.3) * scene.length
    cover = _blob(scene, rng, size, ragged=0.4, soft=0.1)
    outside = (~scene.area).astype(np.float32)
    if outside.any():
        weights = _blurred(outside, size / 2 + 4)[..., None] + 1e-3
        filled = _blurred(scene.values * outside[..., None], size / 2 + 4) / weights
    else:
        level = rng.uniform(0, 0.25) if _chance(rng, 0.75) else scene.white
        filled = np.full_like(scene.values, level)
    filled = filled + 0.03 * _noise(rng, cover.shape, 2)[..., None]
    rim = np.clip(_blurred(cover, 1.2) * (1 - cover) * 4, 0, 1) * scene.area
    changed = _mix(scene.values, filled.astype(np.float32), cover * min(1.0, 0.25 + strength))
    return changed + _sign(rng, 0.7) * 0.5 * strength * rim[..., None], np.maximum(cover, rim)


def _bent(scene: _Scene, rng: Random, strength: float) -> Change:
    """Structure that is pushed aside."""
    size = _log_uniform(rng, 0.12, 0.5) * scene.length
    cover = _blob(scene, rng, size, soft=0.9, ragged=0.15)
    push, angle = (0.04 + 0.2 * strength) * size, rng.uniform(0, 2 * math.pi)
    dome = _blurred(cover, max(1.0, size / 12))
    moved = _warped(scene.values, dome * push * math.sin(angle), dome * push * math.cos(angle))
    shade = 1 + 0.25 * strength * _sign(rng) * cover
    return moved * shade[..., None], cover


# ---- kinds: surface


def _fray(scene: _Scene, rng: Random, strength: float) -> Change:
    """A roughened surface: each pixel from a random place nearby, with grain."""
    cover = _blob(scene, rng, _log_uniform(rng, 0.06, 0.4) * scene.length, ragged=0.5, soft=0.4)
    reach, shape = 1 + 8 * strength, cover.shape
    moved = _warped(scene.values, reach * _noise(rng, shape, 3), reach * _noise(rng, shape, 3))
    grain = _noise(rng, shape, rng.uniform(1, 4)) * rng.uniform(0.1, 0.4) * strength
    return _mix(scene.values, moved + grain[..., None], cover), cover


def _texture(scene: _Scene, rng: Random, strength: float) -> Change:
    """A foreign texture: streaks or spots of another size and direction."""
    cover = _blob(scene, rng, _log_uniform(rng, 0.08, 0.5) * scene.length, ragged=0.8, soft=0.3)
    angle, period = rng.uniform(0, math.pi), _log_uniform(rng, 3, 20)
    y, x = scene.offsets
    along = (math.cos(angle) * x + math.sin(angle) * y) * 2 * math.pi / period
    streaks = np.sin(along + 0.8 * _noise(rng, cover.shape, 3 * period))
    spots = _noise(rng, cover.shape, period)
    share = rng.random()
    foreign = (share * streaks + (1 - share) * spots).astype(np.float32)
    base = _blurred(scene.values, period)
    changed = base + 0.5 * strength * foreign[..., None] * _tint(rng, scene, 0.3)
    return _mix(scene.values, changed.astype(np.float32), cover), cover


def _smear(scene: _Scene, rng: Random, strength: float) -> Change:
    """A smeared or polished surface: details lost in one direction or in all, a little brighter or darker."""
    size = _log_uniform(rng, 0.08, 0.5) * scene.length
    cover = _blob(scene, rng, size, aspect=4)
    reach = 2 + 0.12 * strength * scene.length
    smooth = _blurred(scene.values, 0.5 * reach)
    if _chance(rng, 0.6):
        angle = rng.uniform(0, math.pi)
        steps = np.linspace(-reach, reach, 9)
        views = [_warped(scene.values, step * math.sin(angle), step * math.cos(angle)) for step in steps]
        smooth = np.mean(views, axis=0, dtype=np.float32)
    return _mix(scene.values, smooth + _sign(rng) * 0.15 * strength, cover * min(1.0, 0.4 + strength)), cover


def _specks(scene: _Scene, rng: Random, strength: float) -> Change:
    """Dust or splashes: many dots, dark or bright."""
    reach = _log_uniform(rng, 0.02, 0.3) * scene.length
    largest = max(2.0, 0.02 * scene.length)
    canvas = np.zeros(scene.area.shape, np.uint8)
    for _ in range(int(_log_uniform(rng, 1, 40))):
        y, x = np.array(scene.centre) + rng.normal(0, reach / 2, 2)
        axes = _log_uniform(rng, 0.8, largest) * np.exp(rng.normal(0, 0.25, 2))
        fixed = (round(x * 16), round(y * 16)), (round(axes[0] * 16), round(axes[1] * 16))
        cv2.ellipse(canvas, *fixed, rng.uniform(0, 180), 0, 360, 255, cv2.FILLED, cv2.LINE_AA, shift=4)
    cover = _inside(scene, _blurred(np.asarray(canvas / 255, np.float32), 0.5))
    level = np.float32(0.05 if _chance(rng, 0.6) else scene.white + 0.2)
    return _mix(scene.values, level * _tint(rng, scene, 0.2), cover * min(1.0, 0.15 + strength)), cover


def _fibre(scene: _Scene, rng: Random, strength: float) -> Change:
    """A hair or thread on the surface: a curled line of even colour with a soft shadow."""
    length = _log_uniform(rng, 0.15, 1.0) * scene.length
    points = _path(rng, scene, length, step=max(2.0, length / 60), turn=0.12, bend=3)
    thread = _line(scene, points, _log_uniform(rng, 1, max(2.0, 0.015 * scene.length)))
    shadow = _blurred(np.roll(thread, (2, 2), (0, 1)), 1.5) * scene.area
    level = rng.uniform(0, 0.3) if _chance(rng, 0.5) else scene.white * rng.uniform(0.8, 1.1)
    changed = scene.values * (1 - 0.3 * strength * shadow[..., None])
    changed = _mix(changed, np.float32(level) * _tint(rng, scene, 0.3), thread * min(1.0, 0.1 + strength))
    return changed, np.maximum(thread, 0.5 * shadow)


# ---- kinds: light and colour


def _stain(scene: _Scene, rng: Random, strength: float) -> Change:
    """A stain: darker or brighter, tinted, sometimes with a stronger rim; the texture shows through."""
    cover = _blob(
        scene, rng, _log_uniform(rng, 0.05, 0.5) * scene.length, ragged=0.45, soft=_log_uniform(rng, 0.1, 0.6)
    )
    weight = cover
    if _chance(rng, 0.4):
        weight = np.clip(0.5 * cover + 2 * cover * (1 - cover), 0, 1)
    weight = weight * np.clip(1 + 0.25 * _noise(rng, cover.shape, 0.08 * scene.length), 0, 1.3)
    tint = _tint(rng, scene, 0.5)
    gain = np.float32(1 - 0.75 * strength) if _chance(rng, 0.7) else np.float32(1 + 0.8 * strength)
    target = scene.values * gain * (1 + strength * (tint / tint.mean() - 1))
    target = target + (gain > 1) * 0.2 * strength
    return _mix(scene.values, target.astype(np.float32), weight), cover


def _exposure(scene: _Scene, rng: Random, strength: float) -> Change:
    """A large area with another brightness, and a soft border."""
    size = _log_uniform(rng, 0.3, 1.0) * scene.length
    everywhere = replace(scene, area=np.ones_like(scene.area))  # light also falls on the background
    cover = _blob(everywhere, rng, size, soft=0.8)
    gain = math.exp(_sign(rng) * 0.9 * strength)
    return _mix(scene.values, scene.values * gain + 0.15 * (gain - 1), cover), cover


def _colour(scene: _Scene, rng: Random, strength: float) -> Change:
    """A change of hue; of the tone curve in grey images."""
    cover = _blob(scene, rng, _log_uniform(rng, 0.06, 0.5) * scene.length)
    channels = scene.values.shape[2]
    if channels == 1:
        mean = float(scene.values[scene.area].mean())
        contrast = math.exp(_sign(rng) * 1.2 * strength)
        target = mean + (scene.values - mean) * contrast + _sign(rng) * 0.2 * strength
    else:
        mixed = scene.values[..., np.roll(np.arange(channels), int(rng.integers(1, channels)))]
        share = rng.uniform(0.3, 1) * strength
        target = scene.values + share * (mixed - scene.values) + 0.15 * strength * rng.normal(0, 1, channels)
    return _mix(scene.values, np.asarray(target, np.float32), cover), cover


KINDS: dict[str, Callable[[_Scene, Random, float], Change]] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "pit": _pit,
    "missing": _missing,
    "misplaced": _misplaced,
    "rotated": _rotated,
    "chip": _chip,
    "bent": _bent,
    "fray": _fray,
    "texture": _texture,
    "smear": _smear,
    "specks": _specks,
    "fibre": _fibre,
    "stain": _stain,
    "exposure": _exposure,
    "colour": _colour,
}
"""Painting functions by kind of defect."""
