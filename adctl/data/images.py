"""Reading of image files as arrays, resizing, and writing of PNG files.

Pillow reads the header first, so that a file that is too large or has several pages is refused before it is decoded.
OpenCV decodes the pixels, `adctl.data.tiff` those of TIFF files, and Pillow those of BMP files that OpenCV misreads.
Images of more than 8 bits are converted to 8 bits by one fixed scale, never normalised image by image, because exposure
is information in visual inspection. Gamma, white point and colour profiles are not applied for the same reason.

Limitation: except on Linux with glibc, damage in the middle of a JPEG file with an intact end is not detected, because
the decoder fills the damaged part without an error.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from adctl import files
from adctl.data import storage, tiff
from adctl.data.native_messages import decode_quietly
from adctl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL.ImageFile import ImageFile

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy"})
"""Suffixes of image files, in lower case."""

MIN_SIDE = 16
"""Minimum side of a usable image, pixels."""

MAX_PIXELS = 400_000_000
"""Maximum size of a usable image, width x height: 20,000 x 20,000 pixels, which take 1.2 GB when decoded."""

RgbImage: TypeAlias = NDArray[np.uint8]

_FORMATS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff(?!\xf7)")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("NPY", re.compile(rb"\x93NUMPY")),
)
# These classes are called directly, because Image.open would apply Pillow's own, lower pixel limit.
_HEADERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "BMP": BmpImageFile,
    "WEBP": WebPImageFile,
}
# Keeps grey images at one channel and keeps the bit depth; drops alpha and applies the EXIF orientation.
_DECODE = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
_OTHER_FORMATS = (
    ("a GIF image", re.compile(rb"GIF8")),
    ("a JPEG 2000 image", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("an AVIF or HEIC image", re.compile(rb".{4}ftyp(?:avi|hei|hev|mif)", re.DOTALL)),
    ("a JPEG-LS image", re.compile(rb"\xff\xd8\xff\xf7")),
    ("a JPEG XL image", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("a JPEG XR image", re.compile(rb"II\xbc")),
    ("a Photoshop file", re.compile(rb"8BPS")),
    ("an OpenEXR image", re.compile(rb"\x76\x2f\x31\x01")),
    ("a Git LFS pointer; fetch the file with git lfs pull", re.compile(rb"version http")),
    ("a web page", re.compile(rb"\s*<(?:!DOCTYPE|html)", re.IGNORECASE)),
)
_SMALL_FILE = 64 << 20
"""Size in bytes above which the header of a file is checked before the rest is read."""

_MAX_DECODED = 4 * 2 * MAX_PIXELS
"""Maximum size of a decoded image in bytes: the largest image with four channels of 16 bits."""

_GREY = 2  # axes of a grey image
_MAX_RESIZE_CHANNELS = 4  # limit of cv2.resize
JPEG_END = b"\xff\xd9"
PNG_END = b"IEND\xaeB`\x82"
"""Last bytes of complete files."""
_RESERVED = 512
"""Zeros at the end of a compressed file that make it incomplete."""
_ORIENTATION = 274
_DAMAGE = re.compile("premature end|bad Huffman|bad arithmetic|instead of RST|Not enough")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")
_MAX_EXTRANEOUS = 16
"""Bytes without meaning that cameras leave at the end of a JPEG; more of them are a sign of damage."""
_CMYK_LAYERS = 4
_DEEP = 16  # bits
_PNG_DEPTH_AT = 24
_BMP_CORE_HEADER = 12
_BMP_FIELDS = ((0, 4), (14, 16), (16, 20))  # size of the header, bits per pixel, compression
_BMP_PLAIN = {0, 1, 2}  # none, and two kinds of run lengths
_RGB555 = 16
_AXES_SWAPPED = range(5, 9)
_GET_AGAIN = "Copy or save the file again, or remove it."
_PAGES = (
    "Save the page to use as a separate file. If the pages are the channels of one image, save them as one page or as "
    "a NumPy array, and train with --set channels=N."
)
_SAVE_PLAIN = "Save it as an 8-bit or 16-bit grey or RGB image, as PNG or as TIFF without compression."
_CONVERT = "Convert it to an 8-bit or 16-bit PNG, or remove it."

# Damaged files raise ImageError; this turns off OpenCV's own, less clear messages on stderr.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)  # OpenCV 4, or 5
# Images are read in threads, and `warnings.catch_warnings` changes the state of the whole process.
_header_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Header:
    """Image properties read from the start of a file.

    Attributes:
        format: A name from `_FORMATS`.
        width: Stored width in pixels, before rotation.
        height: Stored height in pixels, before rotation.
        several_pages: True if the file holds more than one image.
        orientation: EXIF orientation, 1 to 8.
        bands: Number of channels of a multichannel image; 0 for an ordinary grey or colour image.
        bytes_per_pixel: Size of a decoded pixel.
        deep: True for integers of 16 bits.
        unusual: True for a BMP file that OpenCV may read wrongly.
        tags: Tags of a TIFF file.
        profile: ICC profile; empty if there is none.
        gamma: Exponent that encoded the values of a PNG file; None if the file does not state it or says sRGB.
    """

    format: str
    width: int
    height: int
    several_pages: bool = False
    orientation: int = 1
    bands: int = 0
    bytes_per_pixel: int = 3
    deep: bool = False
    unusual: bool = False
    tags: tiff.TiffTags | None = None
    profile: bytes = b""
    gamma: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """Pixels of an image in their stored number type.

    Attributes:
        pixels: Array [H,W] (grey), [H,W,3] in BGR order, or [H,W,C] if all channels were read.
        depth: Bits in use, if the file states a depth that is neither 8 nor 16; None otherwise.
    """

    pixels: NDArray[Any]
    depth: int | None = None

    @property
    def number_type(self) -> str:
        """Number type and stated depth in words, such as "uint8" or "uint16 of 12 bits"."""
        return f"{self.pixels.dtype}{f' of {self.depth} bits' if self.depth else ''}"

    @property
    def peak(self) -> int | None:
        """Largest value, if the pixels are 16-bit integers of no stated depth; otherwise None."""
        is_deep = self.depth is None and self.pixels.dtype.newbyteorder("=") == np.uint16
        return int(self.pixels.max()) if is_deep else None


def read_image(path: Path, *, bit_depth: int = 16) -> RgbImage:
    """Decode one image to RGB: EXIF orientation applied, alpha dropped, grey expanded to three channels.

    Args:
        path: A PNG, JPEG, BMP, TIFF, WebP or NumPy file, recognised by its content, not by its name.
        bit_depth: Used bits of 16-bit files, 8 to 16. With 12, which many cameras deliver, 4095 is white and higher
            values saturate. It does not matter for TIFF files that state a depth of 9 to 15 bits. Floating-point files
            must be within 0 to 1.

    Returns:
        Array of shape [H, W, 3], uint8.

    Raises:
        ImageError: The file cannot be read, is not an image, is damaged or truncated, has several pages, is too small
            or too large, or its pixel type has no defined white level.
    """
    return as_rgb(path, read_stored(path), bit_depth=bit_depth)


def as_rgb(path: Path, stored: StoredImage, *, bit_depth: int = 16) -> RgbImage:
    """Convert the result of `read_stored` to the result of `read_image`; raises the same errors."""
    image = as_grey_or_rgb(path, stored, bit_depth=bit_depth)
    return _as_uint8(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)) if image.shape[2] == 1 else image


def as_grey_or_rgb(path: Path, stored: StoredImage, *, bit_depth: int = 16) -> NDArray[np.uint8]:
    """Convert the result of `read_stored` like `as_rgb`, but keep grey images as [H, W, 1]."""
    image = to_uint8(path, np.ascontiguousarray(stored.pixels), stored.depth or bit_depth)  # [H, W] or [H, W, 3]
    if image.ndim == _GREY:
        return image[..., None]
    return _as_uint8(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image))  # in place is faster


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels of the image that `read_image` would return, from the header alone.

    Raises:
        ImageError: The file cannot be read, or its header is invalid.
    """
    header = read_header(path)
    size = (header.width, header.height)
    return size[::-1] if header.orientation in _AXES_SWAPPED else size


def read_header(path: Path) -> Header:
    """Read the header of an image file; no pixel is decoded. Raises the same errors as `image_size`."""
    try:
        with storage.open_binary(path) as stream:
            return _read_header(path, stream)
    except OSError as error:
        raise _unreadable(path, error) from error


def header_of(name: Path, data: bytes) -> Header:
    """Read the header of an image file in memory; `name` stands in messages. Raises the same errors as `image_size`."""
    return _read_header(name, io.BytesIO(data))


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image: area averaging along an axis that shrinks, linear interpolation along an axis that grows.

    Args:
        image: Array of shape [H, W, C], uint8.
        height: New height, pixels.
        width: New width, pixels.

    Returns:
        Array of shape [height, width, C], uint8; `image` itself if the size does not change.
    """
    rows, columns, channels = image.shape
    if channels > _MAX_RESIZE_CHANNELS:
        parts = (image[..., first : first + _MAX_RESIZE_CHANNELS] for first in range(0, channels, _MAX_RESIZE_CHANNELS))
        return np.concatenate([resize(np.ascontiguousarray(part), height, width) for part in parts], axis=2)
    reduced = (min(height, rows), min(width, columns))
    for size, method in ((reduced, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != size:
            resized = cv2.resize(image, (size[1], size[0]), interpolation=method)
            image = _as_uint8(resized.reshape(*size, channels))
    return image


def write_png(path: Path, rgb: RgbImage, *, mark: bool = False) -> None:
    """Write an RGB image of shape [H, W, 3], uint8, as a PNG file, atomically.

    Args:
        path: File to write.
        rgb: The image.
        mark: Whether the file says that adctl wrote it, so that a later call may replace it.

    Raises:
        OutputError: The file cannot be written.
    """
    encoded = to_png(rgb)
    files.write_bytes(path, files.mark_png(encoded) if mark else encoded)


def to_png(image: NDArray[np.uint8]) -> bytes:
    """Return an image [H,W] or RGB [H,W,3] as a PNG file."""
    _, encoded = cv2.imencode(".png", image if image.ndim == _GREY else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return encoded.tobytes()


def read_stored(path: Path, data: bytes | None = None) -> StoredImage:
    """Decode an image in its stored number type: grey, or colour in BGR order.

    Args:
        path: The file.
        data: Bytes of the file, if they are in memory; `path` is then only the name in messages.

    Raises:
        ImageError: The image cannot be decoded or is multichannel; see `read_image`. Any number type is accepted.
    """
    header, data = read_file(path, data)
    if header.bands:
        raise unusable_image(
            path,
            f"it has {header.bands} channels and is neither grey nor colour",
            f"Train on all channels with --set channels={header.bands}, or save it as a grey or colour image.",
        )
    if header.format == "NPY":
        pixels = read_array(path, data)
        return StoredImage(pixels[..., ::-1] if pixels.ndim > _GREY and pixels.shape[2] > 1 else _squeezed(pixels))
    if header.tags is not None:
        pixels = decode_tiff(path, data, header.tags, tiff.decode)
        return StoredImage(_reversed_colours(pixels), header.tags.stated_depth)
    return StoredImage(_by_pillow(path, data) if header.unusual else decode(path, data, _DECODE))


def _reversed_colours(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == _GREY:
        return pixels
    is_fast = pixels.dtype in (np.uint8, np.uint16, np.float32)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if is_fast else pixels[..., ::-1]


def _squeezed(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.reshape(pixels.shape[:2])


def read_file(path: Path, data: bytes | None = None) -> tuple[Header, bytes]:
    """Read the header and all bytes of an image file, or check its bytes in memory.

    Raises:
        ImageError: The file cannot be read, is truncated or larger than its image, or its header is invalid.
    """
    if data is None:
        try:
            _check_file_size(path)
            data = storage.read_bytes(path)
        except OSError as error:
            raise _unreadable(path, error) from error
    header = _read_header(path, io.BytesIO(data))
    if not _is_complete(header, data):
        raise unusable_image(path, "it is truncated", _GET_AGAIN)
    return header, data


def _check_file_size(path: Path) -> None:
    """Check a large file by its header, before all of it is read."""
    size = storage.file_size(path)
    if size is None and not path.is_dir():  # reading a pipe may never end
        raise OSError("it is not a regular file")
    if size is None or size <= _SMALL_FILE:
        return
    header = read_header(path)
    if size > header.width * header.height * header.bytes_per_pixel * 2 + _SMALL_FILE:
        raise unusable_image(path, f"the file is larger than its image ({size >> 20} MiB)", _GET_AGAIN)


def decode(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    """Decode an image with OpenCV.

    Args:
        path: The file, named in error messages.
        data: All bytes of the file.
        flags: OpenCV's `IMREAD_` flags.

    Raises:
        ImageError: OpenCV cannot decode the data, or finds them damaged.
    """
    try:
        image, messages = decode_quietly(data, flags)
    except cv2.error as error:
        raise unusable_image(path, f"OpenCV cannot decode it ({error.err})", _CONVERT) from error
    if image is None:
        raise unusable_image(path, "it is damaged, truncated or in an unsupported format", _GET_AGAIN)
    if messages and _tells_damage(messages, data):
        raise unusable_image(path, f"it is damaged ({messages})", _GET_AGAIN)
    return image


def _tells_damage(messages: str, data: bytes) -> bool:
    """Return True if the messages of a decoder mean that pixels are missing or wrong."""
    extraneous = _EXTRANEOUS.search(messages)
    if extraneous is None:
        return _DAMAGE.search(messages) is not None
    count = int(extraneous[1])
    end = data.rfind(JPEG_END)
    is_padding = len(set(data[max(0, end - count) : end])) <= 1
    return count > _MAX_EXTRANEOUS and not is_padding


def decode_tiff(
    path: Path, data: bytes, tags: tiff.TiffTags, decoder: Callable[[bytes, tiff.TiffTags], NDArray[Any]]
) -> NDArray[Any]:
    """Decode a TIFF file with `adctl.data.tiff.decode` or `decode_channels`.

    Raises:
        ImageError: The file is damaged, or its arrangement of pixels is not supported.
    """
    try:
        return decoder(data, tags)
    except tiff.UnsupportedTiffError as error:
        raise unusable_image(path, f"its TIFF format is not supported: {error}", _SAVE_PLAIN) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged tags and data raise exceptions of many types
        raise unusable_image(
            path, f"it is damaged, truncated or in an unsupported format ({error})", _GET_AGAIN
        ) from error


def _by_pillow(path: Path, data: bytes) -> NDArray[Any]:
    """Decode a BMP file, [H,W,3] in BGR order."""
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = BmpImageFile(io.BytesIO(data))
            return np.asarray(image.convert("RGB"))[..., ::-1]
    except Exception as error:  # Pillow's parsers raise anything
        raise unusable_image(path, f"it cannot be decoded ({error})", _CONVERT) from error


def read_array(path: Path, data: bytes) -> NDArray[Any]:
    """Decode the pixels of a NumPy file, [H,W] or [H,W,C].

    Raises:
        ImageError: The file is damaged, or holds Python objects, which are never unpickled.
    """
    try:
        pixels: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise unusable_image(path, "it is damaged, or its array does not hold numbers", _GET_AGAIN) from error
    if pixels.dtype.kind not in "biufc":
        raise unusable_image(path, "its array does not hold numbers", _CONVERT)
    if pixels.ndim > _GREY and _channels_first(pixels.shape):
        pixels = np.moveaxis(pixels, 0, 2)
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def to_uint8(path: Path, image: NDArray[Any], bit_depth: int) -> NDArray[np.uint8]:
    """Convert pixels to 8 bits by a fixed scale that is the same for all images; see `read_image`.

    Raises:
        ImageError: The number type has no defined white level, or a floating-point pixel is outside 0 to 1.
    """
    if image.dtype == np.uint8:
        return _as_uint8(image)
    if image.dtype.newbyteorder("=") == np.uint16:
        return _as_uint8(np.minimum(np.right_shift(image, bit_depth - 8), 255))
    if not np.issubdtype(image.dtype, np.floating):
        raise unusable_image(path, f"its pixels are {image.dtype}, which has no defined white level", _CONVERT)
    values = image.astype(np.float32, copy=False)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise unusable_image(
            path,
            f"its floating-point pixels range from {low:g} to {high:g}, not within 0 to 1",
            "Divide all images by one fixed white level, or convert them to 16-bit PNG.",
        )
    return _as_uint8(np.rint(values * 255))


def _as_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return pixels.astype(np.uint8, copy=False)


def _read_header(path: Path, stream: BinaryIO) -> Header:
    """Read the header and check it against the limits."""
    start = stream.read(16)
    stream.seek(0)
    if not start:
        raise unusable_image(path, "the file is empty", _GET_AGAIN)
    name = next((name for name, magic in _FORMATS if magic.match(start)), None)
    if name is None:
        other = next((f"it is {name}, " for name, magic in _OTHER_FORMATS if magic.match(start)), "it is ")
        raise unusable_image(path, f"{other}not a PNG, JPEG, BMP, TIFF, WebP or NumPy image", _CONVERT)
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = _HEADER_READERS[name](stream) if name in _HEADER_READERS else _other_header(name, stream)
        except _UnsupportedError as error:
            raise unusable_image(path, str(error), _CONVERT) from error
        except Exception as error:  # Pillow's parsers raise anything from struct.error to KeyError
            raise unusable_image(path, "its header is damaged or truncated", _GET_AGAIN) from error
    _check_limits(path, header)
    return header


def _tiff_header(stream: BinaryIO) -> Header:
    tags = tiff.read_tags(stream)
    size = -(-tags.bits // 8) * tags.samples
    return Header(
        "TIFF",
        tags.width,
        tags.height,
        tags.several_pages,
        tags.orientation,
        tags.bands,
        size,
        tags.is_deep,
        tags=tags,
        profile=tags.profile,
    )


def _array_header(stream: BinaryIO) -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) not in {_GREY, _GREY + 1}:
        raise ValueError(f"an array with {len(shape)} axes is not an image")
    first = len(shape) > _GREY and _channels_first(shape)
    height, width = shape[1:] if first else shape[:2]
    channels = 1 if len(shape) == _GREY else shape[0 if first else -1]
    bands = 0 if channels in {1, 3} else channels
    return Header(
        "NPY", width, height, bands=bands, bytes_per_pixel=channels * dtype.itemsize, deep=dtype.str[1:] == "u2"
    )


def _channels_first(shape: Sequence[int]) -> bool:
    """Return True if an array is [C,H,W], assuming that the channel axis is the shortest."""
    return shape[0] < shape[-1]


def _png_header(stream: BinaryIO) -> Header:
    deep = stream.read(_PNG_DEPTH_AT + 1)[-1] == _DEEP
    stream.seek(0)
    return _other_header("PNG", stream, deep=deep)


def _bmp_header(stream: BinaryIO) -> Header:
    header = _other_header("BMP", stream)
    stream.seek(14)
    fields = stream.read(20)
    size, bits, compression = (int.from_bytes(fields[first:end], "little") for first, end in _BMP_FIELDS)
    plain = size > _BMP_CORE_HEADER and bits != _RGB555 and compression in _BMP_PLAIN
    return replace(header, unusual=not plain)


def _jpeg_header(stream: BinaryIO) -> Header:
    try:
        image = JpegImageFile(stream)
    except SyntaxError as error:
        if "bit layers" not in str(error):
            raise
        raise _UnsupportedError("it is a JPEG image with more than 8 bits") from error
    if image.layers >= _CMYK_LAYERS and "adobe" not in image.info:
        raise _UnsupportedError("it is a CMYK image that does not say whether its inks are inverted")
    return Header("JPEG", *image.size, orientation=_orientation(image), profile=_profile(image))


def _other_header(name: str, stream: BinaryIO, *, deep: bool = False) -> Header:
    image = _HEADERS[name](stream)
    several = getattr(image, "n_frames", 1) > 1
    gamma = None if "srgb" in image.info else image.info.get("gamma")
    return Header(
        name,
        *image.size,
        several,
        _orientation(image),
        bytes_per_pixel=8,
        deep=deep,
        profile=_profile(image),
        gamma=gamma or None,
    )


def _profile(image: ImageFile) -> bytes:
    return image.info.get("icc_profile") or b""


class _UnsupportedError(Exception):
    """Description of a kind of file that is not supported."""


_HEADER_READERS: dict[str, Callable[[BinaryIO], Header]] = {
    "TIFF": _tiff_header,
    "NPY": _array_header,
    "PNG": _png_header,
    "BMP": _bmp_header,
    "JPEG": _jpeg_header,
}


def _orientation(image: ImageFile) -> int:
    # `image.getexif()` would decode the whole PNG to find EXIF at its end, and would use XMP, which OpenCV ignores.
    if "exif" not in image.info:
        return 1
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF may raise any exception, and OpenCV ignores it too
        return 1


def _check_limits(path: Path, header: Header) -> None:
    if header.several_pages:
        raise unusable_image(path, "it has several pages", _PAGES)
    check_size(path, header.width, header.height)
    size = header.width * header.height * header.bytes_per_pixel
    if size > _MAX_DECODED:
        raise unusable_image(path, f"it takes {size >> 30} GiB when decoded", "Cut it into several images.")


def check_size(path: Path, width: int, height: int) -> None:
    """Check the size of an image against the limits `MIN_SIDE` and `MAX_PIXELS`.

    Raises:
        ImageError: The image is too small or too large.
    """
    if min(width, height) < MIN_SIDE:
        problem = f"it is {width} x {height} pixels, and each side must have at least {MIN_SIDE}"
        raise unusable_image(path, problem, "Use the image at its full size, or remove it.")
    if width * height > MAX_PIXELS:
        problem = f"it is {width} x {height} pixels, and the limit is {MAX_PIXELS:,} pixels in total"
        raise unusable_image(path, problem, "Cut it into several images, or scale it down.")


def _is_complete(header: Header, data: bytes) -> bool:
    """Return False if the end of the file is missing; checked for formats whose decoders fill missing parts grey."""
    if header.format == "JPEG":
        return data.rfind(JPEG_END, _start_of_scan(data)) >= 0
    if header.format == "PNG":
        return data.rfind(PNG_END) >= 0
    if header.format == "WEBP":
        # Its decoder takes zeros for pixels; they are the end of a file that was reserved and not copied completely.
        is_reserved = len(data) > _RESERVED and not any(data[-_RESERVED:])
        return len(data) >= 8 + int.from_bytes(data[4:8], "little") and not is_reserved
    return True


def _start_of_scan(data: bytes) -> int:
    """Return the offset of a JPEG's pixels; the EXIF thumbnail before them has an end marker too."""
    position = 2
    while data.startswith(b"\xff", position) and not data.startswith(b"\xff\xda", position):
        padding = data.startswith(b"\xff\xff", position)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if padding else 2 + length
    return position


def _unreadable(path: Path, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return unusable_image(path, "the file does not exist", "Check the path, or list the images again.")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return unusable_image(path, reason[0].lower() + reason[1:], "Check the file and its permissions.")


def unusable_image(path: Path, problem: str, remedy: str) -> ImageError:
    """Return the error for an image that cannot be used."""
    return ImageError(f"Cannot use the image {path}: {problem}.", remedy)
