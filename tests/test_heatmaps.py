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
from adctl.scoring.colour_bar import ColourScale, colour_bar, colourise
from adctl.scoring.heatmaps import boxes_from_map, heatmap_picture, overlay, upsample
from adctl.scoring.mark_colour import mark_colour, to_lab

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


@pytest.mark.parametrize("size", [(16, 16), (60, 900), (900, 60), (2000, 3000), (40, 40), (300, 900)])
def test_sheets_have_a_legible_size(size):
    row = dataclasses.replace(ROW, width=size[1], height=size[0], boxes=(Box(1, 1, 10, 10, 3.0),))
    picture = heatmap_picture(grey(*size), np.full((8, 8), 1, np.float32), SCALE, row)
    assert picture.dtype == np.uint8
    assert 320 <= picture.shape[1] <= 1960
    assert picture.shape[0] <= 900


def test_a_sheet_shows_image_map_colour_bar_and_overlay_beside_each_other():
    values = np.zeros((8, 8), np.float32)
    values[2:5, 2:5] = 4
    picture = heatmap_picture(grey(200, 256), values, SCALE, ROW, contour_at=2.0)
    middle = picture[70:240]
    shown, heat, bar, marked = (middle[:, start : start + 256] for start in (10, 276, 542, 672))
    assert (shown == 120).all()
    np.testing.assert_array_equal(heat, colourise(SCALE(upsample(values, 200, 256)))[3:173])
    np.testing.assert_array_equal(bar[:, :120], colour_bar(200, SCALE)[3:173])
    changed = (marked[:, :256] != 120).any(axis=2)
    assert 0.1 < changed.mean() < 0.4


def test_a_wide_image_is_shown_above_its_map_and_overlay():
    values = np.zeros((8, 8), np.float32)
    picture = heatmap_picture(grey(100, 400), values, SCALE, dataclasses.replace(ROW, verdict=Verdict.GOOD))
    assert picture.shape[1] < 2 * 400
    column = picture[:, 200]
    assert (column == 120).all(axis=1).sum() == 200  # the image and the overlay, which has no tint


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (ColourScale(0.625, 3.75, 2.5), ["1", "1.5", "2", "2.5", "3", "3.5"]),
        (ColourScale(-0.0002, 0.0007), ["-0.0002", "0", "0.0002", "0.0004", "0.0006"]),
        (ColourScale(75, 450, 300), ["100", "150", "200", "250", "300", "350", "400", "450"]),
    ],
)
def test_the_colour_bar_has_round_numbers(scale, expected):
    positions, texts = zip(*scale.ticks(), strict=True)
    assert list(texts) == expected
    assert all(-1e-9 <= position <= 1 + 1e-9 for position in positions)


@pytest.mark.parametrize("height", [90, 110, 256, 592])
def test_the_colour_bar_names_the_threshold_and_no_numbers_overlap(height):
    bar, nameless = colour_bar(height, SCALE), colour_bar(height, dataclasses.replace(SCALE, threshold=None))
    assert bar.shape == (height, 120, 3)
    dark = (bar[:, 20:] < 60).all(axis=2).any(axis=1)
    assert dark[round(height * 0.4) - 8 : round(height * 0.4) + 30].any()
    assert not (nameless[:, 26:] < 60).all(axis=2).any()
    rows = np.flatnonzero((bar[:, 21:] != 255).any(axis=(1, 2)))
    assert rows.min() >= 0


PARTS = {
    "dark": (22, 24, 28), "bright": (240, 240, 242), "grey": (130, 130, 132), "yellow": (245, 200, 20),
    "orange": (240, 130, 20), "red": (200, 35, 35), "brown": (120, 80, 45), "green": (30, 120, 60),
    "blue": (30, 70, 170), "turquoise": (40, 180, 180), "violet": (120, 40, 150), "skin": (225, 180, 150),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_regions_above_the_threshold_stand_out_on_parts_of_every_colour(part):
    image = np.clip(np.random.default_rng(0).normal(PARTS[part], 8, (64, 64, 3)), 0, 255).astype(np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[:, 4:] = 1.3 * CALIBRATION.pixel_threshold
    plain, tinted = (
        to_lab(overlay(image, values, SCALE)[:, columns]).mean(axis=(0, 1)) for columns in (slice(0, 20), slice(44, 64))
    )
    assert np.linalg.norm(plain - tinted) > 35
    assert np.linalg.norm(plain - to_lab(np.array([[mark_colour(image)]], np.uint8))[0, 0]) > 80


def test_a_few_pixels_of_a_colour_do_not_exclude_it():
    image = grey()
    chosen = mark_colour(image)
    image[:4, :4] = chosen
    assert mark_colour(image) == chosen
    image[:40] = chosen
    assert mark_colour(image) != chosen


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
