"""Drift of scores from the calibration, and the answer of the learning curve: how many images are enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.thresholds import drift
from adctl.thresholds.sample_size import LearningPoint, estimate_sample_size, training_sizes


def draws(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4.0, size=size)


def test_no_drift_is_seldom_called_drift():
    found = [drift.measure_drift(draws(2 * seed, 60), draws(2 * seed + 1, 80)) for seed in range(300)]
    assert sum(one.drifted for one in found) <= 9  # at most 1 % expected; 10 or more by chance in 1 of 1,000


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_defects_are_not_called_drift(share):
    found = []
    for seed in range(200):
        good = draws(2 * seed + 1, 100)
        good[: round(share * 100)] += 30
        found.append(drift.measure_drift(draws(2 * seed, 60), good))
    assert sum(one.drifted for one in found) <= 7
    assert np.mean([one.high_share for one in found]) == pytest.approx(0.1 + 0.9 * share, abs=0.03)


@pytest.mark.parametrize("change", [lambda good: good + 1.5, lambda good: good * 0.6, lambda good: good - 2])
def test_images_that_look_different_are_told_even_among_defects(change):
    for seed in range(20):
        today = change(draws(2 * seed + 1, 200))
        today[:20] += 40
        found = drift.measure_drift(draws(2 * seed, 100), today)
        assert found.drifted
        assert found.ks_p_value < 0.01
        assert found.psi > found.psi_by_chance + 0.1
        moved = "higher" if np.median(today) > np.median(draws(2 * seed, 100)) else "lower"
        assert moved in found.reason


def test_nearly_all_images_high_is_told_as_what_it_is():
    found = drift.measure_drift(draws(0, 60), draws(1, 50) + 100)
    assert found.drifted
    assert "either nearly all are defective" in found.reason
    assert (found.compared, found.ks) == (0, None)


def inputs(seed: int, size: int, **changes: float) -> np.ndarray:
    """Statistics of images of one camera; a change is added to the named one."""
    usual = np.array([120.0, 0.3, 34.0, 33.0, 640.0, 480.0])
    table = usual + np.random.default_rng(seed).normal(size=(size, 6)) * [3, 0.02, 0.3, 0.3, 0, 0]
    for name, change in changes.items():
        table[:, list(drift.INPUTS).index(name.replace("_", " "))] += change
    return table


def test_bad_parts_are_no_drift():
    """8 really bad parts of 14, which look different too, and later 30 of 40."""
    ranges = drift.input_ranges(inputs(0, 20))
    for bad, good in ((8, 6), (30, 10)):
        scores = np.concatenate([draws(1, bad) + 100, draws(2, good)])
        table = np.concatenate([inputs(1, bad, brightness=60, sharpness=0.4), inputs(2, good)])
        found = drift.measure_drift(draws(0, 60), scores, rejected=scores > 20, ranges=ranges, inputs=table)
        assert not found.drifted, found.reason


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": -30},
        {"brightness": 40},
        {"sharpness": -0.2},
        {"share_of_red": 6},
        {"share_of_blue": -6},
        {"width": 60},
    ],
    ids=str,
)
def test_changed_images_are_drift_whatever_their_scores(change):
    ranges = drift.input_ranges(inputs(0, 20))
    name = next(iter(change)).replace("_", " ")
    for scores in (draws(1, 14), draws(1, 14) + 100):
        found = drift.measure_drift(
            draws(0, 60), scores, rejected=scores > 20, ranges=ranges, inputs=inputs(1, 14, **change)
        )
        assert found.drifted
        assert found.changed[0].startswith(name)
        assert f"the images have changed: {name}" in found.reason


@pytest.mark.parametrize(("count", "new"), [(10, 5), (12, 14), (20, 50), (60, 8)])
def test_unchanged_images_are_seldom_called_changed(count, new):
    found = [
        drift.measure_drift(
            draws(3 * seed, count),
            draws(3 * seed + 1, new),
            ranges=drift.input_ranges(inputs(seed, count)),
            inputs=inputs(999 + seed, new),
        )
        for seed in range(300)
    ]
    assert sum(bool(one.changed) for one in found) <= 6


def test_light_that_is_a_third_weaker_is_seen_among_images_that_vary():
    varied = inputs(0, 12)
    varied[:, 0] = np.random.default_rng(0).normal(87, 5.5, 12)
    darker = inputs(1, 14)
    darker[:, 0] = np.random.default_rng(1).normal(61, 4, 14)
    found = drift.measure_drift(draws(0, 12), draws(1, 14), ranges=drift.input_ranges(varied), inputs=darker)
    assert [text.split()[0] for text in found.changed] == ["brightness"]


def test_unknown_statistics_are_left_out():
    unknown = np.full((14, 6), np.nan)
    assert drift.input_ranges(inputs(0, 9)) == ()
    ranges = drift.input_ranges(inputs(0, 10))
    assert not drift.measure_drift(draws(0, 60), draws(1, 14), ranges=ranges, inputs=unknown).changed
    assert not drift.measure_drift(draws(0, 60), draws(1, 14), inputs=inputs(0, 14, brightness=90)).changed


def test_too_few_images_say_nothing():
    assert drift.measure_drift(draws(0, 60), np.array([])) is None
    few = drift.measure_drift(draws(0, 60), draws(1, 5))
    assert not few.drifted
    assert "too few" in few.reason
    assert "4 calibration images" in drift.measure_drift(draws(0, 4), draws(1, 50)).reason
    assert not drift.measure_drift(np.full(50, 2.0), draws(1, 50)).drifted  # all alike: nothing lies below


@given(
    reference=st.lists(st.integers(0, 20), min_size=10, max_size=80),
    today=st.lists(st.integers(0, 20), min_size=1, max_size=80),
)
def test_stability_index_is_never_negative_and_zero_for_the_same(reference, today):
    first, second = np.array(reference, np.float64), np.array(today, np.float64)
    assert drift.population_stability(first, second)[0] >= -1e-12
    assert drift.population_stability(first, first)[0] == 0


def test_stability_index_is_by_chance_what_it_is_said_to_be():
    found = [drift.population_stability(draws(2 * s, 200), draws(2 * s + 1, 300)) for s in range(300)]
    assert np.mean([index for index, _ in found]) == pytest.approx(found[0][1], rel=0.2)


def curve(*values: float, aurocs: bool = False) -> tuple[LearningPoint, ...]:
    return tuple(
        LearningPoint(10 * 2**index, (value,), (value,) if aurocs else (), 1.0) for index, value in enumerate(values)
    )


def test_the_answer_says_how_many_are_enough():
    found = estimate_sample_size(curve(9.0, 5.0, 3.1, 3.0, 3.05), 120, 0.01)
    assert found.enough == 40
    assert "40 good images are enough" in found.text
    assert "needs 99 held-out good images; there are 120" in found.text


def test_the_answer_owns_up_when_more_would_help():
    found = estimate_sample_size(curve(9.0, 5.0, 3.0), 12, 0.05)
    assert found.enough is None
    assert "from 20 to 40" in found.text
    assert "needs 19 held-out good images; there are only 12" in found.text
    assert "too few for a learning curve" in estimate_sample_size(curve(9.0), 12, 0.05).text


def test_with_defects_the_auroc_answers():
    assert estimate_sample_size(curve(0.8, 0.95, 0.955, 0.952, aurocs=True), 99, 0.01).enough == 20


def test_sizes_grow_to_all_there_are():
    assert training_sizes(80, 5) == (5, 9, 15, 26, 46, 80)
    assert training_sizes(4, 5) == (4,)
    assert training_sizes(6, 5) == (5, 6)
