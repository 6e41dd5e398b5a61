"""Comparison of a candidate with the present model: rates, paired tests, recommendation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from adctl.errors import DataError
from adctl.evaluation.candidate import ScoredImages, compare_candidate, compare_scores, rule_of
from adctl.metrics.comparison import mcnemar
from adctl.records import CalibrationScores, Sample, Verdict
from adctl.thresholds.methods import ThresholdRule, calibrate

GOOD = np.random.default_rng(0).normal(0, 1, 200)


def calibration(scores=GOOD, method="conformal", level=0.05, **evidence):
    found = CalibrationScores(tuple(sorted(float(one) for one in scores)), **evidence)
    return calibrate(ThresholdRule(method, level), found)[0]


def images(label, present, candidate):
    samples = tuple(Sample(Path(f"{label}{n}.png"), f"{label}{n}", label) for n in range(len(present)))
    return ScoredImages(samples, np.asarray(present, float), np.asarray(candidate, float))


def compared(good, defects, **options):
    return compare_scores((Path("p"), calibration()), (Path("c"), calibration()), good, defects, **options)


@given(first=st.integers(0, 40), second=st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_more_defects_found_is_accepted():
    found = compared(images("good", [0.0] * 30, [0.0] * 30), images("crack", [0.0] * 12, [9.0] * 12))
    assert found.recommendation == "accept"
    assert (found.recall.better, found.recall.worse) == (12, 0)
    assert found.models[-1].recall.share == 1
    assert [one.label for one in found.changed] == ["crack"] * 12
    assert (found.changed[0].before, found.changed[0].after) == (Verdict.GOOD, Verdict.REJECT)


def test_fewer_false_alarms_need_reviewed_defects_to_be_accepted():
    good = images("good", [9.0] * 12, [0.0] * 12)
    with_defects = compared(good, images("crack", [9.0] * 5, [9.0] * 5))
    assert with_defects.recommendation == "accept"
    alone = compared(good, images("crack", [], []))
    assert alone.recommendation == "no evidence of a difference"
    assert "recall" in alone.reason
    assert alone.models[-1].recall is None


def test_missed_defects_weigh_more_than_false_alarms():
    good = images("good", [9.0] * 30, [0.0] * 30)
    many = compared(good, images("crack", [9.0] * 12, [0.0] * 12))
    assert many.recommendation == "do not accept"
    assert "Recall falls" in many.reason
    few = compared(good, images("crack", [9.0, 9.0], [0.0, 9.0]))
    assert few.recommendation == "no evidence of a difference"
    assert "1 defects that were found are missed" in few.reason


def test_more_false_alarms_are_not_accepted():
    found = compared(images("good", [0.0] * 12, [9.0] * 12), images("crack", [9.0], [9.0]))
    assert found.recommendation == "do not accept"
    assert found.reason.startswith("False alarms rise by 12")


def test_good_images_that_set_the_threshold_are_judged_without_their_own_score():
    """By its own score the highest of few images is never above a threshold from it."""
    scores = np.append(np.zeros(99), 5.0)
    own = calibration(scores, level=0.01)
    good = images("good", np.zeros(100), scores)
    naive = compare_scores((Path("p"), own), (Path("c"), own), good, images("crack", [], []))
    honest = compare_scores((Path("p"), own), (Path("c"), own), good, images("crack", [], []), calibrated_on_them=True)
    assert naive.models[-1].false_alarms.count == 0
    assert honest.models[-1].false_alarms.count == 1
    assert honest.models[-1].threshold == naive.models[-1].threshold


def test_the_measured_rate_of_a_candidate_is_near_its_promise():
    rates = []
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(0, 1, 300)
        own = calibration(scores, level=0.05)
        found = compare_scores(
            (Path("p"), own), (Path("c"), own), images("good", scores, scores), images("x", [], []),
            calibrated_on_them=True,
        )  # fmt: skip
        rates.append(found.models[-1].false_alarms.share)
    assert 0.03 < np.mean(rates) < 0.07


def test_the_rule_of_the_present_model_is_kept_where_it_can_be():
    assert rule_of(calibration())[0] == ThresholdRule("conformal", 0.05)
    recall = calibration(method="recall", level=0.9, defective=(2.0, 3.0))
    assert rule_of(recall, defects=True)[0].method == "recall"
    rule, note = rule_of(recall)
    assert rule == ThresholdRule()
    assert "recall" in note


def test_without_images_there_is_nothing_to_compare():
    with pytest.raises(DataError, match="no image"):
        compared(images("good", [], []), images("crack", [], []))


def test_two_files_are_compared_on_images_that_neither_learned_from(patchcore, zippers, tmp_path):
    from conftest import settings

    from adctl.training.single_run import train_once

    other = train_once(settings(arch="padim", data=zippers, runs=tmp_path))
    found = compare_candidate(patchcore.model, other.model, zippers / "test" / "good", zippers / "test" / "rough")
    assert [one.name for one in found.models] == ["present", "candidate"]
    assert found.models[0].false_alarms.total == len(list((zippers / "test" / "good").iterdir()))
    assert found.models[0].recall.total == 1
    with pytest.raises(DataError, match="no image"):
        compare_candidate(patchcore.model, other.model, zippers / "train" / "good")
