"""Thresholds from the unlabelled first parts of a line: the promise holds for any defects among them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CommandLine
from conftest import settings as train_settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.calibration.calibrate import calibrate as calibrate_model
from adctl.config import CalibrateSettings, LoadedSettings, names_of
from adctl.errors import DataError, UsageError
from adctl.records import CalibrationScores
from adctl.thresholds import conformal, contaminated
from adctl.thresholds.commissioning import commission
from adctl.thresholds.decision import DecisionRule
from adctl.thresholds.methods import ThresholdRule, calibrate

DEFECTS = {"none": None, "far": 8.0, "near": 2.0, "low": -9.0, "equal": 0.0}


def drawn(random, count, defects, share):
    """Scores of the parts of a line: the largest share of them is defective, or none is."""
    bad = 0 if DEFECTS[defects] is None else contaminated.defective_parts(count, share)
    return np.concatenate([random.gumbel(0, 1, count - bad), random.normal(DEFECTS[defects] or 0.0, 0.5, bad)])


def parts(scores, share, **more):
    ascending = tuple(np.sort(scores).tolist())
    return CalibrationScores(ascending, ascending, contaminated=share, **more)


@pytest.mark.parametrize("defects", DEFECTS)
@pytest.mark.parametrize(("count", "share"), [(40, 0.05), (120, 0.05), (120, 0.2)])
def test_the_promise_holds_whatever_the_defects_score(defects, count, share):
    random = np.random.default_rng(count)
    for method, rate in (("trimmed", 0.01), ("conformal", 0.05)):
        choose = contaminated.by_trimmed_tail if method == "trimmed" else contaminated.by_false_alarm
        drawings = [choose(drawn(random, count, defects, share), rate, share).value for _ in range(500)]
        alarms = 1 - np.exp(-np.exp(-np.array(drawings)))  # of a new good part, exactly
        promised = contaminated.promised_rate(method, count, share, rate)
        assert np.mean(alarms) <= promised + 3 * np.std(alarms) / np.sqrt(len(alarms))
        if method == "trimmed" and share < 0.1:
            assert np.mean(alarms) < 0.03  # near its aim, with and without defects


def test_defects_among_the_parts_do_not_hide_others():
    random = np.random.default_rng(0)
    found = {}
    for method, choose in (("trimmed", contaminated.by_trimmed_tail), ("conformal", contaminated.by_false_alarm)):
        thresholds = [choose(drawn(random, 120, "far", 0.05), 0.01, 0.05).value for _ in range(100)]
        found[method] = np.mean([random.normal(8, 0.5) > threshold for threshold in thresholds])
    assert found["trimmed"] > 0.9
    assert found["conformal"] < 0.5  # the price of the promise, which its note names
    _, notes = commission(parts(drawn(random, 120, "far", 0.05), 0.05), method="conformal", rate=0.01)
    assert "one of the 6 highest" in notes[0]
    assert "--contaminated 0" in notes[0]


@given(st.integers(20, 200), st.integers(0, 1000), st.sampled_from([0.01, 0.05, 0.2]))
def test_without_contamination_it_is_the_conformal_threshold(count, seed, rate):
    scores = np.random.default_rng(seed).normal(0, 1, count)
    expected = conformal.by_false_alarm(scores, rate)
    for found in (contaminated.by_false_alarm(scores, rate, 0.0), contaminated.by_trimmed_tail(scores, rate, 0.0)):
        assert found.value == expected.value
    for method in ("trimmed", "conformal"):
        assert contaminated.promised_rate(method, count, 0.0, rate) == conformal.guaranteed_rate(count, rate)
    assert contaminated.p_values(scores, scores, 0.0) == pytest.approx(conformal.p_values(scores, scores))


def test_how_many_parts_a_promise_takes():
    assert contaminated.parts_needed(0.01, 0.0) == conformal.images_needed(0.01) == 99
    assert contaminated.parts_needed(0.01, 0.05) == 105
    scores = np.random.default_rng(0).normal(0, 1, 105)
    assert contaminated.promised_rate("conformal", 105, 0.05, 0.01) <= 0.01
    assert contaminated.promised_rate("conformal", 104, 0.05, 0.01) > 0.01
    assert "that needs 105" in contaminated.by_false_alarm(scores[:104], 0.01, 0.05).note
    assert contaminated.by_false_alarm(scores[:104], 0.01, 0.05).level == pytest.approx(1 / 99)


def test_a_share_that_the_count_cannot_carry_and_too_few_parts():
    scores = np.random.default_rng(0).normal(0, 1, 40)
    with pytest.raises(DataError, match="up to 18 defective of 40 parts the false alarms could be 83 %") as error:
        contaminated.by_trimmed_tail(scores, 0.01, 0.45)
    assert "--contaminated" in error.value.remedy
    with pytest.raises(DataError, match="19 parts are too few") as error:
        contaminated.by_trimmed_tail(scores[:19], 0.01, 0.05)
    assert "100" in error.value.remedy


def test_stored_scores_of_a_line_are_judged_as_such():
    seen = parts(drawn(np.random.default_rng(3), 120, "far", 0.05), 0.05)
    chosen, _ = calibrate(ThresholdRule("conformal", 0.1), seen)
    assert chosen.promised_false_alarm == pytest.approx(11 / 115)
    above = np.nextafter(chosen.threshold, np.inf)
    assert DecisionRule(chosen)(above).p_value <= 0.1 < DecisionRule(chosen)(chosen.threshold).p_value
    assert chosen.score_range[1] < 7  # the defects, at 8, do not stretch the colour scale
    with pytest.raises(UsageError, match="sigma needs images that are known to be good"):
        calibrate(ThresholdRule("sigma", 3.0), seen)
    with pytest.raises(UsageError, match="warning threshold"):
        commission(seen, method="conformal", rate=0.1, warn=0.05)
    assert commission(seen, method="conformal", rate=0.1, warn=0.2)[0].warn_threshold < chosen.threshold


@pytest.fixture(scope="module")
def line(tmp_path_factory, zippers):
    """A folder with a trained PaDiM, and the parts of a line that is darker, three of them defective."""
    import cv2

    from adctl.fetching.demo_dataset import generate

    run = CommandLine(tmp_path_factory.mktemp("line"))
    run("train", "--data", zippers, "--arch", "padim", "--image-size", 64, "--name", "line", "--device", "cpu")
    generate(run.folder / "more", train=40, good=20, per_defect=1, size=96)
    images = sorted((run.folder / "more" / "zipper" / "train" / "good").iterdir())[20:]
    images += sorted((run.folder / "more" / "zipper" / "test" / "good").iterdir())
    images += sorted((run.folder / "more" / "zipper" / "test" / "rough").iterdir())
    for number, file in enumerate(images):
        place = run.folder / "inbox" / f"{number:03}.png"
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), (cv2.imread(str(file)) * 0.6).astype(np.uint8))
    return run


def test_a_line_is_commissioned(line):
    done = line("calibrate", "--model", "line", "--line", "inbox", "--contaminated", 0.1)
    assert "at most 10 % of them defective" in done.stdout
    assert "whatever the defective parts score" in done.stdout
    assert "Parts with the highest scores" in done.stderr
    chosen = line.json("calibrate", "--model", "line", "--line", "inbox", "--out", "new.safetensors")["result"]
    calibration = chosen["calibration"]
    assert (calibration["method"], calibration["evidence"]["contaminated"]) == ("trimmed", 0.05)
    assert calibration["promised_false_alarm"] == pytest.approx(4 / 39)
    scored = line.json("score", "inbox", "--model", "new.safetensors", "--out", "scored")["result"]
    assert scored["counts"]["reject"] <= 4
    assert not scored["drift"]["drifted"]
    again = line.json("calibrate", "--model", "new.safetensors", "--max-false-alarm", 0.2, "--out", "b.safetensors")
    assert again["result"]["calibration"]["promised_false_alarm"] <= 0.2
    assert again["result"]["calibration"]["evidence"]["contaminated"] == 0.05


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"contaminated": 0.05}, "belongs to --line"),
        ({"line": "inbox", "good": "inbox"}, "contradict"),
        ({"line": "inbox", "new_groups": True}, "contradict"),
        ({"line": "inbox", "sigmas": 3.0}, "known to be good"),
        ({"line": "inbox", "contaminated": 0.45}, "could be"),
        ({"line": "nowhere"}, "nowhere"),
    ],
)
def test_a_line_that_cannot_be_commissioned(line, values, words):
    paths = {name: line.folder / str(values[name]) for name in ("line", "good") if name in values}
    given = CalibrateSettings(runs=line.folder / "runs", device="cpu", **{**values, **paths})
    with pytest.raises((DataError, UsageError), match=words) as error:
        calibrate_model(LoadedSettings(given, dict.fromkeys(names_of(CalibrateSettings), "test")))
    assert error.value.remedy


def test_a_shifted_line_recentres_the_model(tmp_path, zippers):
    """Blur and another position raise all scores; usual features of the line lower them, and hide no defects."""
    import cv2

    from adctl.fetching.demo_dataset import DEFECTS, render
    from adctl.model_file import read_header, tensors_digest
    from adctl.records import Sample
    from adctl.runtimes.torch import TorchRuntime
    from adctl.scoring.predict import collect
    from adctl.training.single_run import train_once

    def moved(name, count, defective=False):
        samples = []
        for number in range(count):
            defect = DEFECTS[number % len(DEFECTS)] if defective else None
            image, _ = render((7, number, len(name)), defect, 96)
            move = np.array([[1, 0, 6.0], [0, 1, -4.0]], np.float32)
            image = cv2.GaussianBlur(
                cv2.warpAffine(image, move, (96, 96), borderMode=cv2.BORDER_REPLICATE), (0, 0), 0.8
            )
            path = tmp_path / name / f"{number:03}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image[..., ::-1])
            samples.append(Sample(path, path.name))
        return samples

    made = train_once(train_settings(arch="padim", data=zippers, runs=tmp_path / "runs", name="line"))
    moved("parts", 60)
    tests = moved("good", 20), moved("spoilt", 16, defective=True)

    def separation(model):
        good, bad = (collect(TorchRuntime(model, "cpu"), part, batch_size=8, workers=0).scores for part in tests)
        return np.mean(bad[:, None] > good[None, :])

    found = {}
    for recentre in (True, False):
        given = CalibrateSettings(
            model=made.model, line=tmp_path / "parts", recentre=recentre, runs=tmp_path / "runs", device="cpu",
            out=tmp_path / f"{recentre}.safetensors",
        )  # fmt: skip
        found[recentre] = calibrate_model(LoadedSettings(given, dict.fromkeys(names_of(CalibrateSettings), "test")))
    assert found[True].calibration.good_images == 40  # the others gave the usual features
    assert tensors_digest(found[True].model) != tensors_digest(made.model) == tensors_digest(found[False].model)
    assert read_header(found[True].model).training == read_header(made.model).training
    medians = {recentre: np.median(one.calibration.evidence.good) for recentre, one in found.items()}
    assert medians[True] < medians[False]
    assert separation(found[True].model) > separation(found[False].model) - 0.02
