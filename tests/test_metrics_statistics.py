"""Statistics of scores against NumPy, SciPy and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from adctl.errors import DataError
from adctl.metrics.statistics import distribution, distributions, effect_size, normality

few = settings(max_examples=40, deadline=None)
scores = st.lists(st.one_of(st.floats(-1e6, 1e6), st.integers(-3, 3).map(float)), min_size=1, max_size=30)


@few
@given(scores)
def test_a_summary_is_numpys(values):
    found = distribution(values)
    assert (found.count, found.minimum, found.maximum) == (len(values), min(values), max(values))
    assert found.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert (found.q25, found.median, found.q75) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert (found.sd is None) == (len(values) == 1)
    if len(values) > 1:
        assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-9)
    if len(set(values)) == 1:
        assert found.skewness is None
        assert found.normality is None


def test_no_scores_have_no_distribution():
    assert distribution([]) is None
    assert distributions([], []) == {}
    assert effect_size([], [1.0]) is effect_size([1.0], []) is None


def test_skewness_and_normality_are_scipys():
    values = np.random.default_rng(0).gamma(2, size=200)
    found = distribution(values)
    assert found.skewness == pytest.approx(stats.skew(values))
    assert found.normality.test == "shapiro-wilk"
    assert found.normality.p_value == pytest.approx(stats.shapiro(values).pvalue, rel=1e-6)
    many = np.random.default_rng(0).normal(size=5001)
    assert normality(many).test == "dagostino-pearson"
    assert normality(many).p_value == pytest.approx(stats.normaltest(many).pvalue)


def test_normality_is_the_same_in_any_unit_and_needs_three_scores_that_vary():
    values = np.random.default_rng(1).normal(size=50)
    assert normality(1e6 + 1e-3 * values).p_value == pytest.approx(normality(values).p_value, rel=1e-3)
    assert normality(np.array([1.0, 2.0])) is None
    assert normality(np.full(9, 0.1)) is None


def test_classes_are_kept_apart_with_the_good_ones_first():
    found = distributions([5.0, 1.0, 3.0, 7.0], ["hole", "good", "good", "crack"])
    assert list(found) == ["good", "crack", "hole"]
    assert found["good"] == distribution([1.0, 3.0])


@few
@given(scores, scores)
def test_cliffs_delta_is_its_definition_and_twice_the_auroc_less_one(good, defective):
    found = effect_size(good, defective)
    pairs = np.sign(np.subtract.outer(np.array(defective), np.array(good)))
    assert found.cliffs_delta == pytest.approx(pairs.mean(), abs=1e-12)
    truth = [False] * len(good) + [True] * len(defective)
    assert found.cliffs_delta == pytest.approx(2 * roc_auc_score(truth, good + defective) - 1, abs=1e-12)


def test_cohens_d_is_the_difference_in_pooled_standard_deviations():
    generator = np.random.default_rng(2)
    good, defective = generator.normal(0, 1, 50), generator.normal(2, 3, 20)
    pooled = np.sqrt((49 * good.var(ddof=1) + 19 * defective.var(ddof=1)) / 68)
    assert effect_size(good, defective).cohens_d == pytest.approx((defective.mean() - good.mean()) / pooled)
    # Student's t is the same distance in standard errors.
    t = stats.ttest_ind(defective, good).statistic
    assert effect_size(good, defective).cohens_d == pytest.approx(t * np.sqrt(1 / 50 + 1 / 20))


@pytest.mark.parametrize(("good", "defective"), [([1.0], [2.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_without_spread_there_is_no_cohens_d(good, defective):
    found = effect_size(good, defective)
    assert (found.cohens_d, found.cliffs_delta) == (None, 1.0)


@pytest.mark.parametrize("function", [distribution, lambda values: effect_size([1.0], values)])
def test_scores_that_are_not_finite_are_refused(function):
    with pytest.raises(DataError, match="not finite"):
        function([1.0, np.nan])
