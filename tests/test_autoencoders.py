"""Autoencoders: presets, image sizes, masks that cover each patch once, training, and ONNX export."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import descend, pictures_of, rebuilding_error
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from adctl.config import TrainSettings
from adctl.detectors.cnn import CNNConfig, ConvolutionalAutoencoder
from adctl.detectors.registry import detector_class
from adctl.detectors.vit import VisionTransformerAutoencoder, VisionTransformerConfig
from adctl.engine.phases import Batch, Optimize
from adctl.errors import UsageError
from adctl.image_sizes import parse_size
from adctl.testing import check_onnx
from adctl.training.plan import detector_config, fit_settings

SMALL = {
    "cnn": {"image_size": 64, "width": 8, "latent": 32},
    "vit": {"image_size": 64, "width": 32, "depth": 1, "heads": 4},
}
VARIANTS = [
    ("cnn", {}),
    ("cnn", {"preset": "plain"}),
    ("cnn", {"blocks": 4, "skips": True}),
    ("vit", {}),
    ("vit", {"masks": 3}),
    ("vit", {"decoder": "transformer"}),
    ("vit", {"width": 16, "heads": 8}),
    ("vit", {"masked": False}),
    ("vit", {"masked": False, "decoder": "transformer", "patch": 8}),
]


def build(arch, **options):
    torch.manual_seed(0)
    cls = detector_class(arch)
    return cls(cls.Config(**{**SMALL[arch], **options})).eval()


def pictures(count, size=64, seed=0):
    """Smooth random images: noise has nothing to rebuild."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.mark.parametrize(("arch", "options"), VARIANTS)
def test_reconstructions_have_the_shape_and_range_of_images(arch, options):
    images = pictures(3)
    with torch.inference_mode():
        rebuilt = build(arch, **options).reconstruct(images)
    assert rebuilt.shape == images.shape
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1


@pytest.mark.parametrize(("arch", "options"), VARIANTS)
def test_every_weight_is_trained(arch, options):
    detector = build(arch, **{"dropout": 0.0, **options} if arch == "cnn" else options).train()
    phase, *_ = detector.phases()
    assert isinstance(phase, Optimize)
    images = pictures(4)
    torch.stack(list(phase.loss(Batch(images, images)).values())).sum().backward()
    without = [name for name, weight in detector.named_parameters() if weight.grad is None]
    assert [name for name in without if not name.startswith("error.backbone.")] == []


@pytest.mark.parametrize(("arch", "options"), VARIANTS)
def test_settings_survive_the_model_file(arch, options):
    config = build(arch, **options).config
    assert type(config)(**json.loads(config.model_dump_json())) == config


def test_the_plain_preset_is_the_plain_autoencoder():
    config = CNNConfig(preset="plain")
    kinds = {type(module) for module in ConvolutionalAutoencoder(config.model_copy(update={"width": 4})).modules()}
    assert (config.blocks, config.latent, config.loss, config.error, config.relative) == (4, 512, "mse", "l2", False)
    assert nn.ReLU in kinds
    assert not kinds & {nn.LeakyReLU, nn.BatchNorm2d}
    plan = fit_settings(TrainSettings(arch="cnn"), ConvolutionalAutoencoder, config)
    assert (plan.epochs, plan.min_steps, plan.batch_size, plan.learning_rate) == (50, 0, 16, 1e-4)
    assert (plan.schedule, plan.warmup, plan.weight_decay) == ("constant", 0.0, 0.0)


def test_what_is_given_wins_over_presets_and_sizes():
    assert CNNConfig(preset="plain", latent=64).latent == 64
    assert VisionTransformerConfig(size="base").width == 768
    assert VisionTransformerConfig(size="base").depth == 12
    assert VisionTransformerConfig(size="base", depth=6).depth == 6


@pytest.mark.parametrize(
    ("arch", "size", "options", "sizes"),
    [
        ("cnn", 120, {}, "96 or 128"),
        ("cnn", 120, {"blocks": 4}, "112 or 128"),
        ("vit", 120, {}, "112 or 128"),
        ("vit", 33, {"patch": 32, "masked": False}, "32 or 64"),
        ("cnn", "120x130", {}, "96x128 or 128x160"),
        ("resnet", (96, 100), {}, "96 or 96x128"),
    ],
)
def test_a_size_that_does_not_fit_names_those_that_do(arch, size, options, sizes):
    with pytest.raises(UsageError) as caught:
        detector_config(TrainSettings(arch=arch, image_size=parse_size(size), options=options))
    assert "--image-size" in caught.value.message
    assert sizes in caught.value.message


@pytest.mark.parametrize("options", [{"heads": 7}, {"width": 30}, {"masks": 17, "image_size": 64}, {"patch": 12}])
def test_settings_of_the_transformer_that_clash_are_refused(options):
    with pytest.raises(ValidationError) as caught:
        VisionTransformerConfig(**options)
    assert caught.value.errors()[0]["loc"][0] in options


def test_heads_that_are_left_alone_must_suit_the_width_too():
    with pytest.raises(UsageError, match="--set heads of vit is not valid: must divide the width, 20"):
        detector_config(TrainSettings(arch="vit", options={"width": 20}))


@pytest.mark.parametrize("decoder", ["transformer", "cnn"])
@pytest.mark.parametrize("masks", [2, 3, 4, 16])
@torch.inference_mode()
def test_a_patch_is_rebuilt_without_being_seen(decoder, masks):
    detector = build("vit", decoder=decoder, masks=masks)
    images = pictures(1)
    rebuilt = detector.reconstruct(images)
    for row, column in np.ndindex(4, 4):
        place = (..., slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        changed = images.clone()
        changed[place] = 1 - changed[place]
        again = detector.reconstruct(changed)
        torch.testing.assert_close(again[place], rebuilt[place], rtol=0, atol=1e-6)
        assert not torch.equal(again, rebuilt)


@given(st.sampled_from([32, 64, 96, 128]), st.sampled_from([8, 16, 32]), st.integers(2, 20), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_each_patch_is_hidden_by_one_mask(image_size, patch, masks, seed):
    patches = (image_size // patch) ** 2
    options = {"image_size": image_size, "patch": patch, "width": 16, "depth": 1}
    if masks > patches:
        with pytest.raises(ValidationError, match="patches of an image"):
            VisionTransformerConfig(**options, masks=masks)
        return
    detector = VisionTransformerAutoencoder(VisionTransformerConfig(**options, masks=masks, seed=seed))
    visible, hidden = detector._fixed_masks()
    assert visible.shape[0] == hidden.shape[0] == masks
    assert (hidden.sum(0) == 1).all()
    cells = hidden[:, 0, ::patch, ::patch].flatten(1)
    assert cells.sum(1).max() - cells.sum(1).min() <= 1
    assert not cells.gather(1, visible).any()


def test_masks_of_scoring_come_from_the_seed():
    assert torch.equal(build("vit", seed=3).order, build("vit", seed=3).order)
    assert not torch.equal(build("vit", seed=3).order, build("vit", seed=4).order)


@torch.no_grad()
def test_the_masked_loss_is_a_mean_over_hidden_patches():
    """Random masks and the fixed ones measure the same thing, the former anew each time."""
    detector = build("vit", loss="mse", decoder="transformer")
    phase, *_ = detector.phases()
    images = pictures(8)
    fixed = [float(phase.loss(Batch(images, images))["mse"]) for _ in range(2)]
    detector.train()
    drawn = [float(phase.loss(Batch(images, images))["mse"]) for _ in range(20)]
    assert fixed[0] == fixed[1]
    assert len(set(drawn)) == 20
    assert np.mean(drawn) == pytest.approx(fixed[0], rel=0.1)


@torch.no_grad()
def test_the_masked_target_is_the_clean_image():
    detector = build("vit", loss="mse").train()
    phase, *_ = detector.phases()
    images, near = pictures(4), torch.full((4, 3, 64, 64), 0.5)
    far = torch.zeros_like(near)
    losses = {}
    for name, clean in (("near", near), ("far", far)):
        torch.manual_seed(0)
        losses[name] = float(phase.loss(Batch(images, clean))["mse"])
    assert losses["near"] < losses["far"]


@pytest.mark.parametrize(("arch", "options", "rate"), [("cnn", {"width": 16}, 3e-3), ("vit", {"width": 64}, 1e-3)])
def test_it_rebuilds_unseen_real_images_better_than_their_mean_does(arch, options, rate, shared_data):
    train = pictures_of(shared_data / "hazelnut_toy" / "train" / "good", 64)
    test = pictures_of(shared_data / "hazelnut_toy" / "test" / "good", 64)
    detector = build(arch, loss="mse", **options)
    untrained = rebuilding_error(detector, test)
    descend(detector, train, rate, batch=7, epochs=30)
    assert rebuilding_error(detector, test) < 0.5 * untrained
    assert rebuilding_error(detector, test) < float((test - test.mean((2, 3), keepdim=True)).square().mean())


@pytest.mark.parametrize(
    ("arch", "options"),
    [("cnn", {"skips": True}), ("vit", {"masks": 3}), ("vit", {"masked": False, "decoder": "transformer"})],
)
def test_onnx_scores_as_torch_does_at_any_batch_size(arch, options, tmp_path):
    check_onnx(arch, build(arch, **options), pictures(3), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("error", ["l1", "ssim=0.3,gradient=0.7", "l2=0.25,features=0.75"])
def test_maps_hold_errors_against_what_is_usual_around_their_place(error):
    """About 0 where all is well, whatever lies there, and of about one spread; what is not usual stands out."""
    detector = build("cnn", error=error, around=0.03)
    images = pictures(24)
    images[:, :, :32] = torch.rand(24, 3, 32, 64, generator=torch.Generator().manual_seed(1))  # never rebuilt well
    before = detector(images).maps.mean(0)
    assert before[8:24].mean() > before[40:56].mean() + 0.1 * before.std()
    learn_what_is_usual(detector, images)
    after = detector(images).maps
    assert abs(float(after.mean())) < 0.1
    assert abs(float(after[:, 8:24].mean() - after[:, 40:56].mean())) < 0.2
    assert 0.3 < float(after.std(0).mean()) < 1.2
    spoilt = images.clone()
    spoilt[:, :, 44:54, 20:30] = torch.rand(24, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    assert float((detector(spoilt).maps - after)[:, 46:52, 22:28].mean()) > 0.1


def learn_what_is_usual(detector, held_out):
    """The last phase of a fit."""
    (phase,) = detector.error_statistics_phase()
    assert phase.held_out, "images learned from say nothing of the next"
    for batch in held_out.split(5):
        phase.absorb(phase.embed(batch))
    phase.finish(lambda *_: None)


@torch.no_grad()
def test_images_known_by_heart_do_not_set_what_is_usual():
    """Held-out good images that are rebuilt worse are not anomalous, in each space for itself."""
    detector = build("cnn", error="l1=1,gradient=1")
    known, held_out, new = pictures(16), pictures(40)[16:28] ** 3, pictures(40)[28:] ** 3
    learn_what_is_usual(detector, known)
    by_heart = detector(new).maps
    learn_what_is_usual(detector, held_out)
    assert abs(float(detector(new).maps.mean())) < 0.5 * abs(float(by_heart.mean()))
    learn_what_is_usual(detector, known)
    assert abs(float(detector(known).maps.mean())) < 0.1


def test_a_fitted_one_takes_the_weights_of_another():
    detector, other = build("cnn", error="l1"), build("cnn", error="l1")
    with torch.inference_mode():  # as the engine does
        learn_what_is_usual(detector, pictures(6))
        learn_what_is_usual(other, pictures(8)[2:])
    detector.load_state(other.state_dict())
    assert torch.equal(detector.usual_level, other.usual_level)


@torch.no_grad()
def test_what_never_varied_does_not_drown_out_the_rest():
    """Places and images that are all alike have no spread to divide by."""
    detector = build("cnn", error="l1")
    images = pictures(1).expand(6, -1, -1, -1)
    learn_what_is_usual(detector, images)
    assert detector(images).maps.abs().max() < 4
    assert detector(pictures(3)).maps.isfinite().all()


@torch.no_grad()
def test_absolute_errors_are_left_as_they_are():
    detector = build("cnn", relative=False, error="l1", blur=(0.0,))
    assert detector.error_statistics_phase() == ()
    images = pictures(2)
    torch.testing.assert_close(detector(images).maps, (images - detector.reconstruct(images)).abs().mean(1))
