"""PNG, JPEG, BMP, WebP and JPEG 2000 of every kind: decoded like by an independent reader, or refused with advice."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from adctl.data.images import read_image, read_stored
from adctl.data.multichannel import read_pixels
from adctl.errors import ImageError

HEIGHT, WIDTH = 24, 37
RANDOM = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RANDOM.integers(0, 256, (160, 200, 3), np.uint8), (0, 0), 3)


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "image.png"
        path.write_bytes(data)
        return path

    return write


def encoded(image, kind, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def refusal(path):
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.remedy
    return caught.value.message


# ---- PNG, written here


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples, bits, colour_type, *extra):
    loose = (samples.reshape(len(samples), -1)[:, :, None] >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in loose.astype(np.uint8))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour_type, 0, 0, 0)
    body = b"".join((chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + body


ANCILLARY = {
    "plain": b"",
    "gamma": chunk(b"gAMA", struct.pack(">I", 20000)),
    "white point": chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    "HDR": chunk(b"cICP", bytes([9, 16, 0, 1])),
    "bad profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"0" * 200)),
}


@pytest.mark.parametrize("ancillary", ANCILLARY)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png(file, capfd, bits, ancillary):
    samples = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH))
    transparent = chunk(b"tRNS", struct.pack(">H", samples[3, 3]))
    expected = samples >> 8 if bits == 16 else samples * 255 // ((1 << bits) - 1)
    for extra in (ANCILLARY[ancillary], ANCILLARY[ancillary] + transparent):
        result = read_image(file(png(samples, bits, 0, extra)))
        np.testing.assert_array_equal(result, np.dstack([expected] * 3))
    assert capfd.readouterr().err == ""


def test_png_with_a_wrong_checksum_is_refused(file):
    wrong = chunk(b"gAMA", struct.pack(">I", 20000))[:-1] + b"\0"
    assert "damaged" in refusal(file(png(RANDOM.integers(0, 256, (HEIGHT, WIDTH)), 8, 0, wrong)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette_png(file, bits, transparent):
    samples = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH))
    colours = RANDOM.integers(0, 256, (1 << bits, 3), np.uint8)
    alpha = chunk(b"tRNS", bytes(RANDOM.integers(0, 256, 1 << bits, np.uint8))) if transparent else b""
    result = read_image(file(png(samples, bits, 3, chunk(b"PLTE", colours.tobytes()), alpha)))
    np.testing.assert_array_equal(result, colours[samples])


@pytest.mark.parametrize("ancillary", ANCILLARY)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour_type", "depth"), [(2, 3), (4, 2), (6, 4)])
def test_colour_and_alpha_png(file, colour_type, depth, bits, ancillary):
    samples = RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, depth))
    result = read_image(file(png(samples, bits, colour_type, ANCILLARY[ancillary])))
    seen = samples[..., :1] if depth == 2 else samples[..., :3]
    np.testing.assert_array_equal(result, np.broadcast_to(seen >> (bits - 8), result.shape))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_four_channels_of_a_turned_png(file, orientation):
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    path = file(encoded(samples, "PNG", exif=exif))
    turned = np.rot90(samples, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(read_pixels(path, 4), turned)
    np.testing.assert_array_equal(read_image(path), turned[..., :3])


# ---- JPEG

JPEGS = [
    (mode, options)
    for mode in ("L", "RGB", "CMYK")
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"restart_marker_rows": 1})
]


@pytest.mark.parametrize(("mode", "options"), [*JPEGS, ("RGB", {"keep_rgb": True})])
def test_jpeg(file, mode, options):
    data = encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95, **options)
    assert np.abs(read_image(file(data)) - by_pillow(data)).max() <= 1


@pytest.mark.parametrize("transform", [0, 2])
def test_adobe_marker_of_cmyk(file, capfd, transform):
    """0 is CMYK, and 2 is YCCK."""
    data = bytearray(encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95))
    data[data.find(b"Adobe") + 11] = transform
    assert np.abs(read_image(file(bytes(data))) - by_pillow(bytes(data))).max() <= 1
    assert capfd.readouterr().err == ""


def test_cmyk_without_adobe_marker_is_refused(file):
    """Nobody knows whether its inks are inverted."""
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    at = data.find(b"\xff\xee")
    data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert "inks are inverted" in refusal(file(data))


def test_twelve_bit_jpeg_is_refused(file):
    data = bytearray(encoded(SMOOTH, "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    assert "more than 8 bits" in refusal(file(bytes(data)))


# ---- damage that only the library inside OpenCV sees


def damaged_jpeg():
    data = bytearray(encoded(SMOOTH, "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 500] = b"\x11" * 500
    return bytes(data)


glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="needs glibc")


@glibc
def test_damage_in_the_middle_of_a_jpeg_is_found(file, capfd):
    assert "Corrupt JPEG data" in refusal(file(damaged_jpeg()))
    assert capfd.readouterr() == ("", "")


@glibc
@pytest.mark.parametrize("padding", [b"aaaaa", bytes(400)])
def test_bytes_that_cameras_leave_are_no_damage(file, capfd, padding):
    data = encoded(SMOOTH, "JPEG", quality=90)
    np.testing.assert_array_equal(read_image(file(data[:-2] + padding + data[-2:])), read_image(file(data)))
    assert capfd.readouterr() == ("", "")


@glibc
def test_only_the_damaged_file_is_refused_whatever_other_threads_read(tmp_path):
    whole = encoded(SMOOTH, "JPEG", quality=90)
    paths = []
    for number in range(60):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(whole if number % 5 else damaged_jpeg())

    def is_refused(path):
        try:
            read_image(path)
        except ImageError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(is_refused, paths)) == [not number % 5 for number in range(60)]


@glibc
def test_other_messages_of_the_process_are_printed(file):
    """Only messages of decoders are caught: Python and C print to stderr as before."""
    code = (
        "import ctypes, sys, pathlib\n"
        "from adctl.data.images import read_image\n"
        "try:\n    read_image(pathlib.Path(sys.argv[1]))\nexcept Exception as error:\n    print(error)\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.fputs(b'from C\\n', ctypes.c_void_p.in_dll(libc, 'stderr'))\n"
        "print('from Python', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file(damaged_jpeg()))], capture_output=True, text=True, check=True
    )
    assert done.stderr == "from C\nfrom Python\n"
    assert "Corrupt JPEG data" in done.stdout


def test_libpng_prints_nothing(file, capfd):
    rows = b"".join(b"\0" + row.tobytes() for row in SMOOTH)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200, 160, 8, 2, 0, 0, 0))
    for packed in (zlib.compress(rows + bytes(5000)), zlib.compress(rows) + bytes(5000), zlib.compress(rows[:-50])):
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        if len(zlib.decompressobj().decompress(packed)) >= len(rows):
            np.testing.assert_array_equal(read_image(file(data)), SMOOTH)
        else:
            refusal(file(data))
    if sys.platform == "linux":
        assert capfd.readouterr() == ("", "")


# ---- BMP, written here


def bmp(bits, body, *, compression=0, palette=b"", masks=b"", height=HEIGHT, size=40):
    start = 14 + size + (len(masks) if size == 40 else 0) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0
    )
    header += masks.ljust(size - 40, b"\0") if size > 40 else masks
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def rows_of(values):
    return b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in values)


BYTES = RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
WORDS = RANDOM.integers(0, 1 << 15, (HEIGHT, WIDTH), np.uint16)
LONGS = RANDOM.integers(0, 1 << 32, (HEIGHT, WIDTH), np.uint32)
COLOURS = np.dstack([RANDOM.integers(0, 256, (1, 256, 3), np.uint8), np.zeros((1, 256, 1), np.uint8)]).tobytes()
RUNS = b"".join(bytes([WIDTH, value, 0, 0]) for value in range(HEIGHT)) + b"\0\1"
BMPS = {
    "8": bmp(8, rows_of(BYTES), palette=COLOURS),
    "8 top down": bmp(8, rows_of(BYTES), palette=COLOURS, height=-HEIGHT),
    "4": bmp(4, rows_of(BYTES[:, : (WIDTH + 1) // 2]), palette=COLOURS[:64]),
    "1": bmp(1, rows_of(BYTES[:, : (WIDTH + 7) // 8]), palette=COLOURS[:8]),
    "negative grey": bmp(
        8, rows_of(BYTES), palette=np.repeat(np.arange(256)[::-1], 4).astype(np.uint8).reshape(-1, 4).tobytes()
    ),
    "runs of 8": bmp(8, RUNS, compression=1, palette=COLOURS),
    "runs of 4": bmp(4, RUNS, compression=2, palette=COLOURS[:64]),
    "555": bmp(16, rows_of(WORDS)),
    "565": bmp(16, rows_of(WORDS), compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
    "32": bmp(32, rows_of(LONGS)),
    "32 fields": bmp(32, rows_of(LONGS), compression=3, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)),
    "32 fields, alpha last": bmp(
        32, rows_of(LONGS), compression=3, masks=struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00)
    ),
    "32 fields, version 4": bmp(
        32, rows_of(LONGS), compression=3, masks=struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000), size=108
    ),
    "OS/2": b"BM"
    + struct.pack("<IHHI", 26 + 768 + 960, 0, 0, 26 + 768)
    + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 8)
    + RANDOM.integers(0, 256, 768, np.uint8).tobytes()
    + rows_of(BYTES),
}


@pytest.mark.parametrize("kind", BMPS)
def test_bmp(file, kind):
    np.testing.assert_array_equal(read_image(file(BMPS[kind])), by_pillow(BMPS[kind]))


def test_five_bits_reach_white(file):
    white = bmp(16, rows_of(np.full((HEIGHT, WIDTH), 0x7FFF, np.uint16)))
    assert (read_image(file(white)) == 255).all()


@pytest.mark.parametrize("masks", [(0xFF, 0xFF00, 0xFF0000), (0x3FF00000, 0xFFC00, 0x3FF)])
def test_bmp_with_odd_fields_is_refused(file, masks):
    refusal(file(bmp(32, rows_of(LONGS), compression=3, masks=struct.pack("<III", *masks))))


# ---- WebP, arrays and others


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True, "exact": True}, {"quality": 90}])
def test_webp(file, mode, options):
    image = Image.fromarray(SMOOTH).convert(mode)
    data = encoded(image, "WEBP", **options)
    assert np.abs(read_image(file(data)) - by_pillow(data)).max() <= 1


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", ">f4", ">f8"])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
def test_arrays_in_either_byte_order(tmp_path, dtype, shape):
    values = RANDOM.integers(0, 256, shape)
    np.save(tmp_path / "a.npy", (values * 257 if "u" in dtype else values / 255).astype(dtype))
    result = read_image(tmp_path / "a.npy")
    np.testing.assert_array_equal(result, np.broadcast_to(values.reshape(HEIGHT, WIDTH, -1), result.shape))


OTHERS = {
    "JPEG 2000": lambda: encoded(SMOOTH, "JPEG2000"),
    "JPEG 2000 codestream": lambda: encoded(SMOOTH, "JPEG2000", no_jp2=True),
    "AVIF": lambda: b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(64),  # old releases of Pillow cannot write it
    "GIF": lambda: encoded(SMOOTH, "GIF"),
    "JPEG-LS": lambda: b"\xff\xd8\xff\xf7\0\x0b" + bytes(64),
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": lambda: b"<!DOCTYPE html><html>not found</html>",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_named(file, kind):
    message = refusal(file(OTHERS[kind]()))
    assert kind.removesuffix(" codestream") in message
    assert "not a PNG, JPEG" in message


def test_deep_png_has_no_stated_depth(file):
    samples = RANDOM.integers(0, 4096, (HEIGHT, WIDTH))
    stored = read_stored(file(png(samples, 16, 0, chunk(b"sBIT", b"\x0c"))))
    assert stored.depth is None
    assert stored.peak == samples.max()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "not a regular file" in refusal(tmp_path / "a.png")
