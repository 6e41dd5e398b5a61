"""Synthetic defects: exact masks, a different defect for each image, and Perlin noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.data.synthetic import PAINTERS, cutpaste, paint, parse_kinds, perlin_noise
from adctl.errors import UsageError

KINDS = [["cutpaste"], ["perlin"], ["cutpaste", "perlin"]]


def textured(count: int, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    """Images with something on them, each a little different."""
    torch.manual_seed(0)
    x, y = torch.arange(width) / width, torch.arange(height).view(-1, 1) / height
    waves = 0.5 + 0.2 * torch.sin(20 * x) * torch.cos(15 * y)
    return (waves + 0.15 * torch.rand(count, channels, height, width)).clamp(0, 1)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.integers(16, 70),
    st.integers(16, 70),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_masks_are_exact(kinds, count, channels, height, width, seed):
    images = textured(count, channels, height, width)
    before = images.clone()
    torch.manual_seed(seed)
    painted, mask = paint(images, kinds, probability=1.0)
    assert torch.equal(images, before)
    assert painted.shape == images.shape
    assert painted.dtype == torch.float32
    assert mask.shape == (count, height, width)
    assert mask.dtype == torch.bool
    assert torch.equal((painted != images).any(1), mask)
    assert painted.min() >= 0
    assert painted.max() <= 1


@pytest.mark.parametrize("kind", sorted(PAINTERS))
def test_defects_can_be_seen_and_leave_most_of_the_image(kind):
    images = textured(64)
    painted, mask = paint(images, [kind], probability=1.0)
    pixels = mask.flatten(1).sum(1)
    assert (pixels >= 10).float().mean() > 0.95
    assert mask.float().mean() < 0.25
    change = (painted - images).abs().amax(1).flatten(1).sum(1) / pixels.clamp(min=1)
    assert (change[pixels > 0] >= 0.02).all()


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 75, 125), (1.0, 196, 200)])
def test_probability_is_the_share_of_images_painted(probability, low, high):
    _, mask = paint(textured(200, 1, 32, 32), ["cutpaste", "perlin"], probability)
    assert low <= int(mask.flatten(1).any(1).sum()) <= high


def test_each_image_gets_its_own_defect():
    same = textured(1).expand(8, -1, -1, -1)
    painted, _ = paint(same, ["cutpaste", "perlin"], probability=1.0)
    assert len({image.numpy().tobytes() for image in painted}) == 8


@pytest.mark.parametrize("kinds", KINDS)
def test_the_same_random_state_paints_the_same(kinds):
    images = textured(6)
    state = torch.get_rng_state()
    first = paint(images, kinds)
    torch.rand(5)
    torch.set_rng_state(state)
    again = paint(images, kinds)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("kinds", KINDS)
def test_grey_images_stay_grey(kinds):
    painted, mask = paint(textured(8, 1).expand(-1, 3, -1, -1), kinds, probability=1.0)
    assert mask.any()
    torch.testing.assert_close(painted.amax(1), painted.amin(1), rtol=0, atol=1e-4)


def test_an_image_of_one_colour_gets_nothing_pasted_that_shows():
    painted, mask = paint(torch.zeros(4, 3, 32, 32), ["cutpaste"], probability=1.0)
    assert not mask.any()
    assert not painted.any()


def test_cutpaste_draws_patches_and_scars():
    _, mask = cutpaste(textured(200, 1))
    share = mask.flatten(1).float().mean(1)
    patches = share > 0.015
    assert 0.35 < patches.float().mean() < 0.65
    assert share.max() < 0.17
    assert share[~patches].max() < 0.008


def test_a_patch_holds_pixels_of_the_same_image():
    ramp = torch.arange(64 * 64).view(1, 1, 64, 64) / 8192 + 0.25
    for _ in range(20):
        painted, mask = cutpaste(ramp)
        if mask.sum() < 60:
            continue  # a turned scar
        rows, columns = mask[0].any(1).nonzero().flatten(), mask[0].any(0).nonzero().flatten()
        patch = painted[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        steps = patch.diff(dim=1)
        # One gain for the whole patch: the ramp's step, up to a tenth more or less.
        assert (steps.max() - steps.min()).item() < 1e-5
        assert 0.89 / 8192 < steps.mean().item() < 1.11 / 8192


def test_only_the_images_named_are_painted_from_all_of_them():
    images = textured(5)
    painted, mask = PAINTERS["perlin"](images, torch.tensor([3, 1]))
    assert painted.shape == (2, 3, 64, 64)
    assert torch.equal((painted != images[[3, 1]]).any(1), mask)


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_noise_is_smooth_within_its_range_and_differs(down, across, seed):
    torch.manual_seed(seed)
    noise = perlin_noise(torch.tensor([[2.0**down, 2.0**across]] * 3), 256, 256)
    assert noise.shape == (3, 256, 256)
    assert noise.abs().max() <= 1
    # 16 pixels to a cell at the least; the slope of the noise within a cell is a few units at most.
    assert noise.diff(dim=1).abs().max() < 0.3
    assert noise.diff(dim=2).abs().max() < 0.3
    assert not torch.equal(noise[0], noise[1])


def test_noise_has_as_many_cells_as_asked_for():
    torch.manual_seed(0)
    cells = torch.tensor([[4.0, 16.0]] * 32)
    noise = perlin_noise(cells, 256, 256)
    crossings = [(noise.diff(dim=axis).sign().diff(dim=axis) != 0).float().mean().item() for axis in (1, 2)]
    assert 2.5 < crossings[1] / crossings[0] < 6
    turned = perlin_noise(cells, 256, 256, angle=torch.full((32,), math.pi / 2))
    crossings = [(turned.diff(dim=axis).sign().diff(dim=axis) != 0).float().mean().item() for axis in (1, 2)]
    assert 2.5 < crossings[0] / crossings[1] < 6


def test_kinds_are_read_and_wrong_ones_explained():
    assert parse_kinds("perlin, cutpaste,perlin") == ("perlin", "cutpaste")
    with pytest.raises(UsageError, match="'cutpast'") as caught:
        parse_kinds("cutpast")
    assert "Did you mean 'cutpaste'?" in caught.value.remedy
    with pytest.raises(UsageError, match="No kind"):
        paint(textured(1), [])
