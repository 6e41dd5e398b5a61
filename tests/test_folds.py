"""`adctl train --folds K`: no leaks, and each image is scored by a model that was not trained on it."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from adctl.data.folds import split_fold
from adctl.detectors.components.backbones import Backbone
from adctl.detectors.components.shared_feature_cache import backbone_levels, shared_features
from adctl.errors import DataError, UsageError
from adctl.metrics.ensemble import combine_scores
from adctl.metrics.image import image_metrics
from adctl.metrics.mean_std import mean_std, mean_stds
from adctl.model_file import DIGEST_LENGTH, read_header
from adctl.records import Sample
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.score_set import ScoreSet
from adctl.training import cross_validation as module
from adctl.training.cross_validation import cross_validate
from adctl.training.train import train

numbers = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


@given(numbers)
def test_mean_and_spread_are_those_of_the_definition(values):
    found = mean_std(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.count == len(values)
    if len(values) == 1:
        assert found.deviation is None
    else:
        assert found.deviation == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1)), max_size=6))
def test_a_number_that_some_rows_lack_counts_where_it_is(rows):
    found = mean_stds(rows)
    assert set(found) == {name for row in rows for name in row}
    for name, value in found.items():
        there = [row[name] for row in rows if name in row]
        assert value.count == len(there)
        assert value.mean == pytest.approx(statistics.fmean(there))


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 1000))
def test_ensembles_are_their_definition(models, images, seed):
    random = np.random.default_rng(seed)
    scores, good = random.normal(3, 2, (models, images)).round(1), random.normal(2, 1, (models, 7))
    standard = [
        [(value - statistics.fmean(known)) / statistics.stdev(known) for value in one]
        for one, known in zip(scores.tolist(), good.tolist(), strict=True)
    ]
    found = combine_scores(list(scores), list(good))
    for image in range(images):
        column = [one[image] for one in standard]
        assert found["mean"][image] == pytest.approx(statistics.fmean(column))
        assert found["max"][image] == pytest.approx(max(column))
        below = [((one < one[image]).sum() + ((one == one[image]).sum()) / 2) / images for one in scores]
        assert found["rank"][image] == pytest.approx(statistics.fmean(below))


def test_good_scores_without_a_spread_leave_the_scale_alone():
    assert combine_scores([[5.0, 7.0]], [[4.0]])["mean"].tolist() == [1.0, 3.0]


@few(max_examples=25)
@given(data=st.data())
def test_no_fold_learns_from_what_it_holds_out_or_from_the_test_images(tmp_path_factory, data):
    """Files are a few bytes: what they hold is all that counts here."""
    folder = tmp_path_factory.mktemp("files")
    contents = data.draw(st.lists(st.integers(0, 40), min_size=14, max_size=40), "good")
    tested = data.draw(st.lists(st.integers(0, 45), max_size=6), "test")
    folds = data.draw(st.integers(2, 4), "folds")

    def samples(kind, values):
        made = []
        for number, value in enumerate(values):
            path = folder / f"{kind}-{number}.png"
            path.write_text(str(value), encoding="ascii")
            made.append(Sample(path, path.name))
        return made

    train, test = samples("good", contents), samples("test", tested)
    pool = set(contents) - set(tested)
    value_of = {sample.key: value for sample, value in zip(train, contents, strict=True)}
    held: list[set[int]] = []
    for fold in range(1, folds + 1):
        try:
            split = split_fold(train, test, folds=folds, fold=fold, validation=0.2, seed=1)
        except DataError:
            assert len(pool) < 8 * 2  # too few are left to learn from
            return
        parts = [{value_of[one.key] for one in part} for part in (split.train, split.validation, split.calibration)]
        learned = parts[0] | parts[1]
        assert not parts[0] & parts[1]
        assert not learned & parts[2]
        assert not (learned | parts[2]) & set(tested)
        assert learned | parts[2] == pool
        held.append(parts[2])
    assert set().union(*held) == pool
    assert sum(map(len, held)) == len(pool)
    everything = split_fold(train, test, folds=folds, fold=None, validation=0.0, seed=1)
    assert {value_of[one.key] for one in everything.train} == pool
    assert everything.calibration == ()


@pytest.fixture(scope="module")
def data(zippers, tmp_path_factory):
    """Zippers with one test image among the good ones, under another name."""
    folder = tmp_path_factory.mktemp("leak") / "zipper"
    shutil.copytree(zippers, folder)
    shutil.copy(next((folder / "test/good").iterdir()), folder / "train/good/zz_leaked.png")
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    return cross_validate(settings(data=data, arch="padim", folds=3, runs=tmp_path_factory.mktemp("runs"), name="cv"))


def out_of_fold(made) -> list[dict[str, str]]:
    with (made.run / "out_of_fold.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST_LENGTH]


def test_models_have_not_seen_their_fold_nor_a_test_image(made, data):
    tested = {digest(path) for path in (data / "test").rglob("*.png")}
    pool = {digest(path) for path in (data / "train/good").iterdir()} - tested
    table = out_of_fold(made)
    held = []
    for fold in made.folds:
        seen = set(read_header(fold.model).training.image_digests)
        own = {digest(data / line["key"]) for line in table if int(line["fold"]) == fold.number}
        assert len(own) == fold.held_out
        assert not seen & (own | tested)
        assert seen | own == pool
        held.append(own)
    assert set().union(*held) == pool
    assert sum(map(len, held)) == len(pool) == len(table)
    assert set(read_header(made.trained.model).training.image_digests) == pool
    assert "1 good images are identical to test images" in made.notes[0]


def test_out_of_fold_scores_are_those_of_the_folds_own_models(made, data):
    from adctl.scoring.predict import collect

    table = out_of_fold(made)
    for fold in made.folds:
        lines = [line for line in table if int(line["fold"]) == fold.number]
        found = collect(
            TorchRuntime(fold.model, "cpu"),
            [Sample(data / line["key"], line["key"]) for line in lines],
            batch_size="auto",
            workers=0,
        )
        np.testing.assert_allclose([float(line["score"]) for line in lines], found.scores, rtol=1e-4)
    evidence = read_header(made.trained.model).calibration.evidence
    assert evidence.folds == 3
    assert list(evidence.good) == sorted(float(line["score"]) for line in table)


def test_metrics_spreads_and_ensembles_are_those_of_the_scored_sets(made):
    sets = [ScoreSet.load(fold.model.parent / "test-scores") for fold in made.folds]
    aurocs = []
    for fold, scores in zip(made.folds, sets, strict=True):
        truth = [row.label != "good" for row in scores.rows]
        aurocs.append(image_metrics([row.score for row in scores.rows], truth).auroc)
        assert fold.metrics["image_auroc"] == aurocs[-1]
        assert "pixel_aupro" in fold.metrics
    spread = made.spreads["image_auroc"]
    assert (spread.mean, spread.deviation) == pytest.approx((statistics.fmean(aurocs), statistics.stdev(aurocs)))
    table = out_of_fold(made)
    good = [[float(line["score"]) for line in table if int(line["fold"]) == fold.number] for fold in made.folds]
    expected = combine_scores([[row.score for row in one.rows] for one in sets], good)
    for name, values in expected.items():
        assert made.ensembles[name]["image_auroc"] == pytest.approx(image_metrics(values, truth).auroc)


def test_the_best_fold_is_chosen_by_good_images_alone(made):
    assert made.best == min(made.folds, key=lambda fold: fold.tail).number
    table = out_of_fold(made)
    for fold in made.folds:
        good = [float(line["score"]) for line in table if int(line["fold"]) == fold.number]
        middle, high = np.quantile(good, [0.5, 0.95])
        assert fold.tail == pytest.approx((high - middle) / middle)
    assert "test images are not used" in made.criterion


def test_the_summary_says_it_all(made):
    summary = json.loads((made.run / "summary.json").read_text(encoding="utf-8"))
    assert summary["schema"] == "adctl.folds/1"
    assert summary["best"] == made.best
    assert [fold["model"] for fold in summary["folds"]] == [f"fold-{number}/model.safetensors" for number in (1, 2, 3)]
    assert set(summary["ensembles"]) == {"mean", "max", "rank"}
    assert math.isfinite(summary["spreads"]["image_auroc"]["deviation"])


def test_one_fold_alone_is_the_same_model(made, data, tmp_path):
    alone = train(settings(data=data, arch="padim", folds=3, fold=2, runs=tmp_path, name="alone"))
    header, known = read_header(alone.model), read_header(made.folds[1].model)
    assert header.training == known.training
    assert header.calibration.threshold == pytest.approx(known.calibration.threshold, rel=1e-4)


def test_a_run_cut_short_goes_on_with_the_complete_folds(zippers, tmp_path, monkeypatch):
    whole, calls = module._train_fold, []

    def cut_short(folder, own, *others):
        calls.append(folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(folder, own, *others)

    monkeypatch.setattr(module, "_train_fold", cut_short)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(settings(data=zippers, arch="padim", folds=2, runs=tmp_path, name="cv"))
    first = (tmp_path / "cv/fold-1/model.safetensors").stat().st_mtime_ns
    going_on = settings(resume=tmp_path / "cv", runs=tmp_path)
    made = train(type(going_on)(going_on.settings, dict.fromkeys(going_on.origins, "default")))
    assert calls == ["fold-1", "fold-2", "fold-2"]
    assert (tmp_path / "cv/fold-1/model.safetensors").stat().st_mtime_ns == first
    assert len(made.folds) == 2


def test_gradient_training_keeps_a_history_a_fold_and_needs_no_test_images(zippers, tmp_path):
    made = cross_validate(
        settings(good=zippers / "train/good", arch="cnn", folds=2, epochs=1, runs=tmp_path, name="cv")
    )
    for fold in made.folds:
        assert (fold.model.parent / "history.csv").is_file()
        assert fold.metrics == {}
    assert made.ensembles == {}
    assert any("no labelled test images" in note for note in made.notes)
    assert (tmp_path / "cv/history.csv").is_file()


def test_command_line(adctl, zippers):
    done = adctl(
        *("train", "--data", zippers, "--arch", "padim", "--image-size", "64", "--device", "cpu"),
        *("--folds", "2", "--name", "cv", "--json"),
    )
    result = json.loads(done.stdout)["result"]
    assert [fold["number"] for fold in result["folds"]] == [1, 2]
    assert (adctl.folder / "runs/cv" / result["model"]).is_file()
    adctl("score", next((zippers / "test/good").iterdir()), "--model", "cv", "--out", "all")
    adctl("calibrate", "--model", "cv/fold-1", "--max-false-alarm", "0.2")


def test_the_table_on_the_terminal(made, capsys):
    from adctl.cli.cross_validation_text import cross_validation_json, cross_validation_text
    from adctl.cli.output import print_text

    print_text(cross_validation_text(made))
    shown = capsys.readouterr().out
    for word in ("fold 3", "mean ± spread", "ensemble, rank", "all images", "best fold", "adctl score FOLDER"):
        assert word in shown
    assert str(made.spreads["pixel_aupro"]) in shown
    assert cross_validation_json(made)["best"] == made.best


def test_refusals(zippers, tmp_path):
    def refused(**values):
        train(settings(data=zippers, runs=tmp_path / "runs", **values))

    with pytest.raises(UsageError, match="no fold 3: --folds is 2"):
        refused(folds=2, fold=3)
    with pytest.raises(UsageError, match="--fold needs --folds"):
        refused(fold=1)
    with pytest.raises(DataError, match="too few for 60 folds"):
        refused(folds=60, arch="padim")
    assert not any((tmp_path / "runs").iterdir())


def test_several_devices_are_refused(zippers, tmp_path):
    with pytest.raises(UsageError, match="a single device"):
        cross_validate(settings(data=zippers, folds=2, devices="2", runs=tmp_path))


def test_shared_features_are_the_backbones_own_and_belong_to_its_weights():
    torch.manual_seed(0)
    one, two = (Backbone("tf_efficientnet_lite0", None, 64).eval() for _ in range(2))
    images = torch.rand(4, 3, 64, 64)
    with torch.inference_mode():
        expected, others = one(images), two(images)
        with shared_features() as store:
            backbone_levels(one, images[:2])
            found = backbone_levels(one, images.flip(0))
            assert store.hits == 2
            of_others = backbone_levels(two, images)
            assert store.hits == 2
        backbone_levels(one, images)
        assert store.hits == 2
    for level, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(level.flip(0), wanted)
    for level, wanted in zip(of_others, others, strict=True):
        torch.testing.assert_close(level, wanted)


def test_shared_features_stop_at_their_room():
    backbone = Backbone("tf_efficientnet_lite0", None, 64).eval()
    with torch.inference_mode(), shared_features(room=0) as store:
        backbone_levels(backbone, torch.zeros(1, 3, 64, 64))
        backbone_levels(backbone, torch.zeros(1, 3, 64, 64))
        assert store.hits == 0
