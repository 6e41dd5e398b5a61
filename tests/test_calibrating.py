"""`adctl calibrate` and the verdicts of `adctl score`, on the command line and from Python."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CommandLine, settings
from safetensors import safe_open

from adctl import run_folder
from adctl.calibration.calibrate import calibrate, threshold_rule
from adctl.config import CalibrateSettings, LoadedSettings, load, names_of
from adctl.data.folds import assign_folds
from adctl.engine import safetensors_file
from adctl.errors import DataError, ModelFileError, UsageError
from adctl.model_file import load_model, read_header, save_model, tensors_digest
from adctl.thresholds import conformal
from adctl.thresholds.methods import ThresholdRule
from adctl.thresholds.supervised import Costs
from adctl.tracking import record


@pytest.fixture(scope="module")
def world(tmp_path_factory, zippers):
    """A folder in which a PaDiM was trained and has scored labelled images."""
    from adctl.training.single_run import train_once

    folder = tmp_path_factory.mktemp("calibrating")
    train_once(settings(arch="padim", data=zippers, runs=folder / "runs", name="line", calibration_share=0.2))
    run = CommandLine(folder)
    run.scored = run.json("score", zippers, "--model", "line", "--out", "scored", "--draw", "both")["result"]
    return run


@pytest.fixture
def model(world, tmp_path):
    """A copy of the run, to calibrate without leaving traces."""
    without = shutil.ignore_patterns("model-*", "lineage", "scores")
    shutil.copytree(world.folder / "runs" / "line", tmp_path / "runs" / "line", ignore=without)
    return tmp_path / "runs" / "line" / "model.safetensors"


def loaded(model: Path, **values) -> LoadedSettings[CalibrateSettings]:
    given = CalibrateSettings(model=model, runs=model.parent.parent, device="cpu", **values)
    return LoadedSettings(given, dict.fromkeys(names_of(CalibrateSettings), "test"))


def test_the_command_promises_or_says_how_many_images_it_takes(world):
    done = world.json("calibrate", "--model", "line", "--max-false-alarm", "0.2", "--warn-at", "0.4")
    chosen = done["result"]["calibration"]
    assert chosen["promised_false_alarm"] == 0.2
    assert chosen["warn_threshold"] < chosen["threshold"]
    assert done["warnings"] == []
    assert Path(done["result"]["model"]).name == "model-conformal-0.2.safetensors"
    text = world("calibrate", "--model", "line", "--max-false-alarm", "0.01")
    assert "that needs 99" in text.stderr
    assert "at most 20 % of new good images: guaranteed" in text.stdout


def test_thresholds_are_chosen_again_without_the_network(model):
    program = (
        "import sys, time; from adctl.cli.app import run; import adctl.calibration.calibrate, adctl.config;"
        "start = time.process_time(); code = run(sys.argv[1:]); took = time.process_time() - start;"
        "assert code == 0 and took < 1, took; assert 'torch' not in sys.modules"
    )
    arguments = ["calibrate", "--model", str(model), "--runs", str(model.parent), "--method", "mad"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_name_of_a_run_means_its_newest_calibration(model, zippers):
    run = CommandLine(model.parent.parent.parent)
    image = next((zippers / "test" / "good").iterdir())
    text = run("calibrate", "--model", "line", "--max-false-alarm", "0.25", "--device", "cpu").stdout
    assert text.splitlines()[-1].split(maxsplit=1) == ["next", "adctl score FOLDER --model line"]
    newest = run("score", zippers / "test", "--model", "line", "--device", "cpu", "--out", "heat", "--report").stdout
    assert "model-conformal-0.25.safetensors" in newest
    assert "(conformal 0.25)" in newest
    assert newest.splitlines()[-1].split() == ["open", "heat/report.html"]
    assert (run.folder / "heat" / "report.html").is_file()
    old = run.json("score", image, "--model", "runs/line/model.safetensors", "--device", "cpu")
    assert old["result"]["method"] == "smooth 0.01"
    assert [text for text in old["warnings"] if "newer calibration, model-conformal-0.25.safetensors" in text]
    run("calibrate", "--model", "line", "--sigmas", "2", "--in-place")
    assert run_folder.find_model(run.folder / "runs", Path("line")) == model
    assert read_header(model).calibration.method == "sigma"


def test_the_list_of_calibrations_of_an_older_run_is_read(tmp_path):
    for name in ("run.json", "model.safetensors", "model-old.safetensors", "model-new.safetensors"):
        (tmp_path / name).write_text("{}")
    entry = {"file": "model-old.safetensors", "training_digest": "ab"}
    (tmp_path / "calibrations.json").write_text(json.dumps({"schema": "adctl.calibrations/1", "files": [entry]}))
    assert run_folder.newest_model(tmp_path).name == "model-old.safetensors"
    record.made(tmp_path / "model.safetensors", "calibration", tmp_path / "model-new.safetensors")
    assert run_folder.newest_model(tmp_path).name == "model-new.safetensors"


@pytest.mark.parametrize("count", [0, 3, 12])
def test_score_ends_with_the_rejected_images(count, capsys):
    from adctl.cli.output import print_text
    from adctl.cli.score import _text
    from adctl.config import ScoreSettings
    from adctl.records import Verdict
    from adctl.scoring.score import ScoreResult, TopAnomaly

    verdicts = [Verdict.REJECT] * count + [Verdict.GOOD] * (20 - count)
    worst = tuple(TopAnomaly(f"p/{n}.png", 20.5 - n, 0.04, 0.99, verdict) for n, verdict in enumerate(verdicts[:10]))
    counts = {"good": 20 - count, "warn": 0, "reject": count, "uncalibrated": 0, "error": 0}
    report = Path("out/report.html")
    result = ScoreResult(
        Path("m"),
        Path("out"),
        counts,
        (),
        1.0,
        "cpu",
        1.0,
        None,
        "conformal 0.01",
        None,
        worst,
        report,
    )
    print_text(_text(result, ScoreSettings(out=Path("out"))))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("p/")]
    assert names == [f"p/{n}.png" for n in range(min(count, 10))]
    assert ("worst 10 of 12 rejected" in "".join(lines)) == (count == 12)
    assert lines[-1].split() == ["open", "out/report.html"]


def test_a_file_is_named_by_what_it_achieves(model, caplog):
    few = calibrate(loaded(model, max_false_alarm=0.05))
    assert few.model.name == "model-conformal-0.2.safetensors"
    assert few.calibration.promised_false_alarm == few.calibration.level == 0.2
    assert few.notes[-1] == "Take 15 more good images, or use --folds 5, which uses all."
    calibrate(loaded(model, max_false_alarm=0.01))
    assert "Take 95 more good images." in caplog.messages
    before = sorted(model.parent.iterdir())
    done = CommandLine(model.parent)("calibrate", "--model", model, "--max-false-alarm", "0.01", "--strict", code=1)
    assert "Take 95 more good images." in done.stderr
    assert sorted(model.parent.iterdir()) == before


def test_a_model_written_elsewhere_knows_its_dataset(model, tmp_path):
    from adctl.calibration.calibration_scores import held_out_images
    from adctl.config import ScoreSettings
    from adctl.scoring.score import score

    runs = model.parent.parent
    for values in ({"sigmas": 2}, {"folds": 2}):
        there = tmp_path / "line" / "x.safetensors"
        calibrate(loaded(model, out=there, **values))
        assert len(held_out_images(there, runs)) == 4
        given = ScoreSettings(model=there, runs=runs, device="cpu")
        result = score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "test")))
        assert len(result) > 6
    assert run_folder.find_model(runs, Path("line")) == model


def test_only_the_header_changes(model):
    made = calibrate(loaded(model, max_false_alarm=0.25)).model
    assert tensors_digest(made) == tensors_digest(model)
    before, after = (safetensors_file.read(path)[0] for path in (model, made))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    with safe_open(made, framework="numpy") as stored:
        assert "adctl" in stored.metadata()
    detector, header = load_model(made)
    save_model(model.parent / "again.safetensors", detector, header)
    assert read_header(model.parent / "again.safetensors") == read_header(made)


def test_in_place_replaces_the_model_itself(model):
    digest = tensors_digest(model)
    assert calibrate(loaded(model, sigmas=2, in_place=True)).model == model
    assert read_header(model).calibration.method == "sigma"
    assert tensors_digest(model) == digest
    assert not list(model.parent.glob(".*.partial"))


def test_the_evidence_is_what_scoring_the_held_out_images_gives(model):
    from adctl.calibration.calibration_scores import held_out_images

    kept = read_header(model).calibration.evidence
    for number, sample in enumerate(held_out_images(model, model.parent.parent)):
        target = model.parent / "held" / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(sample.path, target)
    again = calibrate(loaded(model, good=model.parent / "held", max_false_alarm=0.2)).calibration
    assert again.evidence.good == pytest.approx(kept.good)
    assert again.evidence.peaks == pytest.approx(kept.peaks)


def test_scores_come_with_p_values_probabilities_and_boxes(world):
    calibration = read_header(world.folder / "runs" / "line" / "model.safetensors").calibration
    lines = (world.folder / "scored" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: row["score"])
    good = np.array(calibration.evidence.good)
    for row in rows:
        assert row["p_value"] == conformal.p_values(good, np.array([row["score"]]))[0]
        above = row["verdict"] == "reject" and row["peak"] > calibration.pixel_threshold
        interpolated = row["peak"] < 1.01 * calibration.pixel_threshold  # pixels may miss the peak of a cell
        assert bool(row["boxes"]) == above or (above and interpolated)
        assert all(calibration.pixel_threshold < box["peak"] <= row["peak"] for box in row["boxes"])
    assert any(row["boxes"] for row in rows)
    assert (np.diff([row["probability"] for row in rows]) >= 0).all()
    with (world.folder / "scored" / "results.csv").open(encoding="utf-8", newline="") as stream:
        table = {line["key"]: line for line in csv.DictReader(stream)}
    assert all(float(table[row["key"]]["p_value"]) == row["p_value"] for row in rows)
    strangest = world.scored["strangest"]
    assert [one["score"] for one in strangest] == [row["score"] for row in rows[:-11:-1]]


def test_regions_are_drawn_only_by_option(world, zippers):
    from adctl.config import ScoreSettings, names_of
    from adctl.scoring.score import score

    model, out = world.folder / "runs" / "line" / "model.safetensors", world.folder / "plain"
    given = ScoreSettings(images=(str(zippers / "test" / "rough"),), model=model, out=out, device="cpu")
    score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "test")))
    drawn = world.folder / "scored" / "test" / "rough" / "000.png"
    assert drawn.read_bytes() != (out / "000.png").read_bytes()


def test_saved_scores_choose_thresholds_by_label(world, model):
    scored = world.folder / "scored"
    found = calibrate(loaded(model, scores=scored, min_recall=1.0)).calibration
    assert (found.good_images, found.defect_images) == (6, 7)
    assert found.threshold < min(found.evidence.defective)
    assert found.evidence.peaks
    by_file = calibrate(loaded(model, scores=scored / "results.csv", cost_miss=10, cost_alarm=1)).calibration
    assert by_file.method == "cost"
    # The labelled scores are kept: now they are not needed any more.
    later = calibrate(loaded(model.with_name("model-cost.safetensors"), method="f1", out=model.with_name("f1.x")))
    assert later.calibration.evidence == found.evidence


def test_scores_of_another_model_are_refused(world, model):
    other = load_model(model)
    for value in other[0].state_dict().values():
        value.add_(1)
    save_model(model, *other)
    with pytest.raises(DataError, match="were not made by"):
        calibrate(loaded(model, scores=world.folder / "scored", method="f1"))


@pytest.mark.parametrize("damage", ["nan", "no good", "nothing"])
def test_saved_scores_that_cannot_be_used_are_refused(world, model, tmp_path, damage):
    scored = tmp_path / "scored"
    shutil.copytree(world.folder / "scored", scored)
    rows = [json.loads(line) for line in (scored / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if damage == "nan" and row["label"] == "good":
            row["score"] = float("nan")
        if damage == "no good":
            row["label"] = "hole"
    (scored / "results.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    if damage == "nothing":
        (scored / "scores.json").unlink()
    says = {"nan": "finite number", "no good": "no good image", "nothing": "holds no scores"}[damage]
    with pytest.raises((DataError, UsageError), match=says):
        calibrate(loaded(model, scores=scored, method="f1"))


def test_a_score_that_is_no_number_is_an_error_row(tmp_path):
    from adctl.data.loader import LoadedImage as Item
    from adctl.records import Sample
    from adctl.scoring.predict import PredictedImage
    from adctl.scoring.score import to_row

    item = Item(Sample(tmp_path / "a.png", "a.png"), None, 4, 4)
    row = to_row(PredictedImage(item, float("nan"), np.zeros((2, 2), np.float32)), None)
    assert (row.verdict, row.score) == ("error", None)
    assert "not a finite number" in row.error


def test_folds_score_every_good_image_and_learn_from_all(model):
    made = calibrate(loaded(model, folds=2, max_false_alarm=0.1))
    assert made.model.name == "model-conformal-0.1-folds2.safetensors"
    assert (made.calibration.good_images, made.calibration.evidence.folds) == (20, 2)
    assert made.calibration.promised_false_alarm == pytest.approx(2 * 2 / 21 + min(1 / 11, 0.9 / 3))
    header = read_header(made.model)
    assert header.training.images == 20
    assert tensors_digest(made.model) != tensors_digest(model)
    # Held-out scores are those of images not seen: the model fitted on all of them finds them less strange.
    assert np.median(made.calibration.evidence.good) > 0


def test_folds_notice_a_damaged_run(model):
    (model.parent / "run.json").write_text('{"schema": "adctl.run/1"')
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        calibrate(loaded(model, folds=2))


def test_cutting_keeps_copies_together():
    from adctl.records import Sample

    samples = [Sample(Path(str(number)), str(number)) for number in range(12)]
    digests = {sample.key: str(int(sample.key) % 6) for sample in samples}
    folds = assign_folds(samples, digests, 3)
    assert sorted(sample.key for fold in folds for sample in fold) == sorted(digests)
    contents = [{digests[sample.key] for sample in fold} for fold in folds]
    assert all(len(content) == 2 for content in contents)
    assert len(set.union(*contents)) == 6
    with pytest.raises(DataError, match="too few for 7 folds"):
        assign_folds(samples, digests, 7)


def test_cross_conformal_calls_out_at_most_twice_the_rate():
    """A nearest-neighbour detector, as fit-once ones are: threshold from folds, the model kept learns from all."""
    generator = np.random.default_rng(0)
    rate, trials, alarms = 0.1, 400, 0
    for _ in range(trials):
        points = generator.normal(size=(41, 3))
        good, new = points[:40], points[40]
        apart = np.linalg.norm(good[:, None] - good[None], axis=-1)
        fold = np.arange(40) % 5
        apart[fold[:, None] == fold[None]] = np.inf
        threshold = conformal.by_false_alarm(apart.min(1), rate).value
        alarms += np.linalg.norm(good - new, axis=-1).min() > threshold
    assert alarms / trials <= 2 * rate
    assert alarms / trials <= rate + 4 * np.sqrt(rate * (1 - rate) / trials)


def test_a_learning_curve_ends_in_words_and_a_picture(model, zippers, monkeypatch, capsys):
    from adctl.calibration import learning_curve
    from adctl.cli.calibrate import _curve_text
    from adctl.cli.output import print_text

    monkeypatch.setattr(learning_curve, "training_sizes", lambda available, smallest: (smallest, available))
    monkeypatch.setattr(learning_curve, "_REPEATS", 2)
    curve = learning_curve.learning_curve(loaded(model, learning_curve=True, defects=zippers / "test" / "rough"))
    assert [(point.images, len(point.aurocs)) for point in curve.points] == [(5, 2), (16, 1)]
    assert "needs 99 held-out good images; there are only 4" in curve.answer.text
    folder = model.parent / "learning-curve"
    written = json.loads((folder / "learning_curve.json").read_text(encoding="utf-8"))
    assert written["answer"]["text"] == curve.answer.text
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    print_text(_curve_text(curve))
    assert curve.answer.text in capsys.readouterr().out


def test_score_warns_of_images_unlike_those_of_the_calibration(world, model, zippers, tmp_path):
    import cv2

    from adctl.config import ScoreSettings, names_of
    from adctl.scoring.score import score

    generator = np.random.default_rng(0)
    for folder, noise in (("same", 0), ("darker", 60)):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(sorted((zippers / "train" / "good").iterdir())):
            pixels = cv2.imread(str(path)).astype(np.float32) - noise + generator.normal(0, 2, (96, 96, 1))
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    calibrate(loaded(model, good=tmp_path / "same", max_false_alarm=0.1, in_place=True))
    found = {}
    for folder in ("same", "darker"):
        given = ScoreSettings(images=(str(tmp_path / folder),), model=model, out=tmp_path / "out", device="cpu")
        found[folder] = score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "test")))
    assert not found["same"].drift.drifted
    assert found["darker"].drift.drifted
    manifest = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert manifest["drift"]["reason"] == found["darker"].drift.reason


RULES = {
    "nothing given": ({}, ThresholdRule("smooth", 0.01)),
    "the rate implies conformal": ({"max_false_alarm": 0.02}, ThresholdRule("conformal", 0.02)),
    "the same rate for the tail": ({"max_false_alarm": 0.02, "method": "tail"}, ThresholdRule("tail", 0.02)),
    "sigmas": ({"sigmas": 4, "warn_at": 2}, ThresholdRule("sigma", 4.0, 2)),
    "mad": ({"method": "mad"}, ThresholdRule("mad", 3.0)),
    "recall": ({"min_recall": 0.9}, ThresholdRule("recall", 0.9)),
    "costs": ({"cost_miss": 9, "defect_rate": 0.01}, ThresholdRule("cost", costs=Costs(9, 1, 0.01))),
    "fixed": ({"threshold": -3.5}, ThresholdRule("fixed", -3.5)),
}


@pytest.mark.parametrize("name", RULES)
def test_the_level_given_says_which_method(name):
    values, rule = RULES[name]
    assert threshold_rule(CalibrateSettings(**values)) == rule


CONTRADICTIONS = {
    "belong to different methods": {"percentile": 99, "sigmas": 3},
    "does not belong to --method f1": {"method": "f1", "sigmas": 3},
    "needs a level": {"method": "precision"},
    "needs the costs of mistakes": {"method": "cost"},
    "at most 100": {"percentile": 99, "warn_at": 500},
    "--scores and --folds contradict": {"scores": Path("x"), "folds": 3},
    "--defects cannot be used with it": {"scores": Path("x"), "defects": Path("y")},
    "--in-place and --out": {"in_place": True, "out": Path("x")},
    "--folds scores only good ones": {"folds": 3, "method": "f1"},
    "not below": {"percentile": 50, "warn_at": 90},
    r"at most 1\. Got 5": {"max_false_alarm": 0.01, "warn_at": 5},
    r"up to 100\. Got 0\.95": {"percentile": 99, "warn_at": 0.95},
}


@pytest.mark.parametrize("says", CONTRADICTIONS)
def test_contradictions_are_told(world, says):
    model = world.folder / "runs" / "line" / "model.safetensors"
    with pytest.raises(UsageError, match=says):
        calibrate(loaded(model, **CONTRADICTIONS[says]))


@pytest.mark.parametrize(("given", "level"), [("5%", 0.05), ("0.05", 0.05), ("2", 2), (0.05, 0.05)])
def test_a_level_of_warnings_may_be_given_in_percent(given, level):
    assert load(CalibrateSettings, {"warn_at": given}).settings.warn_at == level


def test_levels_out_of_range_name_the_flag(world):
    done = world("calibrate", "--model", "line", "--max-false-alarm", "1.5", code=2)
    assert "--max-false-alarm" in done.stderr


def test_a_model_of_the_older_format_is_told_to_be_trained_again(model):
    header = safetensors_file.read_header(model)
    safetensors_file.replace_header(model, model, {**header, "format": 1})
    with pytest.raises(ModelFileError, match="stores no calibration scores") as caught:
        read_header(model)
    assert "Train the model again" in caught.value.remedy
