"""`train --contaminated`: defective images among the good ones are found and left out, and the promise still holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from conftest import settings

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.fetching.demo_dataset import render
from adctl.model_file import read_header
from adctl.run_folder import RUN, read_json
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once

GOOD, BAD = 24, 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder of good zippers, and two with the same hole, which could vouch for each other."""
    folder = tmp_path_factory.mktemp("parts")
    for number in range(GOOD + BAD):
        image = render((5, number), size=96)[0].copy()
        if number >= GOOD:
            image[40:60, 40:56] = 8
        cv2.imwrite(str(folder / f"{'good' if number < GOOD else 'hole'}{number}.png"), image[..., ::-1])
    return folder


@pytest.mark.parametrize("arch", ["padim", "resnet"])
def test_defective_images_are_left_out_and_count_in_the_promise(parts, tmp_path, arch, caplog):
    result = train_once(settings(good=parts, arch=arch, runs=tmp_path, contaminated=0.1, epochs=1))

    names = [Path(one.path).name for one in result.set_aside]
    assert set(names[:BAD]) == {"hole24.png", "hole25.png"}
    assert len(names) <= BAD + 1
    assert "hole24.png is left out: it is unlike the other good images" in caplog.text
    assert [one["key"] for one in read_json(result.run / RUN)["set_aside"]] == [one.key for one in result.set_aside]
    learned = read_header(result.model).training.image_digests
    assert not any(files.sha256_file(file).startswith(tuple(learned)) for file in parts.glob("hole*"))
    if arch == "padim":  # the autoencoder holds out too few images to allow for defects among them
        assert result.images == GOOD + BAD - len(names)
        evidence = result.calibration.evidence
        assert len(evidence.good) == GOOD + BAD
        assert evidence.contaminated == pytest.approx(len(names) / (GOOD + BAD))
        assert result.calibration.threshold < evidence.good[-1]


def test_without_defects_hardly_an_image_is_left_out(parts, tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    for file in parts.glob("good*"):
        shutil.copy(file, good)

    result = train_once(settings(good=good, arch="padim", runs=tmp_path / "runs", contaminated=0.2))

    assert len(result.set_aside) <= 2  # half an image is expected, and three or more once in 70 such sets
    assert result.images == GOOD - len(result.set_aside)


def test_what_cannot_be_told_is_refused(parts, zippers, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(parts.glob("good*"))[:12]:
        shutil.copy(file, few)

    with pytest.raises(DataError, match="12 good images are too few to find defective ones"):
        train_once(settings(good=few, arch="padim", runs=tmp_path / "runs", contaminated=0.1))
    with pytest.raises(UsageError, match="--contaminated cannot be combined with --folds"):
        plan_training(settings(data=zippers, arch="padim", folds=2, contaminated=0.1).settings)
