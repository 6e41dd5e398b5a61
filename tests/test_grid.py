"""Grids of trainings: each combination once, means and spreads, and resuming after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import pytest
from conftest import ROOT, settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.cli.grid_text import grid_text
from adctl.cli.output import print_text
from adctl.config import TrainSettings, load
from adctl.errors import UsageError
from adctl.evaluation.evaluate import evaluate
from adctl.scoring.score_set import ScoreSet
from adctl.training import grid as module
from adctl.training.grid import MEAN_CATEGORY, GridRow, combinations, is_grid, markdown, tabulate, train_grid
from adctl.training.single_run import train_once


@pytest.fixture(scope="module")
def two(zippers, tmp_path_factory):
    """Two categories, the second without a good image that can be read."""
    folder = tmp_path_factory.mktemp("two") / "data"
    for name in ("first", "second"):
        shutil.copytree(zippers, folder / name)
    for image in (folder / "second/train/good").iterdir():
        image.write_bytes(image.name.encode())
    return folder


@pytest.fixture(scope="module")
def made(two, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return train_grid(settings(data=two, category="all", arch="padim,patchcore", seed="0,1", runs=runs, name="grid"))


outcomes = st.tuples(st.booleans(), st.floats(0, 1), st.none() | st.floats(0, 1))


@given(st.data())
def test_means_and_spreads_are_those_of_the_definition(data):
    rows = []
    for category in "ab":
        for arch in ("x", "y"):
            for seed in range(data.draw(st.integers(1, 4))):
                failed, auroc, pixel = data.draw(outcomes)
                metrics = {"image_auroc": auroc} | ({} if pixel is None else {"pixel_auroc": pixel})
                rows.append(
                    GridRow(category, arch, seed, error="why")
                    if failed
                    else GridRow(category, arch, seed, run="r", train_seconds=1.0, metrics=metrics)
                )
    lines = {(line.category, line.arch): line for line in tabulate(rows)}
    assert len(lines) == 6
    for (category, arch), line in lines.items():
        made = [row for row in rows if row.arch == arch and row.error is None]
        if category == MEAN_CATEGORY:
            by_seed = {row.seed: [one for one in made if one.seed == row.seed] for row in made}
            whole = [both for both in by_seed.values() if len(both) == 2]
            values = {
                name: [
                    statistics.fmean(one.metrics[name] for one in both)
                    for both in whole
                    if all(name in one.metrics for one in both)
                ]
                for name in ("image_auroc", "pixel_auroc")
            }
        else:
            own = [row for row in made if row.category == category]
            assert line.seeds == len(own)
            assert line.seeds + line.failed == sum((row.category, row.arch) == (category, arch) for row in rows)
            values = {
                name: [row.metrics[name] for row in own if name in row.metrics]
                for name in ("image_auroc", "pixel_auroc")
            }
        for name, wanted in values.items():
            if not wanted:
                assert name not in line.metrics
                continue
            found = line.metrics[name]
            assert (found.mean, found.count) == (pytest.approx(statistics.fmean(wanted)), len(wanted))
            if len(wanted) > 1:
                assert found.deviation == pytest.approx(statistics.stdev(wanted), abs=1e-9)
            else:
                assert found.deviation is None


def test_every_combination_has_a_row_and_failures_are_noted(made, two):
    assert [(row.category, row.arch, row.seed) for row in made.rows] == [
        (category, arch, seed) for category in ("first", "second") for arch in ("padim", "patchcore") for seed in (0, 1)
    ]
    assert made.failed == 4
    for row in made.rows:
        if row.category == "second":
            assert "Cannot use the image" in row.error
            assert not (made.folder / f"second-{row.arch}-seed{row.seed}").exists()
        else:
            assert (made.folder / row.run / "model.safetensors").is_file()
            scores = ScoreSet.load(made.folder / row.run / "test-scores")
            assert scores.manifest["seconds"] is None  # features were shared: the time is not the model's own
            expected = evaluate(scores)
            assert row.metrics["image_auroc"] == expected.image.auroc
            assert row.metrics["pixel_aupro"] == expected.pixel.aupro
    del two


def test_shared_features_change_no_score(made, two, tmp_path):
    """Patchcore with seed 1 came last: nearly all of its features were computed for others."""
    alone = train_once(settings(data=two, category="first", arch="patchcore", seed=1, runs=tmp_path, name="alone"))
    first = made.rows[0]
    row = next(row for row in made.rows if (row.arch, row.seed) == ("patchcore", 1))
    tested = len(ScoreSet.load(made.folder / row.run / "test-scores").rows)
    assert first.shared == 0
    assert row.shared == 20 + tested  # every good and every test image
    assert row.images == alone.images
    assert row.threshold == pytest.approx(alone.calibration.threshold, rel=1e-3)
    kept = json.loads((made.folder / row.run / "run.json").read_text(encoding="utf-8"))
    assert kept["summary"]["flops"] == alone.summary.flops  # counted, not saved by sharing


def test_the_tables_say_the_same(made):
    summary = json.loads((made.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["schema"] == "adctl.grid/1"
    assert len(summary["combinations"]) == 8
    with (made.folder / "results.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    for line, row in zip(table, made.rows, strict=True):
        assert (line["category"], line["arch"], line["seed"]) == (row.category, row.arch, str(row.seed))
        assert line["image_auroc"] == ("" if row.error else str(row.metrics["image_auroc"]))
    text = (made.folder / "table.md").read_text(encoding="utf-8")
    assert text == markdown(made)
    line = next(line for line in made.table if (line.category, line.arch) == ("first", "padim"))
    assert f"| first | padim | {line.metrics['image_auroc']} |" in text
    kinds = sorted(name.partition(".")[2] for name in line.metrics if name.startswith("image_auroc."))
    assert kinds == sorted(evaluate(ScoreSet.load(made.folder / made.rows[0].run / "test-scores")).by_defect)
    assert f"image AUROC by defect type, first:\n\n| detector | {' | '.join(kinds)} |" in text
    assert f"| padim | {line.metrics[f'image_auroc.{kinds[0]}']} |" in text
    assert float(table[0][f"pixel_aupro.{kinds[0]}"]) == made.rows[0].metrics[f"pixel_aupro.{kinds[0]}"]
    assert "- second, patchcore, seed 1: Cannot use the image" in text


def test_the_terminal_shows_it(made, capsys):
    print_text(grid_text(made))
    shown = capsys.readouterr().out
    assert "seed 1: Cannot use the image" in shown
    assert "first-padim-seed0/test-scores" in shown
    assert "±" in shown


def counted(monkeypatch, fails_at=None):
    calls = []

    def counting(loaded, *others):
        calls.append(loaded.settings.name)
        if len(calls) == fails_at:
            (loaded.settings.runs / loaded.settings.name).mkdir()  # what a kill leaves
            raise KeyboardInterrupt
        return train_once(loaded, *others)

    monkeypatch.setattr(module, "train_once", counting)
    return calls


def test_it_goes_on_where_it_stopped_and_takes_longer_lists(zippers, tmp_path, monkeypatch):
    def grid(seeds):
        return train_grid(settings(data=zippers, arch="padim,patchcore", seed=seeds, runs=tmp_path, name="grid"))

    calls = counted(monkeypatch, fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        grid("0,1")
    monkeypatch.undo()
    calls = counted(monkeypatch)
    assert len(grid("0,1").rows) == 4
    assert calls == ["patchcore-seed0", "patchcore-seed1"]
    assert len(grid("0,1,2").rows) == 6
    assert calls[2:] == ["padim-seed2", "patchcore-seed2"]
    assert len(grid("0,1").rows) == 6  # what is there stays in the table
    shutil.rmtree(tmp_path / "grid/padim-seed0")
    assert grid("0,1").rows[0].error is None
    assert calls[4:] == ["padim-seed0"]


def test_failures_are_tried_again_and_defects_of_one_do_not_stop_the_others(zippers, tmp_path, monkeypatch):
    def broken(loaded, *others):
        if loaded.settings.seed == 0:
            raise RuntimeError("out of luck")
        return train_once(loaded, *others)

    monkeypatch.setattr(module, "train_once", broken)
    values = {"data": zippers, "arch": "padim", "seed": [0, 1], "runs": tmp_path, "name": "grid"}
    rows = train_grid(settings(**values)).rows
    assert [row.error for row in rows] == ["RuntimeError: out of luck", None]
    monkeypatch.undo()
    assert [row.error for row in train_grid(settings(**values)).rows] == [None, None]


def test_options_of_one_detector_among_several(zippers, tmp_path):
    made = train_grid(
        settings(data=zippers, arch="padim,patchcore", options={"patchcore.coreset_ratio": 0.5}, runs=tmp_path)
    )
    assert made.failed == 0
    kept = json.loads((made.folder / "patchcore-seed0/run.json").read_text(encoding="utf-8"))
    assert kept["config"]["coreset_ratio"] == 0.5


def test_without_labelled_test_images_models_are_made_all_the_same(zippers, tmp_path):
    made = train_grid(settings(good=zippers / "train/good", arch="padim", seed="3,4", runs=tmp_path))
    assert made.failed == 0
    assert [row.metrics for row in made.rows] == [{}, {}]
    assert made.table[0].seeds == 2


def test_a_killed_call_loses_one_combination_at_most(adctl, zippers):
    line = ["train", "--data", zippers, "--arch", "padim,patchcore", "--seed", "0,1", "--image-size", "64"]
    line += ["--device", "cpu", "--name", "grid"]
    summary = adctl.folder / "runs/grid/summary.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "adctl", *map(str, line)],
        cwd=adctl.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["combinations"]:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    known = json.loads(summary.read_text(encoding="utf-8"))["combinations"]
    assert known
    models = [adctl.folder / "runs/grid" / row["run"] / "model.safetensors" for row in known]
    times = [model.stat().st_mtime_ns for model in models]
    result = adctl.json(*line)["result"]
    assert [row["error"] for row in result["rows"]] == [None] * 4
    assert result["rows"][: len(known)] == known
    assert [model.stat().st_mtime_ns for model in models] == times


def test_refusals(zippers, two, tmp_path):
    def refused(**values):
        train_grid(settings(**{"data": two, "category": "all", "runs": tmp_path, **values}))

    with pytest.raises(UsageError, match="several categories"):
        refused(data=zippers)
    with pytest.raises(UsageError, match="a single run"):
        refused(resume="x")
    with pytest.raises(UsageError, match="--folds needs one model"):
        refused(folds=2)
    with pytest.raises(UsageError, match="Unknown arch 'padin'"):
        refused(arch="padim,padin")
    assert not any(tmp_path.iterdir())


def test_other_settings_under_the_same_name_are_refused(made, two):
    with pytest.raises(UsageError, match=r"image_size \(was 64, now 96\)"):
        train_grid(settings(data=two, category="all", image_size=96, runs=made.folder.parent, name="grid"))


def test_lists_of_seeds(monkeypatch):
    assert load(TrainSettings, {"seed": "3, 1"}).settings.seeds == (3, 1)
    assert load(TrainSettings, {"seed": "3,1"}).settings.seed == 3
    assert load(TrainSettings, {"seed": [5]}).settings.seeds == (5,)
    assert load(TrainSettings, {"seed": "7"}).settings.seeds == ()
    with pytest.raises(UsageError, match=r"--seed is not valid.*Got 'x'"):
        load(TrainSettings, {"seed": "0,x"})
    monkeypatch.setenv("ADCTL_SEED", "1,2")
    assert load(TrainSettings, {}).settings.seeds == (1, 2)


def test_what_counts_as_a_grid():
    assert not is_grid(TrainSettings(arch="padim", category="zipper", seed=3))
    grid = load(TrainSettings, {"arch": "padim, patchcore,padim", "category": "b,a", "seed": "1,1"}).settings
    assert is_grid(grid)
    assert [(one.category, one.arch, one.seed) for one in combinations(grid)] == [
        (category, arch, 1) for category in "ba" for arch in ("padim", "patchcore")
    ]


def test_one_training_at_a_time_is_planned(adctl, zippers):
    done = adctl("train", "--data", zippers, "--seed", "0,1", "--dry-run", code=2)
    assert "work for one training only" in done.stderr
