"""The contract: what every registered detector keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from adctl.detectors.base import Prediction
from adctl.detectors.registry import DETECTORS, detector_class
from adctl.errors import ModelFileError, UsageError
from adctl.model_file import load_model, save_model


@pytest.fixture(scope="session")
def loaded(trained):
    return load_model(trained.model)


@pytest.fixture(scope="session")
def images(loaded):
    size = loaded[0].input
    return torch.rand(5, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_shapes_types_and_finite_values(loaded, images):
    prediction = loaded[0](images)
    assert isinstance(prediction, Prediction)
    assert prediction.scores.shape == (5,)
    assert prediction.maps.ndim == 3
    assert prediction.maps.shape[0] == 5
    assert prediction.scores.dtype == prediction.maps.dtype == torch.float32
    assert torch.isfinite(prediction.scores).all()
    assert torch.isfinite(prediction.maps).all()


@torch.inference_mode()
def test_same_images_same_scores(loaded, images):
    first, second = loaded[0](images), loaded[0](images)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.maps, second.maps)


@torch.inference_mode()
def test_an_image_scores_the_same_alone_and_in_a_batch(loaded, images):
    together = loaded[0](images)
    for index in range(len(images)):
        alone = loaded[0](images[index : index + 1])
        torch.testing.assert_close(alone.scores[0], together.scores[index], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.maps[0], together.maps[index], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_save_and_load_give_the_same_detector(loaded, images, tmp_path):
    detector, header = loaded
    save_model(tmp_path / "copy.safetensors", detector, header)
    copy, copied_header = load_model(tmp_path / "copy.safetensors")
    assert copied_header == header
    assert torch.equal(copy(images).scores, detector(images).scores)


def test_config_is_json_safe_and_rebuilds_itself(loaded):
    config = loaded[0].config
    assert type(config)(**json.loads(config.model_dump_json())) == config


def test_every_option_is_described(loaded):
    for name, field in type(loaded[0].config).model_fields.items():
        assert field.description, name


@torch.inference_mode()
def test_defects_score_higher_than_their_own_good_image(loaded):
    """Not a quality figure: a blatant defect must raise the score and lie where the map is highest."""
    from adctl.engine.batching import to_input
    from adctl.fetching.demo_dataset import render

    detector, _ = loaded
    size = detector.input.height
    good, _ = render(7, None, size)
    bad = good.copy()
    bad[size // 2 : size // 2 + 10, 8:18] = (255, 0, 255)
    prediction = detector(to_input(np.stack([good, bad]), torch.device("cpu")))
    assert prediction.scores[1] > prediction.scores[0]
    difference = prediction.maps[1] - prediction.maps[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    cell = size / difference.shape[0]
    assert abs((row + 0.5) * cell - (size // 2 + 5)) < 16
    assert abs((column + 0.5) * cell - 13) < 16


def test_an_unfitted_detector_says_so():
    for arch in DETECTORS:
        cls = detector_class(arch)
        detector = cls(cls.Config(image_size=64))
        if cls.fitted:
            with pytest.raises(ModelFileError, match="not fitted"):
                detector.check_fitted()


def test_unknown_arch_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        detector_class("patchcor")
    assert "Did you mean 'patchcore'?" in caught.value.remedy
    assert "padim" in caught.value.remedy


@torch.inference_mode()
def test_any_timm_backbone_works_transformers_too(zippers, tmp_path):
    from conftest import settings

    from adctl.training.single_run import train_once

    result = train_once(
        settings(
            arch="patchcore",
            data=zippers,
            runs=tmp_path,
            backbone="vit_tiny_patch16_224",
            weights="random",
            image_size=64,
        )
    )
    detector, _ = load_model(result.model)
    assert detector(torch.rand(2, 3, 64, 64)).maps.shape == (2, 4, 4)


def test_a_size_the_patches_do_not_divide_is_refused():
    cls = detector_class("patchcore")
    with pytest.raises(UsageError, match="vit_tiny"):
        cls(cls.Config(backbone="vit_tiny_patch16_224", image_size=72))
