"""Thresholds, p-values and probabilities computed from scores."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import gamma, genpareto, lognorm, norm
from scipy.stats import t as student_t
from sklearn.metrics import f1_score, precision_score, recall_score

from adctl import documents
from adctl.config import CalibrationMethod
from adctl.errors import DataError, UsageError
from adctl.records import Calibration, CalibrationScores, Verdict
from adctl.thresholds import conformal, pareto_tail, smooth_tail, supervised, unsupervised
from adctl.thresholds.decision import DecisionRule, anomaly_probabilities, fit_probability
from adctl.thresholds.methods import METHODS, ThresholdRule, calibrate

scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60).map(
    lambda values: np.array(values, np.float64)
)
few = st.lists(st.integers(-9, 9), min_size=1, max_size=12).map(lambda values: np.array(values, np.float64))
rates = st.floats(0.01, 0.99)


def evidence(good, defective=(), **more) -> CalibrationScores:
    return CalibrationScores(
        tuple(sorted(good)), tuple(sorted(2 * value for value in good)), tuple(sorted(defective)), **more
    )


@given(good=scores, percentile=st.floats(1, 100))
def test_percentile_is_numpys(good, percentile):
    assert unsupervised.by_percentile(good, percentile).value == np.percentile(good, percentile)


def test_sigma_and_mad_on_normal_scores_agree_and_mad_alone_bears_an_outlier():
    good = np.random.default_rng(0).normal(5, 2, 20_000)
    assert unsupervised.by_sigma(good, 3).value == pytest.approx(11, abs=0.15)
    assert unsupervised.by_mad(good, 3).value == pytest.approx(11, abs=0.15)
    spoilt = np.append(good[:200], 1e6)
    assert unsupervised.by_mad(spoilt, 3).value < 13
    assert unsupervised.by_sigma(spoilt, 3).value > 1e5


@given(good=scores, rate=rates)
def test_conformal_threshold_is_exceeded_by_few_enough(good, rate):
    found = conformal.by_false_alarm(good, rate)
    above = np.count_nonzero(good > found.value)
    assert found.value in good
    if found.note is None:
        assert above + 1 <= rate * (len(good) + 1) + 1e-6
        assert len(good) >= conformal.images_needed(rate)
    else:
        assert above == 0
        assert len(good) < conformal.images_needed(rate)


@given(good=scores, others=scores, rate=rates)
def test_a_p_value_is_at_most_the_rate_exactly_above_the_threshold(good, others, rate):
    found = conformal.by_false_alarm(good, rate)
    assume(found.note is None)
    tried = np.concatenate([good, others, np.nextafter(good, np.inf)])
    np.testing.assert_array_equal(conformal.p_values(good, tried) <= rate + 1e-9, tried > found.value)


@given(good=scores, others=scores)
def test_p_values_fall_as_scores_rise_and_are_shares_of_good_images(good, others):
    ordered = np.sort(others)
    values = conformal.p_values(good, ordered)
    assert (np.diff(values) <= 0).all()
    assert (values >= 1 / (len(good) + 1)).all()
    assert (values <= 1).all()
    assert values[0] == (1 + np.count_nonzero(good >= ordered[0])) / (len(good) + 1)


def test_p_values_of_good_images_are_uniform():
    generator = np.random.default_rng(1)
    values = [conformal.p_values(draw[:-1], draw[-1:])[0] for draw in generator.gamma(2.0, size=(10_000, 20))]
    shares = np.bincount(np.round(np.array(values) * 20).astype(int), minlength=21)[1:] / len(values)
    assert shares == pytest.approx(np.full(20, 0.05), abs=0.009)  # four standard errors


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.001, 999)])
def test_too_few_images_are_told_how_many_it_takes(rate, needed):
    assert conformal.images_needed(rate) == needed
    assert conformal.by_false_alarm(np.arange(float(needed)), rate).note is None
    short = conformal.by_false_alarm(np.arange(needed - 1.0), rate)
    assert f"needs {needed}" in short.note
    assert short.value == needed - 2


LAWS = {
    "gamma": lambda generator, size: generator.gamma(2.0, size=size),
    "lognormal": lambda generator, size: generator.lognormal(0, 0.6, size=size),
    "two kinds of good part": lambda generator, size: (
        generator.gamma(4.0, size=size) + 12 * (generator.random(size) < 0.1)
    ),
    "heavy tail": lambda generator, size: generator.pareto(2.5, size=size),
    "coarse, with ties": lambda generator, size: generator.poisson(3.0, size=size).astype(float),
}
"""What scores of good images look like; none is what conformal prediction would assume, as it assumes none."""

SPLITS = 4000


def false_alarms(law, count: int, choose) -> float:
    """The share of false alarms over many calibration sets, one new good image for each."""
    draws = LAWS[law](np.random.default_rng(7), (SPLITS, count + 1))
    return float(np.mean([draw[-1] > choose(draw[:-1]).value for draw in draws]))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (25, 0.05), (99, 0.01)])
def test_the_promised_false_alarm_rate_holds_over_many_splits(law, count, rate):
    found = false_alarms(law, count, lambda good: conformal.by_false_alarm(good, rate))
    allowed = rate + np.sqrt(np.log(1 / 1e-4) / 2 / SPLITS) * 2 * np.sqrt(rate)  # exceeded by chance in 1 of 10,000
    assert found <= allowed
    if "ties" not in law:
        assert found >= conformal.guaranteed_rate(count, rate) - 4 * np.sqrt(rate / SPLITS)  # nor is it given away


@pytest.mark.parametrize("law", [law for law in LAWS if "ties" not in law])
def test_the_plain_percentile_breaks_its_promise_where_images_are_few(law):
    count, rate = 19, 0.05
    found = false_alarms(law, count, lambda good: unsupervised.by_percentile(good, 100 * (1 - rate)))
    assert found > rate + 5 * np.sqrt(rate * (1 - rate) / SPLITS)
    owned_up, _ = calibrate(ThresholdRule("percentile", 95.0), evidence(np.arange(19.0)))
    assert owned_up.promised_false_alarm == pytest.approx(0.1)
    assert found <= owned_up.promised_false_alarm + 4 * np.sqrt(0.1 / SPLITS)


def test_the_promise_for_map_values_holds_for_whole_images():
    generator = np.random.default_rng(3)
    broken = 0
    for _ in range(1000):
        maps = generator.gamma(2.0, size=(20, 16, 16))
        peaks = maps.max((1, 2))
        good = CalibrationScores(tuple(peaks[:-1]), tuple(peaks[:-1]))
        chosen, _ = calibrate(ThresholdRule("conformal", 0.1), good)
        broken += bool((maps[-1] > chosen.pixel_threshold).any())
    assert broken / 1000 <= 0.1 + 4 * np.sqrt(0.1 * 0.9 / 1000)


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.25])
def test_the_tail_is_found_again(shape):
    good = 10 + genpareto.rvs(shape, scale=3, size=4000, random_state=0)
    for rate in (0.05, 0.001):
        assert pareto_tail.by_tail(good, rate).value == pytest.approx(
            10 + genpareto.isf(rate, shape, scale=3), rel=0.12
        )
    tail = pareto_tail.fit_tail(good)
    assert pareto_tail.survival(tail, np.array([tail.start]))[0] == pytest.approx(tail.share)


def test_the_tail_reaches_beyond_what_was_seen_and_says_so():
    good = np.random.default_rng(0).exponential(size=100)
    found = pareto_tail.by_tail(good, 0.001)
    assert found.value > good.max()
    assert "fitted tail" in found.note
    assert pareto_tail.by_tail(good, 0.3).value == np.quantile(good, 0.7)
    assert pareto_tail.by_tail(np.full(30, 2.0), 0.01).value == 2
    with pytest.raises(DataError, match="at least 20"):
        pareto_tail.by_tail(good[:10], 0.01)


SMOOTH_LAWS = {
    "normal": norm(10, 1),
    "gamma": gamma(9),
    "skewed": gamma(3),
    "lognormal": lognorm(0.3),
    "heavy tail": student_t(5, 20),
}
"""Distributions of scores of good images that the default threshold is made for."""


def rates_of_smooth_tail(law, count: int, draws: int = 1000) -> np.ndarray:
    """Return the exact false-alarm rate of the default threshold for each of many calibration sets."""
    good = law.rvs((draws, count), random_state=0)
    return law.sf([smooth_tail.by_smooth_tail(row, 0.01).value for row in good])


@pytest.mark.parametrize("law", SMOOTH_LAWS)
@pytest.mark.parametrize("count", [20, 50, 200])
def test_the_default_threshold_aims_at_one_percent_whatever_the_number_of_images(law, count):
    found = rates_of_smooth_tail(SMOOTH_LAWS[law], count)
    assert 0.004 < found.mean() < 0.015
    assert np.quantile(found, 0.9) < 0.04


@pytest.mark.parametrize("count", [20, 50, 200])
def test_the_interval_of_the_rate_holds_the_rate(count):
    covered = []
    for seed in range(200):
        good = SMOOTH_LAWS["gamma"].rvs(count, random_state=seed)
        threshold = smooth_tail.by_smooth_tail(good, 0.01).value
        low, high = smooth_tail.false_alarm_interval(good, threshold)
        covered.append(low <= SMOOTH_LAWS["gamma"].sf(threshold) <= high)
    assert np.mean(covered) > 0.85


def test_one_outlying_good_image_does_not_set_the_default_threshold():
    good = np.random.default_rng(0).normal(10, 1, 50)
    spoilt = np.append(good, 30.0)
    assert smooth_tail.by_smooth_tail(spoilt, 0.01).value < 16
    assert unsupervised.by_sigma(spoilt, 3).value > 18


@given(good=scores, rate=rates)
def test_the_smooth_threshold_is_in_order_and_scales_with_the_scores(good, rate):
    found = smooth_tail.by_smooth_tail(good, rate).value
    assert found >= smooth_tail.by_smooth_tail(good, min(1.0, 2 * rate)).value - 1e-6 * abs(found)
    assert smooth_tail.by_smooth_tail(4 * good, rate).value == pytest.approx(4 * found)
    low, high = smooth_tail.false_alarm_interval(good, found)
    assert 0 <= low <= high <= 1


@settings(max_examples=30)
@given(good=few, defective=few)
def test_labelled_thresholds_are_the_best_there_are(good, defective):
    both = np.concatenate([good, defective])
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(defective))])
    calls = [both > value for value in (np.nextafter(both.min(), -np.inf), *np.unique(both))]

    found = supervised.by_best_f1(good, defective)
    assert found.level == pytest.approx(max(f1_score(labels, call, zero_division=0) for call in calls))
    assert f1_score(labels, both > found.value, zero_division=0) == pytest.approx(found.level)

    found = supervised.by_recall(good, defective, 0.7)
    reaching = [call for call in calls if recall_score(labels, call) >= 0.7]
    assert recall_score(labels, both > found.value) >= 0.7
    assert (good > found.value).sum() == min((call & (labels == 0)).sum() for call in reaching)

    costs = supervised.Costs(7, 2)
    found = supervised.by_cost(good, defective, costs)
    paid = [(7 * (~call & (labels == 1)).sum() + 2 * (call & (labels == 0)).sum()) / len(both) for call in calls]
    assert found.level == pytest.approx(min(paid))


@settings(max_examples=30)
@given(good=few, defective=few, precision=st.floats(0.1, 1))
def test_a_precision_is_reached_with_the_highest_recall_or_refused(good, defective, precision):
    both = np.concatenate([good, defective])
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(defective))])
    calls = [both > value for value in (np.nextafter(both.min(), -np.inf), *np.unique(both)[:-1])]
    reaching = [call for call in calls if precision_score(labels, call) >= precision and (call & (labels == 1)).any()]
    if not reaching:
        with pytest.raises(DataError, match="the best is"):
            supervised.by_precision(good, defective, precision)
        return
    call = both > supervised.by_precision(good, defective, precision).value
    assert precision_score(labels, call) >= precision
    assert recall_score(labels, call) == max(recall_score(labels, other) for other in reaching)


def test_the_defect_rate_of_the_line_moves_the_least_cost():
    good, defective = np.arange(10.0), np.arange(5.0, 15.0)
    often = supervised.by_cost(good, defective, supervised.Costs(1, 1, 0.5)).value
    rarely = supervised.by_cost(good, defective, supervised.Costs(1, 1, 0.01)).value
    assert rarely > 9 > often


def test_best_f1_threshold_parts_the_classes():
    found = supervised.by_best_f1(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert found.value == 2.5
    assert found.level == 1.0


def test_calibration_carries_what_it_rests_on():
    good = np.arange(100.0)
    chosen, notes = calibrate(ThresholdRule("percentile", 95), evidence(good))
    assert notes == ()
    assert (chosen.good_images, chosen.level, chosen.threshold) == (100, 95, np.percentile(good, 95))
    assert chosen.pixel_threshold == np.percentile(2 * good, 95)
    assert chosen.expected_false_alarm == pytest.approx(6 / 101)
    assert chosen.verdict(chosen.threshold) is Verdict.GOOD
    assert chosen.verdict(chosen.threshold + 1e-9) is Verdict.REJECT


def test_every_method_chooses_from_the_same_evidence():
    assert get_args(CalibrationMethod) == METHODS
    seen = evidence(np.random.default_rng(0).normal(0, 1, 200), np.random.default_rng(1).normal(3, 1, 50))
    levels = {"percentile": 99, "sigma": 3, "mad": 3, "fixed": 2, "precision": 0.9, "recall": 0.9}
    for method in METHODS:
        chosen, notes = calibrate(ThresholdRule(method, levels.get(method, 0.02)), seen)
        assert notes == ()
        assert 0.5 < chosen.threshold < 4
        assert 0.5 < chosen.pixel_threshold < 8
        assert (chosen.promised_false_alarm is not None) == (method in ("percentile", "conformal"))


def test_two_thresholds_give_three_verdicts():
    chosen, _ = calibrate(ThresholdRule("conformal", 0.02, warn=0.2), evidence(np.arange(99.0)))
    assert (chosen.warn_threshold, chosen.threshold) == (79, 97)
    assert [chosen.verdict(value) for value in (79, 80, 97, 98)] == ["good", "warn", "warn", "reject"]
    with pytest.raises(UsageError, match="not below"):
        calibrate(ThresholdRule("conformal", 0.2, warn=0.02), evidence(np.arange(99.0)))
    with pytest.raises(UsageError, match="only one best threshold"):
        calibrate(ThresholdRule("f1", warn=0.5), evidence([1.0, 2.0], [3.0]))


def test_scores_of_folds_promise_the_bound_of_cross_conformal_prediction():
    chosen, _ = calibrate(ThresholdRule("conformal", 0.1), evidence(np.arange(50.0), folds=5))
    assert chosen.promised_false_alarm == pytest.approx(2 * 5 / 51 + min(1.6 / 11, 0.9 / 6))
    alone, _ = calibrate(ThresholdRule("conformal", 0.1), evidence(np.arange(50.0), folds=50))
    assert alone.promised_false_alarm == pytest.approx(2 * 5 / 51)
    assert chosen.expected_false_alarm <= 0.1


def test_a_threshold_that_decides_nothing_is_told():
    seen = evidence([1.0, 2.0, 3.0], [4.0, 5.0])
    assert "all good images would be rejected" in calibrate(ThresholdRule("fixed", 0.5), seen)[1][0]
    assert "no defect would be found" in calibrate(ThresholdRule("fixed", 9.0), seen)[1][0]


@given(good=scores, defective=scores, tried=scores)
def test_probabilities_never_fall_as_scores_rise(good, defective, tried):
    ordered = np.sort(np.concatenate([tried, good, defective]))
    for seen in (evidence(good), evidence(good, defective)):
        found = anomaly_probabilities(fit_probability(seen), ordered)
        assert (np.diff(found) >= -1e-12).all()
        assert ((found >= 0) & (found <= 1)).all()


def test_probabilities_of_good_scores_are_their_shares_and_go_on_rising_beyond_them():
    good = np.random.default_rng(0).gamma(3, size=500)
    curve = fit_probability(evidence(good))
    assert anomaly_probabilities(curve, np.quantile(good, [0.2, 0.5, 0.95])) == pytest.approx(
        [0.2, 0.5, 0.95], abs=0.02
    )
    beyond = anomaly_probabilities(curve, np.linspace(good.max(), 1.3 * good.max(), 5))
    assert (np.diff(beyond) > 0).all()


def test_probabilities_with_labels_are_those_of_being_defective():
    generator = np.random.default_rng(0)
    good, defective = generator.normal(0, 1, 4000), generator.normal(2, 1, 1000)
    curve = fit_probability(evidence(good, defective))
    tried = np.array([0.0, 1.0, 2.0])
    truth = 1 / (1 + np.exp(2 - 2 * tried))  # of two normal laws, equally frequent
    assert anomaly_probabilities(curve, tried) == pytest.approx(truth, abs=0.06)
    assert 0 < anomaly_probabilities(curve, np.array([-99.0]))[0] < 0.01
    assert 0.99 < anomaly_probabilities(curve, np.array([99.0]))[0] < 1


def test_a_judge_says_all_of_it():
    chosen, _ = calibrate(ThresholdRule("conformal", 0.1), evidence(np.arange(19.0)))
    found = DecisionRule(chosen)(18.5)
    assert (found.verdict, found.p_value) == (Verdict.REJECT, 1 / 20)
    assert found.probability > 0.9


def test_calibration_survives_json():
    for seen in (evidence(np.arange(9.0)), evidence(np.arange(9.0), np.arange(5.0, 12.0), views=("hflip",))):
        chosen, _ = calibrate(ThresholdRule("conformal", 0.2, warn=0.4), seen)
        assert documents.convert(asdict(chosen), Calibration) == chosen


def test_no_scores_and_broken_scores_are_refused():
    with pytest.raises(DataError, match="too few scores of good images: 0,"):
        unsupervised.by_percentile(np.array([]), 99)
    with pytest.raises(DataError, match="at least 2"):
        unsupervised.by_sigma(np.array([1.0]), 3)
    with pytest.raises(DataError, match="1 of 2 scores of good images are not finite"):
        unsupervised.by_percentile(np.array([1.0, np.nan]), 99)
    with pytest.raises(DataError, match="of defective images are not finite"):
        supervised.by_best_f1(np.array([1.0]), np.array([np.inf]))
    with pytest.raises(UsageError, match="needs scores of labelled defective"):
        calibrate(ThresholdRule("recall", 0.9), evidence([1.0, 2.0]))
    with pytest.raises(UsageError, match="Unknown method"):
        calibrate(ThresholdRule("magic"), evidence([1.0, 2.0]))
    with pytest.raises(DataError, match="not finite"):
        calibrate(ThresholdRule(), replace(evidence([1.0, 2.0]), peaks=(1.0, float("nan"))))
