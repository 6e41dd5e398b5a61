"""Preprocessing: images to network pixels, maps back to images, and the settings for both."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adctl.data.images import resize, write_png
from adctl.data.loader import ImageSource, load_image
from adctl.data.preprocess import InputSpec, interpolate, map_to_image, to_network_input
from adctl.detectors.base import DetectorConfig
from adctl.detectors.components.normalisation import CENTRED, Normalisation
from adctl.detectors.resnet import ResNetAutoencoder, ResNetConfig
from adctl.engine.batching import to_input
from adctl.errors import UsageError
from adctl.model_file import ModelHeader, Training, load_model, save_model
from adctl.records import Sample
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.heatmaps import upsample
from adctl.scoring.predict import collect, predict

sides = st.integers(16, 400)
inputs = st.sampled_from([32, 48, 100])


def ramp(height: int, width: int) -> np.ndarray:
    """Grows evenly from the top left to the bottom right."""
    rows, columns = np.mgrid[:height, :width]
    values = 200 * ((rows + 0.5) / height + (columns + 0.5) / width) / 2
    return np.rint(values)[..., None].repeat(3, axis=2).astype(np.uint8)


@given(sides, sides, inputs)
@settings(max_examples=20, deadline=None)
def test_squashing_resizes_each_side_for_itself(height, width, side):
    image, spec = ramp(height, width), InputSpec(side, side)
    np.testing.assert_array_equal(to_network_input(image, spec), resize(image, side, side))
    values = np.random.default_rng(0).random((7, 7), np.float32)
    assert map_to_image(values, spec, height, width) is values


def test_padding_keeps_proportions_and_fills_both_sides_alike():
    pixels = to_network_input(np.full((50, 200, 3), 255, np.uint8), InputSpec(64, 64, resize="pad"))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[24:40] == 255).all()
    assert (pixels[:24] == 128).all()
    assert (pixels[40:] == 128).all()


def test_a_centre_crop_keeps_proportions_and_cuts_both_sides_alike():
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, 75:125] = 255
    assert (to_network_input(image, InputSpec(64, 64, resize="crop")) == 255).all()


@pytest.mark.parametrize("how", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(20, 300), (64, 64), (301, 187), (40, 33)])
def test_grey_images_give_the_pixels_of_the_same_image_in_colour(size, how):
    grey = np.random.default_rng(0).integers(0, 256, (*size, 1), np.uint8)
    for channels in (1, 3):
        spec = InputSpec(64, 64, channels, how)
        np.testing.assert_array_equal(to_network_input(grey, spec), to_network_input(np.repeat(grey, 3, axis=2), spec))


def test_grey_is_luminance():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (200, 100, 50)
    pixels = to_network_input(image, InputSpec(32, 32, channels=1))
    assert pixels.shape == (32, 32, 1)
    assert (pixels == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


def columns_seen(height: int, width: int, spec: InputSpec) -> tuple[float, float]:
    """Columns of an image at the left and right end of the network's input, as the pixels of a white image show."""
    if spec.resize == "pad":
        row = to_network_input(np.full((height, width, 3), 255, np.uint8), spec)[spec.height // 2, :, 0]
        inside = np.flatnonzero(row == 255)
        scale = width / len(inside)
        return -inside[0] * scale, (spec.width - inside[0]) * scale
    margin = (width - min(height, width)) // 2 if spec.resize == "crop" else 0
    return margin, margin + (min(height, width) if spec.resize == "crop" else width)


@given(sides, sides, inputs, st.sampled_from(["squash", "pad", "crop"]), st.sampled_from([1, 4]))
@settings(max_examples=100, deadline=None)
def test_a_map_lies_where_its_pixels_came_from(height, width, side, how, cell):
    """A map whose values are the columns they came from shows, brought back, the columns it now lies at."""
    spec = InputSpec(side, side, resize=how)
    left, right = columns_seen(height, width, spec)
    cells = side // cell
    step = (right - left) / cells
    native = np.tile((left + (np.arange(cells) + 0.5) * step).astype(np.float32), (cells, 1))
    found = map_to_image(native, spec, height, width)
    expected = (np.arange(found.shape[1]) + 0.5) / found.shape[1] * width
    seen = (expected >= left) & (expected <= right)
    # Beyond the centre of the last cell there is nothing to interpolate with.
    assert np.abs(found[found.shape[0] // 2] - expected)[seen].max() <= step / 2 + 1e-3
    inner = (expected > left + step / 2) & (expected < right - step / 2)
    assert np.abs(found[found.shape[0] // 2] - expected)[inner].max(initial=0) < 1e-2


@pytest.mark.parametrize("size", [(96, 300), (300, 96), (200, 200)])
@pytest.mark.parametrize("how", ["squash", "pad", "crop"])
@pytest.mark.parametrize("cell", [1, 8])
def test_a_defect_stays_under_its_mask(size, how, cell):
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 2 - 20 : height // 2 + 20, width // 2 - 30 : width // 2 + 30] = True
    image = np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)
    spec = InputSpec(128, 128, resize=how)
    seen = np.where(to_network_input(image, spec)[..., 0] == 128, 0, to_network_input(image, spec)[..., 0]).astype(
        np.float32
    )
    native = cv2.resize(seen, (128 // cell, 128 // cell), interpolation=cv2.INTER_AREA)
    found = upsample(map_to_image(native, spec, height, width), height, width) > 127
    overlap = (found & mask).sum() / (found | mask).sum()
    assert overlap > (0.93 if cell == 1 else 0.75)


def test_outside_a_centre_crop_stands_the_lowest_value():
    values = np.random.default_rng(0).random((8, 8), np.float32) + 3
    found = map_to_image(values, InputSpec(64, 64, resize="crop"), 100, 300)
    assert found.shape == (8, 24)
    np.testing.assert_allclose(found[:, 8:16], values, rtol=1e-6)
    assert (np.delete(found, np.s_[8:16], axis=1) == values.min()).all()


def test_padding_is_cut_off_exactly_where_cells_are_pixels():
    values = np.random.default_rng(0).random((64, 64), np.float32)
    found = map_to_image(values, InputSpec(64, 64, resize="pad"), 50, 200)
    np.testing.assert_allclose(found, values[24:40], rtol=1e-6)


def test_an_extreme_image_has_a_map_of_bounded_size():
    found = map_to_image(np.ones((64, 64), np.float32), InputSpec(64, 64, resize="crop"), 16, 60_000)
    assert max(found.shape) <= 4096


def test_sampling_more_coarsely_than_the_cells_passes_none_over():
    values = np.zeros((1, 100), np.float32)
    values[0, 37] = 100
    found = interpolate(values, 1, (np.arange(10) + 0.5) / 10, 0.1)
    np.testing.assert_allclose(found[0], [0, 0, 0, 10, 0, 0, 0, 0, 0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resize": "stretch"}, "resize"),
        ({"channels": 0}, "channels"),
        ({"bit_depth": 7}, "bit_depth"),
        ({"tile": 16}, "tile"),
        ({"tile": 256, "resize": "crop"}, "cannot be combined"),
        ({"tile_overlap": 0.9}, "tile_overlap"),
        ({"scales": []}, "scales"),
        ({"scales": [0.5]}, "need tiles"),
        ({"scales": [1, 1]}, "different"),
        ({"scales": [2], "resize": "crop"}, "cannot be combined"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        DetectorConfig(**values)


def test_settings_become_the_input():
    config = DetectorConfig(image_size=64, channels=1, resize="pad", bit_depth=12, tile=100, scales=[1, 0.5])
    spec = InputSpec.from_config(json.loads(config.model_dump_json()))
    assert spec == InputSpec(64, 64, 1, "pad", 12, 100, 0.25, (1.0, 0.5))
    assert spec.tiled


def test_model_files_from_before_these_settings_take_the_defaults(tmp_path):
    config = ResNetConfig(image_size=32, latent=8)
    kept = {"image_size", "encoder", "latent", "skips", "loss", "error"}
    old = {name: value for name, value in config.model_dump(mode="json").items() if name in kept}
    header = ModelHeader("resnet", old, Training("a", "b", 1, "", (), None))
    save_model(tmp_path / "model.safetensors", ResNetAutoencoder(config), header)
    detector, _ = load_model(tmp_path / "model.safetensors")
    assert detector.input == InputSpec(32, 32) == InputSpec.from_config(old)


def test_bit_depth_reaches_the_decoder(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((20, 20), 2048, np.uint16))
    loaded = load_image(Sample(tmp_path / "deep.png", "deep.png"), InputSpec(16, 16, bit_depth=12))
    assert (loaded.pixels == 128).all()


@pytest.fixture
def wide(tmp_path):
    """Twelve wide images, almost alike."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(12):
        image = np.clip(ramp(60, 150) + generator.normal(0, 4, (60, 150, 3)), 0, 255).astype(np.uint8)
        write_png(tmp_path / f"{number}.png", image)
        samples.append(Sample(tmp_path / f"{number}.png", f"{number}.png", "good"))
    return samples


@pytest.mark.parametrize("how", ["squash", "pad", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_source_gives_what_fit_gives(wide, how, channels):
    spec = InputSpec(32, 32, channels, how)
    expected = np.stack([load_image(item, spec).pixels for item in wide])
    for reuse in (False, True):
        source = ImageSource(wide, spec, workers=2, reuse=reuse)
        assert len(source) == 12
        np.testing.assert_array_equal(np.concatenate(list(source.batches(5))), expected)
        order = [7, 0, 3, 3, 11]
        np.testing.assert_array_equal(np.concatenate(list(source.batches(2, order))), expected[order])


class Brightness(torch.nn.Module):
    """A detector whose map is the brightness of each 4 x 4 cell."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.input = spec

    def forward(self, images: torch.Tensor):
        from adctl.detectors.base import Prediction

        maps = torch.nn.functional.avg_pool2d(images.mean(1), 4)
        return Prediction(maps.flatten(1).amax(1), maps)


def runtime_of(spec: InputSpec) -> TorchRuntime:
    header = ModelHeader("none", {}, Training("a", "b", 1, "", (), None))
    return TorchRuntime.of(Brightness(spec), header, torch.device("cpu"))


def test_maps_span_the_image_and_calibration_sees_the_highest_value_of_each(wide):
    shapes = {}
    for how in ("squash", "pad", "crop"):
        runtime = runtime_of(InputSpec(32, 32, resize=how))
        found = next(predict(runtime, wide[:1]))
        shapes[how] = found.anomaly_map.shape
        peaks = collect(runtime, wide[:2], batch_size=2, workers=0).peaks
        assert peaks.tolist() == [one.anomaly_map.max() for one in predict(runtime, wide[:2])]
    assert shapes == {"squash": (8, 8), "pad": (3, 8), "crop": (8, 20)}


@pytest.mark.parametrize("arch", ["padim", "resnet"])
def test_a_padded_model_of_grey_images_finds_a_defect_where_it_is(arch, tmp_path):
    from conftest import settings as train_settings

    from adctl.training.single_run import train_once

    generator = np.random.default_rng(0)
    for number in range(12):
        image = np.clip(ramp(60, 150) + generator.normal(0, 3, (60, 150, 3)), 0, 255).astype(np.uint8)
        write_png(tmp_path / "good" / f"{number}.png", image)
    image[20:36, 110:130] = 255
    write_png(tmp_path / "bad.png", image)
    options = {"channels": 1, "resize": "pad"} | ({} if arch == "padim" else {"normalisation": "dataset"})
    result = train_once(
        train_settings(arch=arch, good=tmp_path / "good", runs=tmp_path / "runs", options=options, image_size=96)
    )
    runtime = TorchRuntime(result.model, "cpu")
    assert runtime.input == InputSpec(96, 96, 1, "pad", masked=arch == "padim")
    good, bad = predict(runtime, [Sample(tmp_path / "good" / "0.png", "g"), Sample(tmp_path / "bad.png", "b")])
    assert bad.score > good.score
    found = upsample(bad.anomaly_map - good.anomaly_map, 60, 150)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 8 <= row <= 48
    assert 98 <= column <= 142


def test_an_option_that_contradicts_another_is_named(tmp_path):
    from conftest import settings as train_settings

    from adctl.training.plan import detector_config

    loaded = train_settings(arch="padim", options={"resize": "crop", "tile": 64})
    with pytest.raises(UsageError, match="--set tile"):
        detector_config(loaded.settings)


def statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)


def observe(module: Normalisation, images: torch.Tensor) -> None:
    (phase,) = module.phases()
    with torch.inference_mode():
        for piece in images.split(3):
            phase.absorb(phase.embed(piece))
        phase.finish(lambda *_: None)


@pytest.mark.parametrize("channels", [1, 3])
def test_dataset_statistics_are_those_of_all_images(channels):
    images = torch.rand(10, channels, 9, 7, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    module = Normalisation("dataset", channels)
    observe(module, images)
    mean, std = statistics(module(images))
    torch.testing.assert_close(mean, torch.zeros(channels), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(channels), atol=1e-5, rtol=0)


def test_images_of_one_colour_do_not_divide_by_zero():
    module = Normalisation("dataset", 3)
    observe(module, torch.full((4, 3, 8, 8), 0.3))
    assert torch.isfinite(module(torch.rand(1, 3, 8, 8))).all()


def test_only_what_was_found_out_is_stored():
    assert set(Normalisation("dataset", 3).state_dict()) == {"mean", "std"}
    for choice in ("none", "imagenet", CENTRED):
        assert not Normalisation(choice, 3).state_dict()
        assert not Normalisation(choice, 3).phases()


def test_known_and_custom_statistics():
    white = torch.ones(1, 3, 2, 2)
    assert (Normalisation("none", 3)(white) == 1).all()
    torch.testing.assert_close(Normalisation("imagenet", 3)(white)[0, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))
    assert (Normalisation(CENTRED, 3)(white) == 1).all()
    assert (Normalisation(((1.0, 0.0, 2.0), (1.0, 0.5, 1.0)), 3)(white)[0, :, 0, 0] == torch.tensor([0, 2, -1])).all()


@pytest.mark.parametrize("value", [[[0.5], [0]], [[0.5, 0.5], [1, 1]], [[0.5], [1, 1, 1]], "zscore"])
def test_impossible_statistics_are_refused(value):
    with pytest.raises(ValidationError):
        ResNetConfig(normalisation=value)


def test_dataset_statistics_travel_in_the_model_file(tmp_path):
    config = ResNetConfig(image_size=32, latent=8, normalisation="dataset", channels=1)
    detector = ResNetAutoencoder(config).eval()
    images = to_input(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8), torch.device("cpu"))
    observe(detector.normalise, images)
    header = ModelHeader("resnet", config.model_dump(mode="json"), Training("a", "b", 1, "", (), None))
    save_model(tmp_path / "model.safetensors", detector, header)
    copy, _ = load_model(tmp_path / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(copy(images).scores, detector(images).scores)
    assert dataclasses.asdict(copy.input)["channels"] == 1


@pytest.mark.parametrize(
    "arch",
    [
        "cnn",
        "resnet",
        "vit",
    ],
)
@torch.inference_mode()
def test_every_autoencoder_sees_normalised_images(arch):
    from adctl.detectors.registry import detector_class

    cls = detector_class(arch)
    plain, shifted = (cls(cls.Config(image_size=64, normalisation=choice)).eval() for choice in (CENTRED, "imagenet"))
    shifted.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(plain.reconstruct(images), shifted.reconstruct(images))
