"""Colour profiles and gamma: stored values are used, as other readers give them, and what differs is named."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from adctl.data.checks.check import check
from adctl.data.colours import colour_meaning, warn_of_colours
from adctl.data.images import read_header, read_image
from adctl.records import Sample

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


def profile(name: str) -> bytes:
    """Return an ICC profile; that of a wide gamut is sRGB with the columns of red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if name == "wide":
        tags = {
            bytes(data[at : at + 4]): at + 4 for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)
        }
        red, green = (slice(tags[tag], tags[tag] + 4) for tag in (b"rXYZ", b"gXYZ"))
        data[red], data[green] = data[green], data[red]
    return bytes(data)


def png(chunks: dict[bytes, bytes]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    data = stream.getvalue()
    added = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
    return data[:33] + added + data[33:]


def iccp(name: str) -> dict[bytes, bytes]:
    return {b"iCCP": b"any\0\0" + zlib.compress(profile(name))}


def gama(gamma: float) -> dict[bytes, bytes]:
    return {b"gAMA": struct.pack(">I", round(gamma * 100_000))}


@pytest.mark.parametrize(
    ("chunks", "meaning"),
    [
        ({}, ""), (iccp("sRGB"), ""), (iccp("wide"), "profile"), (gama(1 / 2.2), ""), (gama(1), "linear values"),
        (gama(1 / 1.8), "a gamma of 1.8"), ({b"sRGB": b"\0", **gama(1)}, ""), ({b"iCCP": b"any\0\0" + b"x" * 9}, ""),
    ],
)  # fmt: skip
def test_png_values_stay_as_stored(tmp_path, chunks, meaning):
    path = tmp_path / "a.png"
    path.write_bytes(png(chunks))
    np.testing.assert_array_equal(read_image(path), PIXELS)
    found = colour_meaning(read_header(path))
    assert meaning in found
    assert bool(meaning) == bool(found)


@pytest.mark.parametrize("name", ["sRGB", "wide"])
@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp"])
def test_values_of_other_formats_stay_as_stored(tmp_path, suffix, name):
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, PIXELS, photometric="rgb", iccprofile=profile(name))
        expected = tifffile.imread(path)
    else:
        Image.fromarray(PIXELS).save(path, icc_profile=profile(name), lossless=True, quality=95)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
    assert np.abs(read_image(path).astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)
    assert bool(colour_meaning(read_header(path))) == (name == "wide")


def test_images_of_different_profiles_are_named_once(tmp_path, caplog):
    samples = []
    for index, chunks in enumerate([{}, {}, iccp("wide"), gama(1)]):
        path = tmp_path / f"{index}.png"
        path.write_bytes(png(chunks))
        samples.append(Sample(path, path.name))
    with caplog.at_level(logging.WARNING):
        assert not warn_of_colours(samples[:2])
        assert warn_of_colours(samples)
        assert warn_of_colours(samples)
        assert warn_of_colours(samples[3:])
    assert len(caplog.records) == 2
    assert "sRGB or none: 2" in caplog.messages[0]
    assert "carry linear values" in caplog.messages[1]


def test_fetch_check_names_a_mix(zippers, tmp_path):
    root = tmp_path / "zipper"
    shutil.copytree(zippers, root)
    changed = min((root / "train" / "good").iterdir())
    with Image.open(changed) as image:
        image.load()
    image.save(changed, icc_profile=profile("wide"))
    (result,) = check(root)
    found = next(finding for finding in result.findings if finding.kind == "colour-profile")
    assert found.cases[0].paths == (changed,)
    assert "convert all images to sRGB" in found.cases[0].detail
