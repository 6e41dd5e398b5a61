"""Confidence intervals: resampling, equality of the fast and the slow computation, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adctl.metrics.bootstrap import (
    Interval,
    Resampling,
    exact_interval,
    percentile_interval,
    replicates,
    resample_counts,
)
from adctl.metrics.exact import ExactMeter
from adctl.metrics.image import image_measure, image_metrics, image_metrics_by_defect
from adctl.metrics.pixel_bootstrap import PixelSamples
from adctl.metrics.streaming import HistogramMeter

few = settings(max_examples=30, deadline=None)


@few
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 50), st.integers(0, 9))
def test_every_resample_has_as_many_of_each_stratum(strata, samples, seed):
    kinds = np.array(strata)
    counts = np.concatenate(list(resample_counts(strata, Resampling(samples, seed=seed))))
    assert counts.shape == (samples, len(strata))
    for kind in set(strata):
        assert (counts[:, kinds == kind].sum(axis=1) == (kinds == kind).sum()).all()


def test_draws_follow_the_seed_and_are_even():
    first, again, other = (
        np.concatenate(list(resample_counts(["a"] * 20, Resampling(2000, seed=seed)))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.mean(axis=0) == pytest.approx(np.ones(20), abs=0.15)
    assert first.var() == pytest.approx(1 - 1 / 20, rel=0.05)


def test_chunks_are_small_and_add_up():
    chunks = list(resample_counts(np.zeros(1000), Resampling(100), width=999_000))
    assert max(len(chunk) for chunk in chunks) == 4
    assert sum(len(chunk) for chunk in chunks) == 100


@few
@given(st.integers(0, 1000), st.booleans())
def test_measuring_with_counts_is_measuring_repeated_images(seed, ties):
    generator = np.random.default_rng(seed)
    scores, truth = generator.normal(size=12), np.arange(12) % 3 == 0
    scores = scores.round() if ties else scores
    measure = image_measure(scores, truth, 0.2)
    (counts,) = resample_counts(truth, Resampling(5, seed=seed))
    found = measure(counts)
    for row, times in enumerate(counts.astype(int)):
        slow = image_metrics(np.repeat(scores, times), np.repeat(truth, times), 0.2)
        for name, values in found.items():
            expected = getattr(slow, name)
            assert values[row] == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)


SHARES = {"accuracy", "precision", "recall", "false_alarm_rate"}
"""Metrics with exact binomial intervals."""


@pytest.mark.parametrize(("count", "total"), [(0, 6), (6, 6), (3, 6), (1, 40), (0, 1), (17, 200)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_shares_have_exact_intervals(count, total, level):
    """The binomial test at both ends gives just the tail; the ends 0 and 1 are certain."""
    found = exact_interval(count, total, level)
    known = stats.binomtest(count, total).proportion_ci(level, "exact")
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.low < found.high


def test_no_miss_in_six_is_no_certainty():
    found = image_metrics(np.arange(12.0), np.arange(12) >= 6, 5.5, resampling=Resampling())
    assert (found.fn, found.fp) == (0, 0)
    assert found.intervals["recall"] == exact_interval(6, 6, 0.95)
    assert found.intervals["false_alarm_rate"].high == pytest.approx(0.459, abs=1e-3)
    assert found.intervals["precision"].low == pytest.approx(0.541, abs=1e-3)
    assert found.intervals["accuracy"].low == pytest.approx(0.735, abs=1e-3)


def test_intervals_are_the_quantiles_of_the_replicates():
    generator = np.random.default_rng(0)
    scores, truth = generator.normal(size=60), np.arange(60) < 20
    scores[truth] += 1
    resampling = Resampling(300, 0.9, 3)
    found = image_metrics(scores, truth, 0.5, resampling=resampling)
    drawn = replicates(truth, resampling, image_measure(scores, truth, 0.5))
    assert set(found.intervals) == {
        "auroc", "average_precision", "f1_max", "fpr_at_95_tpr", "accuracy", "balanced_accuracy", "precision",
        "recall", "f1", "false_alarm_rate",
    }  # fmt: skip
    for name in found.intervals.keys() - SHARES:
        bounds = found.intervals[name]
        low, high = np.quantile(drawn[name], [0.05, 0.95])
        assert (bounds.low, bounds.high) == (low, high)
    assert found.intervals["auroc"].low < found.auroc < found.intervals["auroc"].high
    assert found == image_metrics(scores, truth, 0.5, resampling=resampling)


def test_intervals_hold_the_true_auroc_about_as_often_as_they_say():
    generator = np.random.default_rng(1)
    truth = np.arange(80) < 40
    true_auroc = 0.7602  # Phi(1 / sqrt 2): scores of both classes are normal, one standard deviation apart
    held = 0
    for seed in range(150):
        found = image_metrics(generator.normal(size=80) + truth, truth, resampling=Resampling(200, 0.9, seed))
        held += found.intervals["auroc"].low <= true_auroc <= found.intervals["auroc"].high
    assert 0.82 <= held / 150 <= 0.96


@pytest.mark.parametrize("truth", [[True, True, False], [True, False, False], [], [True]])
def test_a_class_of_one_image_gives_no_interval_by_bootstrap(truth):
    assert image_metrics(np.arange(len(truth)), truth, 0.5, resampling=Resampling()).intervals.keys() <= SHARES


def test_one_class_alone_has_intervals_of_what_exists():
    found = image_metrics([0.0, 1.0, 2.0], [False] * 3, 0.5, resampling=Resampling())
    assert set(found.intervals) == {"accuracy", "false_alarm_rate", "precision", "f1"}  # of alarms none is a defect
    assert "auroc" in found.missing


def test_defect_types_have_intervals_of_their_own():
    labels = ["good"] * 5 + ["hole"] * 5 + ["crack"]
    found = image_metrics_by_defect(np.arange(11.0), labels, 3.0, resampling=Resampling())
    assert found["hole"].intervals["auroc"] == Interval(1.0, 1.0)
    assert found["crack"].intervals.keys() == SHARES


def test_a_metric_that_mostly_does_not_exist_has_no_interval():
    assert percentile_interval(np.array([np.nan, np.nan, 1.0]), 0.95) is None
    assert percentile_interval(np.empty(0), 0.95) is None
    assert percentile_interval(np.array([np.nan, 2.0, 2.0]), 0.95) == Interval(2.0, 2.0)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"level": 0.0}, {"level": 1.0}])
def test_a_resampling_that_gives_no_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Resampling(**wrong)


# --- pixels -----------------------------------------------------------------------------------------------------


def pixel_set(number=8, shape=(30, 31)):
    """Maps of few distinct values, of which no level loses any, with masks and labels."""
    generator = np.random.default_rng(6)
    labels = [("good", "hole", "crack", "hole")[index % 4] for index in range(number)]
    masks = [None if label == "good" else generator.random(shape) > 0.95 for label in labels]
    maps = [generator.integers(0, 9, shape).astype(np.float32) for _ in labels]
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if mask is not None:
            anomaly_map[mask] += 3
    return list(zip(maps, masks, labels, strict=True))


def gathered(gatherer, images):
    for image in images:
        gatherer.add(*image)
    return gatherer


@pytest.mark.parametrize("group", ["whole", "hole", "small", "medium"])
def test_pixel_replicates_are_metrics_of_repeated_images(group):
    images = pixel_set()
    samples = gathered(PixelSamples(gathered(ExactMeter(5.0), images)), images)
    groups = {"whole": samples.whole, **samples.defect_groups(), **samples.size_groups()}
    resampling = Resampling(6, seed=2)
    found = samples.replicates(groups[group], resampling)
    chosen = [image for image in images if image[2] in groups[group][0]]
    (counts,) = resample_counts([label for *_, label in chosen], resampling)
    for row, times in enumerate(counts.astype(int)):
        repeated = [image for image, count in zip(chosen, times, strict=True) for _ in range(count)]
        slow = gathered(ExactMeter(5.0), repeated).result()
        expected = slow if group in ("whole", "hole") else slow.by_size[group]
        for name, values in found.items():
            assert values[row] == pytest.approx(getattr(expected, name), abs=1e-6)


def test_pixel_intervals_surround_the_metrics_of_every_group():
    generator = np.random.default_rng(9)
    images = [(values + generator.random(values.shape), *rest) for values, *rest in pixel_set(24, (30, 31))]
    meter = gathered(HistogramMeter(0, 13, 5.0), images)
    samples = gathered(PixelSamples(meter), images)
    found = samples.with_intervals(meter.result(), Resampling(200))
    parts = [found, *found.by_defect.values(), *found.by_size.values()]
    assert len(parts) == 5
    for part in parts:
        assert {"auroc", "aupro", "aupro_05", "iou", "region_overlap", "region_iou"} <= set(part.intervals)
        for name in ("auroc", "aupro", "average_precision", "recall"):
            assert part.intervals[name].low <= getattr(part, name) <= part.intervals[name].high
    again = gathered(PixelSamples(meter), images).with_intervals(meter.result(), Resampling(200))
    assert again == found


def test_identical_images_leave_pixel_metrics_no_room():
    images = pixel_set(4)
    images = [image for image in images if image[2] != "crack"] * 2
    meter = gathered(ExactMeter(5.0), images)
    found = gathered(PixelSamples(meter), images).with_intervals(meter.result(), Resampling(50))
    one_of_each = [image for image in images if image[2] == "good"]
    assert len(one_of_each) == 2
    good_only = {name: bounds for name, bounds in found.intervals.items() if bounds.low == bounds.high}
    assert "auroc" not in good_only  # the two holes differ


def test_a_label_with_one_image_has_no_pixel_intervals():
    images = pixel_set(3)
    meter = gathered(ExactMeter(), images)
    assert gathered(PixelSamples(meter), images).with_intervals(meter.result(), Resampling()).intervals == {}
