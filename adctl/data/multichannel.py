"""Multichannel images: several lamps, polarisations, spectral bands, or colour with alpha.

The files are TIFF with several samples per pixel, NumPy arrays, or PNG and WebP with alpha, which then is a channel.
Channels keep their stored order. Grey and colour images are read by `adctl.data.images`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from adctl.data import images, tiff
from adctl.data.images import StoredImage, read_image, to_uint8, unusable_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.data.images import RgbImage

_GREY_OR_RGB = (1, 3)
_COLOUR, _ALPHA = 3, 4


def read_pixels(path: Path, channels: int, *, bit_depth: int = 16, data: bytes | None = None) -> NDArray[np.uint8]:
    """Decode one image for a network with `channels` input channels.

    Args:
        path: The image.
        channels: With 1 or 3, any grey or colour image is accepted; otherwise the image must have this number.
        bit_depth: See `read_image`.
        data: Bytes of the file, if they are in memory; `path` is then only the name in messages.

    Returns:
        Array of uint8. For 1 or 3 channels: [H, W, 1] if the image is grey, [H, W, 3] in RGB order if it is colour.
        Otherwise: [H, W, channels].

    Raises:
        ImageError: The image cannot be read (see `read_image`), or has another number of channels.
    """
    if channels in _GREY_OR_RGB:
        return images.as_grey_or_rgb(path, images.read_stored(path, data), bit_depth=bit_depth)
    stored = read_channels(path, data)
    pixels = stored.pixels
    if pixels.shape[2] != channels:
        raise unusable_image(
            path,
            f"it has {pixels.shape[2]} channels, but {channels} are expected",
            f"Use images with {channels} channels, or train with --set channels={pixels.shape[2]}.",
        )
    return to_uint8(path, pixels, stored.depth or bit_depth)


def array_pixels(name: Path, array: NDArray[Any], channels: int, *, bit_depth: int = 16) -> NDArray[np.uint8]:
    """Check an image in memory and convert it to 8 bits, as `read_pixels` does for a file.

    Args:
        name: Name of the image in messages.
        array: Array [H,W] or [H,W,1] (grey), [H,W,3] (RGB), or [H,W,channels] for other numbers of channels; uint8,
            uint16, or floating point from 0 to 1.
        channels: Number of input channels of the network.
        bit_depth: See `adctl.data.images.read_image`.

    Returns:
        Array [H,W,C] of uint8.

    Raises:
        ImageError: The shape or number type is not accepted, or the image is too small or too large.
    """
    pixels = array[..., None] if array.ndim == 2 else array  # noqa: PLR2004 - grey
    allowed = _GREY_OR_RGB if channels in _GREY_OR_RGB else (channels,)
    if pixels.ndim != 3 or pixels.shape[2] not in allowed:  # noqa: PLR2004 - height, width, channels
        raise unusable_image(
            name,
            f"its shape is {list(array.shape)}",
            f"Give height x width x {' or '.join(map(str, allowed))}; 1 is grey, which may also be height x width.",
        )
    images.check_size(name, pixels.shape[1], pixels.shape[0])
    return to_uint8(name, np.ascontiguousarray(pixels), bit_depth)


def read_channels(path: Path, data: bytes | None = None) -> StoredImage:
    """Decode all channels of an image, [H, W, C], in their stored number type; colour comes in RGB order.

    Args:
        path: The file.
        data: Bytes of the file, if they are in memory.

    Raises:
        ImageError: The image cannot be decoded. Any number type is accepted.
    """
    header, data = images.read_file(path, data)
    if header.tags is not None:
        pixels = images.decode_tiff(path, data, header.tags, tiff.decode_channels)
        return StoredImage(pixels, header.tags.stated_depth)
    if header.format == "NPY":
        pixels = images.read_array(path, data)
    else:
        pixels = tiff.apply_orientation(images.decode(path, data, cv2.IMREAD_UNCHANGED), header.orientation)
        if pixels.ndim > 2 and pixels.shape[2] in {_COLOUR, _ALPHA}:  # noqa: PLR2004 - grey
            pixels = np.concatenate([pixels[..., _COLOUR - 1 :: -1], pixels[..., _COLOUR:]], axis=2)
    return StoredImage(pixels[..., None] if pixels.ndim == 2 else pixels)  # noqa: PLR2004 - grey


def read_display_image(path: Path, *, bit_depth: int = 16) -> RgbImage:
    """Read an image with any number of channels as RGB for display; raises the same errors as `read_pixels`."""
    if not images.read_header(path).bands:
        return read_image(path, bit_depth=bit_depth)
    stored = read_channels(path)
    return to_display_image(to_uint8(path, stored.pixels, stored.depth or bit_depth))


def to_display_image(pixels: NDArray[np.uint8]) -> RgbImage:
    """Convert an image to RGB for display: the first three channels as RGB, or the first as grey if there are fewer.

    Args:
        pixels: Array of shape [H, W, C], uint8.

    Returns:
        Array of shape [H, W, 3], uint8; `pixels` itself if it has three channels.
    """
    if pixels.shape[2] == _COLOUR:
        return pixels
    if pixels.shape[2] < _COLOUR:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels[..., 0]), cv2.COLOR_GRAY2RGB), np.uint8)
    return np.ascontiguousarray(pixels[..., :_COLOUR])
