"""Generated categories with exact masks of their defects: adctl's zippers, and five textures.

Every image depends on its seed alone. A defect changes pixels inside its mask only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import write_png
from adctl.fetching import demo_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

TEXTURE_DEFECTS = ("scratch", "hole", "stain")
_VISIBLE = 12
_JOINT = 0.44
_SMALLEST = 0.008
"""Fewest changed pixels of a defect, as a share of the image."""


def _axes(size: int) -> tuple[Plane, Plane]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    return x, y


def _smooth(random: np.random.Generator, size: int, cells: int, wide: int | None = None) -> Plane:
    knots = random.normal(0, 1, (cells, wide or cells)).astype(np.float32)
    return np.asarray(cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _fabric(random: np.random.Generator, size: int) -> tuple[Plane, tuple[float, ...]]:
    x, y = _axes(size)
    turns, phase = random.uniform(9, 11), random.uniform(0, 6.28, 2)
    weave = np.sin(6.28 * turns * x + phase[0]) * np.sin(6.28 * turns * y + phase[1])
    return 0.5 + 0.16 * weave + 0.02 * _smooth(random, size, 5), (0.55, 0.75, 1.0)


def _wood(random: np.random.Generator, size: int) -> tuple[Plane, tuple[float, ...]]:
    _, y = _axes(size)
    rings = np.sin(6.28 * (random.uniform(5, 7) * y + 0.35 * _smooth(random, size, 3) + random.uniform(0, 1)))
    return 0.58 + 0.11 * rings + 0.03 * _smooth(random, size, 40, 5), (1.0, 0.72, 0.45)


def _bricks(random: np.random.Generator, size: int) -> tuple[Plane, tuple[float, ...]]:
    x, y = _axes(size)
    rows, shift = 5 * y + random.uniform(0, 1), random.uniform(0, 1)
    columns = 3 * x + shift + 0.5 * (np.floor(rows) % 2)
    across, along = np.abs(rows % 1 - 0.5), np.abs(columns % 1 - 0.5)
    joint = np.minimum(across, 1.6 * along)
    mortar = (np.maximum(across, 0.94 * along + 0.03) > _JOINT).astype(np.float32)
    return 0.48 + 0.30 * mortar + 0.04 * joint + 0.03 * _smooth(random, size, 12), (1.0, 0.55, 0.42)


def _leather(random: np.random.Generator, size: int) -> tuple[Plane, tuple[float, ...]]:
    grain = np.abs(_smooth(random, size, 22)) + 0.5 * np.abs(_smooth(random, size, 34))
    return 0.36 + 0.10 * grain, (0.85, 0.6, 0.48)


def _metal(random: np.random.Generator, size: int) -> tuple[Plane, tuple[float, ...]]:
    return 0.62 + 0.05 * _smooth(random, size, size, 4) + 0.04 * _smooth(random, size, 3), (0.96, 0.98, 1.0)


_TEXTURES: dict[str, Callable[[np.random.Generator, int], tuple[Plane, tuple[float, ...]]]] = {
    "fabric": _fabric,
    "wood": _wood,
    "bricks": _bricks,
    "leather": _leather,
    "metal": _metal,
}
CATEGORIES = ("zipper", *_TEXTURES)


def defects_of(category: str) -> tuple[str, ...]:
    """Return the names of a category's defects."""
    return demo_dataset.DEFECTS if category == "zipper" else TEXTURE_DEFECTS


def render(
    category: str, seed: tuple[int, ...], defect: str | None, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one image [size,size,3] of uint8, RGB, and its mask [size,size]; None draws a good image."""
    if category == "zipper":
        return demo_dataset.render(seed, defect, size)
    scene, damage = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2))
    plane, tint = _TEXTURES[category](scene, size)
    light = scene.uniform(0.9, 1.1) * (1 + 0.1 * scene.uniform(-1, 1) * (_axes(size)[0] - 0.5))
    grain = scene.normal(0, 0.012, (size, size, 1)).astype(np.float32)

    def developed(values: Plane) -> NDArray[np.uint8]:
        colour = (values * light)[..., None] * np.array(tint, np.float32) + grain
        return np.asarray(np.clip(colour * 255, 0, 255), np.uint8)

    good = developed(plane)
    if defect is None:
        return good, np.zeros((size, size), np.bool_)
    while True:
        bad = developed(_DEFECTS[defect](plane, damage))
        mask = np.abs(bad.astype(np.int16) - good).max(2) > _VISIBLE
        if mask.mean() >= _SMALLEST:
            return np.where(mask[..., None], bad, good), mask


def _scratch(plane: Plane, random: np.random.Generator) -> Plane:
    size = len(plane)
    canvas = np.zeros((size, size), np.float32)
    centre, angle, length = random.uniform(0.25, 0.75, 2), random.uniform(0, np.pi), random.uniform(0.25, 0.5)
    step = 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(int(16 * size * value) for value in centre + sign * step) for sign in (-1, 1)]
    cv2.line(canvas, ends[0], ends[1], 1.0, max(1, round(size / 40)), cv2.LINE_AA, 4)
    return np.asarray(plane + random.choice([-0.32, 0.34]) * canvas, np.float32)


def _ellipse(plane: Plane, random: np.random.Generator, low: float, high: float) -> Plane:
    x, y = _axes(len(plane))
    (u, v), (a, b) = random.uniform(0.2, 0.8, 2), random.uniform(low, high, 2)
    return np.asarray(np.clip(8 * (1 - np.hypot((x - u) / a, (y - v) / b)), 0, 1), np.float32)


def _hole(plane: Plane, random: np.random.Generator) -> Plane:
    cover = _ellipse(plane, random, 0.05, 0.11)
    return np.asarray(plane * (1 - cover) + 0.06 * cover, np.float32)


def _stain(plane: Plane, random: np.random.Generator) -> Plane:
    cover = _ellipse(plane, random, 0.08, 0.18)
    return np.asarray(plane * (1 - random.uniform(0.3, 0.45) * cover), np.float32)


_DEFECTS = {"scratch": _scratch, "hole": _hole, "stain": _stain}


def write_category(root: Path, category: str, *, train: int, good: int, per_defect: int, size: int, seed: int) -> Path:
    """Write a category in MVTec AD layout, and return its folder."""
    folder = root / category
    plan = [("train", "good", train), ("test", "good", good)]
    plan += [("test", defect, per_defect) for defect in defects_of(category)]
    for group, (part, label, count) in enumerate(plan):
        for index in range(count):
            image, mask = render(category, (seed, group, index), None if label == "good" else label, size)
            write_png(folder / part / label / f"{index:03}.png", image)
            if label != "good":
                grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
                write_png(folder / "ground_truth" / label / f"{index:03}_mask.png", grey)
    return folder
