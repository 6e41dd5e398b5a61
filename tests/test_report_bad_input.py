"""Reports of incomplete or damaged scored sets: explained on the page, or refused with the reason."""

from __future__ import annotations

import dataclasses
import re

import cv2
import numpy as np
import pytest
from test_report import CALIBRATION, MANIFEST, Maker, before_scripts, page_of

from adctl.config import ReportSettings, load
from adctl.errors import DataError
from adctl.evaluation.evaluate import evaluate
from adctl.records import Calibration
from adctl.reporting.contact_sheet import write_contact_sheet
from adctl.reporting.content import build_content
from adctl.reporting.report import report


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path)


def test_the_page_of_one_class_says_which_metrics_do_not_exist_and_shows_the_others(maker):
    page = before_scripts(page_of(maker.add("good", 1.0).add("good", 4.0).scores()))
    assert re.search(r"No auroc, [a-z0-9 ,]+: there are no defective images\.", page)
    assert re.search(r"<dt>False-alarm rate</dt><dd class=\"value\">0\.500</dd>", page)
    assert "<dt>AUROC</dt>" not in page


def test_defects_without_mask_are_named_on_the_page(maker):
    maker.add("good", 1.0).add("hole", 4.0).add("hole", 4.0, masked=False, key="test/hole/maskless.png")
    page = before_scripts(page_of(maker.scores()))
    assert "test/hole/maskless.png has no mask and is left out of the pixel metrics." in page
    assert "<dt>AUPRO</dt>" in page


@pytest.mark.parametrize("label", [None, "good"])
@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_by_name(maker, label, score):
    scores = maker.add("good", 1.0).add(label, 2.0, key="odd.png").scores()
    rows = (scores.rows[0], dataclasses.replace(scores.rows[1], score=score))
    with pytest.raises(DataError, match=r"odd\.png"):
        evaluate(dataclasses.replace(scores, rows=rows))


def test_maps_of_another_size_are_measured_and_shown(maker):
    maker.add("good", 1.0).add("hole", 4.0).add("hole", 5.0)
    row, values = maker.rows[1]
    maker.rows[1] = (row, np.repeat(np.repeat(values, 3, axis=0), 2, axis=1))
    scores = maker.scores()
    assert {anomaly_map.shape for _, anomaly_map in scores.maps()} == {(8, 8), (24, 16)}
    found = evaluate(scores)
    assert found.pixel.images == 3
    assert found.pixel.auroc > 0.9
    assert page_of(scores).count("data:image/jpeg") == 3


@pytest.mark.parametrize(
    ("threshold", "told"),
    [(100.0, "not below any score, so no image is"), (-100.0, "below every score, so every image is")],
)
def test_a_threshold_outside_the_scores_is_explained(tmp_path, threshold, told):
    calibration = dataclasses.replace(CALIBRATION, threshold=threshold)
    page = before_scripts(page_of(Maker(tmp_path, calibration).add("good", 1.0).add("hole", 4.0).scores()))
    assert f"The threshold is {told} rejected." in page


def test_scores_of_another_model_are_told(maker, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"another")
    manifest = MANIFEST | {"model": {"path": str(model), "sha256": "ab" * 32, "arch": "cnn"}}
    scores = maker.add("good", 1.0).add("hole", 4.0).scores(manifest=manifest)
    assert any("has changed since" in note for note in build_content(scores, evaluate(scores)).notes)
    page = before_scripts(page_of(scores, reconstructions=True))
    assert "No reconstructions: the model file is not the one that scored these images." in page


def test_a_contact_sheet_shows_each_image_beside_its_overlay(maker, tmp_path):
    for number in range(5):
        maker.add("good" if number % 2 else "hole", 1.0 + number, size=(40, 30 + 10 * number))
    scores = maker.error().scores()
    target = tmp_path / "sheet.png"
    settings = load(ReportSettings, {"scores": scores.folder, "contact_sheet": target, "ci_samples": 100})
    assert report(settings).contact_sheet == target
    sheet = cv2.imread(str(target))
    assert sheet.shape[1] > 4 * 320
    assert len(np.unique(sheet)) > 50
    assert write_contact_sheet(target, scores) == 5


def test_a_contact_sheet_of_vanished_images_is_refused(maker, tmp_path):
    scores = maker.add("good", 1.0).scores()
    gone = dataclasses.replace(scores, rows=(dataclasses.replace(scores.rows[0], path="gone.png"),))
    with pytest.raises(DataError, match="can be read"):
        write_contact_sheet(tmp_path / "sheet.png", gone)


def test_bars_in_the_terminal_count_every_score(adctl, tmp_path):
    scores = Maker(tmp_path, Calibration("manual", 3.0, None, 0, 0, 0, 0.0, (1.0, 2.0)))
    for score in (1.0, 1.1, 2.0, 5.0):
        scores.add("good" if score < 3 else "hole", score)
    folder = scores.scores().folder
    shown = adctl("report", folder, PYTHONIOENCODING="utf-8").stdout
    good, bad = (line.split() for line in shown.splitlines() if line.startswith(("good ", "defective ")))
    assert (good[1][0], good[-1]) == ("█", "3")
    assert (bad[1], bad[-1]) == ("█", "1")
    assert "█" not in adctl("report", folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout


def test_reconstructions_are_those_of_the_model(tmp_path, zippers):
    from adctl.config import LoadedSettings, ScoreSettings, TrainSettings, names_of, validated
    from adctl.data.images import read_image
    from adctl.reporting.explanations import explainer
    from adctl.scoring.score import score
    from adctl.scoring.score_set import ScoreSet
    from adctl.training.single_run import train_once

    given = {"arch": "cnn", "data": zippers, "runs": tmp_path, "image_size": 64, "epochs": 1, "device": "cpu"}
    given["options"] = {"preset": "plain"}
    trained = train_once(
        LoadedSettings(validated(TrainSettings, given), dict.fromkeys(names_of(TrainSettings), "test"))
    )
    images = (str(zippers / "test" / "good"),)
    settings = ScoreSettings(images=images, model=trained.model, out=tmp_path / "scored", device="cpu")
    score(LoadedSettings(settings, dict.fromkeys(names_of(ScoreSettings), "test")))
    scores = ScoreSet.load(tmp_path / "scored")
    explain, notes = explainer(scores)
    assert notes == ()
    (rebuilt,) = explain(read_image(next((zippers / "test" / "good").iterdir())))
    assert rebuilt.shape == (64, 64, 3)
    page = page_of(scores, reconstructions=True)
    assert "Original, reconstruction, anomaly map, overlay" in page
