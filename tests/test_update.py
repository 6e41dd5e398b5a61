"""`adctl train --update`: a candidate from reviewed images, compared with the present model."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adctl.config import LoadedSettings, TrainSettings, names_of, validated
from adctl.data.datasets.manifests import read_manifest
from adctl.engine.checkpoints import CheckpointFolder
from adctl.errors import DataError, UsageError
from adctl.fetching.demo_dataset import generate
from adctl.model_file import load_model, read_header, tensors_digest
from adctl.training.train import train
from adctl.training.update import IMAGES

OLD, NEW = 20, 24


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Folders `old` and `new` of good parts, and `defects` in folders by kind."""
    root = tmp_path_factory.mktemp("parts")
    generate(root / "all", train=OLD + NEW, good=2, per_defect=2, size=96)
    images = sorted((root / "all" / "zipper" / "train" / "good").iterdir())
    for name, chosen in (("old", images[:OLD]), ("new", images[OLD:])):
        (root / name).mkdir()
        for image in chosen:
            shutil.copy(image, root / name)
    shutil.copytree(root / "all" / "zipper" / "test", root / "defects", ignore=shutil.ignore_patterns("good"))
    return root


def run(**values):
    """Train with the given settings alone; the others have their defaults."""
    small = {"device": "cpu", "export": "none", "tensorboard": False, **values}
    if "update" not in values and "resume" not in values:
        small = {"image_size": 64, "epochs": 2, **small}
    origins = {name: f"--{name}" if name in small else "default" for name in names_of(TrainSettings)}
    return train(LoadedSettings(validated(TrainSettings, small), origins))


@pytest.fixture(scope="module")
def present(parts, tmp_path_factory):
    """Trained models by detector, each trained when it is first asked for."""
    models = {}
    runs = tmp_path_factory.mktemp("runs")

    def model(arch):
        if arch not in models:
            models[arch] = run(arch=arch, good=parts / "old", runs=runs, name=arch).model
        return models[arch]

    return model


@pytest.fixture(scope="module")
def updated(present, parts):
    """A PatchCore that learned from new images, all of them good."""
    model = present("patchcore")
    return run(update=model, good=parts / "new", defects=parts / "defects", runs=model.parents[1], name="second")


def images_in(folder):
    return sorted(folder.iterdir())


def spoilt(source, target, corner):
    """Write an image with a gross defect."""
    picture = cv2.imread(str(source))
    row, column = corner
    picture[row : row + 30, column : column + 30] = (255, 0, 255)
    cv2.imwrite(str(target), picture)


def folder_of(path, images):
    path.mkdir(parents=True)
    for image in images:
        shutil.copy(image, path)
    return path


def test_a_candidate_is_a_run_of_its_own(updated, present, parts):
    before = present("patchcore")
    update = updated.update
    assert updated.run.name == "second"
    assert update.present == before
    assert update.way == "new images alone"
    assert update.learned + len(update.set_aside) == NEW
    assert updated.images == OLD + update.learned
    header = read_header(updated.model)
    assert len(header.training.image_digests) == updated.images
    assert set(read_header(before).training.image_digests) < set(header.training.image_digests)
    manifest = json.loads((updated.run / "run.json").read_text())
    assert manifest["parent"]["run"] == "patchcore"
    assert json.loads((updated.run / "update.json").read_text())["learned"] == update.learned
    assert load_model(before)[1] == read_header(before)


def test_the_comparison_has_every_image_and_exact_intervals(updated, parts):
    found = updated.update.comparison
    assert [one.name for one in found.models] == ["present", "recalibrated", "candidate"]
    for one in found.models:
        assert one.false_alarms.total == updated.update.learned
        assert one.recall.total == len(list(parts.glob("defects/*/*.png")))
        assert one.false_alarms.low <= one.false_alarms.share <= one.false_alarms.high
    assert found.out_of_fold
    assert found.recommendation in ("accept", "no evidence of a difference", "do not accept")
    assert all(one.before != one.after for one in found.changed)


def test_a_candidate_can_be_updated_again_and_skips_what_it_knows(updated, parts, tmp_path):
    known = [*images_in(parts / "new")[:4], *images_in(parts / "old")[:4]]
    mixed = folder_of(tmp_path / "good", known)
    with pytest.raises(DataError, match="8 known"):
        run(update=updated.model, good=mixed, runs=updated.run.parent)
    for number in range(9):
        image = cv2.imread(str(images_in(parts / "new")[number]))
        cv2.imwrite(str(mixed / f"other{number}.png"), np.roll(image, 1 + number, axis=0))
    odd = mixed / (os.fsdecode(b'M\xfc,"\n=1.png') if sys.platform == "linux" else "=1.png")
    (mixed / "other0.png").rename(odd)
    again = run(update=updated.run, good=mixed, runs=updated.run.parent, trust_reviews=True)
    assert odd in [row.sample.path for row in read_manifest(again.run / IMAGES)]
    assert [one.reason for one in again.update.set_aside] == ["known"] * 8
    assert again.update.learned == 9
    assert "earlier scores" in again.update.notes[0]
    assert again.images == updated.images + 9


@pytest.mark.parametrize("arch", ["padim", "simplenet"])
def test_other_detectors_make_a_candidate_too(arch, present, parts):
    result = run(update=present(arch), good=parts / "new", defects=parts / "defects", runs=present(arch).parents[1])
    alone = arch == "padim"
    assert result.update.way == ("new images alone" if alone else "old and new images")
    assert (result.update.held_out == 0) == alone
    assert result.update.comparison.out_of_fold == alone
    assert result.images == read_header(present(arch)).training.images + result.update.learned
    if not alone:  # a third of the epochs
        assert len(result.fit.history) == 1


def test_detectors_that_need_the_old_images_name_what_is_missing(parts, tmp_path):
    old = shutil.copytree(parts / "old", tmp_path / "old")
    model = run(arch="simplenet", good=old, runs=tmp_path / "runs", epochs=1).model
    image = images_in(old)[0]
    shutil.copy(images_in(parts / "new")[0], image)
    with pytest.raises(DataError, match=f"have changed: 1, such as .*{image.name}"):
        run(update=model, good=parts / "new", runs=tmp_path / "runs")
    image.unlink()
    with pytest.raises(DataError, match=f"missing from the dataset: 1, such as .*{image.name}"):
        run(update=model, good=parts / "new", runs=tmp_path / "runs")
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 1


def test_patchcore_needs_no_old_images(parts, tmp_path):
    old = shutil.copytree(parts / "old", tmp_path / "old")
    model = run(arch="patchcore", good=old, runs=tmp_path / "runs").model
    alone = tmp_path / "alone.safetensors"
    shutil.copy(model, alone)
    shutil.rmtree(old)
    shutil.rmtree(model.parent)
    result = run(update=alone, good=parts / "new", runs=tmp_path / "runs", trust_reviews=True)
    assert result.images == OLD + NEW
    with pytest.raises(DataError, match=f"{OLD} known"):  # also without the old run
        run(update=result.model, good=parts / "old", runs=tmp_path / "runs")


def test_an_image_that_is_also_a_defect_is_never_learned_from(present, parts, tmp_path):
    good = folder_of(tmp_path / "good", images_in(parts / "new"))
    bad = folder_of(tmp_path / "bad" / "scratch", images_in(parts / "new")[:1])
    picture = cv2.imread(str(images_in(parts / "new")[1]))
    cv2.imwrite(str(bad / "saved_again.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    result = run(update=present("patchcore"), good=good, defects=bad.parent, runs=tmp_path / "runs", trust_reviews=True)
    refused = {Path(one.path).name: one.detail for one in result.update.set_aside if one.reason == "also a defect"}
    names = [path.name for path in images_in(parts / "new")[:2]]
    assert set(refused) == set(names)
    assert "saved_again.jpg" in refused[names[1]]


def test_a_defect_called_good_is_found_and_can_be_confirmed(present, parts, tmp_path):
    good = folder_of(tmp_path / "good", images_in(parts / "new"))
    wrong = {f"wrong{number}.png" for number in range(3)}
    for number, name in enumerate(sorted(wrong)):  # the same defect, so that they could vouch for each other
        spoilt(images_in(parts / "old")[number], good / name, (20, 8))
    model, runs = present("patchcore"), tmp_path / "runs"
    found = run(update=model, good=good, runs=runs)
    unlike = {Path(one.path).name: one for one in found.update.set_aside if one.reason == "unlike the others"}
    assert wrong <= set(unlike)
    assert len(unlike) <= len(wrong) + 1
    assert all(one.score > one.limit for one in unlike.values())
    assert found.calibration.evidence.contaminated == pytest.approx(len(unlike) / found.calibration.good_images)
    trusted = run(update=model, good=good, runs=runs, confirmed="wrong0.png")
    assert "wrong0.png" not in {Path(one.path).name for one in trusted.update.set_aside}
    with pytest.raises(UsageError, match="no_such"):
        run(update=model, good=good, runs=runs, confirmed="no_such.png")


def test_a_new_lot_is_no_poison(present, parts, tmp_path):
    lot = tmp_path / "lot"
    lot.mkdir()
    for path in images_in(parts / "new"):
        cv2.imwrite(str(lot / path.name), 255 - cv2.imread(str(path)))
    result = run(update=present("patchcore"), good=lot, defects=parts / "defects", runs=tmp_path / "runs")
    before, after = result.update.comparison.models[0], result.update.comparison.models[-1]
    assert before.false_alarms.share > 0.5
    assert len(result.update.set_aside) <= 3
    assert after.false_alarms.share < 0.2


def test_when_all_are_unlike_nothing_is_written(present, parts, tmp_path):
    good = folder_of(tmp_path / "good", ())
    spoilt(images_in(parts / "new")[0], good / "wrong.png", (20, 8))
    with pytest.raises(DataError, match="unlike the good images") as caught:
        run(update=present("patchcore"), good=good, runs=tmp_path / "runs")
    assert "--trust-reviews" in caught.value.remedy
    assert not list((tmp_path / "runs").glob("*/run.json"))


def test_unreadable_images_and_copies_are_set_aside(present, parts, tmp_path):
    good = folder_of(tmp_path / "good", images_in(parts / "new")[:10])
    (good / "broken.png").write_bytes(b"no image")
    shutil.copy(next(good.glob("*[0-9].png")), good / "zz_copy.png")
    result = run(update=present("padim"), good=good, runs=tmp_path / "runs", trust_reviews=True)
    assert {Path(one.path).name: one.reason for one in result.update.set_aside} == {
        "broken.png": "unreadable",
        "zz_copy.png": "copy",
    }
    assert result.update.learned == 10


def test_images_that_the_model_cannot_score_are_set_aside(parts, tmp_path):
    runs = tmp_path / "runs"
    model = run(arch="padim", good=parts / "old", runs=runs, roi="20,20,64,64").model
    good = folder_of(tmp_path / "good", images_in(parts / "new")[:10])
    picture = cv2.imread(str(images_in(parts / "new")[10]))
    cv2.imwrite(str(good / "small.png"), picture[:16, :16])  # the region lies outside
    cv2.imwrite(str(good / "grey.png"), cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    result = run(update=model, good=good, runs=runs, trust_reviews=True)
    assert [(Path(one.path).name, one.reason) for one in result.update.set_aside] == [("small.png", "unreadable")]
    assert result.update.learned == 11
    assert load_model(result.model)[0].config.roi == load_model(model)[0].config.roi


def test_groups_stay_together(present, parts, tmp_path):
    for number, image in enumerate(images_in(parts / "new")):
        folder = tmp_path / "lots" / f"lot{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    given = {"update": present("padim"), "good": tmp_path / "lots", "group": "folder", "trust_reviews": True}
    result = run(**given, runs=tmp_path / "runs")
    assert result.update.held_out == NEW // 3  # lots of 8 of 44 images are too large to be left out in closed form
    split = json.loads((result.run / "split.json").read_text())
    lots = [{Path(key).parent.name for key in split[part] if "lots" in key} for part in ("train", "calibration")]
    assert lots[0].isdisjoint(lots[1])


def test_settings_that_contradict_the_model_are_refused(present, parts, tmp_path):
    shared = {"update": present("padim"), "runs": tmp_path / "runs"}
    with pytest.raises(UsageError, match="--arch"):
        run(**shared, good=parts / "new", arch="patchcore")
    with pytest.raises(UsageError, match="reviewed good"):
        run(**shared)
    with pytest.raises(UsageError, match="no_model"):
        run(update=Path("no_model"), good=parts / "new", runs=tmp_path / "runs")
    with pytest.raises(UsageError, match="belongs to --update"):
        run(arch="padim", good=parts / "new", confirmed=["x"], runs=tmp_path / "runs")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    with pytest.raises(UsageError, match="exists already"):
        run(**shared, good=parts / "new", name="taken")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="No images found"):
        run(**shared, good=empty)


def test_an_interrupted_update_goes_on(present, parts, tmp_path, monkeypatch):
    given = {"update": present("simplenet"), "good": parts / "new", "runs": tmp_path / "runs", "name": "cut"}
    given |= {"epochs": 3, "checkpoint_epochs": 1}
    whole = run(**{**given, "name": "whole"})

    class Cut(BaseException):
        pass

    original = CheckpointFolder.write

    def cut(self, step, snapshot):
        original(self, step, snapshot)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", cut)
        with pytest.raises(Cut):
            run(**given)
    assert not (tmp_path / "runs" / "cut" / "model.safetensors").exists()
    resumed = run(resume="cut", runs=tmp_path / "runs")
    assert resumed.update.learned == whole.update.learned
    first, second = (load_model(one.model)[0].state_dict() for one in (whole, resumed))
    assert all((first[name] - second[name]).abs().max() < 1e-5 for name in first if first[name].numel())


def test_the_command_line_shows_the_comparison(present, parts, adctl):
    model = present("patchcore")
    arguments = ("train", "--update", model, "--good", parts / "new", "--defects", parts / "defects", "--device", "cpu")
    document = adctl.json(*arguments, "--name", "next")
    assert document["result"]["update"]["comparison"]["models"][0]["name"] == "present"
    shown = adctl(*arguments).stdout
    assert "recommendation" in shown
    assert "adctl runs accept" in shown
    lineage = adctl.json("runs", "lineage", "next")["result"]
    assert lineage["kind"] == "updated model"


def test_calibrating_by_reviewed_images_alone_is_one_command(present, parts, adctl):
    document = adctl.json(
        "calibrate", "--model", present("patchcore"), "--good", parts / "new", "--out", "c.safetensors"
    )
    assert document["result"]["calibration"]["good_images"] == NEW


@pytest.mark.parametrize("arch", ["patchcore", "simplenet"])
def test_a_candidate_may_differ_by_its_threshold_alone(arch, present, parts, tmp_path):
    good = folder_of(tmp_path / "good", images_in(parts / "new"))
    spoilt(images_in(parts / "old")[0], good / "wrong.png", (20, 8))
    model = present(arch)
    given = {"update": model, "good": good, "defects": parts / "defects", "runs": model.parents[1], "recalibrate": True}
    result = run(**given)
    update, calibration = result.update, result.calibration
    assert (update.way, update.learned) == ("threshold alone", 0)
    assert tensors_digest(result.model) == tensors_digest(model)
    assert read_header(result.model).training == read_header(model).training
    assert calibration.method == "conformal"
    assert calibration.promised_false_alarm <= 1 / (update.held_out + 1) + 1e-9
    assert [one.name for one in update.comparison.models] == ["present", "candidate"]
    assert "wrong.png" in {Path(one.path).name for one in update.set_aside}
    if arch == "patchcore":
        (good / "wrong.png").unlink()  # as the candidate's note advises
        learned = run(**{**given, "update": result.model, "recalibrate": False})  # it may learn from them yet
        assert learned.update.learned == update.held_out
        assert learned.calibration.good_images <= NEW + 1  # no score counts twice


def test_without_the_old_images_a_threshold_says_that_nothing_was_compared(present, parts, tmp_path):
    alone = shutil.copy(present("simplenet"), tmp_path / "alone.safetensors")
    result = run(update=Path(alone), good=parts / "new", runs=tmp_path / "runs", recalibrate=True)
    assert result.calibration.good_images == NEW
    assert "were not compared" in result.update.notes[0]


def test_nothing_of_the_present_model_changes(present, parts, tmp_path):
    model = present("padim")
    content = model.read_bytes()
    run(update=model, good=parts / "new", runs=tmp_path / "runs")
    assert model.read_bytes() == content


def test_a_name_means_its_accepted_version(present, parts, adctl):
    update = ("train", "--update", "line3", "--good", parts / "new", "--trust-reviews", "--device", "cpu")
    adctl("train", "--good", parts / "old", "--name", "line3", "--image-size", 64, "--device", "cpu")
    adctl(*update, "--name", "second")
    assert adctl.json("runs", "accept", "second")["result"] == {"name": "line3", "run": "second", "previous": "line3"}
    score = ("score", parts / "old", "--model", "line3", "--device", "cpu")
    assert Path(adctl.json(*score)["result"]["model"]).parent.name == "second"
    assert adctl("runs", "rm", "second", code=2).stderr.count("a version of line3") == 1
    more = Path(adctl.folder) / "more"
    more.mkdir()
    for number in range(4):
        spoilt(images_in(parts / "new")[number], more / f"{number}.png", (10 * number, 8))
    adctl("train", "--update", "line3", "--good", more, "--trust-reviews", "--device", "cpu", "--name", "third")
    assert adctl.json("runs", "accept", "third")["result"]["previous"] == "second"
    assert adctl.json("runs", "rollback", "line3")["result"]["run"] == "second"
    assert adctl.json("runs", "rollback", "line3")["result"] == {"name": "line3", "run": "line3", "previous": None}
    assert "no version before" in adctl("runs", "rollback", "line3", code=2).stderr
    assert Path(adctl.json(*score)["result"]["model"]).parent.name == "line3"
    assert "line4" in adctl("runs", "rollback", "line4", code=2).stderr
