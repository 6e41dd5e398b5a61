"""Reading of image files of all kinds: correct pixels, or an error with the reason."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adctl.data import images
from adctl.data.images import image_size, read_image, resize, write_png
from adctl.data.masks import mask_for, read_mask
from adctl.errors import DataError, ImageError, OutputError
from adctl.records import Sample

ROWS, COLUMNS = np.mgrid[:40, :64]
RGB = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], axis=2).astype(np.uint8)
GREY = RGB[:, :, 0]
NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
ORIENTATION = 274
DATA = Path(os.environ.get("ADCTL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def encoded(pixels, kind, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.fixture
def file(tmp_path):
    def write(data, name="image.png"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


# ---- kinds that are read

LOSSLESS = {
    "png": lambda: encoded(RGB, "PNG"),
    "bmp": lambda: encoded(RGB, "BMP"),
    "tiff": lambda: encoded(RGB, "TIFF"),
    "tiff-lzw": lambda: encoded(RGB, "TIFF", compression="tiff_lzw"),
    "webp": lambda: encoded(RGB, "WEBP", lossless=True),
    "rgba-png": lambda: encoded(np.dstack([RGB, GREY]), "PNG"),
    "rgba-tiff": lambda: encoded(np.dstack([RGB, np.full_like(GREY, 255)]), "TIFF"),
    "rgb16-png": lambda: opencv(".png", RGB[:, :, ::-1].astype(np.uint16) * 256 + 7),
    "rgb16-tiff": lambda: opencv(".tiff", RGB[:, :, ::-1].astype(np.uint16) * 256 + 7),
    "float-tiff": lambda: opencv(".tiff", (RGB[:, :, ::-1] / 255).astype(np.float32)),
}
GREYS = {
    "grey-png": lambda: encoded(GREY, "PNG"),
    "grey-bmp": lambda: encoded(GREY, "BMP"),
    "grey-tiff": lambda: encoded(GREY, "TIFF"),
    "grey-alpha-png": lambda: encoded(Image.fromarray(GREY).convert("LA"), "PNG"),
    "grey16-png": lambda: encoded(GREY.astype(np.uint16) * 256, "PNG"),
    "grey16-tiff": lambda: encoded(GREY.astype(np.uint16) * 256 + 255, "TIFF"),
    "float-tiff": lambda: encoded((GREY / 255).astype(np.float32), "TIFF"),
    "double-tiff": lambda: opencv(".tiff", GREY / 255),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_colour_comes_back_exactly(file, kind):
    result = read_image(file(LOSSLESS[kind]()))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, RGB)


@pytest.mark.parametrize("kind", GREYS)
def test_grey_is_expanded_to_three_equal_channels(file, kind):
    result = read_image(file(GREYS[kind]()))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("JPEG", {"progressive": True}), ("WEBP", {})]
)
def test_lossy_colour_comes_back_nearly(file, kind, options):
    assert np.abs(read_image(file(encoded(RGB, kind, **options))).astype(int) - RGB).mean() < 4


def test_palette_is_expanded(file):
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(read_image(file(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB")))


def test_one_bit_is_black_and_white(file):
    result = read_image(file(encoded(Image.fromarray(GREY > 128), "PNG")))
    np.testing.assert_array_equal(result[:, :, 0], np.where(GREY > 128, 255, 0))


def test_cmyk_jpeg_is_read_as_rgb(file):
    result = read_image(file(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(result.astype(int) - RGB).mean() < 4


def test_content_counts_not_ending_and_names_may_be_foreign(file):
    np.testing.assert_array_equal(read_image(file(encoded(RGB, "PNG"), "gefräst 部品 1.jpg")), RGB)


def test_result_is_contiguous_and_writable(file):
    for data in (encoded(RGB, "PNG"), encoded(GREY, "PNG")):
        result = read_image(file(data))
        assert result.flags.c_contiguous
        assert result.flags.writeable


# ---- depth


@pytest.mark.parametrize(("bits", "stored", "expected"), [(16, 65535, 255), (12, 4095, 255), (12, 2048, 128)])
def test_fixed_scale_by_bit_depth(file, bits, stored, expected):
    data = encoded(np.full((20, 20), stored, np.uint16), "PNG")
    assert (read_image(file(data), bit_depth=bits) == expected).all()


def test_brighter_than_the_bit_depth_saturates(file):
    assert (read_image(file(encoded(np.full((20, 20), 5000, np.uint16), "PNG")), bit_depth=12) == 255).all()


def test_exposure_is_never_stretched(file):
    dark = (GREY // 4).astype(np.uint16) * 256
    assert read_image(file(encoded(dark, "PNG"))).max() == (GREY // 4).max()


def test_bit_depth_leaves_eight_bit_images_alone(file):
    np.testing.assert_array_equal(read_image(file(encoded(RGB, "PNG")), bit_depth=12), RGB)


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, np.nan, np.inf])
def test_float_outside_zero_to_one_is_refused(file, value):
    pixels = np.full((20, 20), 0.5, np.float32)
    pixels[3, 3] = value
    with pytest.raises(ImageError, match="not within 0 to 1") as error:
        read_image(file(encoded(pixels, "TIFF"), "deep.tif"))
    assert "white level" in error.value.remedy


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_signed_integers_are_refused(file, kind):
    with pytest.raises(ImageError, match="no defined white level"):
        read_image(file(opencv(".tiff", np.ones((20, 20), kind)), "ct.tiff"))


# ---- orientation and size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_and_image_size_agrees(file, kind, orientation):
    quarter = np.zeros((32, 48, 3), np.uint8)
    quarter[:16, :24] = 255
    path = file(_oriented(quarter, kind, orientation))
    result = read_image(path)
    corners = result[[8, 8, -8, -8], [8, -8, 8, -8], 0] > 128
    expected = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert np.flatnonzero(corners).tolist() == [expected]
    assert image_size(path) == (result.shape[1], result.shape[0])
    assert image_size(path) == ((48, 32) if orientation < 5 else (32, 48))


def _oriented(pixels, kind, orientation):
    if kind == "TIFF":
        return encoded(pixels, kind, tiffinfo={ORIENTATION: orientation})
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(pixels, kind, exif=exif)


def test_damaged_exif_does_not_matter(file):
    path = file(encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert read_image(path).shape == RGB.shape
    assert image_size(path) == (64, 40)


def test_image_size_reads_the_header_alone(file):
    whole = encoded(NOISE, "PNG")
    assert image_size(file(whole[:200])) == (160, 120)


# ---- refusals


def refusal(path):
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(path) in error.value.message
    assert error.value.remedy
    return error.value.message


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.png")
    with pytest.raises(ImageError, match="does not exist"):
        image_size(tmp_path / "none.png")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_file_without_permission(file):
    path = file(encoded(RGB, "PNG"))
    path.chmod(0)
    assert "permission denied" in refusal(path)


def test_permission_is_reported_whoever_runs_the_tests(file, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    path = file(b"x")
    monkeypatch.setattr("adctl.data.storage.open_regular", denied)
    assert "permission denied" in refusal(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says permission denied")
def test_folder_instead_of_a_file(tmp_path):
    assert "is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am no image", "not a PNG, JPEG"),
        (b"\xff", "not a PNG, JPEG"),
        (b"\0" * 4000, "not a PNG, JPEG"),
        (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "not a PNG, JPEG"),
        (encoded(RGB, "GIF"), "not a PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "header is damaged"),
        (b"II*\0" + b"\xff" * 50, "header is damaged"),
        (b"BM" + b"\0" * 60, "header is damaged"),
        (b"\xff\xd8\xff" + b"\0" * 50, "header is damaged"),
    ],
)
def test_what_is_no_image(file, data, reason):
    path = file(data)
    assert reason in refusal(path)
    with pytest.raises(ImageError, match=reason):
        image_size(path)


TRUNCATED = {
    "jpeg": lambda: encoded(NOISE, "JPEG"),
    "progressive": lambda: encoded(NOISE, "JPEG", progressive=True),
    "thumbnail": lambda: encoded(NOISE, "JPEG", exif=_thumbnail()),
    "png": lambda: encoded(NOISE, "PNG"),
    "bmp": lambda: encoded(NOISE, "BMP"),
    "grey-bmp": lambda: encoded(NOISE[:, :, 0], "BMP"),
    "webp": lambda: encoded(NOISE, "WEBP"),
    "tiff": lambda: encoded(NOISE, "TIFF"),
    "tiff-lzw": lambda: encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: encoded(NOISE, "TIFF", compression="jpeg"),
    "tiff-directory-last": lambda: opencv(".tiff", NOISE),
}


def _thumbnail():
    """EXIF that holds a whole JPEG, end marker included, as cameras write it."""
    exif = Image.Exif()
    exif[0x927C] = encoded(RGB, "JPEG")
    return exif


@pytest.mark.parametrize("kind", TRUNCATED)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused(file, kind, share):
    whole = TRUNCATED[kind]()
    assert read_image(file(whole)).shape == NOISE.shape
    refusal(file(whole[: int(len(whole) * share)]))


def test_a_webp_whose_end_was_never_copied_is_refused(file):
    """Its decoder takes the zeros for pixels, and reports nothing."""
    whole = encoded(NOISE, "WEBP", lossless=True)
    half = len(whole) // 2
    assert "truncated" in refusal(file(whole[:half] + bytes(len(whole) - half)))


@pytest.mark.parametrize("kind", ["jpeg", "thumbnail", "png", "webp"])
def test_the_file_is_called_truncated_before_any_decoder_sees_it(file, kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    whole = TRUNCATED[kind]()
    assert "truncated" in refusal(file(whole[: int(len(whole) * 0.7)]))


def test_bytes_after_the_end_do_no_harm(file):
    for kind in ("jpeg", "png", "bmp", "webp", "tiff"):
        assert read_image(file(TRUNCATED[kind]() + b"\0" * 100)).shape == NOISE.shape


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["jpeg", "png", "bmp", "webp", "tiff"]), data=st.data())
def test_damage_never_raises_anything_but_image_error(tmp_path_factory, kind, data):
    content = bytearray(TRUNCATED[kind]()[: data.draw(st.sampled_from([60, 600, None]))])
    for place in data.draw(st.lists(st.integers(0, min(400, len(content) - 1)), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1_000_000)  # a damaged size may ask for gigabytes
        for read in (image_size, read_image):
            with contextlib.suppress(ImageError):
                read(path)


def test_corrupt_png_checksum_is_refused(file):
    data = bytearray(encoded(NOISE, "PNG"))
    data[len(data) // 2] ^= 255
    assert "damaged" in refusal(file(bytes(data)))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 15), (15, 16)])
def test_too_small(file, size):
    assert "at least 16" in refusal(file(encoded(np.zeros((*size, 3), np.uint8), "PNG")))


def test_smallest_usable(file):
    assert read_image(file(encoded(np.zeros((16, 16, 3), np.uint8), "PNG"))).shape == (16, 16, 3)


def _png_header(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(30_000, 30_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_refused_unopened(file, monkeypatch, size):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    path = file(_png_header(*size))
    assert "400,000,000" in refusal(path)
    with pytest.raises(ImageError, match="400,000,000"):
        image_size(path)


def test_above_pillows_limit_within_ours(file):
    assert image_size(file(_png_header(19_000, 20_000))) == (19_000, 20_000)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp"])
def test_20000_pixels_wide(file, suffix):
    wide = np.zeros((16, 20_000, 3), np.uint8)
    wide[:, 10_000:] = 255
    path = file(opencv(suffix, wide))
    assert image_size(path) == (20_000, 16)
    result = read_image(path)
    assert result.shape == wide.shape
    assert np.abs(result.astype(int) - wide).mean() < 1


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_several_pages_are_refused(file, kind):
    data = encoded(RGB, kind, save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])
    assert "several pages" in refusal(file(data))


def test_nothing_is_printed_about_truncated_files(file, capfd):
    for make in TRUNCATED.values():
        whole = make()
        refusal(file(whole[: len(whole) * 7 // 10]))
    assert capfd.readouterr() == ("", "")


def test_many_threads_read_the_same(file):
    path = file(encoded(NOISE, "JPEG"))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read_image, [path] * 40))
    assert all((result == results[0]).all() for result in results)


# ---- masks


@pytest.mark.parametrize(
    "data",
    [
        encoded((GREY > 100).astype(np.uint8), "PNG"),
        encoded((GREY > 100).astype(np.uint8) * 255, "PNG"),
        encoded((GREY > 100).astype(np.uint16), "PNG"),
        encoded(Image.fromarray(GREY > 100), "PNG"),
        encoded(Image.fromarray(GREY > 100), "TIFF", compression="group4"),
        encoded(np.dstack([GREY * 0, GREY * 0, (GREY > 100).astype(np.uint8)]), "PNG"),
        encoded(np.dstack([(GREY > 100).astype(np.uint8), GREY * 0, GREY * 0, GREY * 0 + 255]), "PNG"),
        encoded((GREY > 100).astype(np.uint8) * 3, "BMP"),
    ],
)
def test_mask_is_whatever_is_not_black(file, data):
    result = read_mask(file(data))
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result, GREY > 100)


def test_unreadable_mask(file):
    with pytest.raises(ImageError, match="empty"):
        read_mask(file(b""))


def test_mask_for(file):
    mask = file(encoded(GREY, "PNG"), "mask.png")
    sample = Sample(Path("part.jpg"), "part.jpg", "scratch", mask)
    np.testing.assert_array_equal(mask_for(sample, 64, 40), GREY != 0)
    assert mask_for(Sample(Path("part.jpg"), "part.jpg"), 64, 40) is None
    with pytest.raises(DataError, match=r"mask\.png is 64 x 40 .*part\.jpg is 40 x 64") as error:
        mask_for(sample, 40, 64)
    assert error.value.remedy


# ---- resizing and writing


def test_whole_factor_shrinking_is_the_mean():
    blocks = RGB.reshape(10, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize(RGB, 10, 16) - blocks).max() <= 0.5


@pytest.mark.parametrize("size", [(40, 64), (20, 32), (80, 128), (20, 128), (80, 32), (40, 32), (80, 64), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_shape_and_constancy(size, channels):
    image = np.full((40, 64, channels), 77, np.uint8)
    result = resize(image, *size)
    assert result.shape == (*size, channels)
    assert result.dtype == np.uint8
    assert (result == 77).all()


def test_resize_does_each_axis_for_itself():
    mixed = resize(NOISE, 60, 320)
    area_then_linear = cv2.resize(
        cv2.resize(NOISE, (160, 60), interpolation=cv2.INTER_AREA), (320, 60), interpolation=cv2.INTER_LINEAR
    )
    np.testing.assert_array_equal(mixed, area_then_linear)


def test_resize_is_deterministic_and_leaves_its_input_alone():
    before = NOISE.copy()
    np.testing.assert_array_equal(resize(NOISE, 50, 70), resize(NOISE, 50, 70))
    np.testing.assert_array_equal(NOISE, before)


def test_write_png_round_trip(tmp_path):
    path = tmp_path / "neu" / "bild.png"
    write_png(path, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert [each.name for each in path.parent.iterdir()] == ["bild.png"]


def test_write_png_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_png(tmp_path / "file" / "image.png", RGB)


# ---- real images


def test_real_images_agree_with_opencv_and_cost_little_more():
    paths = sorted((DATA / "hazelnut_toy" / "train" / "good").glob("*.jpg"))
    if not paths:
        pytest.skip(f"hazelnut_toy is not in {DATA}; set ADCTL_TEST_DATA")
    for path in paths[:5]:
        np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[:, :, ::-1])
    ours = _best_time(read_image, paths)
    plain = _best_time(lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), paths)
    assert ours < 1.5 * plain  # 1.03 on a quiet machine


def _best_time(read, paths):
    def once():
        start = time.process_time()
        for path in paths:
            read(path)
        return time.process_time() - start

    return min(once() for _ in range(3))


def test_limits_are_what_the_messages_say():
    assert images.MIN_SIDE == 16
    assert images.MAX_PIXELS == 400_000_000
