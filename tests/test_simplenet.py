"""SimpleNet: its training, and the effect of its discriminator."""

from __future__ import annotations

import pytest
import torch

from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.simplenet import SimpleNet, SimpleNetConfig
from adctl.engine.context import FitContext
from adctl.engine.history import FitSettings
from adctl.engine.phases import Batch, Observe
from adctl.engine.trainer import FitJob, fit, seed_everything


@pytest.fixture(scope="module")
def zipper_pixels():
    import numpy as np

    from adctl.fetching.demo_dataset import render

    class Zippers:
        values = np.stack([render(seed, None, 64)[0] for seed in range(12)])

        def __len__(self):
            return len(self.values)

        def name(self, index):
            return f"zipper {index}"

        def batches(self, size, order=None):
            order = list(range(len(self))) if order is None else list(order)
            for start in range(0, len(order), size):
                yield self.values[order[start : start + size]]

    return Zippers()


@pytest.fixture(scope="module")
def fitted(zipper_pixels):
    seed_everything(0)
    detector = SimpleNet(SimpleNetConfig(image_size=64, dimensions=20))
    plan = FitSettings(epochs=12, batch_size=6, learning_rate=5e-3)
    report = fit(FitJob(detector, zipper_pixels, None, plan, torch.device("cpu"), FitContext()))
    return detector, report


@pytest.fixture(scope="module")
def images(zipper_pixels):
    from adctl.engine.batching import to_input

    return to_input(zipper_pixels.values[:4], torch.device("cpu"))


def test_the_discriminator_learns(fitted):
    history = fitted[1].history
    assert history[-1].loss < 0.8 * history[0].loss


@torch.inference_mode()
def test_it_calls_noisy_features_stranger_than_good_ones(fitted, images):
    detector, _ = fitted
    good = detector.whitened(images).flatten(0, 1)
    noisy = good + torch.randn(good.shape, generator=torch.Generator().manual_seed(0))
    judge = detector.discriminator
    assert judge(detector.adaptor(noisy)).mean() > judge(detector.adaptor(good)).mean() + 0.1


@torch.inference_mode()
def test_both_maps_are_standardised_over_the_images_it_learned_from(fitted, zipper_pixels):
    from adctl.engine.batching import to_input

    detector, _ = fitted
    opinions = detector._raw_maps(to_input(zipper_pixels.values, torch.device("cpu"))).flatten(1)
    torch.testing.assert_close(opinions.mean(1), detector.scales[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(opinions.std(1), detector.scales[1], rtol=1e-2, atol=1e-3)


@torch.inference_mode()
def test_without_a_verdict_it_ranks_cells_as_the_distance_does(fitted, images):
    trained, _ = fitted
    detector = SimpleNet(trained.config.model_copy(update={"verdict": 0.0, "blur": 0.0}))
    detector.load_state(trained.state_dict())
    detector.eval()
    order = detector(images).maps.flatten().argsort()
    distances = detector.whitened(images).square().sum(2).t().flatten()
    assert (distances[order].diff() >= -1e-3).all()


def test_the_backbone_sees_each_image_and_each_painted_one_once(fitted, images, monkeypatch):
    detector, _ = fitted
    memory, seen = FeatureCache(), []
    patches = detector.patches
    monkeypatch.setattr(detector, "patches", lambda batch: seen.append(len(batch)) or patches(batch))
    for _ in range(3):
        detector._loss(Batch(images, images, keys=("a", "b", "c", "d")), memory)
    assert seen == [4, 4]


def test_given_defects_are_learned_from_in_place_of_its_own(fitted, images):
    detector, _ = fitted
    spoilt, mask = images.clone(), torch.zeros(4, 64, 64, dtype=torch.bool)
    spoilt[:, :, 16:32, 16:32], mask[:, 16:32, 16:32] = 1 - spoilt[:, :, 16:32, 16:32], True
    good, learned = detector._examples(Batch(spoilt, images, mask), FeatureCache())
    with torch.no_grad():
        under = detector.whitened(spoilt).transpose(0, 1).unflatten(1, (8, 8))[:, 2:4, 2:4].flatten(0, 2)
    assert torch.cdist(learned, under, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max() < 1e-4
    assert len(good) == len(learned)


def test_an_image_of_one_colour_has_no_defect_and_a_finite_loss(fitted):
    detector, _ = fitted
    flat = torch.full((2, 3, 64, 64), 0.5)
    assert all(torch.isfinite(term) for term in detector._loss(Batch(flat, flat), FeatureCache()).values())


def test_the_gaussians_come_first():
    phases = SimpleNet(SimpleNetConfig(image_size=64)).phases()
    assert [isinstance(phase, Observe) for phase in phases] == [True, False, True]
