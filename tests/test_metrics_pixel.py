"""Pixel metrics, exact and streaming, against scikit-learn and slow references written from the definitions."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn import metrics as sk

from adctl.errors import DataError
from adctl.metrics.exact import ExactMeter, aupro_exact
from adctl.metrics.streaming import HistogramMeter

# A shared machine may stall: no deadline.
few = settings(max_examples=30, deadline=None)

BINS = 8
"""Of the meters in which integer values below it lose nothing."""


@st.composite
def pictures(draw, elements, dtype=np.float64):
    """One to three maps with masks; some pixel is normal and some defective."""
    shape = (draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    number = draw(st.integers(1, 3))
    maps = [draw(arrays(dtype, shape, elements=elements)) for _ in range(number)]
    masks = [draw(arrays(np.bool_, shape)) for _ in range(number)]
    masks[0][0, :2] = [True, False]
    return maps, masks


whole = pictures(st.integers(0, BINS - 1).map(float))
real = pictures(st.floats(-50, 50, width=32), np.float32)


def flat(maps, masks):
    return np.concatenate([m.ravel() for m in maps]).astype(np.float64), np.concatenate([m.ravel() for m in masks])


def exact_of(maps, masks, threshold=None):
    return fed(ExactMeter(threshold), maps, masks)


def meter_of(maps, masks, low, high, bins, threshold=None):
    return fed(HistogramMeter(low, high, threshold, bins=bins), maps, masks)


def fed(meter, maps, masks, defect="scratch"):
    for anomaly_map, mask in zip(maps, masks, strict=True):
        meter.add(anomaly_map, mask, defect)
    return meter


def tight(maps, masks, bins):
    """A meter over exactly the range of the maps."""
    values, _ = flat(maps, masks)
    return meter_of(maps, masks, float(values.min()), float(values.max()), bins)


def numbered(mask):
    """The regions of a mask, each a mask of its own."""
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return [numbers == number for number in range(1, count + 1)]


def best_f1(scores, labels):
    called = [scores >= value for value in np.unique(scores)]
    return max(2 * (c & labels).sum() / (c.sum() + labels.sum()) for c in called)


def aupro_slow(maps, masks, limit):
    """From the definition: call pixels at each threshold, average the share found of each region, cut at the limit."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in numbered(mask)]
    normal = sum((~mask).sum() for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        called = [m >= threshold for m in maps]
        false = sum((c & ~mask).sum() for c, mask in zip(called, masks, strict=True))
        found = np.mean([(called[index] & region).sum() / region.sum() for index, region in regions])
        points.append((false / normal, float(found)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            y_cut = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y_cut) / 2
    return area / limit


@few
@given(st.one_of(whole, real), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_exact_aupro_is_the_definition(drawn, limit):
    assert aupro_exact(*drawn, limit) == pytest.approx(aupro_slow(*drawn, limit), abs=1e-9)


@few
@given(whole)
def test_binning_that_loses_nothing_changes_nothing(drawn):
    values, truth = flat(*drawn)
    found = meter_of(*drawn, 0, BINS, BINS).result()
    assert found.auroc == pytest.approx(sk.roc_auc_score(truth, values), abs=1e-9)
    assert found.average_precision == pytest.approx(sk.average_precision_score(truth, values), abs=1e-9)
    assert found.aupro == pytest.approx(aupro_slow(*drawn, 0.3), abs=1e-9)
    assert found.aupro_05 == pytest.approx(aupro_slow(*drawn, 0.05), abs=1e-9)
    best = best_f1(values, truth)
    assert found.f1_max == pytest.approx(best, abs=1e-9)
    called = values > found.f1_max_threshold
    assert sk.f1_score(truth, called) == pytest.approx(best, abs=1e-9)


@few
@given(st.one_of(whole, real))
def test_exact_metrics_are_the_references(drawn):
    values, truth = flat(*drawn)
    found = exact_of(*drawn).result()
    assert found.auroc == pytest.approx(sk.roc_auc_score(truth, values), abs=1e-12)
    assert found.average_precision == pytest.approx(sk.average_precision_score(truth, values), abs=1e-12)
    assert found.aupro == pytest.approx(aupro_slow(*drawn, 0.3), abs=1e-9)
    assert found.aupro_05 == pytest.approx(aupro_slow(*drawn, 0.05), abs=1e-9)
    assert found.f1_max == pytest.approx(best_f1(values, truth), abs=1e-12)
    assert exact_of(*drawn, found.f1_max_threshold).result().dice == pytest.approx(found.f1_max, abs=1e-12)
    assert found.errors == {}


@few
@given(st.one_of(whole, real), st.one_of(st.integers(-1, BINS + 1), st.floats(-50, 50)), st.booleans())
def test_numbers_at_a_threshold_are_scikit_learns_in_either_meter(drawn, threshold, streaming):
    values, truth = flat(*drawn)
    meter = meter_of(*drawn, -50, 50, 3, threshold) if streaming else exact_of(*drawn, threshold)
    found, called = meter.result(), values > threshold
    assert found.iou == pytest.approx(sk.jaccard_score(truth, called))
    assert found.dice == pytest.approx(sk.f1_score(truth, called))
    assert found.recall == pytest.approx(sk.recall_score(truth, called))
    if called.any():
        assert found.precision == pytest.approx(sk.precision_score(truth, called))
    else:
        assert found.precision is None
        assert found.missing == {"precision": "no pixel is above the threshold"}


@few
@given(st.one_of(whole, real), st.one_of(st.integers(-1, BINS + 1), st.floats(-50, 50)))
def test_overlap_and_iou_of_regions_are_the_definitions(drawn, threshold):
    overlaps, ious = [], []
    for anomaly_map, mask in zip(*drawn, strict=True):
        found = numbered(anomaly_map.astype(np.float64) > threshold)
        for region in numbered(mask):
            touching = np.zeros_like(mask)
            for called in found:
                touching |= called & (called & region).any()
            others = mask & ~region
            overlaps.append((touching & region).sum() / region.sum())
            ious.append((touching & region).sum() / ((touching | region) & ~others).sum())
    result = exact_of(*drawn, threshold).result()
    assert result.regions == len(overlaps)
    assert result.region_overlap == pytest.approx(np.mean(overlaps))
    assert result.region_iou == pytest.approx(np.mean(ious))


def test_a_float32_map_meets_a_float64_threshold_without_rounding():
    value = np.float32(0.1)
    below = float(np.nextafter(np.float64(value), -np.inf))
    mask = np.array([[True, False]])
    assert exact_of([np.array([[value, 0.0]], np.float32)], [mask], below).result().recall == 1.0
    assert exact_of([np.array([[value, 0.0]], np.float32)], [mask], float(value)).result().recall == 0.0


@few
@given(real, st.sampled_from([1, 2, 7, 64, 65_536]))
def test_binned_metrics_lie_within_the_stated_errors(drawn, bins):
    exact, binned = exact_of(*drawn).result(), tight(*drawn, bins).result()
    assert set(binned.errors) == {"auroc", "average_precision", "aupro", "aupro_05", "f1_max"}
    for name, error in binned.errors.items():
        assert abs(getattr(binned, name) - getattr(exact, name)) <= error + 1e-9


def test_one_bin_has_the_whole_error():
    found = meter_of([np.array([[0.0, 1.0]])], [np.array([[False, True]])], 0, 1, 1).result()
    assert (found.auroc, found.errors["auroc"]) == (0.5, 0.5)


def test_a_narrow_range_far_from_zero_keeps_its_order():
    generator = np.random.default_rng(0)
    values = 123_456.789012 + 1e-4 * generator.random((64, 64))
    mask = generator.random((64, 64)) > 0.8
    found = tight([values], [mask], 65_536).result()
    assert found.errors["auroc"] < 1e-4
    assert abs(found.auroc - sk.roc_auc_score(mask.ravel(), values.ravel())) <= found.errors["auroc"]


def test_the_limit_cuts_the_curve_by_interpolation():
    # Two thresholds: half the region at FPR 0, all of it with every normal pixel. The curve is 0.5 + 0.5 FPR.
    anomaly_map, mask = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[True, True, False, False]])
    expected = 0.5 + 0.5 * 0.3 / 2
    assert aupro_exact([anomaly_map], [mask], 0.3) == pytest.approx(expected)
    assert meter_of([anomaly_map], [mask], 0, 1, 64).result().aupro == pytest.approx(expected)


def test_small_regions_weigh_as_much_as_large_ones():
    mask = np.zeros((8, 8), np.bool_)
    mask[:4, :4] = mask[7, 7] = True
    anomaly_map = np.zeros((8, 8))
    anomaly_map[7, 7] = 1.0
    # The single pixel is found at once; the large region only along with everything else.
    assert aupro_exact([anomaly_map], [mask], 1.0) == pytest.approx(0.75)
    found = meter_of([anomaly_map], [mask], 0, 1, 64).result()
    assert found.aupro == pytest.approx(aupro_slow([anomaly_map], [mask], 0.3))


def test_pixels_touching_at_a_corner_are_one_region():
    mask = np.eye(4, dtype=np.bool_)
    anomaly_map = np.diag([3.0, 0.0, 0.0, 0.0])
    assert aupro_exact([anomaly_map], [mask], 1.0) == pytest.approx((0.25 + 1) / 2)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_maps_rank_at_chance(value):
    mask = np.zeros((8, 8), np.bool_)
    mask[:3] = True
    maps = [np.full((8, 8), value, np.float32)]
    found = meter_of(maps, [mask], value, value, 65_536, value).result()
    assert (found.auroc, found.errors["auroc"], found.recall) == (0.5, 0.5, 0.0)
    assert found.aupro == pytest.approx(0.15)
    for meter in (
        meter_of(maps, [mask], value, value, 8, found.f1_max_threshold),
        exact_of(maps, [mask], found.f1_max_threshold),
    ):
        assert meter.result().dice == pytest.approx(found.f1_max)
    assert exact_of(maps, [mask]).result().auroc == 0.5


@pytest.mark.parametrize(
    "kind", [ExactMeter, lambda threshold: HistogramMeter(0, 1, threshold)], ids=["exact", "binned"]
)
def test_a_defect_stands_against_good_images_and_its_own(kind):
    generator = np.random.default_rng(1)
    maps = [generator.random((16, 16)) for _ in range(5)]
    masks = [generator.random((16, 16)) > 0.7 for _ in range(5)]
    whole_set, only_crack, only_hole = (kind(0.5) for _ in range(3))
    for meter in (whole_set, only_crack, only_hole):
        meter.add(maps[0])
    for index, defect in ((1, "crack"), (2, "hole"), (3, "crack")):
        for meter in (whole_set, only_crack if defect == "crack" else only_hole):
            meter.add(maps[index], masks[index], defect)
    whole_set.add(maps[4], masks[4])
    found = whole_set.result()
    alone = {"crack": only_crack.result(), "hole": only_hole.result()}
    assert list(found.by_defect) == ["crack", "hole"]
    for defect, meant in alone.items():
        assert found.by_defect[defect] == dataclasses.replace(meant, by_defect={}, by_size={})
    # The defect of no name counts in the whole and in no type.
    all_masks = [np.zeros((16, 16), np.bool_), *masks[1:]]
    assert found.images == 5
    values, truth = flat(maps, all_masks)
    assert found.auroc == pytest.approx(sk.roc_auc_score(truth, values), abs=found.errors.get("auroc", 0) + 1e-9)
    assert found.aupro == pytest.approx(aupro_exact(maps, all_masks), abs=found.errors.get("aupro", 0) + 1e-9)


@pytest.mark.parametrize(
    "kind", [ExactMeter, lambda threshold: HistogramMeter(0, 1, threshold)], ids=["exact", "binned"]
)
def test_a_size_is_its_regions_against_all_normal_pixels(kind):
    generator = np.random.default_rng(4)
    maps = [generator.random((50, 60)) for _ in range(3)]
    # Of 3000 pixels: 9 are below 1/300, 10 are not; 89 are below 3/100, 90 are not.
    shapes = {"small": [(3, 3), (1, 1)], "medium": [(2, 5), (1, 59)], "large": [(10, 9)]}
    masks = {name: [np.zeros((50, 60), np.bool_) for _ in maps] for name in shapes}
    for row, (name, sides) in enumerate(shapes.items()):
        for index, (height, width) in enumerate(sides):
            masks[name][index][12 * row : 12 * row + height, :width] = True
    together = [np.logical_or.reduce([masks[name][index] for name in shapes]) for index in range(3)]
    found = fed(kind(0.5), maps, together, None).result()
    assert {name: part.regions for name, part in found.by_size.items()} == {"small": 2, "medium": 2, "large": 1}
    normal = np.concatenate([m[~mask] for m, mask in zip(maps, together, strict=True)])
    for name, part in found.by_size.items():
        inside = np.concatenate([m[mask] for m, mask in zip(maps, masks[name], strict=True)])
        truth = np.repeat([False, True], [len(normal), len(inside)])
        expected = sk.roc_auc_score(truth, np.append(normal, inside))
        assert part.auroc == pytest.approx(expected, abs=part.errors.get("auroc", 0) + 1e-9)
        assert part.recall == pytest.approx((inside > 0.5).mean())
        assert part.precision == pytest.approx((inside > 0.5).sum() / ((inside > 0.5).sum() + (normal > 0.5).sum()))


def test_a_size_without_regions_is_left_out():
    assert set(exact_of([np.eye(9)], [np.eye(9, dtype=np.bool_)]).result().by_size) == {"large"}


def test_the_order_of_maps_does_not_matter():
    generator = np.random.default_rng(2)
    maps, masks = [generator.random((8, 8)) for _ in range(3)], [generator.random((8, 8)) > 0.5 for _ in range(3)]
    for forth, back in (
        (meter_of(maps, masks, 0, 1, 64, 0.5), meter_of(maps[::-1], masks[::-1], 0, 1, 64, 0.5)),
        (exact_of(maps, masks, 0.5), exact_of(maps[::-1], masks[::-1], 0.5)),
    ):
        one, other = forth.result(), back.result()
        assert one.aupro == pytest.approx(other.aupro)
        assert (one.auroc, one.iou) == (other.auroc, other.iou)


def test_an_exact_meter_can_be_asked_in_between():
    generator = np.random.default_rng(8)
    maps, masks = [generator.random((8, 8)) for _ in range(3)], [generator.random((8, 8)) > 0.5 for _ in range(3)]
    meter = exact_of(maps[:2], masks[:2])
    assert meter.result().auroc == exact_of(maps[:2], masks[:2]).result().auroc
    maps[0][:] = 0  # what was added stays as it was
    assert fed(meter, maps[2:], masks[2:]).result().auroc != exact_of(maps, masks).result().auroc


def test_masks_of_zero_and_255_are_masks():
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 0] = 255
    meter = meter_of([np.linspace(1, 0, 16).reshape(4, 4)], [mask], 0, 1, 64)
    assert meter.result().auroc == 1.0


@pytest.mark.parametrize(
    "kind", [ExactMeter, lambda threshold: HistogramMeter(0, 1, threshold)], ids=["exact", "binned"]
)
def test_without_one_kind_of_pixels_there_are_no_metrics(kind):
    nothing, only_good, only_bad = (kind(0.5) for _ in range(3))
    only_good.add(np.zeros((4, 4)))
    only_bad.add(np.zeros((4, 4)), np.ones((4, 4), np.bool_), "scratch")
    for meter, said in ((nothing, "no maps"), (only_good, "no defective pixels"), (only_bad, "no normal pixels")):
        found = meter.result()
        absent = {name for name, value in vars(found).items() if value is None}
        assert {"auroc", "aupro", "iou", "recall"} <= absent == set(found.missing)
        assert all(said in reason for reason in found.missing.values())
        assert meter.curves() == {}


def test_a_defect_with_an_empty_mask_adds_normal_pixels():
    meter = HistogramMeter(0, 1)
    meter.add(np.zeros((4, 4)), np.zeros((4, 4), np.bool_), "scratch")
    assert meter.result().by_defect["scratch"].missing["auroc"] == "there are no defective pixels"


def test_without_a_threshold_the_rest_is_there():
    found = meter_of([np.eye(4)], [np.eye(4, dtype=np.bool_)], 0, 1, 64).result()
    assert set(found.missing) == {"iou", "dice", "precision", "recall", "region_overlap", "region_iou"}
    assert found.auroc == 1.0


def test_values_outside_the_range_are_refused_but_not_rounding():
    meter = HistogramMeter(1000.0, 1001.0)
    meter.add(np.array([[np.nextafter(np.float32(1001), np.float32(2000))]], np.float32))
    for value in (999.9, 1001.1):
        with pytest.raises(ValueError, match="must lie between"):
            meter.add(np.full((2, 2), value))


def test_nan_in_a_map_is_counted():
    with pytest.raises(DataError, match="1 of 4 map values"):
        HistogramMeter(0, 1).add(np.array([[0.0, np.nan], [0.5, 1.0]]))
    with pytest.raises(DataError, match="not finite"):
        aupro_exact([np.array([[np.nan, 1.0]])], [np.array([[True, False]])])


@pytest.mark.parametrize("truth", [True, False])
def test_exact_aupro_needs_both_kinds_of_pixels(truth):
    with pytest.raises(DataError, match="normal and defective"):
        aupro_exact([np.zeros((2, 2))], [np.full((2, 2), truth)])


def test_contradictions_are_refused():
    meter, ones = HistogramMeter(0, 1), np.ones((2, 2), np.bool_)
    for arguments in ((None, "scratch"), (ones, "good"), (np.zeros((3, 3), np.bool_), "scratch")):
        with pytest.raises(ValueError, match="must"):
            meter.add(np.zeros((2, 2)), *arguments)
    assert meter.result().images == 0


@pytest.mark.parametrize("bounds", [(1, 0), (np.nan, 1), (0, np.inf)])
def test_a_meter_needs_a_range(bounds):
    with pytest.raises(ValueError, match="finite and in order"):
        HistogramMeter(*bounds)


def test_pixel_curves_are_short_and_run_from_none_to_all():
    generator = np.random.default_rng(3)
    masks = [generator.random((64, 64)) > 0.9 for _ in range(4)]
    maps = [np.clip(generator.normal(0.4, 0.1, (64, 64)) + 0.1 * mask, 0, 1) for mask in masks]
    meter = meter_of(maps, masks, 0, 1, 65_536)
    curves, found = meter.curves(), meter.result()
    assert set(curves) == {"roc", "pr", "pro"}
    for curve in curves.values():
        assert len(curve.x) == len(curve.y) == len(curve.thresholds) <= 510
        assert (np.diff(curve.x) >= 0).all()
        assert (np.diff(curve.thresholds) <= 0).all()
        assert curve.x[0] == 0
        assert curve.x[-1] == pytest.approx(1)
    assert sk.auc(curves["roc"].x, curves["roc"].y) == pytest.approx(found.auroc, abs=1e-3)


@pytest.mark.parametrize("threshold", [None, 0.5, np.inf, np.nan])
def test_pixel_dictionaries_are_json(threshold):
    meter = meter_of([np.eye(4)], [np.eye(4, dtype=np.bool_)], 0, 1, 64, threshold)
    value = json.loads(json.dumps(meter.result().to_dict(), allow_nan=False))
    assert value["by_defect"]["scratch"]["auroc"] == 1.0
    for curve in meter.curves().values():
        assert json.dumps(curve.to_dict(), allow_nan=False)
