"""Fitted detectors that learn from new good images without the old ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.choices import DETECTORS
from adctl.detectors.components import coreset, nearest_neighbours
from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.padim import PaDiM
from adctl.detectors.patchcore import PatchCore
from adctl.detectors.registry import detector_class
from adctl.errors import ModelFileError

SIDE = 64
ALONE = {"padim", "patchcore"}
"""Detectors that need no old images."""


def images(count, seed, spread=0.05):
    """Images [count,3,64,64] that vary around a common picture."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    return (common + spread * torch.randn(count, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)


def new(cls, **options):
    torch.manual_seed(0)
    return cls(cls.Config(image_size=SIDE, **options)).eval()


@torch.inference_mode()
def run(phases, pictures):
    for phase in phases:
        for part in pictures.split(4):
            phase.absorb(phase.embed(part))
        phase.finish(lambda _done, _total: None)


def fitted(cls, pictures, **options):
    detector = new(cls, **options)
    run(detector.phases(), pictures)
    return detector


def reloaded(detector):
    """A copy that knows only what a model file holds."""
    copy = type(detector)(detector.config).eval()
    copy.load_state({name: tensor.clone() for name, tensor in detector.state_dict().items()})
    return copy


@torch.inference_mode()
def scores(detector, pictures):
    return detector(pictures).scores


@pytest.mark.parametrize("arch", sorted(DETECTORS))
def test_each_detector_updates_alone_or_needs_the_old_images(arch):
    cls = detector_class(arch)
    options = {"base": "random-tiny", "windows": (2,)} if arch == "clip" else {"base": "random-tiny"}
    detector = cls(cls.Config(image_size=SIDE, **(options if cls.takes_base else {})))
    assert bool(detector.update_phases(20)) == (arch in ALONE)
    assert not (cls.update_lowers_scores and arch not in ALONE)


@settings(max_examples=8)
@given(
    old=st.integers(8, 24),
    parts=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    dimensions=st.sampled_from([4, 16, 160]),
    seed=st.integers(0, 99),
)
def test_padim_updated_equals_padim_fitted_to_all(old, parts, dimensions, seed):
    pictures = images(old + sum(parts), seed)
    updated, known = fitted(PaDiM, pictures[:old], dimensions=dimensions), old
    for count in parts:
        updated = reloaded(updated)
        run(updated.update_phases(known), pictures[known : known + count])
        known += count
    at_once = fitted(PaDiM, pictures, dimensions=dimensions)
    torch.testing.assert_close(updated.mean, at_once.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(updated.count, at_once.count)
    unseen = images(4, seed + 1000, spread=0.1)
    torch.testing.assert_close(scores(updated, unseen), scores(at_once, unseen), rtol=1e-3, atol=0)


def test_padim_files_without_a_count_take_the_number_of_images():
    pictures = images(20, 0)
    old = fitted(PaDiM, pictures[:12])
    tensors = {name: tensor for name, tensor in old.state_dict().items() if name != "count"}
    updated = new(PaDiM)
    updated.load_state(tensors)
    assert not updated.count.numel()
    run(updated.update_phases(12), pictures[12:])
    at_once = fitted(PaDiM, pictures)
    torch.testing.assert_close(scores(updated, images(3, 5)), scores(at_once, images(3, 5)), rtol=1e-3, atol=0)


def test_padim_files_of_tiles_without_a_count_say_what_to_do():
    old = fitted(PaDiM, images(12, 0), tile=SIDE)
    updated = new(PaDiM, tile=SIDE)
    updated.load_state({name: tensor for name, tensor in old.state_dict().items() if name != "count"})
    with pytest.raises(ModelFileError, match="number of inputs") as caught:
        run(updated.update_phases(12), images(4, 1))
    assert "Train it again" in caught.value.remedy


def test_padim_with_masked_margins_counts_each_place():
    pictures = torch.cat([images(24, 0), torch.ones(24, 1, SIDE, SIDE)], 1)
    pictures[::3, -1, :, SIDE // 2 :] = 0  # a third of the images is narrow
    options = {"resize": "pad", "margin": "masked"}
    updated = reloaded(fitted(PaDiM, pictures[:12], **options))
    run(updated.update_phases(12), pictures[12:])
    at_once = fitted(PaDiM, pictures, **options)
    assert sorted(set(updated.count.tolist())) == [16, 24]
    torch.testing.assert_close(scores(updated, pictures[:3]), scores(at_once, pictures[:3]), rtol=1e-3, atol=0)


def test_held_out_scores_after_an_update_are_those_of_a_fit_without_the_image():
    pictures = images(40, 3)
    updated = reloaded(fitted(PaDiM, pictures[:10]))
    run(updated.update_phases(10), pictures[10:])
    without = fitted(PaDiM, pictures[:-1])
    with torch.inference_mode():
        held_out = updated.held_out(pictures[-1:], [29]).scores
    torch.testing.assert_close(held_out, scores(without, pictures[-1:]), rtol=5e-3, atol=0)


@torch.inference_mode()
def gaps(detector, pictures):
    """Distance of each patch to the bank."""
    rows = to_rows(detector.reduced(detector.patches(pictures)))
    return nearest_neighbours.nearest_squared(rows, detector.bank.float() * detector.step).sqrt()


@pytest.mark.parametrize("search", ["exact", "ivf"])
def test_patchcore_covers_the_new_images_and_old_scores_never_rise(search):
    old, fresh = images(16, 0), images(24, 1, spread=0.12)
    before = fitted(PatchCore, old, coreset_ratio=0.1, search=search)
    updated = reloaded(before)
    run(updated.update_phases(16), fresh)
    assert len(updated.bank) == len(before.bank) + round(0.1 * len(fresh) * updated.places)
    assert updated.bank.abs().max() <= 63
    assert updated.step >= before.step
    assert gaps(updated, fresh).max() < gaps(before, fresh).max()
    at_once = fitted(PatchCore, torch.cat([old, fresh]), coreset_ratio=0.1)
    assert (scores(updated, old) <= scores(before, old) * 1.01).all()
    assert scores(updated, fresh).max() < scores(before, fresh).max()
    # Nothing of the old images is lost: their distance stays near that of a fit on all.
    assert gaps(updated, old).max() < 2 * gaps(at_once, old).max()


def test_codes_of_a_bank_stay_unless_new_rows_need_a_larger_step():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    bank, step = nearest_neighbours.quantise_bank(rows)
    more, same = nearest_neighbours.quantise_bank(torch.cat([bank * step, rows / 2]), smallest_step=step)
    assert torch.equal(more[:50], bank)
    assert same == step
    most, larger = nearest_neighbours.quantise_bank(torch.cat([bank * step, rows * 2]), smallest_step=step)
    assert larger > step
    assert most.abs().max() == 63


def test_patchcore_leaves_new_images_out():
    old, fresh = images(16, 0), images(12, 1, spread=0.12)
    updated = reloaded(fitted(PatchCore, old, coreset_ratio=0.5))
    run(updated.update_phases(16), fresh)
    without = reloaded(fitted(PatchCore, old, coreset_ratio=0.5))
    run(without.update_phases(16), fresh[1:])
    with torch.inference_mode():
        held_out = updated.held_out(fresh[:1], [0]).scores
    assert held_out > scores(updated, fresh[:1])
    torch.testing.assert_close(held_out, scores(without, fresh[:1]), rtol=0.05, atol=0)


@settings(max_examples=20)
@given(
    rows=st.integers(2, 200),
    known=st.integers(1, 50),
    count=st.integers(1, 40),
    pool=st.sampled_from([1, 3, 4096]),
    seed=st.integers(0, 1000),
)
def test_selection_goes_on_from_known_rows(rows, known, count, pool, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-60, 60, (rows, 4), generator=generator).float()
    centres = torch.randint(-60, 60, (known, 4), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "_POOL", pool)
        picked = coreset.k_center_greedy(vectors, min(count, rows), seed=0, covered_by=centres).tolist()
    assert len(set(picked)) == min(count, rows)
    distance = (vectors[:, None] - centres).square().sum(2).amin(1)
    for index in picked:
        assert distance[index] == distance.max()
        distance = torch.minimum(distance, (vectors - vectors[index]).square().sum(1))
        distance[index] = -1
