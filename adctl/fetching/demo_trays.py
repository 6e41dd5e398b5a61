"""Generated data sets with logical defects: trays of counted parts, in MVTec AD layout.

Each image has the same number of parts of each class in each compartment, at random places and angles. In a defective
image every part is intact; only the numbers or the compartments are wrong (Bergmann et al., "Beyond Dents and
Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization", IJCV 2022). No files and no network
are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adctl.fetching.generated_category import write_category

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Plane = NDArray[Any]
Colour = tuple[float, float, float]

VERSION = 1
"""Version of the drawing code: another version gives other pixels for the same seed."""

_TRIES = 100
"""Places that are tried for a part before all parts are placed anew."""
_GAP = 0.02
"""Smallest distance of two parts, in half image sizes."""


@dataclass(frozen=True)
class _Class:
    """A class of parts. Lengths are in half image sizes.

    Attributes:
        outline: Function from coordinates along and across the part, relative to its radius, to the signed distance
            from its outline, positive inside.
        radius: Half of its length.
        half_width: Half of its width.
        colour: Colour in [0, 1].
        second: Colour of the half with a positive coordinate along the part; None for the same.
    """

    outline: Callable[[Plane, Plane], Plane]
    radius: float
    half_width: float
    colour: Colour
    second: Colour | None = None


@dataclass(frozen=True)
class _Compartment:
    """A rectangle with parts.

    Attributes:
        box: Left, top, right and bottom in half image sizes, from the centre.
        counts: Number of parts of each class.
    """

    box: tuple[float, float, float, float]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Layout:
    """A kind of tray.

    Attributes:
        classes: Classes of parts by name.
        compartments: Compartments with their parts.
        floor: Colour of the floor of a compartment.
        frame: Colour around the compartments.
        defects: Names of the defect types.
    """

    classes: dict[str, _Class]
    compartments: tuple[_Compartment, ...]
    floor: Colour
    frame: Colour
    defects: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A region of the ground truth.

    Attributes:
        mask: Pixels of the region, [H,W] of bool.
        saturation: Number of its pixels whose detection suffices.
    """

    mask: NDArray[np.bool_]
    saturation: int


@dataclass(frozen=True)
class _Part:
    """A part that lies in a tray: its class, compartment, centre and angle."""

    kind: str
    compartment: int
    centre: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0


def render(
    category: str, seed: int | Sequence[int], defect: str | None = None, size: int = 256
) -> tuple[NDArray[np.uint8], tuple[Region, ...]]:
    """Draw one image, and the regions of its ground truth.

    As in MVTec LOCO, the region of a missing part is the floor where it could lie, and that of a surplus part are all
    parts of its class; the area of one part saturates both.

    Args:
        category: Name from `CATEGORIES`.
        seed: Random seed; the same arguments give the same pixels.
        defect: Name from `DEFECTS[category]`, or None for a good image.
        size: Width and height of the image in pixels.

    Returns:
        RGB image [size,size,3], uint8, and the regions; none for a good image.
    """
    layout, generator = _LAYOUTS[category], np.random.default_rng(np.random.SeedSequence(seed))
    wanted = [
        _Part(kind, number)
        for number, one in enumerate(layout.compartments)
        for kind, count in one.counts.items()
        for _ in range(count)
    ]
    changed: list[_Part] = []
    if defect is not None:
        wanted, changed = _EDITS[defect](layout, wanted, generator)
    parts = _placed(layout, wanted, generator)
    image, covers = _paint(layout, parts, generator, size)
    return image, tuple(_region(layout, one, parts, covers, defect or "", size) for one in changed)


def generate(
    root: Path,
    category: str,
    *,
    train: int = 80,
    good: int = 30,
    per_defect: int = 15,
    size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a category, unless it exists already with the same settings.

    Args:
        root: Parent of the category's folder.
        category: Name from `CATEGORIES`.
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
        image, regions = render(category, key, defect, size)
        return image, np.any([np.zeros((size, size), np.bool_), *(region.mask for region in regions)], axis=0)

    return write_category(root / category, record, DEFECTS[category], draw, progress)


def _placed(layout: _Layout, parts: Sequence[_Part], generator: np.random.Generator) -> list[_Part]:
    """Give each part a random place and angle, without overlap."""
    while True:
        placed: list[_Part] = []
        for part in generator.permutation(np.array(parts, object)):
            new = _place(layout, part, placed, generator)
            if new is None:
                break
            placed.append(new)
        else:
            return placed


def _place(layout: _Layout, part: _Part, placed: list[_Part], generator: np.random.Generator) -> _Part | None:
    left, top, right, bottom = layout.compartments[part.compartment].box
    others = [(_discs(layout, other), layout.classes[other.kind].half_width) for other in placed]
    half = layout.classes[part.kind].half_width
    low, high = np.array([left, top]) + half + _GAP, np.array([right, bottom]) - half - _GAP
    for _ in range(_TRIES):
        centre = (float(generator.uniform(left, right)), float(generator.uniform(top, bottom)))
        new = replace(part, centre=centre, angle=float(generator.uniform(0, 2 * np.pi)))
        discs = _discs(layout, new)
        if ((discs >= low) & (discs <= high)).all() and all(
            np.linalg.norm(discs[:, None] - centres, axis=2).min() > half + other + _GAP for centres, other in others
        ):
            return new
    return None


def _discs(layout: _Layout, part: _Part) -> NDArray[np.float64]:
    """Return the centres [n,2] of discs along a part, each as wide as the part."""
    kind = layout.classes[part.kind]
    along = np.linspace(-1, 1, 7)[:, None] * (kind.radius - kind.half_width)
    return np.asarray(np.array(part.centre) + along * np.array([np.cos(part.angle), np.sin(part.angle)]))


def _paint(
    layout: _Layout, parts: Sequence[_Part], generator: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], list[Plane]]:
    """Return the image, and the coverage [H,W] of each part."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    shift = generator.normal(0, 0.006, 2)
    x, y = np.meshgrid(axis - np.float32(shift[0]), axis - np.float32(shift[1]))
    pixel, direction = 2.0 / size, generator.uniform(0, 2 * np.pi)
    coarse = cv2.resize(generator.normal(0, 1, (6, 6)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    light = 1 + 0.06 * (np.cos(direction) * x + np.sin(direction) * y)
    image = np.broadcast_to(np.array(layout.frame, np.float32), (size, size, 3)) + 0.01 * coarse[..., None]
    for one in layout.compartments:
        left, top, right, bottom = one.box
        inside = _step(np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y)), pixel)
        image = _mix(image, np.array(layout.floor, np.float32) + 0.012 * coarse[..., None], inside)
    covers = []
    for part in parts:
        kind = layout.classes[part.kind]
        u, v = _turned(x - part.centre[0], y - part.centre[1], part.angle)
        inner = kind.radius * kind.outline(u / kind.radius, v / kind.radius)
        cover = _step(inner, pixel)
        shadow = cv2.GaussianBlur(np.roll(cover, (round(size / 100), round(size / 100)), (0, 1)), (0, 0), size / 128)
        image = image * (1 - 0.45 * shadow * (1 - cover))[..., None]
        slope_y, slope_x = np.gradient(np.minimum(inner, 0.04))
        shade = 1 - 0.22 * (slope_x + slope_y) / pixel + 0.04 * generator.normal()
        colour = np.where((u > 0)[..., None], kind.second or kind.colour, kind.colour)
        image = _mix(image, (colour * shade[..., None]).astype(np.float32), cover)
        covers.append(cover)
    lit = image * (light * generator.uniform(0.93, 1.05))[..., None]
    sensed = cv2.GaussianBlur(lit.astype(np.float32), (0, 0), 0.6) + generator.normal(0, 0.010, (size, size, 1))
    return np.asarray(np.clip(sensed * 255, 0, 255), np.uint8), covers


def _region(
    layout: _Layout, changed: _Part, parts: Sequence[_Part], covers: Sequence[Plane], defect: str, size: int
) -> Region:
    """Return the region of a part that is missing, surplus, or in the wrong compartment."""
    same = [
        cover > 0.5  # noqa: PLR2004 - half of a pixel
        for part, cover in zip(parts, covers, strict=True)
        if (part.kind, part.compartment) == (changed.kind, changed.compartment)
    ]
    if defect == "missing":
        axis = (np.arange(size) + 0.5) * 2 / size - 1
        left, top, right, bottom = layout.compartments[changed.compartment].box
        floor = ((axis > left) & (axis < right))[None] & ((axis > top) & (axis < bottom))[:, None]
        mask = floor & (np.max(covers, axis=0) < 0.5)  # noqa: PLR2004
        axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
        kind = layout.classes[changed.kind]
        x, y = np.meshgrid(axis / kind.radius, axis / kind.radius)
        return Region(mask, int(np.count_nonzero(kind.outline(x, y) > 0)))
    mask = np.any(same, axis=0)
    return Region(mask, round(np.count_nonzero(mask) / len(same)))


def _pick(parts: Sequence[_Part], generator: np.random.Generator) -> int:
    return int(generator.integers(len(parts)))


def _missing(layout: _Layout, parts: list[_Part], generator: np.random.Generator) -> tuple[list[_Part], list[_Part]]:
    del layout
    gone = _pick(parts, generator)
    return [*parts[:gone], *parts[gone + 1 :]], [parts[gone]]


def _extra(layout: _Layout, parts: list[_Part], generator: np.random.Generator) -> tuple[list[_Part], list[_Part]]:
    del layout
    more = parts[_pick(parts, generator)]
    return [*parts, more], [more]


def _miscounted(layout: _Layout, parts: list[_Part], generator: np.random.Generator) -> tuple[list[_Part], list[_Part]]:
    """Replace a part by one of another class of the same compartment: the total stays."""
    mixed = [number for number, one in enumerate(layout.compartments) if len(one.counts) > 1]
    candidates = [place for place, part in enumerate(parts) if part.compartment in mixed]
    place = candidates[_pick([parts[one] for one in candidates], generator)]
    others = [kind for kind in layout.compartments[parts[place].compartment].counts if kind != parts[place].kind]
    new = replace(parts[place], kind=str(generator.choice(others)))
    return [*parts[:place], new, *parts[place + 1 :]], [new]


def _swapped(layout: _Layout, parts: list[_Part], generator: np.random.Generator) -> tuple[list[_Part], list[_Part]]:
    """Exchange two parts of different compartments."""
    first, second = generator.choice(len(layout.compartments), 2, replace=False)
    one = generator.choice([place for place, part in enumerate(parts) if part.compartment == first])
    other = generator.choice([place for place, part in enumerate(parts) if part.compartment == second])
    moved = [replace(parts[one], compartment=int(second)), replace(parts[other], compartment=int(first))]
    kept = [part for place, part in enumerate(parts) if place not in {one, other}]
    return [*kept, *moved], moved


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _nut(u: Plane, v: Plane) -> Plane:
    sides = [u * np.cos(angle) + v * np.sin(angle) for angle in (0, np.pi / 3, 2 * np.pi / 3)]
    hexagon = 0.866 - np.max(np.abs(sides), axis=0)
    return np.asarray(np.minimum(hexagon, np.hypot(u, v) - 0.45), np.float32)


def _washer(u: Plane, v: Plane) -> Plane:
    return np.asarray(0.22 - np.abs(np.hypot(u, v) - 0.78), np.float32)


def _screw(u: Plane, v: Plane) -> Plane:
    shank = np.minimum(np.minimum(u + 0.7, 1 - u), 0.16 + 0.03 * np.sin(40 * u) - np.abs(v))
    head = np.minimum(0.38 - np.abs(v), 0.2 - np.abs(u + 0.8))
    return np.asarray(np.maximum(shank, head), np.float32)


def _bar(half: float) -> Callable[[Plane, Plane], Plane]:
    """Return the outline of a bar with round ends, of the given half width."""
    return lambda u, v: (half - np.hypot(np.maximum(np.abs(u) - 1 + half, 0), v)).astype(np.float32)


def _disc(u: Plane, v: Plane) -> Plane:
    return np.asarray(1 - np.hypot(u, v), np.float32)


def _oval(u: Plane, v: Plane) -> Plane:
    return np.asarray(0.6 * (1 - np.hypot(u, v / 0.6)), np.float32)


def _step(distance: Plane, width: float) -> Plane:
    """Return 0 for negative and 1 for positive distances, with a smooth edge of the given width."""
    return np.asarray(np.clip(distance / width + 0.5, 0, 1), np.float32)


def _mix(below: Plane, above: Plane, cover: Plane) -> Plane:
    return np.asarray(below + (above - below) * cover[..., None], np.float32)


_EDITS = {"extra": _extra, "miscounted": _miscounted, "missing": _missing, "swapped": _swapped}

_LAYOUTS = {
    "tray": _Layout(
        {
            "nut": _Class(_nut, 0.14, 0.14, (0.62, 0.62, 0.64)),
            "pin": _Class(_bar(0.16), 0.20, 0.04, (0.28, 0.29, 0.32)),
            "screw": _Class(_screw, 0.22, 0.09, (0.72, 0.60, 0.34)),
            "washer": _Class(_washer, 0.12, 0.12, (0.75, 0.75, 0.74)),
        },
        (
            _Compartment((-0.92, -0.92, -0.04, 0.92), {"nut": 4, "washer": 3}),
            _Compartment((0.04, -0.92, 0.92, 0.0), {"screw": 2}),
            _Compartment((0.04, 0.08, 0.92, 0.92), {"pin": 3}),
        ),
        floor=(0.42, 0.44, 0.47),
        frame=(0.20, 0.21, 0.24),
        defects=("extra", "miscounted", "missing", "swapped"),
    ),
    "pills": _Layout(
        {
            "capsule": _Class(_bar(0.38), 0.17, 0.07, (0.85, 0.83, 0.78), second=(0.70, 0.16, 0.14)),
            "oval": _Class(_oval, 0.15, 0.10, (0.88, 0.74, 0.30)),
            "tablet": _Class(_disc, 0.11, 0.11, (0.86, 0.88, 0.90)),
        },
        (_Compartment((-0.97, -0.97, 0.97, 0.97), {"capsule": 3, "oval": 4, "tablet": 5}),),
        floor=(0.16, 0.33, 0.27),
        frame=(0.10, 0.20, 0.17),
        defects=("extra", "miscounted", "missing"),
    ),
}
CATEGORIES = tuple(_LAYOUTS)
"""Names of the categories."""
DEFECTS = {name: layout.defects for name, layout in _LAYOUTS.items()}
"""Defect types of each category."""
