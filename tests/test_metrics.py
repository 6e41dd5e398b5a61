"""Image and pixel metrics, against scikit-learn and against slow references written from the definitions."""

from __future__ import annotations

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
from adctl.metrics import (
    PixelMeter,
    aupro_exact,
    image_metrics,
    image_metrics_by_defect,
    precision_recall_curve,
    roc_curve,
)

# A shared machine may stall: no deadline.
few = settings(max_examples=30, deadline=None)

BINS = 8
"""Of the meters in which integer values below it lose nothing."""


@st.composite
def scored(draw, *, both=False):
    """Scores with many ties, and labels; good and defective ones if `both`."""
    number = draw(st.integers(2, 40))
    values = st.one_of(st.floats(-1e6, 1e6), st.integers(-3, 3).map(float))
    scores = draw(arrays(np.float64, number, elements=values))
    labels = draw(arrays(np.bool_, number))
    if both:
        labels[:2] = [True, False]
    return scores, labels


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


def meter_of(maps, masks, low, high, bins):
    meter = PixelMeter(low, high, bins)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        meter.add(anomaly_map, mask, "scratch")
    return meter


def tight(maps, masks, bins):
    """A meter over exactly the range of the maps."""
    values, _ = flat(maps, masks)
    return meter_of(maps, masks, float(values.min()), float(values.max()), bins)


def best_f1(scores, labels):
    called = [scores >= value for value in np.unique(scores)]
    return max(2 * (c & labels).sum() / (c.sum() + labels.sum()) for c in called)


def aupro_slow(maps, masks, limit):
    """From the definition: call pixels at each threshold, average the share found of each region, cut at the limit."""
    regions = []
    for index, mask in enumerate(masks):
        numbered, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, numbered == number) for number in range(1, count + 1)]
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


# --- images -----------------------------------------------------------------------------------------------------


@few
@given(scored(both=True))
def test_image_ranking_is_scikit_learns(pair):
    scores, labels = pair
    found = image_metrics(scores, labels)
    assert found.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert found.f1_max == pytest.approx(best_f1(scores, labels), abs=1e-12)
    called = [scores >= value for value in np.unique(scores)]
    rates = [c[~labels].mean() for c in called if c[labels].mean() >= 0.95]
    assert found.fpr_at_95_tpr == pytest.approx(min(rates), abs=1e-12)


@few
@given(scored(both=True))
def test_best_f1_is_reached_at_its_threshold(pair):
    scores, labels = pair
    found = image_metrics(scores, labels)
    assert image_metrics(scores, labels, found.f1_max_threshold).f1 == pytest.approx(found.f1_max, abs=1e-12)


def test_best_f1_threshold_parts_neighbouring_floats():
    upper = float(np.nextafter(1.0, 2.0))
    found = image_metrics([1.0, upper], [False, True])
    assert 1.0 <= found.f1_max_threshold < upper


@few
@given(scored(), st.floats(-4, 4))
def test_confusion_numbers_are_scikit_learns(pair, threshold):
    scores, labels = pair
    found = image_metrics(scores, labels, threshold)
    alarms = scores > threshold
    tn, fp, fn, tp = sk.confusion_matrix(labels, alarms, labels=[False, True]).ravel()
    assert (found.tn, found.fp, found.fn, found.tp) == (tn, fp, fn, tp)
    assert (found.good, found.defective) == ((~labels).sum(), labels.sum())
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels, alarms))
    references = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for name, reference in references.items():
        value = getattr(found, name)
        assert (value is None) == (name in found.missing)
        if value is not None:
            assert value == pytest.approx(reference(labels, alarms, zero_division=0))
    if labels.any() and not labels.all():
        assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, alarms))
        assert found.false_alarm_rate == pytest.approx(fp / (fp + tn))


def test_a_score_at_the_threshold_is_normal():
    found = image_metrics([1.0, 2.0], [False, True], 2.0)
    assert (found.tp, found.fn) == (0, 1)


def test_scores_beyond_one_are_ranked_as_they_are():
    assert image_metrics([1e9, 1e9 + 1, -5.0], [False, True, False]).auroc == 1.0


def test_all_ties_rank_at_chance():
    found = image_metrics([3.0] * 6, [True, False] * 3)
    assert (found.auroc, found.average_precision, found.fpr_at_95_tpr) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([True, True], "no good images"), ([False, False], "no defective images"), ([], "no images")],
)
def test_what_does_not_exist_is_none_and_said_why(labels, said):
    found = image_metrics([1.0, 2.0][: len(labels)], labels, 1.5)
    for name in ("auroc", "average_precision", "f1_max", "f1_max_threshold", "fpr_at_95_tpr", "balanced_accuracy"):
        assert getattr(found, name) is None
        assert said in found.missing[name]


def test_every_none_is_explained():
    for found in (image_metrics([1.0], [True]), image_metrics([], [], 0.0), image_metrics([1.0, 2.0], [0, 1])):
        absent = {name for name, value in vars(found).items() if value is None}
        assert absent - {"threshold"} == set(found.missing)


def test_nan_scores_are_counted():
    with pytest.raises(DataError, match="2 of 3 scores"):
        image_metrics([np.nan, 1.0, np.inf], [True, False, True])
    with pytest.raises(DataError, match="1 of 2 scores"):
        image_metrics_by_defect([np.nan, 1.0], ["good", "good"])


def test_scores_without_labels_are_refused():
    with pytest.raises(ValueError, match="one length"):
        image_metrics([1.0, 2.0], [True])


def test_each_defect_stands_against_all_good_images():
    scores, labels = [0.0, 1.0, 2.0, 0.5, 9.0], ["good", "good", "hole", "crack", "crack"]
    found = image_metrics_by_defect(scores, labels, 1.5)
    assert list(found) == ["crack", "hole"]
    assert found["crack"] == image_metrics([0.0, 1.0, 0.5, 9.0], [False, False, True, True], 1.5)
    assert found["hole"].auroc == 1.0
    assert image_metrics_by_defect([], []) == {}


@few
@given(scored(both=True))
def test_curves_hold_their_areas(pair):
    scores, labels = pair
    roc, pr = roc_curve(scores, labels), precision_recall_curve(scores, labels)
    assert sk.auc(roc.x, roc.y) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert -np.diff(pr.x) @ pr.y[:-1] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    for curve in (roc, pr):
        assert len(curve.x) == len(curve.y) == len(curve.thresholds)
        assert json.dumps(curve.to_dict(), allow_nan=False)


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_a_curve_needs_both_classes(curve, labels):
    with pytest.raises(DataError, match="there are no"):
        curve([1.0, 2.0], labels)


# --- pixels -----------------------------------------------------------------------------------------------------


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
@given(whole, st.integers(-1, BINS + 1))
def test_pixel_confusion_numbers_are_scikit_learns(drawn, threshold):
    values, truth = flat(*drawn)
    found, called = meter_of(*drawn, 0, BINS, BINS).result(float(threshold)), values > threshold
    assert found.iou == pytest.approx(sk.jaccard_score(truth, called))
    assert found.dice == pytest.approx(sk.f1_score(truth, called))
    assert found.recall == pytest.approx(sk.recall_score(truth, called))
    if called.any():
        assert found.precision == pytest.approx(sk.precision_score(truth, called))
    else:
        assert found.precision is None
        assert found.missing == {"precision": "no pixel is called anomalous"}


@few
@given(real, st.sampled_from([1, 2, 7, 64, 65_536]))
def test_binned_areas_lie_within_the_stated_errors(drawn, bins):
    values, truth = flat(*drawn)
    found = tight(*drawn, bins).result()
    assert abs(found.auroc - sk.roc_auc_score(truth, values)) <= found.auroc_error + 1e-12
    assert abs(found.aupro - aupro_slow(*drawn, 0.3)) <= found.aupro_error + 1e-9


def test_one_bin_has_the_whole_error():
    found = meter_of([np.array([[0.0, 1.0]])], [np.array([[False, True]])], 0, 1, 1).result()
    assert (found.auroc, found.auroc_error) == (0.5, 0.5)


def test_a_narrow_range_far_from_zero_keeps_its_order():
    generator = np.random.default_rng(0)
    values = 123_456.789012 + 1e-4 * generator.random((64, 64))
    mask = generator.random((64, 64)) > 0.8
    found = tight([values], [mask], 65_536).result()
    assert found.auroc_error < 1e-4
    assert abs(found.auroc - sk.roc_auc_score(mask.ravel(), values.ravel())) <= found.auroc_error


@few
@given(real, st.integers(1, 300))
def test_best_pixel_f1_is_reached_at_its_threshold(drawn, bins):
    meter = tight(*drawn, bins)
    found = meter.result()
    assert meter.result(found.f1_max_threshold).dice == pytest.approx(found.f1_max, abs=1e-12)


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
    meter = PixelMeter(value, value)
    meter.add(np.full((8, 8), value, np.float32), mask, "scratch")
    found = meter.result(value)
    assert (found.auroc, found.auroc_error, found.recall) == (0.5, 0.5, 0.0)
    assert found.aupro == pytest.approx(0.15)
    assert meter.result(found.f1_max_threshold).dice == pytest.approx(found.f1_max)


def test_a_defect_stands_against_good_images_and_its_own():
    generator = np.random.default_rng(1)
    maps = [generator.random((16, 16)) for _ in range(5)]
    masks = [generator.random((16, 16)) > 0.7 for _ in range(5)]
    whole_set, only_crack, only_hole = (PixelMeter(0, 1) for _ in range(3))
    for meter in (whole_set, only_crack, only_hole):
        meter.add(maps[0])
    for index, defect in ((1, "crack"), (2, "hole"), (3, "crack")):
        for meter in (whole_set, only_crack if defect == "crack" else only_hole):
            meter.add(maps[index], masks[index], defect)
    whole_set.add(maps[4], masks[4])
    found = whole_set.result(0.5)
    alone = {"crack": only_crack.result(0.5), "hole": only_hole.result(0.5)}
    assert list(found.by_defect) == ["crack", "hole"]
    for defect, meant in alone.items():
        assert {**vars(found.by_defect[defect])} == {**vars(meant), "by_defect": {}}
    # The defect of no name counts in the whole and in no type.
    all_masks = [np.zeros((16, 16), np.bool_), *masks[1:]]
    values, truth = flat(maps, all_masks)
    assert found.images == 5
    assert abs(found.auroc - sk.roc_auc_score(truth, values)) <= found.auroc_error
    assert abs(found.aupro - aupro_exact(maps, all_masks)) <= found.aupro_error + 1e-9


def test_the_order_of_maps_does_not_matter():
    generator = np.random.default_rng(2)
    maps, masks = [generator.random((8, 8)) for _ in range(3)], [generator.random((8, 8)) > 0.5 for _ in range(3)]
    forth, back = meter_of(maps, masks, 0, 1, 64).result(0.5), meter_of(maps[::-1], masks[::-1], 0, 1, 64).result(0.5)
    assert forth.aupro == pytest.approx(back.aupro)
    assert (forth.auroc, forth.iou) == (back.auroc, back.iou)


def test_masks_of_zero_and_255_are_masks():
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 0] = 255
    meter = meter_of([np.linspace(1, 0, 16).reshape(4, 4)], [mask], 0, 1, 64)
    assert meter.result().auroc == 1.0


def test_without_one_kind_of_pixels_there_are_no_metrics():
    nothing, only_good, only_bad = PixelMeter(0, 1), PixelMeter(0, 1), PixelMeter(0, 1)
    only_good.add(np.zeros((4, 4)))
    only_bad.add(np.zeros((4, 4)), np.ones((4, 4), np.bool_), "scratch")
    for meter, said in ((nothing, "no maps"), (only_good, "no defective pixels"), (only_bad, "no normal pixels")):
        found = meter.result(0.5)
        absent = {name for name, value in vars(found).items() if value is None}
        assert {"auroc", "aupro", "iou", "recall"} <= absent == set(found.missing)
        assert all(said in reason for reason in found.missing.values())
        assert meter.curves() == {}


def test_a_defect_with_an_empty_mask_adds_normal_pixels():
    meter = PixelMeter(0, 1)
    meter.add(np.zeros((4, 4)), np.zeros((4, 4), np.bool_), "scratch")
    assert meter.result().by_defect["scratch"].missing["auroc"] == "there are no defective pixels"


def test_without_a_threshold_the_rest_is_there():
    found = meter_of([np.eye(4)], [np.eye(4, dtype=np.bool_)], 0, 1, 64).result()
    assert set(found.missing) == {"iou", "dice", "precision", "recall"}
    assert found.auroc == 1.0


def test_values_outside_the_range_are_refused_but_not_rounding():
    meter = PixelMeter(1000.0, 1001.0)
    meter.add(np.array([[np.nextafter(np.float32(1001), np.float32(2000))]], np.float32))
    for value in (999.9, 1001.1):
        with pytest.raises(ValueError, match="must lie between"):
            meter.add(np.full((2, 2), value))


def test_nan_in_a_map_is_counted():
    with pytest.raises(DataError, match="1 of 4 map values"):
        PixelMeter(0, 1).add(np.array([[0.0, np.nan], [0.5, 1.0]]))
    with pytest.raises(DataError, match="not finite"):
        aupro_exact([np.array([[np.nan, 1.0]])], [np.array([[True, False]])])


@pytest.mark.parametrize("truth", [True, False])
def test_exact_aupro_needs_both_kinds_of_pixels(truth):
    with pytest.raises(DataError, match="normal and defective"):
        aupro_exact([np.zeros((2, 2))], [np.full((2, 2), truth)])


def test_contradictions_are_refused():
    meter, ones = PixelMeter(0, 1), np.ones((2, 2), np.bool_)
    for arguments in ((None, "scratch"), (ones, "good"), (np.zeros((3, 3), np.bool_), "scratch")):
        with pytest.raises(ValueError, match="must"):
            meter.add(np.zeros((2, 2)), *arguments)
    assert meter.result().images == 0


@pytest.mark.parametrize("bounds", [(1, 0), (np.nan, 1), (0, np.inf)])
def test_a_meter_needs_a_range(bounds):
    with pytest.raises(ValueError, match="finite and in order"):
        PixelMeter(*bounds)


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


@few
@given(scored(), st.sampled_from([None, 0.0, np.inf, np.nan]))
def test_dictionaries_are_json(pair, threshold):
    text = json.dumps(image_metrics(*pair, threshold).to_dict(), allow_nan=False)
    assert json.loads(text)["good"] == (~pair[1]).sum()


@pytest.mark.parametrize("threshold", [None, 0.5, np.inf])
def test_pixel_dictionaries_are_json(threshold):
    meter = meter_of([np.eye(4)], [np.eye(4, dtype=np.bool_)], 0, 1, 64)
    value = json.loads(json.dumps(meter.result(threshold).to_dict(), allow_nan=False))
    assert value["by_defect"]["scratch"]["auroc"] == 1.0
    for curve in meter.curves().values():
        assert json.dumps(curve.to_dict(), allow_nan=False)
