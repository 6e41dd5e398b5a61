"""The built-in data set: synthetic zippers, good and defective, with exact masks, in MVTec AD layout.

A scene (pose, light, weave, slider) comes from one random stream and its defect from another. The same scene is painted
with and without the defect, and the mask marks the pixels that differ. The defect types have the names of MVTec AD's
zipper (Bergmann et al. 2019). No files and no network are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adctl.fetching.generated_category import write_category

if TYPE_CHECKING:
    from pathlib import Path

Plane = NDArray[np.float32]
Edit = Callable[["_Scene", np.random.Generator], "_Scene"]

VERSION = 1
"""Version of the drawing code: another version gives other pixels for the same seed."""

CATEGORY = "zipper"

_SHORTEST_TOOTH = 0.05
"""Teeth with a smaller relative length are not painted."""
_VISIBLE = 7
"""Change in grey levels above which a pixel belongs to the mask."""
_TEETH = 48
_PITCH = 0.11
_TAPE = 0.80
_STITCH = 0.36
_STITCH_GAP = -0.25


@dataclass(frozen=True)
class _Teeth:
    """The teeth of one side from top to bottom: shifts along and across, relative lengths (0 for a missing tooth)."""

    along: Plane
    across: Plane
    length: Plane


@dataclass(frozen=True)
class _Scene:
    """Parameters of one image. Lengths are in half image sizes; u runs across the zipper, v along it."""

    angle: float
    scale: float
    shift: tuple[float, float]
    phase: float
    light: tuple[float, float]
    exposure: float
    tint: tuple[float, float, float]
    weave: float
    slider: float
    left: _Teeth
    right: _Teeth
    texture_seed: int
    bites: tuple[tuple[float, float, float, float], ...] = ()
    holes: tuple[tuple[float, float, float, float], ...] = ()
    threads: tuple[tuple[float, float, float, float], ...] = ()
    stains: tuple[tuple[float, float, float, float], ...] = ()
    scuffs: tuple[tuple[float, float, float, float], ...] = field(default=())


def render(
    seed: int | Sequence[int], defect: str | None = None, size: int = 256
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one image and its exact mask.

    Args:
        seed: Random seed; the same arguments give the same pixels.
        defect: Name from `DEFECTS`, or None for a good zipper.
        size: Width and height of the image in pixels.

    Returns:
        RGB image [size,size,3], uint8, and mask [size,size], bool, true where the defect is visible. Outside the mask
        the image equals the same scene without the defect.
    """
    scene_stream, defect_stream = np.random.SeedSequence(seed).spawn(2)
    scene = _random_scene(np.random.default_rng(scene_stream))
    good = _paint(scene, size)
    if defect is None:
        return good, np.zeros((size, size), np.bool_)
    generator = np.random.default_rng(defect_stream)
    while True:  # repeat if the slider hides the defect, or if it is too faint
        bad = _paint(_EDITS[defect](scene, generator), size)
        mask = _difference(good, bad)
        if mask.sum() >= max(12, 0.0012 * size * size):
            return np.where(mask[..., None], bad, good), mask


def generate(
    root: Path,
    *,
    train: int = 60,
    good: int = 20,
    per_defect: int = 6,
    size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set, unless it exists already with the same settings.

    Args:
        root: Parent of the category's folder, `root/zipper`.
        train: Number of good training images.
        good: Number of good test images.
        per_defect: Number of test images of each defect type.
        size: Width and height of the images in pixels.
        seed: Random seed.
        progress: Called with (done, total) in images.

    Returns:
        Folder of the category.

    Raises:
        OutputError: It cannot be written, or the folder exists but was not made by adctl.
    """
    record = {"version": VERSION, "train": train, "good": good, "per_defect": per_defect, "size": size, "seed": seed}

    def draw(key: Sequence[int], defect: str | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        return render(key, defect, size)

    return write_category(root / CATEGORY, record, DEFECTS, draw, progress)


def _random_scene(generator: np.random.Generator) -> _Scene:
    def teeth() -> _Teeth:
        return _Teeth(
            along=generator.normal(0, 0.0022, _TEETH).astype(np.float32),
            across=generator.normal(0, 0.0030, _TEETH).astype(np.float32),
            length=np.ones(_TEETH, np.float32) + generator.normal(0, 0.012, _TEETH).astype(np.float32),
        )

    direction = generator.uniform(0, 2 * np.pi)
    strength = generator.uniform(0.02, 0.10)
    grey = generator.uniform(0.94, 1.06)
    return _Scene(
        angle=float(generator.normal(0, 0.012)),
        scale=float(generator.uniform(0.97, 1.03)),
        shift=(float(generator.normal(0, 0.015)), float(generator.uniform(-0.05, 0.05))),
        phase=float(generator.uniform(0, _PITCH)),
        light=(strength * np.cos(direction), strength * np.sin(direction)),
        exposure=float(generator.uniform(0.90, 1.08)),
        tint=(float(grey), 1.0, float(2 - grey)),
        weave=float(generator.uniform(0.95, 1.05)),
        slider=float(generator.uniform(-0.93, -0.87)),
        left=teeth(),
        right=teeth(),
        texture_seed=int(generator.integers(1 << 31)),
    )


def _paint(scene: _Scene, size: int) -> NDArray[np.uint8]:
    u, v = _coordinates(scene, size)
    pixel = 2.0 / size
    texture = np.random.default_rng(scene.texture_seed)
    coarse, fine = _noise(texture, size, 6), _noise(texture, size, 40)
    grain = texture.normal(0, 1, (size, size)).astype(np.float32)
    streaks = cv2.GaussianBlur(texture.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 0.6) * 1.4

    image = 0.70 + 0.025 * coarse + 0.006 * grain  # the table below the zipper
    edge = _TAPE + 0.006 * fine - _bites(scene, u, v, fine)
    tape = _step(edge - np.abs(u), pixel)
    shadow = _step(edge + 0.05 - np.abs(u + 0.02), 0.06)
    image *= 1 - 0.35 * shadow
    image = _mix(
        image, _fabric(scene, u, v, coarse, fine, streaks), tape * (1 - _ellipses(scene.holes, u, v, fine, pixel))
    )
    for thread in scene.threads:
        image = _mix(image, np.float32(0.62), _segment(thread, u, v, fine, pixel) * tape)
    image = _teeth(image, scene, u, v, pixel)
    image = _slider(image, scene.slider, u, v, pixel)
    for stain in scene.stains:
        image = image * (1 - 0.45 * _ellipses((stain,), u, v, fine, 4 * pixel))
    scuffed = _ellipses(scene.scuffs, u, v, fine, 3 * pixel)
    image = image + scuffed * (0.05 + 0.30 * np.clip(streaks, -0.6, 1.4) * np.abs(fine + 0.5))
    lit = image * scene.exposure * (1 + scene.light[0] * u + scene.light[1] * v)
    colour = np.stack([lit * tint for tint in scene.tint], axis=2)
    sensed = cv2.GaussianBlur(colour, (0, 0), max(0.45, 0.55 * size / 256)) + 0.010 * grain[..., None]
    return np.asarray(np.clip(sensed * 255, 0, 255), np.uint8)


def _coordinates(scene: _Scene, size: int) -> tuple[Plane, Plane]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1) / scene.scale
    x, y = np.meshgrid(axis - scene.shift[0], axis - scene.shift[1])
    cosine, sine = np.cos(scene.angle), np.sin(scene.angle)
    return (cosine * x + sine * y).astype(np.float32), (cosine * y - sine * x).astype(np.float32)


def _fabric(scene: _Scene, u: Plane, v: Plane, coarse: Plane, fine: Plane, streaks: Plane) -> Plane:
    """Paint twill: crossing diagonal ridges, a lighter hem, a stitched seam and a cord beside the teeth."""
    frequency = 2 * np.pi * 22 * scene.weave
    wobble = 0.35 * fine
    twill = np.sin(frequency * (u + v) + wobble) * 0.5 + np.sin(frequency * 2 * (u - v) + wobble) * 0.25
    cloth = 0.205 + 0.030 * twill + 0.016 * coarse + 0.010 * streaks
    hem = np.exp(-(((np.abs(u) - _TAPE + 0.05) / 0.03) ** 2))
    seam = np.exp(-(((np.abs(u) - _STITCH) / 0.012) ** 2)) * (
        np.sin(2 * np.pi * v / 0.07 + 3 * np.sign(u)) > _STITCH_GAP
    )
    cord = np.exp(-(((np.abs(u) - 0.24) / 0.05) ** 2))
    return np.asarray(cloth + 0.035 * hem + 0.17 * seam + 0.05 * cord, np.float32)


def _teeth(image: Plane, scene: _Scene, u: Plane, v: Plane, pixel: float) -> Plane:
    gap = _step(0.17 - np.abs(u), 0.02)
    image = _mix(image, np.float32(0.09), gap * 0.85)
    for side, teeth, offset in ((-1, scene.left, 0.0), (1, scene.right, 0.5)):
        place = (v + 1.4) / _PITCH - scene.phase / _PITCH - offset
        nearest = np.floor(place + 0.5).astype(np.int32)
        for step in (-1, 0, 1):
            index = np.clip(nearest + step, 0, _TEETH - 1)
            along = (place - index) * _PITCH - teeth.along[index]
            image = _tooth(image, side * u - teeth.across[index], along, teeth.length[index], scene, pixel)
    return image


def _tooth(image: Plane, across: Plane, along: Plane, length: Plane, scene: _Scene, pixel: float) -> Plane:
    """Paint a rounded metal bar that reaches from the tape (across > 0) over the middle of the chain."""
    reach = 0.115 * length
    half = 0.33 * _PITCH
    x = np.abs(across - (0.195 - reach)) - (reach - 0.012)
    y = np.abs(along) - (half - 0.012)
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - 0.012
    cover = _step(-outside, pixel) * (length > _SHORTEST_TOOTH)
    roundness = np.clip(along / half, -1, 1)
    glint = np.exp(-(((roundness + 0.25 + 4 * scene.light[1]) / 0.30) ** 2))
    dome = np.exp(-(((across - 0.10) / 0.035) ** 2))
    metal = 0.40 + 0.26 * glint - 0.14 * roundness + 0.10 * dome * glint
    return _mix(image, metal, cover)


def _slider(image: Plane, place: float, u: Plane, v: Plane, pixel: float) -> Plane:
    body = _step(0.27 - 0.25 * (v - place) - np.abs(u), pixel) * _step(0.16 - np.abs(v - place), pixel)
    image = _mix(image, (0.50 + 0.22 * np.exp(-(((u + 0.08) / 0.07) ** 2)) - 0.30 * np.abs(u)).astype(np.float32), body)
    pull = _step(0.07 - np.abs(u), pixel) * _step(0.14 - np.abs(v - place - 0.22), pixel)
    return _mix(image, (0.44 + 0.20 * np.exp(-(((u - 0.02) / 0.03) ** 2))).astype(np.float32), pull)


def _bites(scene: _Scene, u: Plane, v: Plane, fine: Plane) -> Plane:
    """Return how far the outer edge is cut back at each pixel."""
    depth = np.zeros_like(u)
    for side, centre, half, deep in scene.bites:
        near = np.clip(1 - ((v - centre) / half) ** 2, 0, None)
        depth += np.where(np.sign(u) == side, deep * np.sqrt(near) * (1 + 0.5 * fine), 0)
    return np.clip(depth, 0, None)


def _ellipses(
    shapes: Sequence[tuple[float, float, float, float]], u: Plane, v: Plane, fine: Plane, soft: float
) -> Plane:
    """Return the coverage by ragged ellipses (centre u, centre v, half width, half height)."""
    cover = np.zeros_like(u)
    for centre_u, centre_v, half_u, half_v in shapes:
        radius = np.hypot((u - centre_u) / half_u, (v - centre_v) / half_v) + 0.12 * fine
        cover = np.maximum(cover, _step((1 - radius) * min(half_u, half_v), soft))
    return cover


def _segment(line: tuple[float, float, float, float], u: Plane, v: Plane, fine: Plane, pixel: float) -> Plane:
    """Return the coverage by a loose thread that starts at (u, v), with a direction and a length."""
    start_u, start_v, direction, length = line
    forward = (u - start_u) * np.cos(direction) + (v - start_v) * np.sin(direction)
    aside = (
        (v - start_v) * np.cos(direction)
        - (u - start_u) * np.sin(direction)
        + 0.03 * np.sin(9 * forward)
        + 0.006 * fine
    )
    cover: Plane = _step(0.010 - np.abs(aside), pixel) * ((forward > 0) & (forward < length))
    return cover


def _noise(generator: np.random.Generator, size: int, cells: int) -> Plane:
    """Return smooth noise from a grid of `cells` x `cells` random values, alike at every image size."""
    knots = generator.normal(0, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _step(distance: NDArray[Any], width: float) -> Plane:
    """Return 0 for negative and 1 for positive distances, with a smooth edge of the given width."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _mix(below: Plane, above: Plane | np.float32, cover: Plane) -> Plane:
    return np.asarray(below + (above - below) * cover, np.float32)


def _difference(good: NDArray[np.uint8], bad: NDArray[np.uint8]) -> NDArray[np.bool_]:
    changed = np.abs(good.astype(np.int16) - bad.astype(np.int16)).max(axis=2) > _VISIBLE
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    closed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return np.asarray(closed > 0)


def _visible_tooth(generator: np.random.Generator) -> int:
    """Return the index of a random tooth well inside the image and away from the slider."""
    return round((generator.uniform(-0.40, 0.75) + 1.4) / _PITCH)


def _break_teeth(scene: _Scene, generator: np.random.Generator) -> _Scene:
    side = "left" if generator.integers(2) else "right"
    teeth: _Teeth = getattr(scene, side)
    length, first = teeth.length.copy(), _visible_tooth(generator)
    for index in range(first, first + int(generator.integers(1, 4))):
        length[index] = generator.choice([0.0, generator.uniform(0.25, 0.6)])
    changed: dict[str, Any] = {side: replace(teeth, length=length)}
    return replace(scene, **changed)


def _squeeze_teeth(scene: _Scene, generator: np.random.Generator) -> _Scene:
    centre, reach = _visible_tooth(generator), float(generator.uniform(1.6, 3.0))
    strength = generator.uniform(0.34, 0.46) * _PITCH
    offsets = (np.arange(_TEETH) - centre) / reach
    pull = (-strength * offsets * np.exp(0.5 - 0.5 * offsets**2)).astype(np.float32)
    bend = (generator.choice([-1, 1]) * generator.uniform(0.015, 0.045) * np.exp(-0.5 * offsets**2)).astype(np.float32)
    changed: dict[str, Any] = {}
    for side in ("left", "right"):
        teeth: _Teeth = getattr(scene, side)
        changed[side] = replace(teeth, along=teeth.along + pull, across=teeth.across + bend)
    return replace(scene, **changed)


def _split_teeth(scene: _Scene, generator: np.random.Generator) -> _Scene:
    centre, reach = _visible_tooth(generator), float(generator.uniform(1.5, 3.5))
    opened = generator.uniform(0.05, 0.11)
    apart = (opened * np.exp(-0.5 * ((np.arange(_TEETH) - centre) / reach) ** 4)).astype(np.float32)
    changed: dict[str, Any] = {
        side: replace(getattr(scene, side), across=getattr(scene, side).across + apart) for side in ("left", "right")
    }
    return replace(scene, **changed)


def _cut_border(scene: _Scene, generator: np.random.Generator) -> _Scene:
    bite = (
        float(generator.choice([-1, 1])),
        float(generator.uniform(-0.7, 0.7)),
        float(generator.uniform(0.07, 0.22)),
        float(generator.uniform(0.06, 0.18)),
    )
    return replace(scene, bites=(bite,))


def _spoil_fabric(scene: _Scene, generator: np.random.Generator) -> _Scene:
    u = float(generator.choice([-1, 1]) * generator.uniform(0.45, 0.66))
    v = float(generator.uniform(-0.7, 0.7))
    kind = generator.integers(3)
    if kind == 0:
        return replace(
            scene, holes=((u, v, float(generator.uniform(0.03, 0.08)), float(generator.uniform(0.03, 0.10))),)
        )
    if kind == 1:
        direction = float(generator.uniform(0, 2 * np.pi))
        return replace(scene, threads=((u, v, direction, float(generator.uniform(0.15, 0.35))),))
    return replace(scene, stains=((u, v, float(generator.uniform(0.05, 0.12)), float(generator.uniform(0.05, 0.15))),))


def _roughen(scene: _Scene, generator: np.random.Generator) -> _Scene:
    u = float(generator.uniform(-0.30, 0.30))
    v = float(generator.uniform(-0.4, 0.7))
    scuff = (u, v, float(generator.uniform(0.06, 0.14)), float(generator.uniform(0.08, 0.20)))
    return replace(scene, scuffs=(scuff,))


def _combine(scene: _Scene, generator: np.random.Generator) -> _Scene:
    at_chain: list[Edit] = [_break_teeth, _squeeze_teeth, _split_teeth]
    at_cloth: list[Edit] = [_cut_border, _spoil_fabric, _roughen]
    first = at_chain[generator.integers(len(at_chain))](scene, generator)
    return at_cloth[generator.integers(len(at_cloth))](first, generator)


_EDITS: dict[str, Edit] = {
    "broken_teeth": _break_teeth,
    "combined": _combine,
    "fabric_border": _cut_border,
    "fabric_interior": _spoil_fabric,
    "rough": _roughen,
    "split_teeth": _split_teeth,
    "squeezed_teeth": _squeeze_teeth,
}
DEFECTS = tuple(_EDITS)
"""Defect types, as in MVTec AD's zipper."""
