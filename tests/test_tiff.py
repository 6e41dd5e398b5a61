"""Every arrangement of pixels in a TIFF file is decoded right or refused with advice, never silently wrong.

The files are written here, byte by byte, so that neither the decoder nor its libraries have a say in what is expected.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from adctl.data.images import image_size, read_image, read_stored
from adctl.data.multichannel import read_pixels
from adctl.errors import ImageError

HEIGHT, WIDTH, ROWS = 37, 43, 16
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
RANDOM = np.random.default_rng(0)


def pack_rows(samples, bits, order):
    """Samples [h,n] of whole numbers, each row from a new byte on."""
    if bits in {8, 16, 32}:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in samples]
    loose = (samples[:, :, None] >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row.ravel()).tobytes() for row in loose.astype(np.uint8)]


def lzw(data):
    """LZW without any matches: a clear code comes before codes would need ten bits."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    codes.append(257)
    loose = (np.array(codes)[:, None] >> np.arange(9)[::-1]) & 1
    return np.packbits(loose.astype(np.uint8)).tobytes()


def packbits(data):
    return b"".join(bytes([len(data[at : at + 100]) - 1]) + data[at : at + 100] for at in range(0, len(data), 100))


COMPRESSIONS = {
    "none": (1, bytes),
    "lzw": (5, lzw),
    "deflate": (8, zlib.compress),
    "old deflate": (32946, zlib.compress),
    "packbits": (32773, packbits),
}


def tiff(
    samples, bits, photometric, *, planar=1, compression="none", order="<", tile=None, rows=16, predictor=1, **more
):
    """Samples [h,w,S] of whole numbers, as a TIFF file; `more` holds further tags by number, such as t320."""
    height, width, depth = samples.shape
    code, compress = COMPRESSIONS[compression]
    planes = [samples] if planar == 1 else [samples[..., plane : plane + 1] for plane in range(depth)]
    chunks = []
    for plane in planes:
        step = (tile, tile) if tile else (ROWS, width)
        for top, left in itertools.product(range(0, height, step[0]), range(0, width, step[1])):
            chunk = plane[top : top + step[0], left : left + step[1]]
            if tile:
                chunk = np.pad(chunk, ((0, tile - chunk.shape[0]), (0, tile - chunk.shape[1]), (0, 0)), mode="edge")
            if predictor == 2:
                chunk = np.diff(chunk, axis=1, prepend=0) % (1 << bits)
            data = b"".join(pack_rows(chunk.reshape(len(chunk), -1), bits, order))
            if more.get("t266") == 2:
                data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
            chunks.append(compress(data))
    tags = {256: width, 257: height, 258: [bits] * depth, 259: code, 262: photometric, 277: depth, 284: planar}
    tags |= {322: tile, 323: tile} if tile else {278: ROWS}
    tags |= {317: predictor} if predictor != 1 else {}
    tags |= {int(name[1:]): value for name, value in more.items()}
    places = (324, 325) if tile else (273, 279)
    body, offsets = b"", []
    for chunk in chunks:
        offsets.append(8 + len(body))
        body += chunk + b"\0" * (len(chunk) % 2)
    tags |= {places[0]: offsets, places[1]: [len(chunk) for chunk in chunks]}
    return assemble(tags, body, order)


def assemble(tags, body, order):
    directory = 8 + len(body)
    extra_at = directory + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, (list, tuple)) else [value]
        kind, letter = (4, "I") if tag in {273, 279, 324, 325} else (3, "H")
        data = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(data) > 4:
            place = struct.pack(f"{order}I", extra_at + len(extra))
            extra += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, directory)
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + extra


def picture(bits, depth):
    return RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, depth))


def colour_map(bits):
    return RANDOM.integers(256, 65536, 3 << bits).tolist()


def expected(samples, bits, photometric, colours=()):
    """The picture as eight bits of RGB, by the words of TIFF 6.0."""
    if photometric == PALETTE:
        return (np.array(colours).reshape(3, -1).T[samples[..., 0]] >> 8).astype(np.uint8)
    top = (1 << bits) - 1
    values = top - samples if photometric == MIN_IS_WHITE else samples
    eight = values >> (bits - 8) if bits >= 8 else np.rint(values * (255 / top))
    return np.broadcast_to(eight, (*eight.shape[:2], 3)).astype(np.uint8)


MATRIX = [
    (photometric, planar, bits, compression, order, tile)
    for photometric, planar, bits, compression, order, tile in itertools.product(
        (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE), (1, 2), (1, 4, 8, 10, 12, 14, 16), COMPRESSIONS, "<>", (None, 16)
    )
    if not (photometric == PALETTE and bits > 8)
]


@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", [MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE])
def test_matrix(tmp_path, photometric, bits):
    """Photometric x depth x planes x compression x byte order x strips or tiles."""
    path = tmp_path / "image.tif"
    for _, planar, _, compression, order, tile in (row for row in MATRIX if row[0] == photometric and row[2] == bits):
        colours = colour_map(bits) if photometric == PALETTE else ()
        samples = picture(bits, 3 if photometric == RGB else 1)
        more = {"t320": colours} if colours else {}
        data = tiff(samples, bits, photometric, planar=planar, compression=compression, order=order, tile=tile, **more)
        path.write_bytes(data)
        result = read_image(path, bit_depth=12 if bits != 16 else 16)
        case = f"planar {planar}, {compression}, {order}, tile {tile}"
        np.testing.assert_array_equal(result, expected(samples, bits, photometric, colours), err_msg=case)
        assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("photometric", [MIN_IS_BLACK, RGB])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_the_files_of_this_test_are_right(tmp_path, photometric, bits, planar, compression):
    """tifffile reads the same from them, and adctl the same from the files of tifffile."""
    samples = picture(bits, 3 if photometric == RGB else 1)
    data = tiff(samples, bits, photometric, planar=planar, compression=compression, order=">", tile=16)
    theirs = tifffile.imread(io.BytesIO(data))
    theirs = np.moveaxis(theirs, 0, 2) if planar == 2 and photometric == RGB else theirs
    np.testing.assert_array_equal(theirs.reshape(samples.shape), samples)
    stored = samples.astype(f"u{bits // 8}")
    name = "rgb" if photometric == RGB else "minisblack"
    stored = stored[..., 0] if photometric == MIN_IS_BLACK else np.moveaxis(stored, 2, 0) if planar == 2 else stored
    layout = {"planarconfig": planar} if photometric == RGB else {}
    options = {"compression": "zlib", "predictor": True} if compression == "deflate" else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=name, tile=(16, 16), **layout, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected(samples, bits, photometric))


@pytest.mark.parametrize("bits", [3, 6, 9, 11, 13, 15])
def test_odd_depths(tmp_path, bits):
    path = tmp_path / "a.tif"
    samples = picture(bits, 1)
    path.write_bytes(tiff(samples, bits, MIN_IS_BLACK))
    np.testing.assert_array_equal(read_image(path), expected(samples, bits, MIN_IS_BLACK))


@pytest.mark.parametrize("bit_depth", [8, 10, 12, 16])
def test_the_depth_of_the_file_counts_once(tmp_path, bit_depth):
    """A packed 12-bit file is no brighter for being told that it has 12 bits."""
    samples = picture(12, 1)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(samples, 12, MIN_IS_BLACK))
    result = read_image(path, bit_depth=bit_depth)
    np.testing.assert_array_equal(result[..., 0], samples[..., 0] >> 4)
    assert read_stored(path).depth == 12


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate"])
def test_differences(tmp_path, bits, order, compression):
    for depth, planar in ((1, 1), (3, 1), (3, 2)):
        samples = picture(bits, depth)
        photometric = RGB if depth == 3 else MIN_IS_BLACK
        path = tmp_path / "a.tif"
        path.write_bytes(
            tiff(samples, bits, photometric, order=order, compression=compression, planar=planar, predictor=2)
        )
        np.testing.assert_array_equal(read_image(path), expected(samples, bits, photometric))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("compression", [5, 8])
def test_floating_point_of_opencv(tmp_path, channels, predictor, compression):
    pixels = RANDOM.random((HEIGHT, WIDTH, channels), np.float32)
    if predictor == 2:
        pytest.skip("OpenCV does not write it")
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
    assert cv2.imwrite(str(tmp_path / "a.tif"), pixels[..., ::-1], options)
    result = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(result, np.broadcast_to(np.rint(pixels * 255), result.shape))


@pytest.mark.parametrize("photometric", [MIN_IS_BLACK, RGB])
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_extra_samples_are_dropped(tmp_path, photometric, kind, bits):
    depth = 3 if photometric == RGB else 1
    samples = picture(bits, depth + 1)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(samples, bits, photometric, t338=kind))
    np.testing.assert_array_equal(read_image(path), expected(samples[..., :depth], bits, photometric))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_for_deep_and_many_channels(tmp_path, orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }[orientation]
    path = tmp_path / "a.tif"
    for bits, depth in ((12, 1), (16, 3), (8, 6)):
        samples = picture(bits, depth)
        path.write_bytes(tiff(samples, bits, RGB if depth == 3 else MIN_IS_BLACK, t274=orientation))
        result = read_pixels(path, depth)
        np.testing.assert_array_equal(result, turned(samples >> (bits - 8)))
        assert image_size(path) == result.shape[1::-1]


@pytest.mark.parametrize("bits", [1, 8, 12])
def test_fill_order(tmp_path, bits):
    samples = picture(bits, 1)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(samples, bits, MIN_IS_BLACK, t266=2))
    np.testing.assert_array_equal(read_image(path), expected(samples, bits, MIN_IS_BLACK))


def test_palette_of_eight_bit_values(tmp_path):
    samples, colours = picture(8, 1), RANDOM.integers(0, 256, 768).tolist()
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(samples, 8, PALETTE, t320=colours))
    np.testing.assert_array_equal(read_image(path), np.array(colours).reshape(3, -1).T[samples[..., 0]])


@pytest.mark.parametrize("photometric", [MIN_IS_WHITE, MIN_IS_BLACK])
@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax(tmp_path, photometric, compression):
    drawn = Image.fromarray(RANDOM.random((HEIGHT, WIDTH)) > 0.5)
    drawn.save(tmp_path / "a.tif", compression=compression, tiffinfo={262: photometric})
    theirs = np.asarray(Image.open(tmp_path / "a.tif").convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], theirs)


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_jpeg_inside(tmp_path, mode):
    smooth = cv2.GaussianBlur(RANDOM.integers(0, 256, (64, 80, 3), np.uint8), (0, 0), 3)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    theirs = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.tif") - theirs).max() <= 4


def test_cmyk(tmp_path):
    inks = picture(8, 4)
    (tmp_path / "a.tif").write_bytes(tiff(inks, 8, CMYK))
    light = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(read_image(tmp_path / "a.tif") - light).max() <= 1


def test_min_is_white_in_many_channels(tmp_path):
    samples = picture(16, 5)
    (tmp_path / "a.tif").write_bytes(tiff(samples, 16, MIN_IS_WHITE, planar=2))
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif", 5), (65535 - samples) >> 8)


REFUSED = {
    "CIELab": ({"bits": 8, "photometric": 8}, 3),
    "raw sensor data": ({"bits": 16, "photometric": 32803}, 1),
    "LogLuv": ({"bits": 16, "photometric": 32845}, 3),
    "complex": ({"bits": 32, "photometric": MIN_IS_BLACK, "t339": 5}, 1),
    "too few samples": ({"bits": 8, "photometric": RGB}, 2),
    "palette is incomplete": ({"bits": 8, "photometric": PALETTE}, 1),
    "24 bits": ({"bits": 24, "photometric": MIN_IS_BLACK}, 1),
    "no defined white level": ({"bits": 16, "photometric": MIN_IS_BLACK, "t339": 2}, 1),
    "does not fit its colours": ({"bits": 32, "photometric": MIN_IS_WHITE, "t339": 3}, 1),
    "its colours have 16 bits": ({"bits": 16, "photometric": CMYK}, 4),
    "differ in bits": ({"bits": 8, "photometric": RGB, "t258": [5, 6, 5]}, 3),
    "predictor has number 9": ({"bits": 8, "photometric": MIN_IS_BLACK, "t317": 9}, 1),
    "compression is Zstandard": ({"bits": 8, "photometric": MIN_IS_BLACK, "t259": 50000}, 1),
    "compression is 12345": ({"bits": 8, "photometric": MIN_IS_BLACK, "t259": 12345}, 1),
    "inks are not cyan": ({"bits": 8, "photometric": CMYK, "t332": 2}, 4),
    "tags are unknown": ({"bits": 8, "photometric": MIN_IS_BLACK, "t284": 7}, 1),
    "its whole numbers are stored": ({"bits": 8, "photometric": MIN_IS_BLACK, "t317": 3}, 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_the_rest_is_refused_with_advice(tmp_path, reason):
    options, depth = REFUSED[reason]
    (tmp_path / "a.tif").write_bytes(tiff(picture(min(options["bits"], 16), depth), **options))
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(tmp_path / "a.tif")
    assert "Save it" in caught.value.remedy or "Convert it" in caught.value.remedy


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_strips_that_lie_are_refused(tmp_path, compression):
    """Too short, beyond the end, or too few."""
    for change in ({"t257": HEIGHT + 40}, {"t273": [2**31] * 3}, {"t279": [1] * 3}, {"t256": 4000}):
        code, compress = COMPRESSIONS[compression]
        tags = {256: WIDTH, 257: HEIGHT, 258: 8, 259: code, 262: 1, 277: 1, 278: 16, 273: [8, 8, 8], 279: [20, 20, 20]}
        tags |= {int(name[1:]): value for name, value in change.items()}
        (tmp_path / "a.tif").write_bytes(assemble(tags, compress(bytes(16 * WIDTH)), "<"))
        with pytest.raises(ImageError):
            read_image(tmp_path / "a.tif")


def test_a_huge_claim_is_refused_before_decoding(tmp_path):
    tags = {256: 20000, 257: 20000, 258: [16] * 60, 259: 8, 262: 1, 277: 60, 278: 20000, 273: 8, 279: 100}
    tags = dict(tags.items())
    (tmp_path / "a.tif").write_bytes(assemble(tags, zlib.compress(bytes(10_000)), "<"))
    with pytest.raises(ImageError, match="GiB when decoded"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "predictor": 2, "compression": "zlib"}])
def test_big_tiff_in_either_byte_order(tmp_path, order, dtype, options):
    samples = picture(8 * int(dtype[1]), 3).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", bigtiff=True, byteorder=order, **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), samples >> (8 * int(dtype[1]) - 8))
