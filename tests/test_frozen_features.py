"""Detectors trained on frozen features: whitening, stored features, reproducible synthetic defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.detectors.components.backbones import Backbone
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.components.whitening import Whitening, whitening_phase
from adctl.engine.context import FitContext
from adctl.engine.phases import Batch
from adctl.engine.trainer import FitJob, fit


def whitened(features, kept=None):
    """A whitening of features that came in two batches."""
    whitening = Whitening(features.shape[1], kept)
    phase = whitening_phase([whitening], lambda images: [images])
    with torch.inference_mode():
        for piece in features.split(3):
            phase.absorb(phase.embed(piece))
        phase.finish(lambda _done, _total: None)
    return whitening


@given(st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=20)
def test_whitened_features_have_the_covariance_numpy_would_give_them(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(channels, channels, generator=generator) + 2 * torch.eye(channels)
    features = torch.einsum("ij,bjhw->bihw", mixed, torch.randn(8, channels, 6, 6, generator=generator)) + 5
    rows = to_rows(whitened(features)(features)).numpy()
    variances = np.linalg.eigvalsh(np.cov(to_rows(features).numpy().T, bias=True).reshape(channels, channels))[::-1]
    expected = np.diag(variances / (variances + 0.01 * variances.mean()))
    np.testing.assert_allclose(np.cov(rows.T, bias=True), expected, atol=1e-3)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-3)


def test_the_directions_kept_are_those_of_most_variance():
    features = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.1, 10.0, 1.0]
    ).view(1, 3, 1, 1)
    matrix = whitened(features, kept=1).matrix
    assert matrix.shape == (1, 3)
    assert int(matrix.abs().argmax()) == 1


class Counted:
    """Computes features, and remembers for which images."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, places):
        self.asked.append(places)
        return torch.tensor([[place + 1 / 3] for place in places])


def test_what_came_before_is_not_computed_again_and_is_the_same():
    memory, compute = FeatureCache(), Counted()
    first = memory(["a", "b", "c"], compute)
    again = memory(["c", "d", "a"], compute)
    assert compute.asked == [[0, 1, 2], [1]]
    assert torch.equal(again[[0, 2]], first[[2, 0]])


def test_images_without_a_key_are_computed_every_time():
    memory, compute = FeatureCache(), Counted()
    for _ in range(2):
        memory([None, None], compute)
    assert compute.asked == [[0, 1], [0, 1]]


def test_what_does_not_fit_is_computed_again_and_equal():
    memory, compute = FeatureCache(room=2), Counted()
    first, again = memory(["a", "b"], compute), memory(["a", "b"], compute)
    assert compute.asked == [[0, 1], [1]]
    assert torch.equal(first, again)


def test_the_same_key_paints_the_same_defect_and_draws_no_random_numbers():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first, mask = paint_anomaly(images, ["a", "b"])
    again, _ = paint_anomaly(images.flip(0), ["b", "a"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again.flip(0))
    assert torch.equal((first != images).any(1), mask)
    assert mask.flatten(1).any(1).all()


class Noting(torch.nn.Module):
    """A detector that takes note of the batches it learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Batch] = []

    def phases(self):
        from adctl.engine.phases import Optimize

        def loss(batch):
            self.batches.append(batch)
            return {"loss": (self.weight - batch.images.mean()).square()}

        return (Optimize(loss, [self.weight]),)


@pytest.mark.parametrize("varied", [False, True])
def test_a_key_stands_for_one_image_in_training_and_validation(varied):
    from conftest import Pixels

    from adctl.engine.history import FitSettings

    detector = Noting()
    augment = (lambda images: Batch(images, images)) if varied else None
    plan = FitSettings(epochs=2, batch_size=2)
    fit(FitJob(detector, Pixels(5), Pixels(3, 1), plan, torch.device("cpu"), FitContext(augment=augment)))
    keyed = [batch for batch in detector.batches if batch.keys is not None]
    images = [(key, image) for batch in keyed for key, image in zip(batch.keys, batch.images, strict=True)]
    seen: dict[str, torch.Tensor] = {}
    for key, image in images:
        assert torch.equal(seen.setdefault(key, image), image)
    different = {tuple(image.flatten().tolist()) for image in seen.values()}
    assert len(different) == len(seen) == (3 if varied else 8)


@torch.inference_mode()
def test_a_batch_gives_the_features_of_its_images():
    """However it is cut, also at the end of a batch of odd size and where nothing is cut."""
    network = Backbone("resnet18", None, 64)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for level, singly in zip(network(images), zip(*map(network, images.split(1)), strict=True), strict=True):
        torch.testing.assert_close(level, torch.cat(singly), rtol=1e-4, atol=1e-4)
    assert [len(level) for level in network(images[:0])] == [0, 0]
