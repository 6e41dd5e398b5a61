"""Features of a backbone equal those of timm's own forward pass, at any size."""

from __future__ import annotations

import pytest
import timm
import torch
from conftest import settings

from adctl.detectors.components.backbones import Backbone
from adctl.detectors.feature_detector import FeatureConfig, create_backbone
from adctl.training.plan import plan_training

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def filled(name: str, levels: tuple[int, ...], size: tuple[int, int], **options):
    """Return a backbone and timm's complete model with the same random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    backbone = Backbone(name, levels, size)
    backbone.load_pretrained(model.state_dict())
    return backbone, model


def normalised(backbone: Backbone) -> torch.Tensor:
    return (IMAGES - backbone.mean) / backbone.std


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_levels_of_convolutional_networks_are_those_of_the_stages(name):
    backbone, model = filled(name, (1, 2), (64, 96))
    with torch.no_grad():
        expected = model.forward_intermediates(normalised(backbone), indices=[1, 2], intermediates_only=True)
        found = backbone(IMAGES)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_levels_of_transformers_are_those_of_the_blocks_at_another_size(name):
    stride = 14 if "patch14" in name else 16
    size = (4 * stride, 6 * stride)
    backbone, _ = filled(name, (3, 7), size)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    sized = timm.create_model(name, img_size=size).eval()
    sized.load_state_dict(backbone.network.model.state_dict(), strict=False)
    with torch.no_grad():
        expected = sized.forward_intermediates(
            (images - backbone.mean) / backbone.std, indices=[3, 7], intermediates_only=True, norm=False
        )
        found = backbone(images)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (1, 384 if "small" in name else 192, 4, 6)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_default_levels_of_a_transformer_lie_in_its_middle():
    config = FeatureConfig(backbone="vit_small_patch14_dinov2", image_size=56)
    assert create_backbone(config, (8, 16)).levels == (3, 5, 7, 9)


@pytest.mark.parametrize(("name", "side"), [("vit_small_patch14_dinov2", 252), ("vit_tiny_patch16_224", 256)])
@pytest.mark.parametrize("arch", ["padim", "dinomaly", "ensemble"])
def test_an_automatic_size_is_a_multiple_of_the_patches(zippers, arch, name, side):
    given = settings(arch=arch, data=zippers, backbone=name, weights="random", image_size="auto")
    assert plan_training(given.settings).config.image_size == side
