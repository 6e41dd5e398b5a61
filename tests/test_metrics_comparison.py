"""Comparison of two detectors: DeLong's test, the paired bootstrap, and the rate of false findings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adctl.errors import DataError
from adctl.metrics.bootstrap import Interval, Resampling
from adctl.metrics.comparison import compare_image_metrics, compare_replicates, delong
from adctl.metrics.image import image_metrics

few = settings(max_examples=30, deadline=None)


@st.composite
def pairs(draw):
    """Scores of two detectors on the same images, half of the time with many ties."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    truth = generator.permutation(np.arange(draw(st.integers(5, 40))) % 3 == 0)
    shared = generator.normal(size=len(truth)) + truth
    first, second = (shared + generator.normal(size=len(truth)) for _ in range(2))
    return (first.round(), second.round(), truth) if draw(st.booleans()) else (first, second, truth)


def kernel(defective, good):
    """Which of each pair ranks higher: [m,n]."""
    return (defective[:, None] > good) + 0.5 * (defective[:, None] == good)


@few
@given(pairs(), st.sampled_from([0.8, 0.95]))
def test_delong_is_its_definition(drawn, level):
    first, second, truth = drawn
    kernels = [kernel(scores[truth], scores[~truth]) for scores in (first, second)]
    by_defect, by_good = (np.cov([table.mean(axis=axis) for table in kernels]) for axis in (1, 0))
    covariance = by_defect / truth.sum() + by_good / (~truth).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = delong(first, second, truth, level=level)
    assert (found.first, found.second) == pytest.approx([table.mean() for table in kernels])
    assert found.difference == pytest.approx(kernels[1].mean() - kernels[0].mean())
    if variance > 1e-20:
        normal = stats.norm(found.difference, np.sqrt(variance))
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.difference) / np.sqrt(variance)))
        assert (found.interval.low, found.interval.high) == pytest.approx(normal.interval(level))


@few
@given(pairs())
def test_delong_looks_both_ways(drawn):
    first, second, truth = drawn
    forth, back = delong(first, second, truth), delong(second, first, truth)
    assert forth.p_value == pytest.approx(back.p_value)
    assert forth.difference == pytest.approx(-back.difference)


@few
@given(pairs())
def test_any_rising_function_of_the_scores_makes_no_difference(drawn):
    first, _, truth = drawn
    found = compare_image_metrics(first, first * 7 - 3, truth, resampling=Resampling(50))
    for name, comparison in found.items():
        assert comparison.difference == 0
        assert comparison.p_value == 1.0, name
        assert comparison.interval == Interval(0.0, 0.0)


def test_two_perfect_detectors_cannot_be_told_apart_and_others_may_have_no_variance():
    truth = np.array([False, False, True, True])
    perfect, worst = np.arange(4.0), -np.arange(4.0)
    assert delong(perfect, perfect, truth).p_value == 1.0
    found = delong(perfect, worst, truth)
    assert (found.difference, found.p_value, found.interval) == (-1.0, None, None)
    assert "no variance" in found.reason


def test_a_class_of_one_image_cannot_be_tested():
    found = compare_image_metrics([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [False, False, True])
    for comparison in found.values():
        assert (comparison.p_value, comparison.interval) == (None, None)
        assert "fewer than two" in comparison.reason


@pytest.mark.parametrize("truth", [[True] * 3, [False] * 3])
@pytest.mark.parametrize("compare", [delong, compare_image_metrics])
def test_a_comparison_needs_both_classes(compare, truth):
    with pytest.raises(DataError, match="there are no"):
        compare([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], truth)


def test_images_without_a_score_are_named():
    with pytest.raises(DataError, match=r"b\.png"):
        delong([0.0, 1.0], [0.0, np.nan], [True, False], names=["a.png", "b.png"])


def test_a_better_detector_is_found_in_every_metric():
    generator = np.random.default_rng(3)
    truth = np.arange(300) % 3 == 0
    noise = generator.normal(size=300)
    weak, strong = noise + truth, 0.3 * noise + truth
    found = compare_image_metrics(weak, strong, truth, thresholds=(0.5, 0.5), resampling=Resampling(300))
    better = {"auroc", "average_precision", "f1_max", "accuracy", "balanced_accuracy", "precision", "recall", "f1"}
    assert better | {"fpr_at_95_tpr", "false_alarm_rate"} == set(found)
    for name in found:
        assert (found[name].difference > 0) == (name in better)
        assert found[name].p_value < 0.01
        assert found[name].interval.low * found[name].interval.high > 0
    assert {name: c.method for name, c in found.items() if c.method == "delong"} == {"auroc": "delong"}
    assert found["f1"].second == image_metrics(strong, truth, 0.5).f1


def test_false_findings_are_as_rare_as_promised():
    generator = np.random.default_rng(4)
    truth = np.arange(90) % 3 == 0
    p_values = {"auroc": [], "average_precision": []}
    for seed in range(150):
        shared = generator.normal(size=90) + truth
        first, second = (shared + 0.7 * generator.normal(size=90) for _ in range(2))
        found = compare_image_metrics(first, second, truth, resampling=Resampling(199, seed=seed))
        for name, values in p_values.items():
            values.append(found[name].p_value)
    for values in p_values.values():
        assert 0.02 <= np.mean(np.array(values) < 0.1) <= 0.18


def test_replicates_of_anything_can_be_compared():
    drawn = np.linspace(0.4, 0.6, 99)
    found = compare_replicates(
        {"aupro": 0.5, "iou": np.nan}, {"aupro": 0.7}, {"aupro": drawn}, {"aupro": drawn + 0.2}, 0.9
    )
    assert set(found) == {"aupro"}
    assert found["aupro"].difference == pytest.approx(0.2)
    assert found["aupro"].p_value == pytest.approx(2 / 100)
