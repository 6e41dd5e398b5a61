"""Thresholds, versions and trainings behind the page, without a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from adctl.errors import OutputError, UsageError
from adctl.records import CalibrationScores, Verdict
from adctl.serve import threshold_choice, trainings
from adctl.serve.trainings import Trainings
from adctl.thresholds.methods import ThresholdRule, calibrate

GOOD = tuple(np.linspace(1, 2, 99).tolist())


@pytest.fixture(scope="module")
def trained():
    return calibrate(ThresholdRule("conformal", 0.05, 0.2), CalibrationScores(GOOD, peaks=GOOD))[0]


def test_a_threshold_by_rate_promises_it(trained):
    choice = threshold_choice.by_rate(trained, 0.02)
    assert choice.calibration.promised_false_alarm == pytest.approx(0.02)
    assert sum(score > choice.calibration.threshold for score in GOOD) == 1
    assert choice.calibration.warn_threshold == trained.warn_threshold
    few = threshold_choice.by_rate(trained, 0.001)
    assert few.calibration.promised_false_alarm == pytest.approx(0.01)
    assert "cannot guarantee" in few.notes[0]


def test_a_threshold_by_hand_promises_nothing(trained):
    assert threshold_choice.by_value(trained, trained.threshold).calibration is trained
    choice = threshold_choice.by_value(trained, 1.0)
    assert choice.calibration.promised_false_alarm is None
    assert choice.calibration.expected_false_alarm == pytest.approx(0.99, abs=0.02)
    assert choice.calibration.warn_threshold == 1.0
    line = calibrate(ThresholdRule("conformal", 0.05), CalibrationScores(GOOD, peaks=GOOD, contaminated=0.05))[0]
    assert threshold_choice.by_value(line, 1.5).calibration.threshold == 1.5


def test_changed_verdicts_follow_from_the_threshold_alone(trained):
    rows = [{"score": score, "verdict": "unsure"} for score in (0.5, 1.7, 1.9, 3.0)]
    chosen = threshold_choice.by_value(trained, 1.6).calibration
    changed = threshold_choice.changed_verdicts(rows, trained, chosen)
    assert [(row["score"], row["becomes"]) for row in changed] == [(1.7, Verdict.REJECT), (1.9, Verdict.REJECT)]
    assert threshold_choice.changed_verdicts(rows, trained, trained) == []


@pytest.mark.parametrize("recent", [[], [1.5], [1.0, 50.0, 1e6]])
def test_a_histogram_counts_every_score_and_shows_the_threshold(trained, recent):
    found = threshold_choice.histogram(trained, recent)
    assert sum(found["calibration"]) == len(GOOD)
    assert sum(found["recent"]) == len(recent)
    assert found["edges"][0] < 1 < trained.threshold < found["edges"][-1] < 10


@pytest.mark.parametrize(
    ("values", "earlier"),
    [
        ("", ""), ("A", ""), ("AA", ""), ("AB", "A"), ("ABC", "BA"), ("ABCB", "A"), ("ABCBA", ""), ("ABAB", "A"),
        ("ABCC", "BA"),
    ],
)  # fmt: skip
def test_going_back_step_by_step(values, earlier):
    assert threshold_choice.previous(list(values)) == list(earlier)


# ---- trainings

LINE = "import json, sys; print(json.dumps({'stage': 'one', 'done': 2, 'total': 4}), file=sys.stderr, flush=True)\n"
ENDS = {
    "finished": LINE + "print(json.dumps({'ok': True, 'result': {'model': 'm.safetensors'}}))",
    "failed": LINE + "print(json.dumps({'ok': False, 'error': {'message': 'Bad.', 'remedy': 'Mend.'}})); sys.exit(1)",
    "broken": "import os; os.abort()",
    "slow": LINE + "import time; time.sleep(60)",
    "deaf": LINE + "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "command_of", lambda _, arguments, __: [sys.executable, "-c", ENDS[arguments[0]]])
    monkeypatch.setattr(trainings, "_STOP_SECONDS", 0.5)
    told = []
    store = Trainings(tmp_path / "runs", tmp_path / "trainings", lambda kind, data: told.append((kind, data)))
    store.told = told
    yield store
    store.close()


def ended(store, identifier):
    end = time.monotonic() + 20
    while (found := store.get(identifier)).state == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(("end", "state"), [("finished", "finished"), ("failed", "failed"), ("broken", "failed")])
def test_how_a_training_ends(made, end, state):
    training = made.start("line", "padim", "anna", [end])
    found = ended(made, training.id)
    assert found.state == state
    assert (found.error or "").startswith({"finished": "", "failed": "Bad. Mend.", "broken": "The training ended"}[end])
    assert (found.model is not None) == (state == "finished")
    made.close()
    assert made.told[-1] == ("training", made.told[-1][1])
    assert made.told[-1][1]["state"] == state
    assert [one.id for one in made.all()] == [training.id]


@pytest.mark.parametrize("program", ["slow", "deaf"])
def test_one_training_at_a_time_that_can_be_stopped(made, program):
    training = made.start("line", "padim", "anna", [program])
    with pytest.raises(UsageError, match="Another training is running"):
        made.start("other", "padim", "anna", ["finished"])
    end = time.monotonic() + 20
    while not made.get(training.id).progress:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert made.get(training.id).progress["done"] == 2
    made.stop(training.id)
    assert ended(made, training.id).state == "stopped"
    made.close()
    assert ended(made, made.start("other", "padim", "anna", ["finished"]).id).state == "finished"


def test_a_training_whose_server_was_killed_counts_as_stopped(made, tmp_path):
    (tmp_path / "trainings").mkdir()
    training = trainings.Training("01ABC", "line", "padim", "running", "2026-11-01T10:00:00+00:00", "anna")
    made._store(training)
    assert made.get("01ABC").state == "stopped"
    assert made.get("../01ABC") is None
    (tmp_path / "trainings" / "01ABC.json").write_text("{damaged")
    assert made.get("01ABC") is None
    assert made.all() == []


def test_a_full_disk_lets_the_next_training_begin(made, monkeypatch):
    training = made.start("line", "padim", "anna", ["slow"])
    write = trainings.files.write_json

    def full(path, _):
        raise OutputError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(trainings.files, "write_json", full)
    made.stop(training.id)
    made.close()
    assert made.told[-1][1]["state"] == "stopped"
    monkeypatch.setattr(trainings.files, "write_json", write)
    assert ended(made, made.start("other", "padim", "anna", ["finished"]).id).state == "finished"


def test_uploads_are_named_by_their_content(made):
    upload, count = made.add_image(None, b"one", ".png")
    assert made.add_image(upload, b"one", ".png") == (upload, 1)
    assert made.add_image(upload, b"two", ".png") == (upload, 2)
    assert count == 1
    assert len(list(made.uploaded(upload).iterdir())) == 2
    for name in ("..", "nothing", "a/b"):
        with pytest.raises(UsageError, match="no such uploaded images"):
            made.add_image(name, b"x", ".png")
    os.utime(made.uploaded(upload), (0, 0))
    made.add_image(None, b"three", ".png")
    with pytest.raises(UsageError):
        made.uploaded(upload)


def test_progress_as_lines_of_json(zippers, tmp_path):
    command = [sys.executable, "-m", "adctl", "fetch", "check", str(zippers), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ADCTL_PROGRESS": "json"}, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    assert set(lines[0]) == {"stage", "done", "total", "note"}
    assert json.loads(done.stdout)["ok"]


def test_a_histogram_shows_the_largest_threshold(trained):
    far = threshold_choice.by_value(trained, 1e100).calibration
    assert np.isfinite(threshold_choice.histogram(far, [1.5])["edges"]).all()
