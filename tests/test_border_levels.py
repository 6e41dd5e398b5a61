"""Levels of distances along the border, which a handful of images give PatchCore."""

from __future__ import annotations

import itertools

import pytest
import torch

from adctl.detectors.components.border_levels import MOST_IMAGES, border_levels, ring_numbers
from adctl.detectors.patchcore import PatchCore, PatchCoreConfig
from adctl.engine.phases import Observe


def test_rings_count_the_cells_to_the_border():
    assert ring_numbers(4, 5).tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 3])
def test_levels_are_mean_distances_of_rings_relative_to_the_inside(count):
    generator = torch.Generator().manual_seed(0)
    features, beyond = torch.randn(count, 4, 8, 9, generator=generator), torch.rand(count, 8, 9, generator=generator)
    places = list(itertools.product(range(count), range(8), range(9)))
    nearest = torch.empty(count, 8, 9)
    for image, row, column in places:
        others = [
            (features[image, :, row, column] - features[other, :, down, across]).square().sum()
            for other, down, across in places
            if other != image or (count == 1 and max(abs(down - row), abs(across - column)) > 2)
        ]
        nearest[image, row, column] = (torch.stack(others).min() + beyond[image, row, column]).sqrt()
    rings, expected = ring_numbers(8, 9), torch.ones(8, 9)
    for ring in range(3):
        expected[rings == ring] = nearest[:, rings == ring].mean() / nearest[:, rings >= 3].mean()
    torch.testing.assert_close(border_levels(features, beyond), expected, rtol=1e-4, atol=1e-4)


def test_a_grid_without_inside_and_images_without_differences_have_no_levels():
    assert border_levels(torch.randn(2, 4, 6, 6), torch.zeros(2, 6, 6)).eq(1).all()
    assert border_levels(torch.ones(2, 4, 9, 9), torch.zeros(2, 9, 9)).eq(1).all()


def fitted(images: torch.Tensor) -> PatchCore:
    detector = PatchCore(PatchCoreConfig(image_size=128, coreset_ratio=1.0)).eval()
    for phase in detector.phases():
        assert isinstance(phase, Observe)
        phase.absorb(phase.embed(images))
        phase.finish(lambda _done, _all: None)
    return detector


def images_with_restless_border(count: int) -> torch.Tensor:
    """Return grey images [n,3,128,128] of which only the border differs from one to the next."""
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.02 * torch.rand(1, 3, 128, 128, generator=generator).repeat(count, 1, 1, 1)
    images += 0.005 * torch.rand(images.shape, generator=generator)
    restless = torch.rand(images.shape, generator=generator)
    restless[..., 12:-12, 12:-12] = images[..., 12:-12, 12:-12]
    return restless


@torch.inference_mode()
def test_a_border_that_differs_among_a_few_good_images_does_not_dominate_the_map():
    torch.manual_seed(0)
    images = images_with_restless_border(3)
    detector = fitted(images[:2])
    seen = detector.spread.clone()
    border = ring_numbers(*detector.grid) == 0
    maps = detector(images[2:]).maps[0]
    detector.spread = seen / detector._fit.levels  # as without levels
    before = detector(images[2:]).maps[0]
    assert detector._fit.levels[border].min() > 1.2
    assert maps[border].mean() / maps[~border].mean() < before[border].mean() / before[~border].mean()


@torch.inference_mode()
def test_levels_of_many_images_are_left_to_the_deviations_of_places():
    torch.manual_seed(0)
    levels = fitted(images_with_restless_border(MOST_IMAGES + 1))._fit.levels
    assert levels.eq(1).all()


@torch.inference_mode()
def test_held_out_images_are_scored_with_the_levels():
    torch.manual_seed(0)
    images = images_with_restless_border(4)
    detector = fitted(images)
    border = ring_numbers(*detector.grid) == 0
    held = detector.held_out(images[:1], [0]).maps[0]
    other = fitted(images[1:])(images[:1]).maps[0]
    assert held[border].mean() / held[~border].mean() == pytest.approx(
        float(other[border].mean() / other[~border].mean()), rel=0.3
    )
