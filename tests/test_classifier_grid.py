"""Grids of classifiers: each combination once, means and spreads, shared features, and resuming."""

from __future__ import annotations

import csv
import json
import shutil
import statistics

import pytest
from conftest import settings
from test_classifier import write_kinds

from adctl.classification.training import grid as module
from adctl.classification.training.grid import is_grid, train_grid, variants
from adctl.classification.training.train import train_classifier
from adctl.config import TrainSettings
from adctl.errors import UsageError

HEADS, SEEDS = ("logistic", "knn"), (0, 1)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return write_kinds(tmp_path_factory.mktemp("data") / "kinds", {"dot": 8, "good": 10})


def grid(kinds, runs, **values):
    given = {"task": "classify", "data": kinds, "epochs": None, "name": "grid", "runs": runs, **values}
    return train_grid(settings(**given))


@pytest.fixture(scope="module")
def made(kinds, tmp_path_factory):
    options = {"head": ",".join(HEADS)}
    return grid(kinds, tmp_path_factory.mktemp("runs"), options=options, balance="none,oversample", seed=SEEDS)


def test_every_combination_has_a_tested_run(made):
    wanted = [(head, balance, seed) for head in HEADS for balance in ("none", "oversample") for seed in SEEDS]
    assert [(row.variant.head, row.variant.balance, row.seed) for row in made.rows] == wanted
    assert made.varied == ("head", "balance")
    for row in made.rows:
        stored = json.loads((made.folder / row.run / "metrics.json").read_text(encoding="utf-8"))
        assert row.metrics["macro_f1"] == stored["metrics"]["overall"]["macro_f1"]
        config = json.loads((made.folder / row.run / "run.json").read_text(encoding="utf-8"))["config"]
        assert (config["head"], config["seed"]) == (row.variant.head, row.seed)


def test_means_and_spreads_are_those_of_the_rows(made):
    assert len(made.table) == 4
    for line in made.table:
        values = [row.metrics["balanced_accuracy"] for row in made.rows if row.variant == line.variant]
        found = line.metrics["balanced_accuracy"]
        assert (found.mean, found.count) == (pytest.approx(statistics.fmean(values)), 2)
        assert found.deviation == pytest.approx(statistics.stdev(values))
    with (made.folder / "results.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    for line, row in zip(table, made.rows, strict=True):
        assert (line["head"], line["balance"], line["seed"]) == (row.variant.head, row.variant.balance, str(row.seed))
        assert float(line["macro_f1"]) == row.metrics["macro_f1"]
        assert float(line["recall.dot"]) == row.metrics["recall.dot"]
    text = (made.folder / "table.md").read_text(encoding="utf-8")
    first = made.table[0]
    assert f"| logistic | none | {first.metrics['accuracy']} | {first.metrics['balanced_accuracy']} |" in text


def test_features_are_computed_once_and_change_no_prediction(made, kinds, tmp_path):
    assert made.rows[0].shared == 0
    assert {row.shared for row in made.rows[1:]} == {18}  # each image, in training or in test
    alone = train_classifier(
        settings(task="classify", data=kinds, runs=tmp_path, epochs=None, seed=1, options={"head": "knn"})
    )
    row = next(row for row in made.rows if row.name == "tf_efficientnet_lite0-knn-none-seed1")
    assert row.metrics["accuracy"] == alone.metrics.overall["accuracy"]
    assert row.metrics["macro_auroc"] == pytest.approx(alone.metrics.overall["macro_auroc"], abs=1e-3)


def test_it_goes_on_where_it_stopped_and_takes_longer_lists(kinds, tmp_path, monkeypatch):
    calls = []

    def counting(loaded, *others, **more):
        calls.append(loaded.settings.name)
        if len(calls) == 2:
            (loaded.settings.runs / loaded.settings.name).mkdir()  # what a kill leaves
            raise KeyboardInterrupt
        return train_classifier(loaded, *others, **more)

    monkeypatch.setattr(module, "train_classifier", counting)
    given = {"options": {"head": "logistic"}, "backbone": "test_resnet", "weights": "random"}
    with pytest.raises(KeyboardInterrupt):
        grid(kinds, tmp_path, seed=SEEDS, **given)
    assert len(grid(kinds, tmp_path, seed=SEEDS, **given).rows) == 2
    assert calls[2:] == ["test_resnet-logistic-none-seed1"]
    larger = grid(kinds, tmp_path, seed=SEEDS, **{**given, "options": {"head": "logistic,svm"}})
    assert [row.error for row in larger.rows] == [None] * 4
    assert calls[3:] == ["test_resnet-svm-none-seed0", "test_resnet-svm-none-seed1"]
    with pytest.raises(UsageError, match=r"listed \(was \[\], now \['pool'\]\)"):
        grid(kinds, tmp_path, seed=SEEDS, **{**given, "options": {"head": "logistic", "pool": "mean,mean+max"}})
    shutil.rmtree(tmp_path / "grid/test_resnet-svm-none-seed0")
    assert grid(kinds, tmp_path, seed=0, **{**given, "options": {"head": "svm,logistic"}}).rows[0].error is None
    assert calls[5:] == ["test_resnet-svm-none-seed0"]


def test_a_failed_training_does_not_stop_the_others(kinds, tmp_path, monkeypatch):
    def broken(loaded, *others, **more):
        if loaded.settings.seed == 0:
            raise RuntimeError("out of luck")
        return train_classifier(loaded, *others, **more)

    monkeypatch.setattr(module, "train_classifier", broken)
    given = {"backbone": "test_resnet", "weights": "random", "seed": SEEDS}
    made = grid(kinds, tmp_path, **given)
    assert [row.error for row in made.rows] == ["RuntimeError: out of luck", None]
    assert "- test_resnet-logistic-none-seed0: RuntimeError: out of luck" in (made.folder / "table.md").read_text(
        "utf-8"
    )
    assert (made.table[0].seeds, made.table[0].failed) == (1, 1)


def test_lists_of_options_and_backbones():
    given = {"task": "classify", "backbone": "a,b", "options": {"head": "svm", "regularisation": "0.01,1"}}
    found = variants(TrainSettings(**given))
    assert [(one.backbone, one.head, one.options) for one in found] == [
        (backbone, "svm", {"regularisation": value}) for backbone in "ab" for value in (0.01, 1)
    ]
    assert not is_grid(TrainSettings(task="classify", options={"head": "svm", "layers": [2, 3], "leave_out": "a,b"}))
    assert not is_grid(TrainSettings(task="classify", seeds=(3,), seed=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"options": {"head": "svm,forrest"}}, "--set head of a classifier is not valid"),
        ({"options": {"head": "svm,linear"}, "balance": "focal"}, "takes no --balance focal"),
        ({"balance": "none,weigths"}, "Unknown treatment of rare kinds 'weigths'"),
        ({"backbone": "test_resnet,resnetx", "weights": "random"}, "Unknown backbone 'resnetx'"),
        ({"backbone": "tf_efficientnet_lite0,resnet18"}, "resnet18"),
        ({"seed": SEEDS, "folds": 3}, "--folds needs one model"),
        ({"seed": SEEDS, "resume": "x"}, "a single run"),
    ],
)
def test_faults_are_told_before_any_training(kinds, tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        grid(kinds, tmp_path, **values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "padim,patchcore", "--seed", "0,1"], "--arch belongs to detectors"),
        (["--set", "head=svm,knn", "--print-config"], "one training only"),
    ],
)
def test_lists_that_do_not_fit_are_refused(adctl, kinds, arguments, message):
    assert message in adctl("train", "--task", "classify", "--data", kinds, *arguments, code=2).stderr
    assert not list(adctl.folder.glob("runs/*"))


def test_the_command_line_gives_table_and_json(adctl, kinds):
    given = ("train", "--task", "classify", "--data", kinds, "--image-size", "64", "--name", "heads")
    document = adctl.json(*given, "--set", "head=logistic,knn", "--seed", "0,1", "--backbone", "test_resnet",
                          "--weights", "random")  # fmt: skip
    assert [row["variant"]["head"] for row in document["result"]["rows"]] == ["logistic"] * 2 + ["knn"] * 2
    again = adctl(
        *given, "--set", "head=logistic,knn", "--seed", "0,1", "--backbone", "test_resnet", "--weights", "random"
    )
    assert "±" in again.stdout
    assert "macro F1" in again.stdout
    named = adctl.json("score", kinds, "--model", adctl.folder / "runs/heads/test_resnet-knn-none-seed1")["result"]
    assert sum(named["counts"].values()) == 18
