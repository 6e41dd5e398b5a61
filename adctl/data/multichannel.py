"""Images of more or other channels than colour has: several lamps, polarisations, spectral bands, colour with alpha.

They come as TIFF with several samples a pixel, as NumPy arrays, or as PNG and WebP with alpha, which then counts. Their
channels are taken in the order in which they are stored. Colour and grey go the ordinary way, by `adctl.data.images`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from adctl.data import images
from adctl.data.images import read_image, to_uint8, unusable_image
from adctl.errors import MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.data.images import RgbImage

_ORDINARY = (1, 3)
_COLOUR, _ALPHA = 3, 4


def read_pixels(path: Path, channels: int, *, bit_depth: int = 16) -> NDArray[np.uint8]:
    """Decode one image for a network that takes so many channels.

    Args:
        path: The image.
        channels: 1 and 3 take any colour or grey image; others an image that has as many.
        bit_depth: See `read_image`.

    Returns:
        Array of uint8: for 1 and 3 channels [H, W, 1] of a grey image and [H, W, 3], RGB, of one in colour; else
        [H, W, channels].

    Raises:
        ImageError: As for `read_image`, or the image has another number of channels.
        MissingExtraError: It is a TIFF, which needs the package tifffile.
    """
    if channels in _ORDINARY:
        return images.as_grey_or_rgb(path, images.read_stored(path), bit_depth=bit_depth)
    pixels = read_channels(path)
    if pixels.shape[2] != channels:
        raise unusable_image(
            path,
            f"it has {pixels.shape[2]} channels where {channels} are expected",
            f"Use images of {channels} channels, or train on all these with --set channels={pixels.shape[2]}.",
        )
    return to_uint8(path, pixels, bit_depth)


def array_pixels(name: Path, array: NDArray[Any], channels: int, *, bit_depth: int = 16) -> NDArray[np.uint8]:
    """Check an image in memory and bring it to 8 bits, as `read_pixels` does for a file.

    Args:
        name: Name of the image in messages.
        array: Array [H,W] or [H,W,1] (grey), [H,W,3] (RGB), or [H,W,channels] for a network of other channels; uint8,
            uint16, or floating point from 0 to 1.
        channels: Channels that the network takes.
        bit_depth: See `adctl.data.images.read_image`.

    Returns:
        Array [H,W,C] of uint8.

    Raises:
        ImageError: The array has another shape or type, or too few or too many pixels.
    """
    pixels = array[..., None] if array.ndim == 2 else array  # noqa: PLR2004 - grey
    allowed = _ORDINARY if channels in _ORDINARY else (channels,)
    if pixels.ndim != 3 or pixels.shape[2] not in allowed:  # noqa: PLR2004 - height, width, channels
        raise unusable_image(
            name,
            f"its shape is {list(array.shape)}",
            f"Give height x width x {' or '.join(map(str, allowed))}; 1 is grey, which may also be height x width.",
        )
    images.check_size(name, pixels.shape[1], pixels.shape[0])
    return to_uint8(name, np.ascontiguousarray(pixels), bit_depth)


def read_channels(path: Path) -> NDArray[Any]:
    """All channels of an image, in the number type and the order they are stored in: [H, W, C].

    Raises:
        ImageError: As for `read_image`, but for the kinds of number; also where it is stored turned or mirrored.
        MissingExtraError: It is a TIFF, which needs the package tifffile.
    """
    header, data = images.read_file(path)
    if header.orientation != 1:
        raise unusable_image(path, "it is stored turned or mirrored", "Save it as it should be seen.")
    if header.format == "TIFF":
        pixels = _tiff(path, data)
    elif header.format == "NPY":
        pixels = images.read_array(path, data)
    else:
        pixels = images.decode(path, data, cv2.IMREAD_UNCHANGED)
        if pixels.ndim > 2 and pixels.shape[2] in {_COLOUR, _ALPHA}:  # noqa: PLR2004 - grey
            pixels = np.concatenate([pixels[..., _COLOUR - 1 :: -1], pixels[..., _COLOUR:]], axis=2)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - grey


def read_display_image(path: Path, *, bit_depth: int = 16) -> RgbImage:
    """An image to look at, whatever its channels; errors as for `read_pixels`."""
    if not images.read_header(path).bands:
        return read_image(path, bit_depth=bit_depth)
    return to_display_image(to_uint8(path, read_channels(path), bit_depth))


def to_display_image(pixels: NDArray[np.uint8]) -> RgbImage:
    """Something to look at: the first three channels for red, green and blue, or the first for grey.

    Args:
        pixels: Array of shape [H, W, C], uint8.

    Returns:
        Array of shape [H, W, 3], uint8; `pixels` itself where it has three channels.
    """
    if pixels.shape[2] == _COLOUR:
        return pixels
    if pixels.shape[2] < _COLOUR:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels[..., 0]), cv2.COLOR_GRAY2RGB), np.uint8)
    return np.ascontiguousarray(pixels[..., :_COLOUR])


def _tiff(path: Path, data: bytes) -> NDArray[Any]:
    """The samples of the only page, [H,W] or [H,W,C]; OpenCV reads no more than four, and those not always rightly."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("tifffile", "multichannel") from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            pixels, axes = page.asarray(), page.axes
    except Exception as error:  # it raises whatever a damaged tag leads to
        raise unusable_image(
            path, f"it cannot be decoded ({error})", "Save it again, without compression or with Deflate."
        ) from error
    return np.moveaxis(pixels, 0, 2) if axes.startswith("S") else pixels
