"""Thresholds from scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from adctl import calibration
from adctl.errors import DataError
from adctl.records import Calibration, Verdict

scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60).map(
    lambda values: np.array(values, np.float64)
)


@given(good=scores, percentile=st.floats(1, 100))
def test_percentile_is_numpys(good, percentile):
    assert calibration.by_percentile(good, percentile).value == np.percentile(good, percentile)


@given(good=scores, rate=st.floats(0.01, 0.99))
def test_false_alarm_threshold_is_exceeded_by_few_enough(good, rate):
    found = calibration.by_false_alarm(good, rate)
    above = np.count_nonzero(good > found.value)
    assert found.value in good
    if found.note is None:
        assert above <= rate * (len(good) + 1)
    else:
        assert above == 0
        assert (len(good) + 1) * rate < 1 + 1e-6


def test_too_few_images_are_told_how_many_it_takes():
    found = calibration.by_false_alarm(np.arange(20.0), 0.01)
    assert found.value == 19
    assert "takes 99" in found.note
    assert calibration.by_false_alarm(np.arange(99.0), 0.01).note is None


def test_the_promised_false_alarm_rate_holds_over_many_draws():
    generator = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        good = generator.gamma(2.0, size=59)
        threshold = calibration.by_false_alarm(good, 0.05).value
        alarms.append(generator.gamma(2.0) > threshold)
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(alarms))


@settings(max_examples=60)
@given(good=scores, defective=scores)
def test_best_f1_is_the_best_there_is(good, defective):
    found = calibration.by_best_f1(good, defective)
    both = np.concatenate([good, defective])
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(defective))])
    candidates = [f1_score(labels, both >= value) for value in np.unique(both)]
    assert found.level == pytest.approx(max(candidates))


def test_best_f1_threshold_parts_the_classes():
    found = calibration.by_best_f1(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert found.value == 2.5
    assert found.level == 1.0


def test_calibration_carries_what_it_rests_on():
    good, cells = np.arange(100.0), np.arange(400, dtype=np.float32).reshape(100, 4)
    chosen, note = calibration.calibrate("percentile", good, cells, percentile=95)
    assert note is None
    assert (chosen.good_images, chosen.level, chosen.threshold) == (100, 95, np.percentile(good, 95))
    assert chosen.pixel_threshold == pytest.approx(np.percentile(cells, 99.5))
    assert chosen.expected_false_alarm == pytest.approx(6 / 101)
    assert chosen.verdict(chosen.threshold) is Verdict.NORMAL
    assert chosen.verdict(chosen.threshold + 1e-9) is Verdict.ANOMALOUS


def test_calibration_survives_json():
    import json
    from dataclasses import asdict

    chosen, _ = calibration.calibrate("false-alarm", np.arange(9.0), np.ones((9, 4), np.float32), false_alarm=0.2)
    assert Calibration.from_dict(json.loads(json.dumps(asdict(chosen)))) == chosen


def test_no_scores_and_broken_scores_are_refused():
    with pytest.raises(DataError, match="no scores"):
        calibration.by_percentile(np.array([]), 99)
    with pytest.raises(DataError, match="not finite"):
        calibration.by_percentile(np.array([1.0, np.nan]), 99)
