"""Margins of `resize=pad`: masked cells take no part in statistics, memory banks, maps and scores."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.data.preprocess import InputSpec, to_network_input
from adctl.detectors.components.anomaly_maps import GaussianBlur, smoothed_inside, top_mean
from adctl.detectors.registry import detector_class
from adctl.engine.batching import to_input
from adctl.model_file import load_model
from adctl.records import Sample
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import predict
from adctl.testing import check_onnx
from adctl.training.plan import detector_config
from adctl.training.single_run import train_once

SHAPES = [(60, 96), (96, 60), (64, 90), (96, 96), (40, 96)]
MASKED = InputSpec(64, 64, resize="pad", masked=True)


def photograph(number):
    height, width = SHAPES[number % len(SHAPES)]
    image = np.random.default_rng(number).integers(90, 160, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 2)


def inputs(*numbers):
    """Network inputs [B,4,64,64] of photographs, with their mask plane."""
    pixels = np.stack([to_network_input(photograph(number), MASKED) for number in numbers])
    return to_input(pixels, torch.device("cpu"))


@pytest.mark.parametrize(("height", "width"), [(60, 96), (96, 60), (50, 50)])
def test_the_mask_plane_tells_the_image_from_its_margin(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    grey = to_network_input(image, InputSpec(64, 64, resize="pad"))
    masked = to_network_input(image, MASKED)
    inside = masked[..., 3] == 255
    assert set(np.unique(masked[..., 3])) <= {0, 255}
    assert inside.sum() == round(64 * min(height, width) / max(height, width)) * 64
    np.testing.assert_array_equal(masked[inside][:, :3], grey[inside])
    assert (grey[~inside] == 128).all()
    rows, columns = np.nonzero(inside)
    nearest = masked[np.clip(np.arange(64), rows.min(), rows.max())][
        :, np.clip(np.arange(64), columns.min(), columns.max())
    ]
    np.testing.assert_array_equal(masked[..., :3], nearest[..., :3])


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.01, 0.1, 1.0]), st.floats(0, 2), st.integers(0, 99))
def test_scores_and_smoothing_are_those_of_the_part_inside(rows, columns, share, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 8, 8, generator=generator)
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[:, :rows, :columns] = True
    part = maps[:, :rows, :columns]
    torch.testing.assert_close(top_mean(maps, share, inside), top_mean(part, share))
    blur = GaussianBlur(sigma)
    smooth = smoothed_inside(blur, maps, inside)
    assert torch.equal(smooth, smoothed_inside(blur, torch.where(inside, maps, 1e9), inside))
    assert smooth.min() >= part.min() - 1e-5
    assert smooth.max() <= part.max() + 1e-5
    if inside.all():
        torch.testing.assert_close(smooth, blur(maps))


@pytest.fixture(params=["padim", "patchcore"])
def detector(request):
    torch.manual_seed(0)
    cls = detector_class(request.param)
    options = {"coreset_ratio": 0.5} if request.param == "patchcore" else {}
    return cls(cls.Config(image_size=64, resize="pad", margin="masked", **options)).eval()


def fitted(detector, images):
    for phase in detector.phases():
        for part in images.split(4):
            phase.absorb(phase.embed(part))
        phase.finish(lambda _done, _total: None)
    return detector


@torch.inference_mode()
def test_features_outside_the_image_never_count(detector, monkeypatch):
    """Features of the margins change neither the model, nor the scores, nor the maps."""
    train, new = inputs(*range(12)), inputs(20, 21, 22, 23)
    fitted(detector, train)
    learned = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    before = detector(new)
    patches = detector.patches

    def with_random_margin(images):
        found = patches(images)
        noise = 50 * torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
        return torch.where(detector.inside(images).unsqueeze(1), found, noise)

    monkeypatch.setattr(detector, "patches", with_random_margin)
    after = detector(new)
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=0)
    torch.testing.assert_close(after.maps, before.maps, rtol=0, atol=0)
    fitted(detector, train)
    for name, tensor in detector.state_dict().items():
        torch.testing.assert_close(tensor, learned[name], rtol=0, atol=0)


@torch.inference_mode()
def test_a_place_that_no_training_image_covers_is_judged_by_all_places(detector):
    fitted(detector, inputs(0, 5, 10, 15, 30, 35))
    prediction = detector(inputs(1, 3))  # a high and a square image
    assert torch.isfinite(prediction.scores).all()
    assert torch.isfinite(prediction.maps).all()
    assert prediction.scores.max() < 3 * detector(inputs(20, 25)).scores.max()


@torch.inference_mode()
def test_an_input_without_any_image_has_finite_scores(detector):
    fitted(detector, inputs(*range(8)))
    prediction = detector(torch.zeros(2, 4, 64, 64))
    assert torch.isfinite(prediction.scores).all()
    assert torch.isfinite(prediction.maps).all()


@pytest.mark.parametrize("arch", ["padim", "patchcore"])
def test_training_with_pad_masks_margins_and_exports(arch, tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(12):
        cv2.imwrite(str(tmp_path / "good" / f"{number:02}.png"), photograph(number))
    loaded = settings(arch=arch, good=tmp_path / "good", runs=tmp_path / "runs", options={"resize": "pad"})
    detector, header = load_model(train_once(loaded).model)
    assert header.config["margin"] == "masked"
    assert detector.input.shape == (64, 64, 4)
    runtime = TorchRuntime.of(detector, header, torch.device("cpu"))
    sample = Sample(tmp_path / "good" / "04.png", "04")
    (found,) = predict(runtime, [sample])
    assert found.anomaly_map.shape[0] < found.anomaly_map.shape[1]
    assert np.isfinite(found.anomaly_map).all()
    images = inputs(20, 21, 22, 23, 24)
    check_onnx(arch, detector, images, tmp_path)


def test_models_without_the_setting_keep_grey_margins():
    cls = detector_class("padim")
    assert cls(cls.Config(image_size=64, resize="pad")).input.planes == 3
    assert InputSpec.from_config({"image_size": 64, "resize": "pad"}).planes == 3


@pytest.mark.parametrize(
    ("arch", "options", "margin"),
    [
        ("patchcore", {"resize": "pad"}, "masked"),
        ("patchcore", {"resize": "pad", "margin": "grey"}, "grey"),
        ("patchcore", {}, "grey"),
        ("padim", {"resize": "pad", "covariance": "shared"}, "grey"),
        ("simplenet", {"resize": "pad"}, "grey"),
    ],
)
def test_training_masks_margins_where_the_detector_can(arch, options, margin):
    assert detector_config(settings(arch=arch, options=options).settings).margin == margin
