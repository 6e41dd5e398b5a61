"""Approximations for size and speed: reduced dimensions, inverted lists, shared covariance."""

from __future__ import annotations

import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adctl.detectors.components.feature_maps import stack_levels, to_rows
from adctl.detectors.components.nearest_neighbours import (
    InvertedLists,
    minimum_over_bank,
    nearest_squared,
    quantise_bank,
    to_codes,
)
from adctl.detectors.registry import detector_class
from adctl.model_file import load_model
from adctl.testing import check_onnx
from adctl.training.single_run import train_once


@given(
    queries=st.integers(1, 60), rows=st.integers(1, 200), columns=st.integers(1, 8), probes=st.integers(1, 20)
)  # fmt: skip
def test_lists_never_find_less_than_the_exact_distance_and_find_it_when_all_are_looked_into(
    queries, rows, columns, probes
):
    generator = torch.Generator().manual_seed(queries * 1000 + rows)
    first, second = torch.rand(queries, columns, generator=generator), torch.rand(rows, columns, generator=generator)
    exact = nearest_squared(first, second)
    found = InvertedLists(second, probes).nearest_squared(first)
    assert (found >= exact - 1e-5).all()
    everything = InvertedLists(second, rows).nearest_squared(first)
    torch.testing.assert_close(everything, exact, rtol=1e-4, atol=1e-5)


def test_lists_of_equal_rows_are_searched_too():
    bank = torch.ones(50, 3)
    assert InvertedLists(bank, 1).nearest_squared(torch.zeros(4, 3)).tolist() == [3.0] * 4


@pytest.fixture(scope="module")
def models(zippers, tmp_path_factory):
    """Exact and approximate PatchCore with the same bank; PaDiM with full and with shared covariance."""
    runs = tmp_path_factory.mktemp("runs")
    options = {
        "exact": ("patchcore", {"coreset_ratio": 1.0}),
        "ivf": ("patchcore", {"coreset_ratio": 1.0, "search": "ivf"}),
        "full": ("padim", {}),
        "shared": ("padim", {"covariance": "shared"}),
    }
    return {
        name: train_once(settings(arch=arch, data=zippers, runs=runs, options=given, name=name)).model
        for name, (arch, given) in options.items()
    }


@torch.inference_mode()
def test_inverted_lists_score_as_the_exact_search_nearly(models):
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (exact, _), (ivf, _) = load_model(models["exact"]), load_model(models["ivf"])
    assert torch.equal(exact.bank, ivf.bank)
    expected, found = exact(images), ivf(images)
    assert (found.maps >= expected.maps - 1e-3).all()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0.1, atol=0)
    again, _ = load_model(models["ivf"])
    assert torch.equal(again(images).scores, found.scores)


def test_inverted_lists_are_refused_in_export(models, adctl):
    done = adctl("export", "--model", models["ivf"], code=2)
    assert "search=ivf cannot be exported" in done.stderr
    assert "search=exact" in done.stderr


def fitted(options, images):
    """A PatchCore that learned from images, without a network that is trained."""
    cls = detector_class("patchcore")
    torch.manual_seed(0)
    detector = cls(cls.Config(image_size=64, cell=8, coreset_ratio=1.0, blur=0.0, **options)).eval()
    (phase,) = detector.phases()
    phase.absorb(phase.embed(images))
    phase.finish(lambda *_: None)
    return detector


@torch.inference_mode()
@pytest.mark.parametrize(("whitening", "dimensions", "remainder"), [(0, 1000, 0.25), (0, 12, 1.0), (1, 1000, 1.0)])
def test_patchcore_measures_the_distance_that_its_settings_say(whitening, dimensions, remainder):
    """All directions: the plain distance, or Mahalanobis'. A few: the rest counts as if the bank had nothing there."""
    images, others = torch.rand(2, 10, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    new = 0.5 * (images + others)  # features within the reach of codes; beyond, see below
    detector = fitted({"whitening": whitening, "dimensions": dimensions, "remainder": remainder}, images)
    learned, asked = (
        ((detector.patches(batch).half().float() - detector.centre) / detector.spread).permute(0, 2, 3, 1).flatten(0, 2)
        for batch in (images, new)
    )
    centred = learned.double() - learned.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = directions.flip(1)[:, :dimensions]
    scale = (variances.flip(0)[:dimensions] + 0.01 * variances.mean()) ** (-whitening / 2)
    bank, query = ((rows.double() @ kept) * scale for rows in (learned, asked))
    squares = torch.cdist(query, bank).amin(1).square()
    if dimensions < detector.channels:
        squares += asked.double().square().sum(1) - (asked.double() @ kept).square().sum(1)
    torch.testing.assert_close(detector(new).maps.flatten().double(), squares.sqrt(), rtol=0.02, atol=0.02)


@torch.inference_mode()
def test_patchcore_measures_distances_far_beyond_what_codes_reach():
    images, new = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split([10, 10])
    detector = fitted({"whitening": 0.5, "dimensions": 64, "remainder": 0.0}, images)
    reduced = detector.reduced(detector.patches(new))
    bank = detector.bank.float() * detector.step
    for factor in (1, 3, 10, 100):
        cells = factor * reduced
        expected = torch.cdist(to_rows(cells), bank).amin(1).view(cells[:, 0].shape)
        codes, own = detector._codes(cells)
        squares = own + detector._minimum(codes) * detector.step.square()
        torch.testing.assert_close(squares.sqrt(), expected, rtol=0.06, atol=0)


class Search(nn.Module):
    """The distance of cells to a bank, as a module that can be exported."""

    def __init__(self, bank):
        super().__init__()
        bank, step = quantise_bank(bank)
        self.register_buffer("bank", bank)
        self.register_buffer("step", step)

    def forward(self, features):
        codes = to_codes(features, self.step)
        return minimum_over_bank(codes, self.bank) + codes.square().sum(1)


@pytest.mark.parametrize(("cells", "rows"), [(1, 1), (3, 512), (4, 513), (5, 1300)])
def test_the_search_in_a_graph_finds_what_the_search_outside_does(cells, rows):
    generator = torch.Generator().manual_seed(rows)
    features = torch.randn(2, 64, cells, cells, generator=generator)
    search = Search(torch.randn(rows, 64, generator=generator))
    codes = to_rows(to_codes(features, search.step)).double()
    expected = (codes[:, None] - search.bank.double()).square().sum(2).amin(1).view(2, cells, cells)
    in_graph = torch.export.export(search, (features,)).module()
    for found in (in_graph(features), search(features)):
        assert torch.equal(found.double(), expected)


@given(rows=st.integers(1, 30), columns=st.integers(1, 64), size=st.floats(1e-3, 1e3))
def test_codes_are_off_by_half_a_step_at_most_and_what_lies_far_out_is_brought_to_the_ends(rows, columns, size):
    bank = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    codes, step = quantise_bank(bank)
    assert codes.dtype == torch.int8
    assert codes.abs().max() == 63
    assert ((step * codes - bank).abs() <= step * 0.5001).all()
    assert torch.equal(to_codes(bank, step), codes.float())
    assert to_codes(1e6 * bank, step).abs().max() == 127


@pytest.mark.parametrize(("cell", "side"), [(None, 16), (1, 16), (8, 16), (10, 13), (20, 6), (500, 1)])
def test_a_map_has_cells_of_the_size_that_was_asked_for_and_no_finer_ones_than_the_backbone(cell, side):
    cls = detector_class("patchcore")
    detector = cls(cls.Config(image_size=128, cell=cell)).eval()
    assert detector.grid == (side, side)
    patches = detector.patches(torch.rand(2, 3, 128, 128))
    assert patches.shape == (2, detector.channels, side, side)


@given(st.integers(1, 20), st.integers(1, 20))
def test_no_feature_is_passed_over_where_cells_are_wide(finest, side):
    side = min(side, finest)
    for place in range(finest):
        level = torch.zeros(1, 1, finest, finest)
        level[..., place, place] = 1
        assert stack_levels([level], (side, finest)).sum() > 0


@torch.inference_mode()
def test_shared_covariance_is_the_diagonal_one_in_its_directions():
    cls = detector_class("padim")
    torch.manual_seed(0)
    detector = cls(cls.Config(image_size=64, covariance="shared", dimensions=20)).eval()
    images = torch.rand(30, 3, 64, 64)
    (phase,) = detector.phases()
    for batch in images.split(7):
        phase.absorb(phase.embed(batch))
    phase.finish(lambda *_: None)
    along = detector.patches(images).half().float().flatten(2).permute(2, 0, 1) @ detector.projection
    torch.testing.assert_close(detector.projection.T @ detector.projection, torch.eye(20), rtol=0, atol=1e-4)
    torch.testing.assert_close(detector.mean, along.mean(1), rtol=1e-3, atol=1e-3)
    assert (1 / detector.whitening.square() >= along.var(1, correction=0) * 0.999).all()  # the ridge comes on top
    centred = along - along.mean(1, keepdim=True)
    pooled = torch.einsum("pbi,pbj->ij", centred, centred)
    assert (pooled - pooled.diagonal().diag()).abs().max() < 1e-3 * pooled.diagonal().max()
    # most variance first, and none left out has more than the least kept
    assert pooled.diagonal().diff().max() <= 1e-3 * pooled.diagonal().max()


def test_shared_covariance_makes_a_small_file_that_exports(models, tmp_path):
    full, shared = models["full"], models["shared"]
    detector, _ = load_model(shared)
    assert detector.whitening.shape == detector.mean.shape
    small = sum(detector.get_buffer(name).numel() for name in detector.fitted)
    large = sum(load_model(full)[0].get_buffer(name).numel() for name in detector.fitted)
    assert small < large / 10
    check_onnx("padim", detector, torch.rand(3, 3, 64, 64), tmp_path)
