"""Dinomaly: attention, weighting of hard cells, and both kinds of backbones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.dinomaly import Dinomaly, DinomalyConfig, _group_levels, _LinearAttention
from adctl.engine.phases import Batch
from adctl.errors import UsageError

SMALL = {"image_size": 64, "width": 32, "depth": 2}


def build(**options):
    torch.manual_seed(0)
    return Dinomaly(DinomalyConfig(**{**SMALL, **options})).eval()


def images_of(count, size=64, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
@settings(max_examples=15)
@torch.no_grad()
def test_linear_attention_is_attention_with_weights_of_elu_plus_one(batch, count, heads, seed):
    torch.manual_seed(seed)
    attention, vectors = _LinearAttention(8, heads), torch.randn(batch, count, 8)
    parts = attention.inputs(vectors).view(batch, count, 3, heads, 8 // heads)
    query, key, value = (parts[:, :, part].transpose(1, 2) for part in range(3))
    weights = (torch.nn.functional.elu(query) + 1) @ (torch.nn.functional.elu(key) + 1).transpose(2, 3)
    mixed = (weights / weights.sum(3, keepdim=True)) @ value
    expected = attention.output(mixed.transpose(1, 2).reshape(batch, count, 8))
    torch.testing.assert_close(attention(vectors), expected, rtol=1e-3, atol=1e-5)


def test_levels_of_one_shape_make_two_groups_and_others_one_each():
    assert _group_levels([40, 112], [8, 16]) == [[0], [1]]
    assert _group_levels([192] * 4, [16] * 4) == [[0, 1], [2, 3]]
    assert _group_levels([192] * 3, [16] * 3) == [[0], [1, 2]]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("backbone", "cells"), [("tf_efficientnet_lite0", 8), ("vit_tiny_patch16_224", 4), ("resnet18", 8)]
)
def test_any_backbone_works_with_maps_of_its_finest_level(backbone, cells):
    assert build(backbone=backbone)(images_of(2)).maps.shape == (2, cells, cells)


@pytest.mark.parametrize(("backbone", "warned"), [("tf_efficientnet_lite0", True), ("vit_tiny_patch16_224", False)])
def test_a_training_warns_of_a_convolutional_backbone(backbone, warned, caplog):
    build(backbone=backbone).phases()
    assert ("made for the features of a vision transformer" in caplog.text) == warned


def test_a_size_the_coarsest_features_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="16 pixels apart"):
        build(image_size=72)


@pytest.mark.parametrize(
    ("layers", "says"), [((), "at least one"), ((1, 1), "not different"), ((3, 1), "fine to coarse")]
)
def test_layers_that_cannot_be_paired_are_refused(layers, says):
    with pytest.raises(UsageError, match=says):
        Dinomaly(DinomalyConfig(image_size=64, layers=layers))


@torch.inference_mode()
def test_what_is_rebuilt_exactly_is_not_strange(monkeypatch):
    detector = build(blur=0)
    monkeypatch.setattr(detector, "_reconstruct", lambda features: features)
    assert detector(images_of(2)).maps.abs().max() == 0
    monkeypatch.setattr(detector, "_reconstruct", lambda features: features * (torch.arange(4) != 1))
    row = detector(images_of(1)).maps[0].mean(0)
    assert set(row.topk(2).indices.tolist()) == {2, 3}


def test_easy_cells_weigh_less_and_the_loss_stays_the_same():
    detector = build()
    wanted = torch.zeros(1, 3, 4, 4)
    made = torch.ones(1, 3, 4, 4) * torch.linspace(1, 2, 16).view(1, 1, 4, 4)
    made.requires_grad_()
    slopes = []
    for epoch in (1, 10):
        detector._start_epoch(epoch, 10)
        loss = (wanted - detector._weaken_easy_cells(wanted, made)).square().mean()
        slopes.append((float(loss.detach()), *torch.autograd.grad(loss, made)))
    assert slopes[0][0] == pytest.approx(slopes[1][0])
    ratio = (slopes[1][1] / slopes[0][1])[0, 0].flatten()
    torch.testing.assert_close(ratio, torch.tensor([0.1] * 14 + [1.0] * 2))


def test_training_rebuilds_better():
    detector = build()
    (observed, phase), images = detector.phases(), images_of(4)
    with torch.inference_mode():
        observed.absorb(observed.embed(images))
        observed.finish(lambda _done, _total: None)
    optimizer = torch.optim.Adam(phase.parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.stack(list(phase.loss(Batch(images, images, keys=tuple("abcd"))).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_noise_in_the_bottleneck_is_of_training_only():
    detector, features = build(dropout=0.5), torch.randn(1, 272, 4, 4)
    assert torch.equal(detector._reconstruct(features), detector._reconstruct(features))
    detector.train()
    assert not torch.equal(detector._reconstruct(features), detector._reconstruct(features))


def test_synthetic_defects_are_to_be_undone(monkeypatch):
    detector, clean = build(), images_of(2)
    monkeypatch.setattr(detector, "_reconstruct", lambda _features: detector._features(clean))
    spoilt, mask = 1 - clean, torch.ones(2, 64, 64, dtype=torch.bool)
    assert all(float(term) == 0 for term in detector._loss(Batch(spoilt, clean, mask), FeatureCache()).values())
