"""A handful of good images: rotated copies fill the memory bank, and the threshold is said to be a first guess."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import settings

from adctl.cli.calibrate import false_alarms
from adctl.detectors.components.rotations import ALTERATIONS, altered, rotated_copies
from adctl.errors import DataError, UsageError
from adctl.fetching.demo_dataset import render
from adctl.model_file import load_model
from adctl.thresholds.methods import ThresholdRule, calibrate
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once


def test_copies_are_rotated_by_equal_angles():
    images = torch.rand(2, 3, 9, 9)
    copies = rotated_copies(images, 4, 3).unflatten(0, (2, 4))
    for number in range(4):
        torch.testing.assert_close(copies[:, number], images.rot90(number, (-2, -1)), rtol=0, atol=1e-5)


def test_the_sides_of_an_image_keep_their_proportion_and_masks_end_at_the_border():
    images = torch.zeros(1, 2, 12, 30)
    images[:, 0, 5:7, 10:20] = 1  # a bar, ten pixels long
    images[:, 1] = 1
    half, upright = rotated_copies(images, 2, 1)[1], rotated_copies(images, 4, 1)[1]
    torch.testing.assert_close(half[0], images[0, 0].rot90(2, (-2, -1)), rtol=0, atol=1e-5)
    middle = upright[0, :, 9:21]  # the rest is reflected
    assert (middle.sum(0) > 5).nonzero().flatten().tolist() == [5, 6]  # now the bar is two pixels wide
    assert upright[1].sum() == pytest.approx(12 * 12, abs=12)
    assert half[1].all()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for number in range(2):
        cv2.imwrite(str(folder / f"{number}.png"), render((3, number), size=96)[0][..., ::-1])
    return folder


@pytest.fixture(scope="module")
def models(few, tmp_path_factory):
    """PatchCore of two images, and of eight copies of each."""
    runs = tmp_path_factory.mktemp("runs")
    common = {"arch": "patchcore", "good": few, "runs": runs}
    return {
        count: train_once(settings(**common, name=f"r{count}", options={"rotations": count, "coreset_ratio": 0.5}))
        for count in (1, 8)
    }


def test_two_images_make_a_model_whose_threshold_is_a_first_guess(models, few, tmp_path, caplog):
    for result in models.values():
        assert result.images == 2
        assert len(result.calibration.evidence.good) == 2
    train_once(settings(arch="padim", good=few, runs=tmp_path))
    assert "2 good images are few: the threshold is a first guess" in caplog.text


def test_rotated_copies_let_a_detector_know_rotated_parts(models):
    image = torch.from_numpy(np.ascontiguousarray(render((3, 1), size=64)[0])).permute(2, 0, 1)[None] / 255
    rotated = image.rot90(1, (-2, -1))
    scores = {count: load_model(result.model)[0](rotated).scores.item() for count, result in models.items()}
    assert scores[8] < 0.8 * scores[1]


@pytest.fixture(scope="module")
def single(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    (folder / "0.png").write_bytes((few / "0.png").read_bytes())
    return folder


def test_altered_copies_differ_slightly_from_the_image_and_keep_masks(few):
    image = torch.from_numpy(np.ascontiguousarray(cv2.imread(str(few / "0.png")))).permute(2, 0, 1)[None] / 255
    masked = torch.cat([image, torch.ones_like(image[:, :1])], 1)
    copies = torch.cat([altered(masked, number, 3) for number in range(ALTERATIONS)])
    assert len({tuple(copy[:, 40, 40].tolist()) for copy in copies}) == ALTERATIONS
    assert 0.01 < (copies[:, :3] - image).abs().mean() < 0.15
    assert copies[:, 3].unique().tolist() == [0, 1]


def test_a_single_image_makes_a_model_whose_threshold_promises_nothing(single, tmp_path, caplog):
    options = {"rotations": 4, "coreset_ratio": 0.5}
    result = train_once(settings(arch="patchcore", good=single, runs=tmp_path, options=options))
    assert "1 good image tells nothing" in caplog.text
    calibration = load_model(result.model)[1].calibration
    assert calibration.evidence.copies == len(calibration.evidence.good) == ALTERATIONS
    assert calibration.good_images == 1
    assert calibration.promised_false_alarm is calibration.false_alarm_interval is None
    assert max(calibration.evidence.good) <= calibration.threshold < np.inf
    assert "rests on one image" in false_alarms(calibration)
    assert calibrate(ThresholdRule("conformal", 0.1), calibration.evidence)[0].promised_false_alarm is None


def test_a_single_image_is_refused_by_detectors_of_distributions(single):
    with pytest.raises(DataError, match="padim learns how features vary") as error:
        plan_training(settings(arch="padim", good=single).settings)
    assert "patchcore --set rotations=8" in error.value.remedy


def test_too_few_images_and_settings_that_contradict_each_other_are_refused(few):
    with pytest.raises(DataError, match="2 different") as error:
        plan_training(settings(arch="cnn", good=few).settings)
    assert "at least 8" in error.value.remedy
    with pytest.raises(UsageError, match="rotations"):
        plan_training(
            settings(
                arch="ensemble", good=few, options={"members": {"padim": {}, "patchcore": {"rotations": 4}}}
            ).settings
        )
