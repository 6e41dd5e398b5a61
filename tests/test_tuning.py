"""Tuning: search spaces, the objective on generated defects, studies that continue, the choice beside the noise."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml

from adctl.choices import DETECTORS
from adctl.config import LoadedSettings, TrainSettings, TuneSettings, load, names_of, validated
from adctl.detectors.registry import detector_class
from adctl.engine import gradient_loop
from adctl.errors import DataError, OutputError, UsageError
from adctl.tracking import database
from adctl.tuning import objective, search, study, tune
from adctl.tuning.search_space import search_space


def tune_settings(**values) -> LoadedSettings[TuneSettings]:
    small = {"image_size": 64, "device": "cpu", "arch": "padim", "trials": 3, "splits": 1, **values}
    origins = dict.fromkeys(names_of(TuneSettings), "default") | dict.fromkeys(small, "flag")
    return LoadedSettings(validated(TuneSettings, small), origins)


# ---- search spaces


@pytest.mark.parametrize("arch", sorted(DETECTORS))
def test_declared_ranges_are_settings_and_within_their_bounds(arch):
    cls = detector_class(arch)
    space = search_space(cls, {}, {})
    assert set(cls.Config.search_ranges) <= set(cls.Config.model_fields)
    for name, values in space.grid().items():
        for value in values:
            if name in cls.Config.model_fields:
                cls.Config(**{name: value})


def test_a_range_is_narrowed_and_a_given_setting_is_not_searched():
    cls = detector_class("padim")
    space = search_space(cls, {"blur": "0.5..1", "layers": [[1], [2]], "image_size": "64,96"}, {"ridge": 0.01})
    assert (space.ranges["blur"].low, space.ranges["blur"].high) == (0.5, 1)
    assert space.ranges["layers"].choices == ([1], [2])
    assert space.ranges["image_size"].choices == (64, 96)
    assert search_space(cls, {"image_size": 64}, {}).ranges["image_size"].choices == (64,)
    assert "ridge" not in space.ranges
    assert "ridge" in search_space(cls, {"ridge": "1e-3..1e-2 log"}, {"ridge": 0.01}).ranges
    values = space.settings_of({"blur": 0.7, "image_size": 96})
    assert values == {"image_size": 96, "options": {"blur": 0.7}}


@pytest.mark.parametrize(
    ("narrowed", "message"),
    [
        ({"blurr": "0..1"}, "blurr"),
        ({"blur": "2..1"}, "is empty"),
        ({"blur": "0..1 log"}, "is empty"),
        ({"blur": ""}, "cannot be"),
        ({"ridge": "-1..1"}, "cannot be"),
        ({"covariance": "full,diagonal"}, "cannot be"),
    ],
)
def test_ranges_that_cannot_be_used(narrowed, message):
    with pytest.raises(UsageError, match=message):
        search_space(detector_class("padim"), narrowed, {})


def test_nothing_to_search():
    cls = detector_class("padim")
    with pytest.raises(UsageError, match="nothing to search"):
        search_space(cls, {}, dict.fromkeys(cls.Config.search_ranges, 1))


def test_conditions_and_whole_numbers():
    trial = optuna.trial.FixedTrial(
        {"covariance": "shared", "dimensions": 60, "ridge": 0.01, "blur": 1, "score_share": 0.01}
    )
    values = search_space(detector_class("padim"), {}, {}).suggest(trial)
    assert values["dimensions"] == 60
    assert values["covariance"] == "shared"


# ---- the objective


@pytest.fixture(scope="module")
def training(zippers) -> TrainSettings:
    return validated(TrainSettings, {"image_size": 64, "device": "cpu", "arch": "padim", "data": zippers})


def test_the_benchmark_never_reads_a_test_image(training, zippers):
    with objective.development_benchmark(training, folds=2, defects=None, seed=0) as benchmark:
        samples = [one for fold in benchmark.folds for one in (*fold.fit, *fold.good, *fold.defective)]
        assert not [one for one in samples if one.path.is_relative_to(zippers / "test")]
        for fold in benchmark.folds:
            held = {one.key for one in fold.good if one.path.is_relative_to(zippers)}
            assert held
            assert not held & {one.key for one in fold.fit}
            assert len(fold.good) == 2 * len(held)
            assert len({one.label for one in fold.defective}) > 10
        folder = benchmark.folds[0].defective[0].path.parent
    assert not folder.exists()


def test_the_objective_is_better_for_a_detector_that_sees(training):
    with objective.development_benchmark(training, folds=1, defects=None, seed=0) as benchmark:
        seeing = objective.evaluate(benchmark, training, {}, ["auroc", "ap", "latency_ms"])
        blind = objective.evaluate(benchmark, training, {"options": {"score_share": 1.0, "blur": 20}}, ["auroc"])
    assert seeing[0] > blind[0]
    assert 0 < seeing[1] <= 1
    assert seeing[2] > 0


def test_labelled_defects_take_the_place_of_generated_ones_unless_they_are_test_images(training, zippers, tmp_path):
    defect = next(folder for folder in sorted((zippers / "test").iterdir()) if folder.name != "good")
    with (
        pytest.raises(UsageError, match="holds test images"),
        objective.development_benchmark(training, folds=1, defects=defect, seed=0),
    ):
        pass
    from adctl.fetching.demo_dataset import generate

    generate(tmp_path, train=2, good=1, per_defect=1, size=80)
    given = tmp_path / "zipper" / "test" / defect.name
    with objective.development_benchmark(training, folds=1, defects=given, seed=0) as benchmark:
        assert [one.path.parent for one in benchmark.folds[0].defective] == [given]


# ---- studies


@pytest.fixture(scope="module")
def tuned(zippers, tmp_path_factory):
    runs = tmp_path_factory.mktemp("tuned") / "runs"
    loaded = tune_settings(data=zippers, runs=runs, name="study")
    return loaded, tune(loaded)


def test_a_study_gives_settings_a_page_and_a_model(tuned):
    _, result = tuned
    assert (result.trials, result.failed) == (3, 0)
    assert result.candidates[0].mean >= result.candidates[-1].mean
    assert result.chosen in (result.candidates[0], result.default)
    assert (result.chosen == result.default) == (not result.significant)
    document = yaml.safe_load(result.params_file.read_text())
    assert document["train"]["arch"] == "padim"
    page = result.page.read_text(encoding="utf-8")
    assert "no test image was read" in page
    assert "History" in page
    assert not re.search(r'"width":\d{3}', page.partition("<body>")[2]), "plots are as wide as the page"
    assert result.model is not None
    assert result.model.is_file()


def test_a_study_continues_and_refuses_another_purpose(tuned, zippers):
    loaded, result = tuned
    more = tune_settings(data=zippers, runs=loaded.settings.runs, name="study", trials=4, final_model=False)
    assert study.tune(more).trials == 4
    other = tune_settings(data=zippers, runs=loaded.settings.runs, name="study", arch="patchcore")
    with pytest.raises(UsageError, match="is about"):
        study.tune(other)
    assert (result.folder.parent / database.FILE).is_file()


@pytest.mark.parametrize("name", [study.PAGE, study.BEST_PARAMS])
def test_a_file_of_the_user_is_not_replaced(zippers, tmp_path, name):
    path = tmp_path / "runs" / "study" / name
    path.parent.mkdir(parents=True)
    path.write_text("train: {} # mine, for adctl\n")
    with pytest.raises(UsageError, match="adctl did not write it"):
        study.tune(tune_settings(data=zippers, runs=tmp_path / "runs", name="study"))
    assert path.read_text() == "train: {} # mine, for adctl\n"


def test_a_page_that_cannot_be_written_costs_no_settings(tuned, zippers, monkeypatch, caplog):
    loaded, _ = tuned

    def full(*_, **__):
        raise OutputError("Cannot write tuning.html: No space left on device.")

    monkeypatch.setattr(study, "write_page", full)
    again = tune_settings(data=zippers, runs=loaded.settings.runs, name="study", final_model=False)
    assert study.tune(again).params_file.is_file()
    assert "page of the study is missing" in caplog.text


def test_a_database_that_fails_within_a_study_is_an_error_with_its_reason(zippers, tmp_path, monkeypatch):
    runs = tmp_path / "a?b={c}" / "runs"

    def damage(*_):
        with closing(sqlite3.connect(runs / database.FILE)) as connection:
            connection.execute("DROP TABLE trial_values")
        return [0.5]

    monkeypatch.setattr(search, "evaluate", damage)
    with pytest.raises(DataError, match=r"no such table: trial_values"):
        study.tune(tune_settings(data=zippers, runs=runs))
    assert [path.name for path in tmp_path.iterdir()] == [runs.parent.name]


def test_failing_trials_are_recorded_and_the_study_goes_on(zippers, tmp_path, monkeypatch):
    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("too little")
        return real(*arguments)

    real = search.evaluate
    monkeypatch.setattr(search, "evaluate", failing)
    loaded = tune_settings(data=zippers, runs=tmp_path / "runs", objective=["ap", "latency_ms"], final_model=False)
    result = study.tune(loaded)
    assert (result.trials, result.failed) == (3, 1)
    assert result.pareto
    monkeypatch.setattr(search, "evaluate", lambda *_: (_ for _ in ()).throw(DataError("broken", "mend it")))
    with pytest.raises(DataError, match="No trial of the study"):
        study.tune(tune_settings(data=zippers, runs=tmp_path / "other", trials=2))


class PrunesAll(optuna.pruners.BasePruner):
    """A pruner that stops every trial but the first at its first report."""

    def prune(self, study, trial):
        return trial.number > 0


@pytest.mark.parametrize("epochs", [1, 8])
def test_gradient_training_is_pruned_by_epochs(zippers, tmp_path, monkeypatch, epochs):
    trained = []
    monkeypatch.setattr(search, "pruner_of", lambda _: PrunesAll())
    same = study.Candidate(None, {}, 0.5, 0.1)
    monkeypatch.setattr(study, "_measure_again", lambda *_: ((same,), same))
    monkeypatch.setattr(gradient_loop.GradientLoop, "_keep_best", counted(trained))
    loaded = tune_settings(
        data=zippers, runs=tmp_path / "runs", arch="cnn", epochs=epochs, trials=2, name="pruned", final_model=False
    )
    result = study.tune(loaded)
    assert (result.trials, result.pruned, result.failed) == (2, 1, 0)
    full, pruned = trials_of(tmp_path / "runs", "pruned")
    assert list(full.intermediate_values) == ([3] if epochs == 1 else [0, 1, 2, 3])
    assert list(pruned.intermediate_values) == ([3] if epochs == 1 else [0])
    assert 0 < full.intermediate_values[3] <= 1
    assert trained[:epochs] == list(range(1, epochs + 1))
    assert trained[epochs:] == ([1] if epochs == 1 else [1, 2])


def test_hyperband_stops_poor_trials_after_different_numbers_of_epochs(zippers):
    settings = tune_settings(data=zippers, pruner="hyperband", splits=2).settings
    steps = range(settings.splits * search.STEPS)
    pruner, sampler = search.pruner_of(settings), optuna.samplers.RandomSampler(seed=0)
    made = optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)

    def objective(trial):
        quality = trial.suggest_float("quality", 0, 1)
        for step in steps:
            trial.report(quality, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return quality

    made.optimize(objective, n_trials=60)
    pruned = [trial for trial in made.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(pruned) > 10
    assert len({trial.last_step for trial in pruned}) > 1
    assert max(trial.params["quality"] for trial in pruned) < made.best_value


def counted(trained):
    """A replacement of `_keep_best` that keeps the numbers of the epochs."""
    real = gradient_loop.GradientLoop._keep_best

    def count(loop, epoch):
        trained.append(epoch.number)
        return real(loop, epoch)

    return count


def trials_of(runs, name):
    return optuna.load_study(study_name=name, storage=database.address(runs)).trials


TUNE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_tuning import tune_settings
from adctl.tuning import search, study
real, calls = search.evaluate, []
def killed(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
search.evaluate = killed
study.tune(tune_settings(data=Path(sys.argv[1]), runs=Path(sys.argv[2]), name="killed", trials=9))
"""


def test_a_study_that_was_killed_within_a_trial_goes_on(zippers, tmp_path):
    command = [sys.executable, "-c", TUNE, zippers, tmp_path / "runs", Path(__file__).parent]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    result = study.tune(tune_settings(data=zippers, runs=tmp_path / "runs", name="killed", trials=2, final_model=False))
    assert (result.trials, result.failed) == (2, 0)
    states = [trial.state.name for trial in trials_of(tmp_path / "runs", "killed")]
    assert states == ["COMPLETE", "RUNNING", "COMPLETE"]  # the killed one fails when its heartbeat is old


def test_further_processes_only_work_on_trials(zippers, tmp_path, monkeypatch):
    started = []

    def start(command, *, env, **_):
        started.append(env[study._JOIN])
        return SimpleNamespace(wait=lambda: 0, terminate=lambda: None)

    same = study.Candidate(None, {}, 0.5, 0.1)
    monkeypatch.setattr(study, "_measure_again", lambda *_: ((same,), same))
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    values = {"data": zippers, "runs": tmp_path / "runs", "name": "several", "jobs": 3, "final_model": False}
    assert study.tune(tune_settings(**values, trials=2)).trials == 2
    assert started == ["1", "2"]
    shutil.rmtree(tmp_path / "runs" / "several")
    monkeypatch.setenv(study._JOIN, "1")
    assert load(TuneSettings, {}).settings.jobs == 1  # the variable is no setting
    with pytest.raises(SystemExit):
        study.tune(tune_settings(**values, trials=4))
    assert len(trials_of(tmp_path / "runs", "several")) == 4
    assert started == ["1", "2"]
    assert not (tmp_path / "runs" / "several").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": ["f1"]}, "is unknown"),
        ({"objective": ["latency_ms"]}, "alone"),
        ({"objective": ["ap", "ap"]}, "twice"),
        ({"resume": Path("x")}, "--resume"),
        ({"folds": 3}, "--folds"),
    ],
)
def test_settings_that_make_no_sense(zippers, values, message):
    with pytest.raises(UsageError, match=message):
        study.tune(tune_settings(data=zippers, **values))


def test_too_few_images(zippers, tmp_path):
    for path in sorted((zippers / "train" / "good").iterdir())[:2]:
        (tmp_path / "good").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "good")
    with pytest.raises(DataError):
        study.tune(tune_settings(good=tmp_path / "good", runs=tmp_path / "runs"))
