"""Heatmaps and boxes: geometry against references, and rules that a viewer relies on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label, regionprops

from adctl.records import Box, Calibration, ScoredImage, Verdict
from adctl.scoring.heatmaps import ColourScale, boxes_from_map, colourise, heatmap_picture, overlay, upsample

CALIBRATION = Calibration("percentile", 3.0, 2.0, 99.0, 50, 0, 0.02, (1.0, 2.9))
SCALE = ColourScale.from_calibration(CALIBRATION)
ROW = ScoredImage("/x/a.png", "test/good/a.png", None, None, 3.5, 3.0, Verdict.REJECT, (), 64, 64)

small_maps = arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(0, 4, width=16, allow_nan=False)
)


def grey(height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 120, np.uint8)


@given(small_maps, st.integers(12, 40), st.integers(12, 40))
@settings(max_examples=30, deadline=None)
def test_upsampling_keeps_cell_centres_where_they_belong(values, height, width):
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (height, width), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(upsample(values, height, width), reference[0, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize("threshold", [2.0, 300.0, 1e-3, -4.0])
def test_the_pixel_threshold_has_one_place_on_the_scale(threshold):
    scale = ColourScale.from_calibration(dataclasses.replace(CALIBRATION, pixel_threshold=threshold))
    assert scale(np.array([[threshold]], np.float32))[0, 0] == pytest.approx(0.6, abs=1e-3)


def test_the_score_threshold_stands_in_for_a_missing_pixel_threshold():
    scale = ColourScale.from_calibration(dataclasses.replace(CALIBRATION, pixel_threshold=None))
    assert scale(np.array([[3.0]], np.float32))[0, 0] == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e9])
def test_a_flat_map_has_a_scale(value):
    flat = np.full((4, 4), value, np.float32)
    assert np.isfinite(ColourScale.from_values(flat)(flat)).all()


def test_colours_grow_lighter_with_the_value():
    ramp = colourise(np.linspace(0, 1, 64, dtype=np.float32)[None])[0].astype(float)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 200


@given(small_maps, st.integers(16, 60), st.integers(16, 60))
@settings(max_examples=60, deadline=None)
def test_boxes_are_those_of_the_connected_regions(values, height, width):
    large = upsample(values, height, width)
    regions = regionprops(label(large > 2, connectivity=2), intensity_image=large)
    lasting = [region for region in regions if region.area >= 0.0005 * large.size] or regions
    expected = {(r.bbox[1], r.bbox[0], r.bbox[3] - r.bbox[1], r.bbox[2] - r.bbox[0]) for r in lasting}
    boxes = boxes_from_map(values, 2, width, height)
    assert {(box.x, box.y, box.width, box.height) for box in boxes} == expected
    assert [box.peak for box in boxes] == sorted((float(r.intensity_max) for r in lasting), reverse=True)


@given(small_maps, st.integers(16, 6000), st.integers(16, 6000))
@settings(max_examples=25, deadline=None)
def test_boxes_lie_within_the_image_whatever_its_size(values, height, width):
    for box in boxes_from_map(values, 2, width, height):
        assert box.x >= 0
        assert box.y >= 0
        assert box.width >= 1
        assert box.height >= 1
        assert box.x + box.width <= width
        assert box.y + box.height <= height


def test_specks_are_dropped_unless_there_is_nothing_else():
    speck = np.zeros((200, 200), np.float32)
    speck[10, 10] = 9
    assert [(box.x, box.y) for box in boxes_from_map(speck, 5, 200, 200)] == [(10, 10)]
    both = speck.copy()
    both[100:150, 100:150] = 6
    assert [(box.x, box.y, box.width) for box in boxes_from_map(both, 5, 200, 200)] == [(100, 100, 50)]
    assert boxes_from_map(np.zeros((4, 4), np.float32), 5, 200, 200) == ()


def test_an_overlay_leaves_normal_regions_as_they_are():
    values = np.zeros((8, 8), np.float32)
    values[:, 6:] = 9
    picture = overlay(grey(), values, SCALE)
    assert (picture[:, :32] == 120).all()
    assert (picture[:, 60:] != 120).any(axis=2).all()


def test_values_not_far_below_the_threshold_do_not_tint_the_picture():
    below, above = (np.full((8, 8), share * CALIBRATION.pixel_threshold, np.float32) for share in (0.85, 1.1))
    assert (overlay(grey(), below, SCALE) == 120).all()
    assert (overlay(grey(), above, SCALE) != 120).any(axis=2).all()


def test_an_overlay_does_not_draw_on_the_image_it_is_given():
    image = grey()
    truth = np.zeros((64, 64), bool)
    truth[20:40, 20:40] = True
    drawn = overlay(image, np.zeros((8, 8), np.float32), SCALE, boxes=[Box(2, 2, 8, 8, 1.0)], contour_at=2, truth=truth)
    assert (image == 120).all()
    assert (drawn != 120).any()


def test_the_ground_truth_is_drawn_around_the_defect_not_over_it():
    truth = np.zeros((64, 64), bool)
    truth[30:34, 30:34] = True
    drawn = overlay(grey(), np.zeros((8, 8), np.float32), SCALE, truth=truth)
    assert (drawn[truth] == 120).all()
    assert (drawn != 120).any()


@pytest.mark.parametrize("size", [(16, 16), (60, 900), (900, 60), (2000, 3000), (40, 40)])
def test_sheets_have_a_legible_size(size):
    row = dataclasses.replace(ROW, width=size[1], height=size[0], boxes=(Box(1, 1, 10, 10, 3.0),))
    picture = heatmap_picture(grey(*size), np.full((8, 8), 1, np.float32), SCALE, row)
    assert picture.dtype == np.uint8
    assert 320 <= picture.shape[1] <= 1600
    assert picture.shape[0] <= 900


def test_a_sheet_outlines_regions_only_where_the_verdict_says_so():
    values = np.zeros((8, 8), np.float32)
    values[2:5, 2:5] = 2.2
    normal = dataclasses.replace(ROW, verdict=Verdict.GOOD)
    plain = heatmap_picture(grey(), values, SCALE, normal)
    np.testing.assert_array_equal(heatmap_picture(grey(), values, SCALE, normal, contour_at=2.0), plain)
    assert (heatmap_picture(grey(), values, SCALE, ROW, contour_at=2.0)[60:] != plain[60:]).any()


def caption_of(**changes) -> np.ndarray:
    values = np.zeros((8, 8), np.float32)
    return heatmap_picture(grey(), values, SCALE, dataclasses.replace(ROW, **changes))[:42]


def test_captions_tell_a_threshold_of_zero_from_none():
    none = caption_of(threshold=None, verdict=Verdict.UNCALIBRATED)
    assert (caption_of(threshold=0.0) != caption_of(threshold=3.0)).any()
    assert (caption_of(threshold=0.0) != none).any()


@pytest.mark.parametrize(("name", "plain"), [("Nähte/über.png", "Nahte/uber.png"), ("测试.png", "??.png")])
def test_captions_hold_no_empty_boxes(name, plain):
    np.testing.assert_array_equal(caption_of(key=name), caption_of(key=plain))


def test_long_names_lose_their_beginning_and_keep_their_end():
    same_end = [caption_of(key=f"{start * 200}/the-end-of-a-name.png") for start in "ab"]
    assert same_end[0].shape == caption_of().shape
    np.testing.assert_array_equal(same_end[0][:, -100:], caption_of(key=f"{'a' * 300}/the-end-of-a-name.png")[:, -100:])
