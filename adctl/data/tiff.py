"""Decoding of TIFF files by their tags (TIFF 6.0, 1992): photometric interpretation, planes, depth, tiles, orientation.

libtiff inside Pillow decompresses LZW and PackBits, and OpenCV reads JPEG, CCITT and YCbCr. All other steps are done
here, because OpenCV reads several arrangements wrongly without an error: MinIsWhite of 16 bits, separate planes, and 10
to 14 bits, which it scales. Arrangements that are not understood are refused.

Colour profiles are not applied: pixels are the stored values, as a camera delivers them.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import cv2
import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from adctl.data.native_messages import decode_quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_MISSING = -1
_NEED_WHOLE_NUMBERS = {_MIN_IS_WHITE, _PALETTE, _CMYK}
_COLOUR_SAMPLES = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_SPACES = {4: "a transparency mask", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw sensor data (CFA)"}
_SPACES |= {32844: "LogL", 32845: "LogLuv", 34892: "raw sensor data", 51177: "depth data"}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4  # undefined counts as unsigned (TIFF 6.0, section 19)
_NONE, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 7, 8, 32946, 32773
_CCITT = {2, 3, 4}
_COMPRESSIONS = {_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS}
_OTHER_COMPRESSIONS = {6: "JPEG of the old kind", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34933: "PNG"}
_OTHER_COMPRESSIONS |= {34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"}
_NO_PREDICTOR, _HORIZONTAL, _FLOATING = 1, 2, 3
_CONTIGUOUS, _SEPARATE = 1, 2
_BYTE, _WORD = 8, 16
_PALETTE_LIMIT = 256
_CMYK_INKS = 1
_DECODE = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_REVERSED_BITS = bytes(int(f"{number:08b}"[::-1], 2) for number in range(256))


class UnsupportedTiffError(Exception):
    """Description of an arrangement that cannot be decoded correctly."""


@dataclass(frozen=True, slots=True)
class TiffTags:
    """Tags that decide how the only page of a TIFF file is read; names as in TIFF 6.0.

    Attributes:
        byte_order: "<" or ">".
        samples: Samples per pixel.
        bits: Bits of each sample.
        format: Sample format: unsigned, signed, floating point or undefined.
        tiled: True for tiles, which are always whole; the last strip ends with the image.
        chunk: Height and width of a strip or tile, pixels.
        offsets: Offset of each strip or tile in the file.
        counts: Length in bytes of each strip or tile in the file.
        colour_map: Values of the palette, [3 * 2^bits]; empty if there is none.
        ink_set: 1 if separated colours are cyan, magenta, yellow and black.
        profile: ICC profile; empty if there is none.
    """

    byte_order: Literal["<", ">"]
    width: int
    height: int
    samples: int
    bits: int
    format: int
    photometric: int
    planar: int
    compression: int
    predictor: int
    fill_order: int
    orientation: int
    tiled: bool
    chunk: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    colour_map: tuple[int, ...]
    ink_set: int
    several_pages: bool
    profile: bytes

    @property
    def bands(self) -> int:
        """Number of channels if the image is neither grey nor colour, each with or without alpha; otherwise 0."""
        ordinary = _COLOUR_SAMPLES.get(self.photometric, self.samples)
        return self.samples if self.samples > ordinary + 1 else 0

    @property
    def is_jpeg(self) -> bool:
        """True if the pixels are compressed with loss."""
        return self.compression == _JPEG

    @property
    def is_deep(self) -> bool:
        """True for unsigned integers of 16 bits."""
        return self.bits == _WORD and self.format in {_UNSIGNED, _UNDEFINED}

    @property
    def stated_depth(self) -> int | None:
        """Depth if the file states one that is neither 8 nor 16 bits; None otherwise."""
        return self.bits if _BYTE < self.bits < _WORD else None


def read_tags(stream: BinaryIO) -> TiffTags:
    """Read the tags of the first page; the stream stands at the start of the file.

    Pillow's image class is not used, because it refuses pixel types that can be read.

    Raises:
        Exception: The tags are damaged; of many types.
    """
    start = stream.read(8)
    is_big = start[2:4] in {b"+\0", b"\0+"}  # BigTIFF has longer offsets
    # Pillow takes a BigTIFF of the other byte order for an ordinary TIFF.
    mark = b"II+\0" if is_big else start[:4]
    tags = ImageFileDirectory_v2(mark + start[4:] + stream.read(8 if is_big else 0), prefix=start[:2])
    stream.seek(tags.next)
    tags.load(stream)

    def many(tag: int) -> tuple[int, ...]:
        found = tags.get(tag, ())
        return tuple(found) if isinstance(found, tuple) else (found,)

    def one(tag: int, default: int) -> int:
        return int((many(tag) or (default,))[0])

    width, height = int(tags[256]), int(tags[257])
    bits, formats = set(many(258)) or {1}, set(many(339)) or {_UNSIGNED}
    tiled = bool(many(322))
    return TiffTags(
        byte_order="<" if start.startswith(b"II") else ">",
        width=width,
        height=height,
        samples=one(277, 1),
        bits=bits.pop() if len(bits) == 1 else 0,
        format=formats.pop() if len(formats) == 1 else 0,
        photometric=one(262, _MISSING),
        planar=one(284, _CONTIGUOUS),
        compression=one(259, _NONE),
        predictor=one(317, _NO_PREDICTOR),
        fill_order=one(266, 1),
        orientation=one(274, 1),
        tiled=tiled,
        chunk=(one(323, 0), one(322, 0)) if tiled else (min(one(278, height), height), width),
        offsets=many(324 if tiled else 273),
        counts=many(325 if tiled else 279),
        colour_map=many(320),
        ink_set=one(332, _CMYK_INKS),
        several_pages=bool(tags.next),
        profile=bytes(tags.get(34675, b"")),
    )


def decode(data: bytes, tags: TiffTags) -> NDArray[Any]:
    """Decode grey or colour: extra samples are dropped, and the orientation is applied.

    Args:
        data: All bytes of the file.
        tags: Its tags.

    Returns:
        Array [H,W] (grey) or [H,W,3] in RGB order. Up to 8 bits fill the range of uint8; 9 to 16 bits keep their values
        as uint16, and all others their number type.

    Raises:
        UnsupportedTiffError: The arrangement of pixels is not supported.
        Exception: The file is damaged; of many types.
    """
    _check(tags)
    if tags.compression == _JPEG or tags.compression in _CCITT or tags.photometric == _YCBCR:
        pixels = _decode_by_opencv(data, tags)
    else:
        pixels = _to_colour(_samples(data, tags), tags)
    return apply_orientation(np.ascontiguousarray(pixels), tags.orientation)


def decode_channels(data: bytes, tags: TiffTags) -> NDArray[Any]:
    """Decode all samples of each pixel, [H,W,C], in their stored order; otherwise the same as `decode`."""
    if tags.photometric in {_PALETTE, _CMYK} or tags.compression == _JPEG or tags.compression in _CCITT:
        pixels = decode(data, tags)
        return pixels[..., None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - grey
    _check(tags)
    samples = _scale(_samples(data, tags), tags)
    return apply_orientation(_invert(samples, tags) if tags.photometric == _MIN_IS_WHITE else samples, tags.orientation)


def palette_indices(data: bytes, tags: TiffTags) -> NDArray[Any] | None:
    """Return the palette entry of each pixel, [H,W]; None without a palette. Raises the same errors as `decode`."""
    if tags.photometric != _PALETTE:
        return None
    _check(tags)
    return apply_orientation(_samples(data, tags)[..., 0], tags.orientation)


def apply_orientation(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels [H,W] or [H,W,C] as EXIF and TIFF orientation 1 to 8 demand; other values change nothing."""
    if orientation in {5, 6, 7, 8}:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _check(tags: TiffTags) -> None:
    """Raise UnsupportedTiffError for an arrangement that would not be read correctly."""
    space = _SPACES.get(tags.photometric, f"colour space {tags.photometric}")
    whole_numbers = tags.format in {_UNSIGNED, _UNDEFINED}
    problems = {
        "it does not say how its values are to be seen (PhotometricInterpretation)": tags.photometric == _MISSING,
        f"its values are {space}": tags.photometric not in _COLOUR_SAMPLES,
        "it has too few samples for its colours": tags.samples < _COLOUR_SAMPLES.get(tags.photometric, 1),
        "its channels differ in bits or number type": not tags.bits or not tags.format,
        "its numbers are complex": tags.format not in {_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED},
        "its tags are unknown": tags.planar not in {_CONTIGUOUS, _SEPARATE} or tags.fill_order not in {1, 2},
        "its palette is incomplete": tags.photometric == _PALETTE and len(tags.colour_map) != 3 << tags.bits,
        "its inks are not cyan, magenta, yellow and black": tags.photometric == _CMYK and tags.ink_set != _CMYK_INKS,
        "its number type does not fit its colours": tags.photometric in _NEED_WHOLE_NUMBERS and not whole_numbers,
        f"its colours have {tags.bits} bits": tags.photometric in {_CMYK, _YCBCR} and tags.bits != _BYTE,
    }
    problem = next((text for text, found in problems.items() if found), None)
    if problem is not None:
        raise UnsupportedTiffError(problem)


def _decode_by_opencv(data: bytes, tags: TiffTags) -> NDArray[Any]:
    """Decode a JPEG, CCITT or YCbCr file, whose bytes libtiff converts to grey or RGB."""
    bilevel = tags.bits == 1 and tags.photometric in {_MIN_IS_WHITE, _MIN_IS_BLACK}
    ordinary = tags.bits == _BYTE and tags.photometric in {_MIN_IS_BLACK, _RGB, _YCBCR} and tags.planar == _CONTIGUOUS
    if tags.samples != _COLOUR_SAMPLES[tags.photometric] or not (bilevel if tags.compression in _CCITT else ordinary):
        raise UnsupportedTiffError("its compression does not fit its depth, planes or colours")
    pixels, _ = decode_quietly(data, _DECODE)
    if pixels is None or pixels.dtype != np.uint8:
        raise ValueError("OpenCV cannot decode it")
    return pixels[..., ::-1] if pixels.ndim == 3 else pixels  # noqa: PLR2004 - colour


def _samples(data: bytes, tags: TiffTags) -> NDArray[Any]:
    """Decode the samples [H,W,S] as stored."""
    if tags.compression not in _COMPRESSIONS:
        raise UnsupportedTiffError(f"its compression is {_OTHER_COMPRESSIONS.get(tags.compression, tags.compression)}")
    if tags.predictor not in {_NO_PREDICTOR, _HORIZONTAL, _FLOATING}:
        raise UnsupportedTiffError(f"its predictor has number {tags.predictor}")
    planes, depth = (tags.samples, 1) if tags.planar == _SEPARATE else (1, tags.samples)
    rows, columns = tags.chunk
    across = -(-tags.width // columns)
    count = -(-tags.height // rows) * across  # strips or tiles of a plane
    if not (len(tags.offsets) == len(tags.counts) == count * planes):
        raise ValueError("the number of strips or tiles is wrong")
    image = np.empty((tags.height, tags.width, tags.samples), _dtype(tags))
    for plane in range(planes):
        chunks = _decompressed(data, tags, range(plane * count, (plane + 1) * count), columns * depth)
        for number, chunk in enumerate(chunks):
            top, left = number // across * rows, number % across * columns
            target = image[top : top + rows, left : left + columns, plane : plane + depth]
            samples = _unpack(chunk, tags, (rows if tags.tiled else len(target), columns, depth))
            target[...] = samples[: target.shape[0], : target.shape[1]]
    return image


def _decompressed(data: bytes, tags: TiffTags, numbers: range, row_samples: int) -> Iterator[bytes]:
    """Yield the bytes of the numbered strips or tiles of a plane, whose rows have the given number of samples."""
    row_bytes = -(-row_samples * tags.bits // 8)  # each row starts at a byte
    size = tags.chunk[0] * row_bytes
    packed = [data[tags.offsets[number] :][: tags.counts[number]] for number in numbers]
    if any(len(part) < tags.counts[number] for part, number in zip(packed, numbers, strict=True)):
        raise ValueError("it is truncated")
    if tags.fill_order != 1:
        packed = [part.translate(_REVERSED_BITS) for part in packed]
    if tags.compression == _NONE:
        yield from packed
    elif tags.compression in {_DEFLATE, _OLD_DEFLATE}:
        yield from (zlib.decompressobj().decompress(part, size) for part in packed)
    else:
        # libtiff has the decompressors: the bytes are given to it as the strips of a grey image of 8 bits. Pillow says
        # if they are too few, and OpenCV does not.
        height = tags.chunk[0] * len(packed) if tags.tiled else tags.height
        shape = (height, row_bytes, tags.chunk[0])
        whole = TiffImageFile(io.BytesIO(_grey_tiff(packed, tags.compression, shape))).tobytes()
        yield from (whole[start : start + size] for start in range(0, len(whole), size))


def _grey_tiff(strips: list[bytes], compression: int, shape: tuple[int, int, int]) -> bytes:
    """Return a grey 8-bit TIFF file of the given height, width and rows per strip, from its compressed strips."""
    height, width, rows = shape
    count = len(strips)
    values = {256: width, 257: height, 258: 8, 259: compression, 262: _MIN_IS_BLACK, 273: 0, 277: 1, 278: rows, 279: 0}
    arrays = 8 + 2 + 12 * len(values) + 4  # place of the offsets and lengths, after the tags
    lengths = [len(strip) for strip in strips]
    offsets = [arrays + 8 * count + before for before in itertools.accumulate([0, *lengths[:-1]])]
    values[273], values[279] = (arrays, arrays + 4 * count) if count > 1 else (offsets[0], lengths[0])
    entries = b"".join(
        struct.pack("<HHII", tag, 4, count if tag in {273, 279} else 1, value) for tag, value in sorted(values.items())
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + bytes(4)
    return head + struct.pack(f"<{2 * count}I", *offsets, *lengths) + b"".join(strips)


def _dtype(tags: TiffTags) -> np.dtype[Any]:
    """Return the number type of the decoded samples, in native byte order."""
    if tags.format in {_UNSIGNED, _UNDEFINED} and tags.bits <= _WORD:
        return np.dtype(np.uint8 if tags.bits <= _BYTE else np.uint16)
    kind = {_SIGNED: "i", _FLOAT: "f"}.get(tags.format, "u")
    if tags.bits not in {_BYTE, _WORD, 32, 64} or (kind == "f" and tags.bits == _BYTE):
        raise UnsupportedTiffError(f"its samples have {tags.bits} bits")
    return np.dtype(f"{kind}{tags.bits // 8}")


def _unpack(data: bytes, tags: TiffTags, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Return the samples of the bytes of one strip or tile, array of the given shape [h,w,S]."""
    rows, columns, depth = shape
    row_bytes = -(-columns * depth * tags.bits // 8)
    if len(data) < rows * row_bytes:
        raise ValueError("a strip or tile is too short")
    dtype = _dtype(tags)
    if tags.predictor == _FLOATING:
        return _undo_floating(np.frombuffer(data, np.uint8, rows * row_bytes), dtype, shape)
    if tags.bits == dtype.itemsize * 8:
        stored = np.frombuffer(data, dtype.newbyteorder(tags.byte_order), rows * columns * depth)
        samples = stored.reshape(shape).astype(dtype, copy=False)
    else:
        packed_rows = np.frombuffer(data, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
        samples = _unpack_bits(packed_rows, tags.bits, shape)
    if tags.predictor == _HORIZONTAL:
        if tags.bits != dtype.itemsize * 8:
            raise UnsupportedTiffError(f"its samples have {tags.bits} bits and are stored as differences")
        numbers = samples.view(f"u{dtype.itemsize}")
        samples = np.cumsum(numbers, axis=1, dtype=numbers.dtype).view(dtype)
    unpacked: NDArray[Any] = samples
    return unpacked


def _undo_floating(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
    """Undo the floating-point predictor: differences of bytes, sorted by their place in the number.

    (Adobe Photoshop TIFF Technical Note 3, 2005.)
    """
    if dtype.kind != "f":
        raise UnsupportedTiffError("its whole numbers are stored as floating-point differences")
    rows, columns, depth = shape
    planes = np.cumsum(data.reshape(rows, -1, depth), axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, -1)
    big_endian = np.ascontiguousarray(np.moveaxis(planes, 1, 2)).view(dtype.newbyteorder(">"))
    return big_endian.reshape(rows, columns, depth).astype(dtype)


def _unpack_bits(rows: NDArray[np.uint8], bits: int, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Unpack unsigned samples of 1 to 15 bits, most significant bit first."""
    width = 8 if bits <= _BYTE else _WORD
    found = np.empty(shape, f">u{width // 8}")
    for row, target in zip(rows, found.reshape(len(rows), -1), strict=True):
        loose = np.unpackbits(row, count=target.size * bits).reshape(-1, bits)
        padded = np.zeros((len(loose), width), np.uint8)
        padded[:, width - bits :] = loose
        target[...] = np.packbits(padded, axis=1).view(found.dtype)[:, 0]
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _to_colour(samples: NDArray[Any], tags: TiffTags) -> NDArray[Any]:
    """Convert samples [H,W,S] as stored to grey [H,W] or RGB [H,W,3]."""
    if tags.photometric == _PALETTE:
        colours = np.array(tags.colour_map).reshape(3, -1).T
        # Some old writers fill the 16-bit palette with 8-bit values.
        table = (colours if colours.max() < _PALETTE_LIMIT else colours >> 8).astype(np.uint8)
        return np.take(table, samples[..., 0], axis=0)
    samples = _scale(samples[..., : _COLOUR_SAMPLES[tags.photometric]], tags)
    if tags.photometric == _CMYK:
        ink = 255 - samples.astype(np.uint16)
        return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)
    if tags.photometric == _MIN_IS_WHITE:
        samples = _invert(samples, tags)
    return samples[..., 0] if samples.shape[2] == 1 else samples


def _scale(samples: NDArray[Any], tags: TiffTags) -> NDArray[Any]:
    """Scale samples of less than 8 bits to the range of uint8; leave others."""
    if tags.bits >= _BYTE:
        return samples
    table = np.rint(np.arange(1 << tags.bits) * (255 / ((1 << tags.bits) - 1))).astype(np.uint8)
    scaled: NDArray[Any] = table[samples]
    return scaled


def _invert(samples: NDArray[Any], tags: TiffTags) -> NDArray[Any]:
    return ((1 << max(tags.bits, _BYTE)) - 1 - samples.astype(np.int32)).astype(samples.dtype)
