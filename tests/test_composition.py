"""Logical defects: the generated trays, sPRO, and the composition detector; test_detectors.py has its contract."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from adctl.data.datasets.layouts import open_mvtec
from adctl.detectors.composition import Composition, _warn_without_composition, _windows
from adctl.errors import DataError, UsageError
from adctl.fetching import demo_trays
from adctl.metrics.spro import area_under_spro

CASES = [(category, defect) for category, defects in demo_trays.DEFECTS.items() for defect in defects]
SIDE = 64


# ---- trays


@pytest.mark.parametrize(("category", "defect"), CASES)
def test_a_tray_is_drawn_alike_again_and_has_its_regions(category, defect):
    image, regions = demo_trays.render(category, (3, 1), defect, 96)
    again, _ = demo_trays.render(category, (3, 1), defect, 96)
    assert np.array_equal(image, again)
    assert len(regions) == (2 if defect == "swapped" else 1)
    for region in regions:
        assert 10 < region.saturation <= region.mask.sum()
    if defect in {"missing", "extra", "miscounted"}:
        assert regions[0].saturation < regions[0].mask.sum()


def test_good_trays_have_no_region_and_differ():
    first, nothing = demo_trays.render("tray", 1, None, 64)
    second, _ = demo_trays.render("tray", 2, None, 64)
    assert nothing == ()
    assert np.abs(first.astype(int) - second.astype(int)).mean() > 3


@pytest.mark.parametrize("category", demo_trays.CATEGORIES)
def test_a_category_of_trays_is_written_as_mvtec(tmp_path, category):
    demo_trays.generate(tmp_path, category, train=2, good=1, per_defect=1, size=32)
    dataset = open_mvtec(tmp_path, category)
    assert len(dataset.train) == 2
    assert dataset.test_counts == {"good": 1, **dict.fromkeys(demo_trays.DEFECTS[category], 1)}
    assert dataset.mask_count == len(demo_trays.DEFECTS[category])


# ---- sPRO


def test_spro_by_hand():
    """Two of four pixels suffice: the region is saturated before the first false positive."""
    values = np.array([[9.0, 8, 1, 1], [0, 5, 4, 3]])
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert area_under_spro([values], [[(mask, 2)]], 1.0) == 1
    # With all four it is PRO: half of the region, until three of the four normal pixels are above the threshold.
    assert area_under_spro([values], [[(mask, 4)]], 1.0) == pytest.approx(0.5 * 0.75 + 0.25)
    assert area_under_spro([values], [[(mask, 4)]], 0.5) == pytest.approx(0.5)


def test_spro_of_noise_and_of_a_constant_map_is_that_of_chance():
    mask = np.zeros((40, 40), bool)
    mask[:20] = True
    noise = np.random.default_rng(0).random((40, 40))
    assert area_under_spro([noise], [[(mask, 800)]], 1.0) == pytest.approx(0.5, abs=0.03)
    assert area_under_spro([np.ones((40, 40))], [[(mask, 800)]], 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("regions", [[[]], [[(np.ones((2, 2), bool), 5)]], [[(np.ones((2, 2), bool), 1)]]])
def test_spro_without_regions_without_normal_pixels_or_with_a_saturation_above_the_area(regions):
    with pytest.raises(DataError):
        area_under_spro([np.zeros((2, 2))], regions)


# ---- the detector


def blocks(counts, seed):
    """An image [3,64,64] with this number of red and of blue blocks at random places of a grid."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.4 + 0.02 * torch.randn(3, SIDE, SIDE, generator=generator)
    places = torch.randperm(16, generator=generator)[: sum(counts)].tolist()
    for number, place in enumerate(places):
        row, column = divmod(place, 4)
        image[:, 16 * row + 2 : 16 * row + 14, 16 * column + 2 : 16 * column + 14] = 0.1
        image[0 if number < counts[0] else 2, 16 * row + 2 : 16 * row + 14, 16 * column + 2 : 16 * column + 14] = 0.9
    return image.clamp(0, 1)


@torch.inference_mode()
def fitted(images, **options):
    from adctl.detectors.components.backbones import DEFAULT, find_weights

    detector = Composition(Composition.Config(image_size=SIDE, classes=16, parts=1, **options)).eval()
    detector.load_pretrained(find_weights(DEFAULT, None).tensors)
    for phase in detector.phases():
        for part in images.split(8):
            phase.absorb(phase.embed(part))
        phase.finish(lambda _done, _total: None)
    return detector


@pytest.fixture(scope="module")
def counted():
    return fitted(torch.stack([blocks((4, 3), seed) for seed in range(48)]))


@torch.inference_mode()
def test_other_numbers_of_parts_are_found_and_marked(counted):
    scores = {
        counts: counted(torch.stack([blocks(counts, 100 + seed) for seed in range(8)])).scores
        for counts in ((4, 3), (3, 3), (5, 3), (3, 4))
    }
    good = scores.pop((4, 3))
    for counts, bad in scores.items():
        assert (bad.unsqueeze(1) > good).float().mean() > 0.9, counts


@torch.inference_mode()
def test_a_training_image_that_is_left_out_scores_like_a_new_one(counted):
    images = torch.stack([blocks((4, 3), seed) for seed in range(8)])
    assert counted.can_hold_out()
    left_out = counted.held_out(images, range(8)).scores
    new = counted(torch.stack([blocks((4, 3), 200 + seed) for seed in range(8)])).scores
    assert left_out.mean() > counted(images).scores.mean()
    assert abs(left_out.mean() - new.mean()) < 2 * new.std() + 1


def test_the_windows_average_the_cells_of_each_region():
    windows = _windows(5, 4, 2)
    assert windows.shape == (5, 20)
    torch.testing.assert_close(windows.sum(1), torch.ones(5))
    assert ((windows[1:] > 0).sum(0) == 1).all()


def test_a_few_images_are_refused_with_the_remedy():
    with pytest.raises(UsageError, match="at least 8 good images") as caught:
        fitted(torch.stack([blocks((4, 3), seed) for seed in range(4)]))
    assert "--arch patchcore" in caught.value.remedy


def test_images_without_composition_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        _warn_without_composition(torch.arange(10.0), torch.arange(10.0) + 20)
        assert not caplog.records
        noise = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        fitted(noise)
    assert "no composition that can be learnt" in caplog.text
    assert "--arch patchcore" in caplog.text
