"""Sizes of the network's input: given as number or height and width, or chosen by the shapes of the images."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.data.images import resize
from adctl.data.roi import encode_region
from adctl.detectors.components.backbones import Backbone, find_weights
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.detectors.registry import detector_class
from adctl.errors import AdctlError, ImageError, UsageError
from adctl.fetching.demo_dataset import render
from adctl.image_sizes import both_sides, parse_size, size_for_aspect, size_text, small_defect_advice
from adctl.model_file import load_model
from adctl.records import Sample
from adctl.training.image_shape import advise_on_small_defects, choose_size
from adctl.training.plan import effective_settings, plan_training
from adctl.training.single_run import train_once


def photographs(folder, *shapes):
    """Write noise images of these heights and widths; return their samples."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, (height, width) in enumerate(shapes):
        path = folder / f"{number:03}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(60, 200, (height, width, 3), np.uint8))
        samples.append(Sample(path, path.name))
    return samples


@pytest.mark.parametrize(
    ("value", "size"),
    [(256, 256), ("256", 256), ("192x448", (192, 448)), ([192, 448], (192, 448)), (" 64 X 64 ", 64), ((96, 96), 96)],
)
def test_a_size_is_a_number_or_height_and_width(value, size):
    assert parse_size(value) == size
    assert settings(image_size=value).settings.image_size == size
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize("value", ["", "abc", "192x", "1x2x3", 31, "31x64", "64x4097", [], [64, 64, 64], 64.5, True])
def test_what_is_no_size_is_refused_by_name(value):
    with pytest.raises(UsageError, match=r"--image-size is not valid: .* such as 192x448") as caught:
        settings(image_size=value)
    assert repr(value) in caught.value.message


@given(st.floats(1 / 8, 8), st.sampled_from([(256, 32), (128, 32), (64, 8), (256, 14)]))
def test_a_chosen_size_has_the_aspect_the_area_and_the_step(aspect, square_and_step):
    square, step = square_and_step
    height, width = both_sides(size_for_aspect(aspect, square, step))
    assert height % step == width % step == 0
    assert min(height, width) >= 32
    assert 0.45 < height * width / square**2 < 2
    assert 0.5 < width / height / aspect < 2


@pytest.mark.parametrize(
    ("shapes", "size", "reason"),
    [
        ([(100, 100)] * 3, 256, "about square"),
        ([(100, 114)] * 3, 256, "about square"),
        ([(500, 1250), (100, 255), (90, 210)], (160, 416), r"2\.5 times as wide as high"),
        ([(700, 280)] * 3, (416, 160), r"2\.5 times as high as wide"),
        ([(100, 100), (100, 300), (300, 100)], 256, "vary, from"),
        ([(100, 150), (100, 400), (100, 260)], 256, "vary, from"),
        ([(40, 800)], (96, 736), r"--set tile=40 keeps their proportions"),
        ([], 256, "unknown"),
    ],
)
def test_the_shape_of_the_images_decides(tmp_path, shapes, size, reason):
    chosen = choose_size(PaDiM, PaDiMConfig(), photographs(tmp_path, *shapes))
    assert chosen.config.image_size == size
    assert re.search(reason, str(chosen))


@pytest.mark.parametrize(
    ("arch", "shapes", "size", "reason"),
    [
        (
            "padim",
            [(1250, 500)] * 3,
            (480, 192),
            "that of 320x320. At 416x160, .* be reduced 3.1-fold",
        ),
        ("patchcore", [(1250, 500)] * 3, (608, 256), "416x160, which is about 2.3 times as fast"),
        ("patchcore", [(600, 600)] * 3, 288, r"about square .* At 256, .* reduced 2.3-fold"),
        ("patchcore", [(1000, 900), (500, 900)], 384, "vary, from"),
        ("patchcore", [(500, 530)] * 3, 256, "about square"),
        ("simplenet", [(2000, 2000)], 256, "about square"),
    ],
)
def test_large_images_get_a_larger_input(tmp_path, arch, shapes, size, reason):
    cls = detector_class(arch)
    chosen = choose_size(cls, cls.Config(), photographs(tmp_path, *shapes))
    assert chosen.config.image_size == size
    assert re.search(reason, str(chosen))


def test_the_forecast_has_the_cost_of_a_larger_size(tmp_path, adctl):
    photographs(tmp_path / "good", *[(600, 600)] * 8)
    train = ("train", "--good", tmp_path / "good", "--dry-run", "--arch", "padim", "--image-size", 64)
    notes = adctl.json(*train)["result"]["notes"]
    assert "reduced 9.4-fold" in notes[-2]
    assert re.fullmatch(r"With --image-size 128 the training would take about .* and .* GiB at the peak\.", notes[-1])
    assert "With --image-size 128" in adctl(*train).stdout


def test_the_region_of_interest_has_the_shape_that_counts(tmp_path):
    config = PaDiMConfig(roi=encode_region("0,0,200,80"))
    assert choose_size(PaDiM, config, photographs(tmp_path, (300, 300))).config.image_size == (160, 416)


@pytest.mark.parametrize(("arch", "size"), [("diffusion", (40, 104)), ("resnet", (96, 224)), ("cnn", (96, 224))])
def test_each_detector_has_its_own_area_and_step(tmp_path, arch, size):
    cls = detector_class(arch)
    config = choose_size(cls, cls.Config(), photographs(tmp_path, (100, 250))).config
    assert config.image_size == size
    cls(config)


def test_tiles_stay_square_and_so_does_a_detector_for_squares(tmp_path):
    class Square(PaDiM):
        any_shape = False

    samples = photographs(tmp_path, (100, 250))
    assert choose_size(PaDiM, PaDiMConfig(tile=64), samples).config.image_size == 256
    assert choose_size(Square, PaDiMConfig(), samples).config.image_size == 256


def test_unreadable_images_do_not_count(tmp_path):
    samples = photographs(tmp_path, (100, 250), (100, 250))
    samples[0].path.write_bytes(b"no image")
    assert choose_size(PaDiM, PaDiMConfig(), samples).config.image_size == (160, 416)


def test_training_stores_the_chosen_size_with_the_run_and_the_model(tmp_path):
    photographs(tmp_path / "good", *[(40, 100)] * 8)
    loaded = settings(arch="patchcore", good=tmp_path / "good", runs=tmp_path / "runs", image_size="auto")
    assert effective_settings(loaded)["image_size"]["value"] == "auto"
    plan = plan_training(loaded.settings)
    assert plan.config.image_size == (160, 416)
    assert str(plan.size).startswith("160x416: the images are 2.5 times as wide as high (40x100, the median of 8")
    result = train_once(loaded)
    detector, header = load_model(result.model)
    assert (detector.input.height, detector.input.width) == (160, 416)
    assert header.config["image_size"] == [160, 416]
    stored = json.loads((result.run / "settings.json").read_text())["settings"]["image_size"]
    assert stored == {"value": [160, 416], "from": "auto"}


def test_a_square_model_stores_one_number(patchcore):
    _, header = load_model(patchcore.model)
    assert header.config["image_size"] == 64


# ---- unusual shapes and groups, combined


@pytest.mark.parametrize(
    ("count", "name", "options", "message"),
    [
        (1, "lot{0}_{0}.png", {"group": "lot{group}_"}, "padim learns how features vary"),
        (6, "lot{0}_{0}.png", {"group": "lot{group}_", "new_groups": True}, "Too few good images .*: 6 different"),
        (6, "lotA_{0}.png", {"group": "lot{group}_"}, "all 6 good images are of one group, A"),
        (6, "{0}.png", {"group": "lot{group}_"}, "matches none of the 6 good images"),
    ],
)
def test_few_images_and_groups_that_do_not_fit_are_refused(tmp_path, count, name, options, message):
    for number, sample in enumerate(photographs(tmp_path / "good", *[(32, 64)] * count)):
        sample.path.rename(sample.path.with_name(name.format(number)))
    with pytest.raises(AdctlError, match=message) as caught:
        plan_training(settings(arch="padim", good=tmp_path / "good", runs=tmp_path / "runs", **options).settings)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((32, 640), {"options": {"tile": 32}}),
        ((32, 640), {"options": {"resize": "pad"}}),
        ((40, 90), {"image_size": (100, 230), "options": {"resize": "pad"}}),
    ],
)
def test_long_images_and_sizes_beside_the_stride_are_learned(tmp_path, shape, options):
    photographs(tmp_path / "good", *[shape] * 8)
    result = train_once(settings(**{"arch": "patchcore", "good": tmp_path / "good", "runs": tmp_path, **options}))
    assert 0 < result.calibration.threshold < 1000


def test_images_too_narrow_for_any_size_are_named(tmp_path):
    photographs(tmp_path / "good", *[(10, 2000)] * 8)
    with pytest.raises(ImageError, match="2000 x 10 pixels, and each side must have at least 16") as caught:
        train_once(settings(arch="padim", good=tmp_path / "good", runs=tmp_path / "runs", image_size="auto"))
    assert caught.value.remedy


def test_a_group_of_most_images_is_told(tmp_path, caplog):
    for number, sample in enumerate(photographs(tmp_path / "good", *[(32, 64)] * 10)):
        sample.path.rename(sample.path.with_name(f"lot{number // 9}_{number}.png"))
    loaded = settings(arch="patchcore", good=tmp_path / "good", runs=tmp_path / "runs", group="lot{group}_")
    train_once(loaded)
    assert "One group has 9 of the 10 images" in caplog.text


# ---- the border of the image


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
@torch.inference_mode()
def test_a_replicated_border_changes_the_outer_cells_and_not_the_shape(size):
    weights = find_weights("tf_efficientnet_lite0", None).tensors
    frames = []
    for replicate in (False, True):
        backbone = Backbone("tf_efficientnet_lite0", None, size, replicate=replicate)
        backbone.load_pretrained(weights)
        levels = backbone(torch.full((1, 3, *size), 0.3))
        for level, stride in zip(levels, (8, 16), strict=True):
            assert tuple(level.shape[2:]) == tuple(-(-side // stride) for side in size)
        fine = levels[0][0]
        centre = fine[:, fine.shape[1] // 2, fine.shape[2] // 2, None]
        frames.append(float((fine[:, 0] - centre).norm() / centre.norm()))
    assert frames[1] < 0.2 * frames[0]  # an image of one colour has no frame


def test_the_border_is_replicated_where_the_input_is_not_square():
    for border, size, replicated in [
        (None, 64, False), (None, (64, 96), True), ("zeros", (64, 96), False), ("replicate", 64, True),
    ]:  # fmt: skip
        detector = PaDiM(PaDiMConfig(image_size=size, border=border))
        assert bool(detector.backbone.margin) == replicated
    transformer = PaDiMConfig(image_size=64, border="replicate", backbone="vit_tiny_patch16_224")
    assert PaDiM(transformer).backbone.margin == 0


@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize("arch", ["padim", "patchcore"])
@torch.inference_mode()
def test_defects_at_the_border_are_found_where_they_are(arch, border):
    cls = detector_class(arch)
    detector = cls(cls.Config(image_size=(96, 160), border=border)).eval()
    detector.load_pretrained(find_weights("tf_efficientnet_lite0", None).tensors)
    good = torch.stack([picture(number) for number in range(20)])
    for phase in detector.phases():
        phase.absorb(phase.embed(good[:14]))
        phase.finish(lambda _done, _total: None)
    limit = detector(good[14:]).scores.max()
    for top, left in [(0, 30), (90, 120), (40, 0), (60, 154), (0, 0), (90, 154)]:
        bad = good[14:15].clone()
        bad[..., top : top + 6, left : left + 6] = 0.0
        scores, maps = detector(bad)
        assert scores[0] > limit
        row, column = divmod(int(maps[0].argmax()), maps.shape[2])
        assert abs((row + 0.5) / maps.shape[1] * 96 - (top + 3)) < 16
        assert abs((column + 0.5) / maps.shape[2] * 160 - (left + 3)) < 16


def picture(number):
    """A generated zipper of 96 x 160 pixels, [3,H,W]."""
    return torch.from_numpy(resize(render((3, number), size=128)[0], 96, 160)).permute(2, 0, 1) / 255


# ---- small defects


def test_advice_on_small_defects(tmp_path):
    large = photographs(tmp_path, (512, 1280))
    advice = advise_on_small_defects(detector_class("patchcore").Config(image_size=(160, 416)), large)
    assert advice is not None
    assert "reduced 3.1-fold, so defects below about 75 pixels" in advice
    assert "--image-size 320x832 halves that in about 4 times" in advice
    assert "--set tile=258 brings it to 24 pixels in at least 10 times" in advice
    assert advise_on_small_defects(PaDiMConfig(image_size=(320, 832)), large) is None
    assert advise_on_small_defects(PaDiMConfig(tile=256), large) is None
    assert small_defect_advice(400, 400, 256, 8) is None
