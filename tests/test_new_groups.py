"""Thresholds for new groups: the promise holds for groups that differ, few groups promise little."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import CommandLine, settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.config import LoadedSettings, names_of
from adctl.errors import DataError, UsageError
from adctl.records import CalibrationScores
from adctl.thresholds import conformal, new_groups
from adctl.thresholds.decision import DecisionRule
from adctl.thresholds.methods import ThresholdRule, calibrate, leave_group_out
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once


def drawn(random, groups, between, sizes=(3, 12)):
    """Scores of groups that differ, with their groups; the spread within a group is 1."""
    scores, names = [], []
    for number in range(groups):
        count = random.integers(*sizes)
        scores += (random.normal(0, between) + random.gumbel(0, 1, count)).tolist()
        names += [f"g{number:02}"] * count
    return np.array(scores), names


def evidence(scores, names, **more):
    order = np.argsort(scores)
    ascending = tuple(scores[order].tolist())
    return CalibrationScores(ascending, ascending, groups=tuple(names[place] for place in order), **more)


@pytest.mark.parametrize("groups", [4, 9, 19, 40])
@pytest.mark.parametrize("between", [0.0, 1.0, 4.0])
def test_the_promise_holds_for_groups_that_differ(groups, between):
    random, rate, alarms = np.random.default_rng(groups), 0.1, []
    for _ in range(1000):
        good, names = drawn(random, groups, between)
        threshold = new_groups.by_new_group(good, names, rate).value
        alarms.append(np.mean(drawn(random, 1, between)[0] > threshold))
    promised = new_groups.promised_rate(names, rate)
    assert promised == max(rate, 1 / (groups + 1))
    assert np.mean(alarms) <= promised + 3 * np.std(alarms) / np.sqrt(len(alarms))


def test_images_of_few_groups_do_not_count_as_independent():
    """The reason for the method: the rule for exchangeable images breaks its promise when groups differ."""
    random, alarms = np.random.default_rng(0), []
    for _ in range(400):
        good, _ = drawn(random, 1, 4.0, (50, 51))
        threshold = conformal.by_false_alarm(good, 0.08).value
        alarms.append(np.mean(drawn(random, 1, 4.0)[0] > threshold))
    assert 0.3 < np.mean(alarms) <= 0.5  # one group can promise 1 / 2 at best


@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from([0.05, 0.1, 0.3]))
def test_groups_of_one_image_are_images(count, seed, rate):
    good = np.random.default_rng(seed).normal(0, 1, count).round(1)
    names = [str(number) for number in range(count)]
    assert new_groups.by_new_group(good, names, rate).value == conformal.by_false_alarm(good, rate).value
    scores = np.linspace(-3, 3, 13).round(1)
    assert new_groups.exceedance(good, names, scores, or_equal=True) == pytest.approx(conformal.p_values(good, scores))


@given(st.integers(2, 20), st.integers(0, 1000), st.sampled_from([0.02, 0.1, 0.25]))
def test_threshold_and_p_value_agree_with_the_definition(groups, seed, rate):
    good, names = drawn(np.random.default_rng(seed), groups, 2.0)
    sizes = {name: names.count(name) for name in names}

    def weight_above(value):
        heavy = sum(1 / sizes[name] for score, name in zip(good, names, strict=True) if score > value)
        return (heavy + 1) / (groups + 1)

    found = new_groups.by_new_group(good, names, rate)
    assert new_groups.exceedance(good, names, np.array([found.value]))[0] == pytest.approx(weight_above(found.value))
    lower = good[good < found.value]
    if found.note is None:
        assert weight_above(found.value) <= rate + 1e-9
        assert not len(lower) or weight_above(lower.max()) > rate
    else:
        assert found.value == good.max()
        assert rate < 1 / (groups + 1)


def test_too_few_groups_say_what_they_can_promise():
    good, names = drawn(np.random.default_rng(0), 4, 1.0)
    chosen, notes = calibrate(ThresholdRule("new-groups", 0.01), evidence(good, names))
    assert "4 groups cannot promise a false-alarm rate of 0.01 on a new group: that needs 99" in notes[0]
    assert "promises 0.2" in notes[0]
    assert (chosen.promised_false_alarm, chosen.threshold) == (0.2, good.max())
    for seen in (evidence(good, ["a"] * len(good)), evidence(good, names[:0] or ["b"] * len(good))):
        with pytest.raises(DataError, match="of one group") as error:
            calibrate(ThresholdRule("new-groups", 0.1), seen)
        assert "--group" in error.value.remedy
    with pytest.raises(DataError, match="have no groups"):
        calibrate(ThresholdRule("new-groups", 0.1), CalibrationScores((1.0, 2.0)))


def test_groups_that_differ_are_told_and_groups_that_do_not_are_not():
    random = np.random.default_rng(1)
    _, told = calibrate(ThresholdRule(), evidence(*drawn(random, 8, 5.0)))
    assert "Scores differ between groups: expect up to " in told[0]
    assert "--new-groups" in told[0]
    silent = [calibrate(ThresholdRule(), evidence(*drawn(random, 8, 0.0)))[1] for _ in range(50)]
    assert sum(map(bool, silent)) <= 3
    assert calibrate(ThresholdRule("new-groups", 0.2), evidence(*drawn(random, 8, 5.0)))[1] == ()


def test_scores_by_group():
    good = np.array([1.0, 2.0, 3.0, 10.0, 11.0, 2.0, 2.5])
    found = leave_group_out(ThresholdRule("percentile", 100), evidence(good, list("aaabbcc")))
    assert [(one.group, one.images, one.median, one.false_alarm) for one in found] == [
        ("b", 2, 10.5, 1.0),
        ("a", 3, 2.0, 0.0),
        ("c", 2, 2.25, 0.0),
    ]


def test_scores_of_groups_promise_nothing_by_the_rules_for_images():
    good, names = drawn(np.random.default_rng(0), 20, 1.0)
    assert calibrate(ThresholdRule("conformal", 0.1), evidence(good, names))[0].promised_false_alarm is None
    chosen, _ = calibrate(ThresholdRule("new-groups", 0.1), evidence(good, names))
    assert chosen.promised_false_alarm == 0.1
    assert chosen.expected_false_alarm <= 0.1
    rule = DecisionRule(chosen)
    above = np.nextafter(chosen.threshold, np.inf)
    assert rule(above).p_value <= 0.1 < rule(chosen.threshold).p_value


@pytest.fixture(scope="module")
def lots(tmp_path_factory, zippers):
    """Good zippers of five lots, of which the images differ in brightness."""
    import cv2

    folder = tmp_path_factory.mktemp("lots") / "good"
    folder.mkdir()
    for number, file in enumerate(sorted((zippers / "train" / "good").iterdir())):
        image = cv2.imread(str(file)) * (0.7 + 0.1 * (number % 5))
        cv2.imwrite(str(folder / f"lot{number % 5}_{number:02}.png"), image.astype(np.uint8))
    return folder


def test_commands_calibrate_for_new_groups(lots, tmp_path):
    run = CommandLine(tmp_path)
    done = run("train", "--good", lots, "--arch", "padim", "--image-size", 64, "--group", "lot{group}_", "--new-groups",
               "--calibration-share", 0.4, "--name", "line", "--device", "cpu")  # fmt: skip
    assert "of new groups, on average: guaranteed" in done.stdout
    again = run.json("calibrate", "--model", "line", "--new-groups", "--max-false-alarm", 0.4)["result"]["calibration"]
    assert (again["method"], again["promised_false_alarm"]) == ("new-groups", 0.4)
    assert len(set(again["evidence"]["groups"])) == 2
    checked = run.json("fetch", "check", lots, "--group", "lot{group}_")["result"][0]
    assert checked["groups"] == dict.fromkeys("01234", 4)
    other = tmp_path / "other"
    for number, file in enumerate(sorted(lots.iterdir())):
        place = other / f"day{number % 3}" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes() + b" ")
    chosen = run.json("calibrate", "--model", "line", "--good", other, "--group", "folder", "--new-groups")
    assert set(chosen["result"]["calibration"]["evidence"]["groups"]) == {"day0", "day1", "day2"}
    assert "3 groups cannot promise" in json.dumps(chosen["warnings"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"new_groups": True}, "the images have none"),
        ({"new_groups": True, "group": "lot{group}_", "calibration_share": 0.1}, "holds out only 1"),
    ],
)
def test_training_for_new_groups_needs_groups(lots, tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        plan_training(settings(arch="padim", good=lots, runs=tmp_path, **values).settings)


def test_folds_hold_out_each_group(lots, tmp_path):
    from adctl.training.cross_validation import cross_validate

    made = cross_validate(
        settings(arch="padim", good=lots, group="lot{group}_", folds=5, new_groups=True, runs=tmp_path, name="line")
    )
    calibration = made.trained.calibration
    assert calibration.method == "new-groups"
    assert sorted(set(calibration.evidence.groups)) == list("01234")
    assert [fold.held_out for fold in made.folds] == [4] * 5  # one group each: their own thresholds are for images


def test_the_report_shows_groups(lots, zippers, tmp_path):
    from adctl.config import ScoreSettings
    from adctl.evaluation.evaluate import evaluate
    from adctl.reporting.content import build_content
    from adctl.scoring.score import score
    from adctl.scoring.score_set import ScoreSet

    for label in ("good", "rough"):
        for number, file in enumerate(sorted((zippers / "test" / label).iterdir())):
            place = tmp_path / "test" / label / f"lot{number % 2}_{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    made = train_once(
        settings(arch="padim", good=lots, test=tmp_path / "test", group="lot{group}_", calibration_share=0.6,
                 runs=tmp_path / "runs", name="line")
    )  # fmt: skip
    given = ScoreSettings(model=made.model, runs=tmp_path / "runs", out=tmp_path / "scored", device="cpu")
    score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "test")))
    scores = ScoreSet.load(tmp_path / "scored")
    tables = {table.title: table for table in build_content(scores, evaluate(scores)).tables}
    assert [row[:2] for row in tables["By group"].rows] == [("0", "4"), ("1", "3")]
    assert len(tables["Groups of the calibration"].rows) == 3


def test_all_groups_are_learned_from_and_each_is_left_out(lots, tmp_path):
    made = train_once(
        settings(arch="padim", good=lots, group="lot{group}_", new_groups=True, runs=tmp_path, name="line")
    )
    calibration = made.calibration
    assert made.images == calibration.good_images == 20
    assert (sorted(set(calibration.evidence.groups)), calibration.evidence.folds) == (list("01234"), 5)
    assert calibration.promised_false_alarm == pytest.approx(2 / 6)
    assert calibration.threshold == max(calibration.evidence.good)
