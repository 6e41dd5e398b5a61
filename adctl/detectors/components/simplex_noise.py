"""Noise with structure: simplex noise over several octaves. NumPy arrays only; knows nothing of diffusion.

Gradient noise on a simplex grid: Perlin, "Noise hardware", SIGGRAPH 2001 course notes. Summed over octaves as
diffusion's corruption: Wyatt et al., "AnoDDPM", CVPR Workshops 2022, section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Lattice = NDArray[np.int64]

OCTAVES = 6
PERSISTENCE = 0.8
FREQUENCY = 2.0**-6
"""Those of AnoDDPM: the coarsest features are 64 pixels wide."""

_PERIOD = 256
"""After so many lattice points gradients come again."""

_SKEW = (3**0.5 - 1) / 2
_UNSKEW = (3 - 3**0.5) / 6
_REACH = 0.5
"""Squared distance beyond which a lattice point has no say."""


def simplex_noise(
    shape: tuple[int, int, int],
    generator: np.random.Generator,
    *,
    octaves: int = OCTAVES,
    persistence: float = PERSISTENCE,
    frequency: float = FREQUENCY,
) -> Plane:
    """Independent planes of smooth noise, each of zero mean and unit variance.

    Args:
        shape: Planes, height and width.
        generator: What decides it.
        octaves: How many layers of noise are summed, each twice as fine as the one before.
        persistence: Amplitude of a layer over that of the one before.
        frequency: Of the coarsest layer, lattice points a pixel.

    Returns:
        Array of `shape`, float32.
    """
    count, height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        scale = frequency * 2**octave
        # A place of its own for each plane and octave: the noise is 0 at all lattice points, which must not coincide.
        down, right = generator.uniform(0, _PERIOD, (2, count, 1, 1)).astype(np.float32)
        total += persistence**octave * _layer(columns * scale + right, rows * scale + down, generator)
    total -= total.mean((1, 2), keepdims=True)
    total /= total.std((1, 2), keepdims=True)
    return total


def _layer(x: Plane, y: Plane, generator: np.random.Generator) -> Plane:
    """Noise at coordinates x and y of any one shape."""
    shuffled = generator.permutation(_PERIOD)
    angles = np.arange(_PERIOD, dtype=np.float32) * (2 * np.pi / _PERIOD)
    gradients = np.cos(angles), np.sin(angles)
    skew = (x + y) * _SKEW
    column, row = np.floor(x + skew).astype(np.int64), np.floor(y + skew).astype(np.int64)
    unskew = ((column + row) * _UNSKEW).astype(np.float32)
    right, down = x - (column - unskew), y - (row - unskew)
    # Of the two triangles of a skewed square, the one that the point is in.
    lower = (right > down).astype(np.int64)
    total = np.zeros(x.shape, np.float32)
    for step_x, step_y in ((0, 0), (lower, 1 - lower), (1, 1)):
        unstep = (step_x + step_y) * np.float32(_UNSKEW)
        dx, dy = right - step_x + unstep, down - step_y + unstep
        pick = shuffled[(column + step_x + shuffled[(row + step_y) % _PERIOD]) % _PERIOD]
        weight = np.maximum(_REACH - dx * dx - dy * dy, 0) ** 4
        total += (weight * (gradients[0][pick] * dx + gradients[1][pick] * dy)).astype(np.float32)
    return total
