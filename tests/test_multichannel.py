"""Images with more than three channels: reading, training, scoring, and errors for unsupported ones."""

import json

import cv2
import numpy as np
import pytest
import tifffile
import torch

from adctl.choices import DETECTORS
from adctl.data.checks.check import check
from adctl.data.images import image_size, read_image, resize
from adctl.data.masks import read_mask
from adctl.data.multichannel import read_channels, read_display_image, read_pixels, to_display_image
from adctl.detectors.components.backbones import Backbone, find_weights
from adctl.detectors.registry import detector_class
from adctl.errors import ImageError

BANDS = 6


def bands(seed=0, channels=BANDS, size=(40, 56)):
    """Smooth noise, each channel another; [H,W,C] of uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    return np.stack([cv2.GaussianBlur(noise[..., channel], (0, 0), 2) for channel in range(channels)], axis=2)


def write(path, pixels, planar="contig"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", ["a.npy", "a.tif", "planes.tif"])
@pytest.mark.parametrize("channels", [2, 4, 5, 6])
def test_every_channel_in_the_order_it_is_stored(tmp_path, name, channels, dtype):
    pixels = bands(channels=channels)
    stored = {np.uint8: pixels, np.uint16: pixels.astype(np.uint16) * 257, np.float32: pixels / np.float32(255)}[dtype]
    path = write(tmp_path / name, stored, "separate" if name == "planes.tif" else "contig")
    assert np.array_equal(read_channels(path).pixels, stored)
    assert np.array_equal(read_pixels(path, channels), pixels)
    assert image_size(path) == (56, 40)


def test_arrays_with_the_channels_first(tmp_path):
    path = write(tmp_path / "a.npy", np.moveaxis(bands(), 2, 0))
    assert np.array_equal(read_pixels(path, BANDS), bands())
    assert image_size(path) == (56, 40)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_alpha_counts_as_the_fourth_channel_where_four_are_wanted(tmp_path, name):
    pixels = bands(channels=4)
    path = tmp_path / name
    cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3]], [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert np.array_equal(read_pixels(path, 4)[..., 3], pixels[..., 3])
    assert np.array_equal(read_image(path), read_pixels(path, 3))


def test_arrays_are_grey_colour_and_masks_too(tmp_path):
    colour = bands(channels=3)
    assert np.array_equal(read_image(write(tmp_path / "colour.npy", colour)), colour)
    grey = read_image(write(tmp_path / "grey.npy", colour[..., 0]))
    assert np.array_equal(grey, np.repeat(colour[..., :1], 3, axis=2))
    assert np.array_equal(read_image(write(tmp_path / "one.npy", colour[..., :1])), grey)
    mask = colour[..., 0] > 127
    assert np.array_equal(read_mask(write(tmp_path / "mask.npy", mask)), mask)


def refusal(path, channels):
    with pytest.raises(ImageError) as caught:
        read_pixels(path, channels)
    return f"{caught.value.message} {caught.value.remedy}"


def test_the_number_of_channels_is_told_with_the_way_out(tmp_path):
    for name in ("a.npy", "a.tif"):
        path = write(tmp_path / name, bands())
        assert "--set channels=6" in refusal(path, 3)
        assert "--set channels=6" in refusal(path, 5)
    pages = tmp_path / "pages.tif"
    tifffile.imwrite(pages, np.moveaxis(bands(), 2, 0), photometric="minisblack")
    assert "several pages" in refusal(pages, BANDS)
    assert "--set channels=N" in refusal(pages, BANDS)


def test_what_cannot_be_trusted_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[{}] * 20] * 20), allow_pickle=True)
    assert "Cannot use the image" in refusal(tmp_path / "objects.npy", BANDS)
    assert "Cannot use the image" in refusal(write(tmp_path / "row.npy", np.zeros(512, np.uint8)), BANDS)
    whole = write(tmp_path / "a.npy", bands()).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(tmp_path / "cut.npy", BANDS)
    whole = write(tmp_path / "a.tif", bands()).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    assert "Cannot use the image" in refusal(tmp_path / "cut.tif", BANDS)


def test_no_further_package_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    assert np.array_equal(read_pixels(write(tmp_path / "plain.tif", bands()), BANDS), bands())
    assert np.array_equal(read_pixels(write(tmp_path / "planes.tif", bands(), "separate"), BANDS), bands())


def test_resizing_treats_each_channel_alike():
    pixels = bands(size=(60, 80))
    for size in ((30, 30), (90, 100)):
        alone = [resize(np.ascontiguousarray(pixels[..., channel : channel + 1]), *size) for channel in range(BANDS)]
        assert np.array_equal(resize(pixels, *size), np.concatenate(alone, axis=2))


def test_something_to_look_at(tmp_path):
    path = write(tmp_path / "a.npy", bands())
    assert np.array_equal(read_display_image(path), bands()[..., :3])
    assert np.array_equal(to_display_image(bands(channels=2))[..., 2], bands(channels=2)[..., 0])


@pytest.mark.parametrize("channels", [2, 6, 7])
def test_a_backbone_answers_the_same_light_alike(channels):
    """Where every channel is grey, the first layer's sum of weights is what it was."""
    weights = find_weights("tf_efficientnet_lite0", None)
    colour = Backbone("tf_efficientnet_lite0", None, 64)
    many = Backbone("tf_efficientnet_lite0", None, 64, channels=channels)
    for backbone in (colour, many):
        backbone.load_pretrained(weights.tensors)
    grey = torch.rand(1, 1, 64, 64)
    ours, theirs = many(grey.expand(-1, channels, -1, -1))[0], colour(grey.expand(-1, 3, -1, -1))[0]
    if channels % 3 == 0:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.7


@pytest.mark.parametrize("arch", sorted(DETECTORS))
def test_every_detector_can_be_built_for_many_channels(arch):
    cls = detector_class(arch)
    if cls.takes_base:
        with pytest.raises(ValueError, match="must be 1 or 3"):
            cls.Config(channels=BANDS, image_size=64)
        return
    detector = cls(cls.Config(channels=BANDS, image_size=64))
    assert detector.input.channels == BANDS


@pytest.fixture(scope="module")
def spectral(tmp_path_factory):
    """A category whose defects show in the fifth of six channels alone."""
    root = tmp_path_factory.mktemp("spectral") / "plate"
    for number in range(14):
        write(root / "train" / "good" / f"{number}.tif", bands(number, size=(64, 64)))
    for number in range(4):
        pixels = bands(100 + number, size=(64, 64))
        write(root / "test" / "good" / f"{number}.tif", pixels)
        pixels[24:40, 24:40, 4] = 255
        write(root / "test" / "stain" / f"{number}.tif", pixels)
    return root


@pytest.mark.parametrize("arch", ["padim", "cnn"])
def test_what_shows_in_one_band_is_found(adctl, spectral, tmp_path, arch):
    """From the command line: learned, scored with heatmaps, and reported with pictures."""
    common = ("--runs", tmp_path / "runs")
    options = ("--set", f"channels={BANDS}", "--image-size", "64")
    few = ("--epochs", "2") if arch == "cnn" else ()
    adctl("train", "--data", spectral, "--arch", arch, *options, *few, *common)
    out = tmp_path / "out"
    adctl("score", spectral / "test", "--out", out, *common)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert not any(row.get("error") for row in rows)
    if arch == "padim":
        lowest = min(row["score"] for row in rows if row["label"] == "stain")
        assert lowest > max(row["score"] for row in rows if row["label"] == "good")
    assert len(list(out.rglob("*.png"))) >= 8
    adctl("report", out, *common)


def test_without_the_setting_training_says_which(adctl, spectral, tmp_path):
    done = adctl("train", "--data", spectral, "--runs", tmp_path / "runs", "--arch", "padim", code=1)
    assert "--set channels=6" in done.stderr


def test_check_understands_them(spectral):
    (checked,) = check(spectral)
    assert checked.modes == {"6 channels uint8": 22}
    assert "corrupt" not in {found.kind for found in checked.findings}
