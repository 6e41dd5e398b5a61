"""Regions of interest: the part of the image that is used, the place of its map, and ignored pixels."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.data.loader import load_image
from adctl.data.preprocess import InputSpec, map_to_image, to_network_input
from adctl.data.roi import FILL, decode_region, encode_region
from adctl.detectors.base import DetectorConfig
from adctl.errors import ImageError, UsageError
from adctl.records import Sample

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture
def disc(tmp_path):
    mask = cv2.circle(np.zeros((60, 80), np.uint8), (40, 30), 20, 255, -1)
    cv2.imwrite(str(tmp_path / "disc.png"), mask)
    return tmp_path / "disc.png", mask > 0


def test_a_rectangle_is_cut_out():
    spec = InputSpec(32, 32, roi=encode_region("10, 20,32,32"))
    np.testing.assert_array_equal(to_network_input(IMAGE, spec), IMAGE[20:52, 10:42])


def test_a_mask_is_cut_out_and_the_rest_painted_over(disc):
    path, mask = disc
    seen = decode_region(encode_region(str(path))).crop(IMAGE)
    rows, columns = np.where(mask)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    np.testing.assert_array_equal(seen[mask[box]], IMAGE[box][mask[box]])
    assert (seen[~mask[box]] == FILL).all()


def test_a_mask_scales_with_the_image(disc):
    path, _ = disc
    region = decode_region(encode_region(str(path)))
    box, large = region.box(60, 80), region.box(120, 160)
    assert abs(large.width - 2 * box.width) <= 2
    assert abs(large.top - 2 * box.top) <= 2


@given(
    st.integers(0, 40), st.integers(0, 60), st.integers(16, 60), st.integers(16, 80),
    st.sampled_from(["squash", "pad", "crop"]),
)  # fmt: skip
def test_a_peak_in_the_map_comes_to_lie_where_it_was_seen(top, left, height, width, resize):
    height, width = min(height, 60 - top), min(width, 80 - left)
    spec = InputSpec(64, 64, resize=resize, roi=f"{left},{top},{width},{height}")
    picture = np.full((60, 80, 3), 0, np.uint8)
    row, column = top + height // 2, left + width // 2
    picture[row - 2 : row + 3, column - 2 : column + 3] = 255
    seen = to_network_input(picture, spec)[..., 0].astype(np.float32)
    if resize == "pad":
        seen[seen == FILL] = 0
    on_image = map_to_image(seen, spec, 60, 80)
    peak = np.array(np.unravel_index(on_image.argmax(), on_image.shape)) + 0.5
    found = peak / on_image.shape * (60, 80)
    np.testing.assert_allclose(found, (row, column), atol=5)


def test_nothing_outside_counts(disc):
    path, mask = disc
    for roi in ("10,20,32,24", encode_region(str(path))):
        spec = InputSpec(32, 32, roi=roi)
        values = np.random.default_rng(1).random((32, 32), np.float32) + 1
        on_image = map_to_image(values, spec, 60, 80)
        inside = decode_region(roi).cells(on_image.shape, 60, 80)
        assert (on_image[~inside] == values.min()).all()
        assert on_image[inside].mean() > values.min()
    np.testing.assert_array_equal(decode_region(encode_region(str(path))).cells((60, 80), 60, 80), mask)


def test_an_image_without_the_region_is_refused_by_itself(tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), IMAGE[:20, :20])
    item = load_image(Sample(tmp_path / "small.png", "small"), InputSpec(32, 32, roi="30,30,20,20"))
    assert isinstance(item.error, ImageError)
    assert "region of interest" in item.error.message


@pytest.mark.parametrize("text", ["1,2,3", "0,0,4,4", "-1,0,20,20", "nowhere.png", "a,b,c,d"])
def test_what_is_no_region(text):
    with pytest.raises(UsageError) as error:
        encode_region(text)
    assert error.value.remedy


def test_an_empty_mask_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(UsageError, match="is empty"):
        encode_region(str(tmp_path / "empty.png"))


def test_large_masks_stay_small_in_the_settings(tmp_path):
    cv2.imwrite(str(tmp_path / "large.png"), cv2.circle(np.zeros((3000, 4000), np.uint8), (2000, 1500), 900, 255, -1))
    text = encode_region(str(tmp_path / "large.png"))
    assert len(text) < 5000
    box = decode_region(text).box(3000, 4000)
    np.testing.assert_allclose((box.top, box.left, box.height, box.width), (600, 1100, 1800, 1800), atol=8)
    assert encode_region(text) == text


def test_tiles_contradict_a_region():
    with pytest.raises(ValueError, match="cannot be combined with tiles or scales"):
        DetectorConfig(tile=64, roi="0,0,32,32")


def test_a_defect_outside_is_not_seen(adctl, zippers, tmp_path):
    """Paint over the image outside the region: scores do not change."""
    adctl("train", "--data", zippers, "--image-size", "64", "--roi", "24,0,48,96")
    source = next((zippers / "test" / "good").iterdir())
    picture = cv2.imread(str(source))
    (tmp_path / "new").mkdir()
    cv2.imwrite(str(tmp_path / "new/before.png"), picture)
    picture[:, :24] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "new/after.png"), picture)
    result = adctl.json("score", tmp_path / "new")["result"]
    lines = (adctl.folder / result["folder"] / "results.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line)["score"] for line in lines)
    assert first == second
