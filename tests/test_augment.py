"""Augmentation policies: what they preserve, reproducibility, and errors for invalid ones."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.errors import MissingExtraError, UsageError
from adctl.training.augmentation import Augmentation, ReflectedAffine

HAS_ALBUMENTATIONS = importlib.util.find_spec("albumentations") is not None
LIBRARIES = [
    "torchvision",
    pytest.param(
        "albumentations",
        marks=pytest.mark.skipif(not HAS_ALBUMENTATIONS, reason="needs the extra adctl[albumentations]"),
    ),
]
CUSTOM = {
    "torchvision": [
        {"name": "RandomRotation", "degrees": 5, "interpolation": "bilinear"},
        {"name": "ColorJitter", "brightness": 0.3, "probability": 0.5},
        {"name": "MixUp", "alpha": 0.5, "probability": 0.5},
        {"name": "GaussianNoise", "sigma": 0.02},
    ],
    "albumentations": [
        {"name": "Rotate", "limit": [-5, 5], "p": 1.0},
        {"name": "GaussNoise", "std_range": [0.01, 0.02], "p": 1.0, "probability": 0.5},
    ],
}
POLICIES = ["light", "medium", "heavy", "custom"]


def gradients(count: int, channels: int = 3, height: int = 48, width: int = 40) -> torch.Tensor:
    """Images without an edge, each another brightness, channels last as in training."""
    down, across = torch.arange(height).view(-1, 1) / height, torch.arange(width) / width
    plane = 0.3 + 0.2 * down + 0.2 * across
    levels = torch.linspace(0.8, 1.2, count).view(-1, 1, 1, 1) * torch.linspace(0.8, 1, channels).view(-1, 1, 1)
    return (plane * levels).contiguous(memory_format=torch.channels_last)


def augmentation(policy: str, library: str = "torchvision", synthetic=None) -> Augmentation:
    custom = CUSTOM[library] if policy == "custom" else None
    return Augmentation(policy, library=library, custom=custom, synthetic=synthetic)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 6])
def test_batches_keep_their_form(library, policy, channels, count):
    torch.manual_seed(0)
    images = gradients(count, channels)
    before = images.clone()
    batch = augmentation(policy, library)(images)
    assert torch.equal(images, before)
    assert batch.defects is None
    assert torch.equal(batch.images, batch.clean)
    assert batch.clean.shape == images.shape
    assert batch.clean.dtype == torch.float32
    assert batch.clean.is_contiguous(memory_format=torch.channels_last)
    assert batch.clean.min() >= 0
    assert batch.clean.max() <= 1
    assert not torch.equal(batch.clean, images)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_image_gets_its_own_draw(library, policy):
    torch.manual_seed(0)
    same = gradients(1).expand(6, -1, -1, -1)
    varied = augmentation(policy, library)(same).clean
    assert len({image.numpy().tobytes() for image in varied}) >= 5  # MixUp may give the same one twice


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_run_draws_the_same(library, policy):
    torch.manual_seed(0)
    images, augment = gradients(5), augmentation(policy, library, ["cutpaste", "perlin"])
    augment(images)
    state = torch.get_rng_state()
    uninterrupted = augment(images)
    resumed = augmentation(policy, library, ["cutpaste", "perlin"])
    torch.set_rng_state(state)
    batch = resumed(images)
    assert torch.equal(batch.clean, uninterrupted.clean)
    assert torch.equal(batch.images, uninterrupted.images)
    assert torch.equal(batch.defects, uninterrupted.defects)
    assert not torch.equal(resumed(images).clean, batch.clean)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("policy", ["light", "medium", "heavy"])
def test_no_policy_leaves_dark_borders(library, policy):
    torch.manual_seed(0)
    white = torch.full((16, 3, 40, 40), 0.8)
    assert augmentation(policy, library)(white).clean.min() > 0.4


@pytest.mark.parametrize("library", LIBRARIES)
def test_light_moves_little(library):
    torch.manual_seed(0)
    images = gradients(8)
    assert (augmentation("light", library)(images).clean - images).abs().max() < 0.12


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("policy", ["light", "medium", "heavy"])
def test_no_policy_mirrors_or_recolours(library, policy):
    torch.manual_seed(0)
    images = torch.full((12, 3, 40, 40), 0.2)
    images[:, 0, :, 20:] = 0.7  # red, on the right
    red, green, blue = augmentation(policy, library)(images).clean[:, :, 8:32, 32:].mean((2, 3)).unbind(1)
    assert (red > green + 0.2).all()
    torch.testing.assert_close(green, blue, rtol=0, atol=0.03)


def test_none_changes_nothing():
    images = gradients(3)
    batch = Augmentation("none")(images)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.clean, images)
    assert batch.defects is None


@pytest.mark.parametrize("policy", ["none", "medium"])
def test_synthetic_defects_are_on_the_images_and_not_on_the_clean_ones(policy):
    torch.manual_seed(0)
    images = gradients(32)
    batch = Augmentation(policy, synthetic=["perlin", "cutpaste"])(images)
    assert torch.equal((batch.images != batch.clean).any(1), batch.defects)
    assert 8 <= int(batch.defects.flatten(1).any(1).sum()) <= 24
    if policy == "none":
        assert torch.equal(batch.clean, images)


def test_without_gradients():
    assert not Augmentation("medium")(gradients(2).requires_grad_()).images.requires_grad


@given(st.integers(16, 60), st.integers(16, 60), st.integers(-2, 2), st.integers(-2, 2))
@settings(max_examples=25, deadline=None)
def test_affine_shifts_whole_pixels_exactly_and_reflects(height, width, right, down):
    image = torch.rand(1, height, width)
    move = ReflectedAffine(shift=0.5)
    with pytest.MonkeyPatch.context() as patch:
        drawn = torch.tensor([0.0, right / width, down / height, 0.0]) + 0.5
        patch.setattr(torch, "rand", lambda *_: drawn)
        moved = move(image)
    rows = [reflect(row + down, height) for row in range(height)]
    columns = [reflect(column + right, width) for column in range(width)]
    torch.testing.assert_close(moved, image[:, rows][:, :, columns], rtol=0, atol=2e-3)


def reflect(place: int, side: int) -> int:
    """Where a place outside [0, side) is mirrored to, the border's pixels being repeated."""
    return -1 - place if place < 0 else 2 * side - 1 - place if place >= side else place


def test_affine_turns_what_is_not_square_without_shearing():
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    hill = torch.exp(-(x**2 + y**2) / 50)[None]
    ridge = torch.exp(-(y**2) / 50)[None]
    torch.manual_seed(1)
    for _ in range(5):  # nothing from beyond the border comes this far in
        assert (ReflectedAffine(degrees=90)(hill) - hill)[:, 6:-6, 26:-26].abs().max() < 0.01
    assert (ReflectedAffine(degrees=90)(ridge) - ridge)[:, 6:-6, 26:-26].abs().max() > 0.3


def test_custom_probability_is_a_share_of_images():
    torch.manual_seed(0)
    custom = [{"name": "RandomInvert", "p": 1.0, "probability": 0.25}]
    dark = torch.zeros(200, 1, 16, 16)
    assert 30 <= int(Augmentation("custom", custom=custom)(dark).clean.amax((1, 2, 3)).sum()) <= 70


@pytest.mark.parametrize(
    "name",
    ["AugMix", "AutoAugment", "ElasticTransform", "RandAugment", "RandomErasing", "RandomHorizontalFlip",
     "RandomPerspective", "RandomPhotometricDistort", "ReflectedAffine", "TrivialAugmentWide", "CutMix"],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_transforms_by_name(name, channels):
    images = gradients(2, channels)
    assert Augmentation("custom", custom=[{"name": name}])(images).clean.shape == images.shape


@pytest.mark.parametrize(
    ("library", "custom", "message", "remedy"),
    [
        ("torchvision", [{"name": "RandomRotate"}], "'RandomRotate'", "Did you mean 'RandomRotation'"),
        ("torchvision", [{"name": "Normalize", "mean": [0.5], "std": [0.5]}], "'Normalize'", "Known: "),
        ("torchvision", [{"name": "Compose"}], "'Compose'", "Known: "),
        ("torchvision", [{"name": "InterpolationMode"}], "'InterpolationMode'", "Known: "),
        ("torchvision", [{"name": "RandomRotation"}], "RandomRotation.*degrees", "config file"),
        ("torchvision", [{"name": "RandomRotation", "degree": 5}], "RandomRotation.*degree", "config file"),
        ("torchvision", [{"name": "RandomRotation", "degrees": 5, "interpolation": "linear"}], "linear", "bilinear"),
        ("torchvision", [{"name": "AutoAugment", "policy": "mvtec"}], "mvtec", "imagenet"),
        ("torchvision", [{"name": "ReflectedAffine", "degrees": -5}], "negative", "config file"),
        ("torchvision", [{"degrees": 5}], "no name", "name = "),
        ("torchvision", [{"name": "RandomInvert", "probability": 50}], "from 0 to 1. Got 50", "config file"),
        ("torchvision", [], "no transforms", "name = "),
        ("albumentations", [{"name": "Rotatte"}], "'Rotatte'", "Did you mean 'Rotate'"),
        ("albumentations", [{"name": "DualTransform"}], "'DualTransform'", "Known: "),
        ("albumentations", [{"name": "Rotate", "degrees": 5}], "Rotate.*degrees", "config file"),
        ("albumentations", [{"name": "Rotate", "limit": "far"}], "Rotate.*far", "config file"),
    ],
)
def test_wrong_custom_lists_are_explained(library, custom, message, remedy):
    if library == "albumentations" and not HAS_ALBUMENTATIONS:
        pytest.skip("needs the extra adctl[albumentations]")
    with pytest.raises(UsageError, match=message) as caught:
        Augmentation("custom", library=library, custom=custom)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("custom", [{"name": "RandomCrop", "size": 16}, {"name": "Grayscale"}])
def test_transforms_that_change_the_shape_are_refused(custom):
    with pytest.raises(UsageError, match="size of images from 3x48x40"):
        Augmentation("custom", custom=[custom])(gradients(2))


def test_padding_and_cropping_back_is_fine():
    custom = [{"name": "Pad", "padding": 4, "padding_mode": "reflect"}, {"name": "RandomCrop", "size": [48, 40]}]
    assert Augmentation("custom", custom=custom)(gradients(2)).clean.shape == (2, 3, 48, 40)


def test_transforms_that_fail_on_the_images_are_named():
    augment = Augmentation("custom", custom=[{"name": "RandomCrop", "size": 64}])
    with pytest.raises(UsageError, match="'RandomCrop' failed on an image of 3 x 48 x 40"):
        augment(gradients(2))


def test_memory_running_out_is_not_the_config_files_fault(monkeypatch):
    augment = Augmentation("custom", custom=[{"name": "ReflectedAffine", "degrees": 1}])

    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ReflectedAffine, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        augment(gradients(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "hevy"}, "'hevy'"),
        ({"policy": "light", "library": "albumentation"}, "'albumentation'"),
        ({"policy": "light", "synthetic": ["perlin", "rust"]}, "'rust'"),
        ({"policy": "light", "custom": [{"name": "RandomInvert"}]}, "policy is 'light'"),
    ],
)
def test_wrong_names_are_explained(arguments, message):
    with pytest.raises(UsageError, match=message):
        Augmentation(**arguments)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingExtraError, match="'albumentations'") as caught:
        Augmentation("light", library="albumentations")
    assert "adctl[albumentations]" in caught.value.remedy
