"""Smooth noise: simplex noise summed over several octaves. NumPy arrays only.

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
"""Values of AnoDDPM; structures of the coarsest octave are 64 pixels wide."""

_PERIOD = 256
"""Number of lattice points after which the gradients repeat."""

_SKEW = (3**0.5 - 1) / 2
_UNSKEW = (3 - 3**0.5) / 6
_REACH = 0.5
"""Squared distance beyond which a lattice point has no influence."""


def simplex_noise(
    shape: tuple[int, int, int],
    generator: np.random.Generator,
    *,
    octaves: int = OCTAVES,
    persistence: float = PERSISTENCE,
    frequency: float = FREQUENCY,
) -> Plane:
    """Generate independent planes of smooth noise, each with zero mean and unit variance.

    Args:
        shape: Number of planes, height and width.
        generator: Random generator.
        octaves: Number of octaves, each twice as fine as the one before.
        persistence: Ratio of the amplitudes of successive octaves.
        frequency: Frequency of the coarsest octave, lattice points per pixel.

    Returns:
        Array of `shape`, float32.
    """
    count, height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        scale = frequency * 2**octave
        # Random offsets, because the noise is 0 at all lattice points, which must not coincide.
        down, right = generator.uniform(0, _PERIOD, (2, count, 1, 1)).astype(np.float32)
        total += persistence**octave * _octave(columns * scale + right, rows * scale + down, generator)
    total -= total.mean((1, 2), keepdims=True)
    total /= total.std((1, 2), keepdims=True)
    return total


def _octave(x: Plane, y: Plane, generator: np.random.Generator) -> Plane:
    """Return noise at coordinates x and y, which have the same shape."""
    shuffled = generator.permutation(_PERIOD)
    angles = np.arange(_PERIOD, dtype=np.float32) * (2 * np.pi / _PERIOD)
    gradients = np.cos(angles), np.sin(angles)
    skew = (x + y) * _SKEW
    column, row = np.floor(x + skew).astype(np.int64), np.floor(y + skew).astype(np.int64)
    unskew = ((column + row) * _UNSKEW).astype(np.float32)
    right, down = x - (column - unskew), y - (row - unskew)
    # The triangle of the skewed square that contains the point.
    lower = (right > down).astype(np.int64)
    total = np.zeros(x.shape, np.float32)
    for step_x, step_y in ((0, 0), (lower, 1 - lower), (1, 1)):
        unstep = (step_x + step_y) * np.float32(_UNSKEW)
        dx, dy = right - step_x + unstep, down - step_y + unstep
        pick = shuffled[(column + step_x + shuffled[(row + step_y) % _PERIOD]) % _PERIOD]
        weight = np.maximum(_REACH - dx * dx - dy * dy, 0) ** 4
        total += (weight * (gradients[0][pick] * dx + gradients[1][pick] * dy)).astype(np.float32)
    return total
