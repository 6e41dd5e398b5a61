"""PNG encoder for heatmaps: a fifth of the time and half the file size of OpenCV's.

Each row is stored as its difference from the row above (PNG filter `up`), which a fast compressor compresses well.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

try:
    from isal.isal_zlib import compressobj, crc32
except ImportError:  # isal exists for x86 and ARM only
    from zlib import compressobj, crc32  # type: ignore[assignment]

from adctl.files import PNG_MARK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.data.images import RgbImage

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1
_STRIP = 32
"""Rows that are compressed at a time."""

_BITS = 8
_COLOUR_TYPES = {3: 2, 4: 6}
"""Number in the header for RGB and RGBA."""


def encode_png(image: RgbImage) -> bytes:
    """Encode an image [H,W,3] or, with opacity, [H,W,4] of uint8 as a PNG file (W3C, Portable Network Graphics)."""
    height, width, channels = image.shape
    pixels = image.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, _BITS, _COLOUR_TYPES[channels], 0, 0, 0)
    data = _compress(pixels)
    chunks = {b"IHDR": header, b"tEXt": PNG_MARK, b"IDAT": data, b"IEND": b""}
    return _SIGNATURE + b"".join(map(_chunk, chunks, chunks.values()))


def _compress(pixels: NDArray[np.uint8]) -> bytes:
    """Filter and compress rows [H,N] in strips, because writing to fresh memory takes as long as compressing."""
    packer = compressobj(_LEVEL)
    rows = np.empty((_STRIP, 1 + pixels.shape[1]), np.uint8)
    rows[:, 0] = _UP
    parts = []
    for start in range(0, len(pixels), _STRIP):
        part = pixels[start : start + _STRIP]
        filtered = rows[: len(part), 1:]
        filtered[0] = part[0] if start == 0 else part[0] - pixels[start - 1]
        np.subtract(part[1:], part[:-1], out=filtered[1:])  # wraps around modulo 256, as the filter requires
        parts.append(packer.compress(rows[: len(part)].data))
    return b"".join((*parts, packer.flush()))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(data, crc32(kind)))
