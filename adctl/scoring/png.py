"""PNG encoder for heatmaps: a fifth of the time and half the file size of OpenCV's.

Each row is stored as its difference from the row above (PNG filter `up`), which a fast compressor compresses well.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

try:
    from isal.isal_zlib import compress, crc32
except ImportError:  # isal exists for x86 and ARM only
    from zlib import compress, crc32

from adctl.files import PNG_MARK

if TYPE_CHECKING:
    from adctl.data.images import RgbImage

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1
_BITS, _RGB = 8, 2


def encode_png(rgb: RgbImage) -> bytes:
    """Encode an image [H,W,3] of uint8 as a PNG file (W3C, Portable Network Graphics, third edition)."""
    height, width, channels = rgb.shape
    pixels = rgb.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # wraps around modulo 256, as the filter requires
    header = struct.pack(">IIBBBBB", width, height, _BITS, _RGB, 0, 0, 0)
    data = compress(rows.data, _LEVEL)
    chunks = {b"IHDR": header, b"tEXt": PNG_MARK, b"IDAT": data, b"IEND": b""}
    return _SIGNATURE + b"".join(map(_chunk, chunks, chunks.values()))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(data, crc32(kind)))
