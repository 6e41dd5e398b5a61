"""EfficientAD: training of teacher, student and autoencoder, and the scaling of maps."""

from __future__ import annotations

import pytest
import torch

from adctl.detectors.efficientad import EfficientAD, EfficientADConfig, _hard_mean, _masked_mean
from adctl.engine.context import FitContext
from adctl.engine.history import FitSettings
from adctl.engine.phases import Batch, Observe, Optimize
from adctl.engine.trainer import FitJob, fit, seed_everything
from adctl.errors import UsageError

SMALL = {"image_size": 32, "width": 16, "features": 8}


def images_of(count, seed=0):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fitted():
    from conftest import Pixels

    class Larger(Pixels):
        """Random images of 32 x 32 pixels."""

        def __init__(self) -> None:
            super().__init__(8)
            self.values = self.values.repeat(4, 1).repeat(4, 2)

    seed_everything(0)
    detector = EfficientAD(EfficientADConfig(**SMALL, views=1))
    detector.pixels = Larger()
    plan = FitSettings(epochs=25, batch_size=8, learning_rate=5e-3)
    report = fit(FitJob(detector, detector.pixels, None, plan, torch.device("cpu"), FitContext()))
    return detector, report


def test_phases_are_those_of_the_design():
    phases = EfficientAD(EfficientADConfig(**SMALL)).phases()
    assert [type(phase) for phase in phases] == [Observe, Optimize, Optimize, Observe]


def test_more_features_than_the_backbone_has_are_refused():
    with pytest.raises(UsageError, match=r"--set features of efficientad is not valid: .* has only 152 features"):
        EfficientAD(EfficientADConfig(**{**SMALL, "features": 1000})).phases()


def test_each_phase_trains_its_own_networks():
    detector = EfficientAD(EfficientADConfig(**SMALL))
    _, teaching, following, _ = detector.phases()
    teacher, followers = (list(phase.parameters) for phase in (teaching, following))
    sizes = {id(parameter) for parameter in teacher}, {id(parameter) for parameter in followers}
    assert not sizes[0] & sizes[1]
    assert sizes[0] | sizes[1] == {id(parameter) for parameter in detector.parameters()}


def test_teacher_and_followers_learn(fitted):
    losses = [[epoch.loss for epoch in fitted[1].history[half : half + 25]] for half in (0, 25)]
    assert losses[0][-1] < 0.95 * losses[0][0]
    assert losses[1][-1] < 0.8 * losses[1][0]


def test_the_backbone_is_not_in_the_model_file(fitted):
    detector, _ = fitted
    assert not [name for name in detector.state_dict() if "backbone" in name]
    assert sum(parameter.numel() for parameter in detector.parameters()) < 100_000


@torch.inference_mode()
def test_maps_of_good_images_are_zero_on_average_at_every_place(fitted):
    from adctl.engine.batching import to_input

    detector, _ = fitted
    maps = detector(to_input(detector.pixels.values, torch.device("cpu"))).maps
    assert maps.mean(0).abs().max() < 3
    assert abs(float(maps.mean())) < 0.2


@torch.inference_mode()
def test_where_the_student_does_not_follow_the_map_is_high(fitted):
    detector, _ = fitted
    images = images_of(1)
    before = detector(images).maps
    handle = detector.teacher.register_forward_hook(lambda _module, _inputs, out: out + _bump(out))
    after = detector(images).maps
    handle.remove()
    assert int((after - before).flatten().argmax()) == 4 * 1 + 2


def _bump(like):
    bump = torch.zeros_like(like)
    bump[:, :, 1, 2] = 10
    return bump


def test_a_penalty_of_a_mask_counts_only_what_it_covers():
    values, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 32, 32, dtype=torch.bool)
    values[:, :, 1, 2], mask[:, 8:16, 16:24] = 3.0, True
    assert float(_masked_mean(values, mask)) == pytest.approx(3)
    assert float(_masked_mean(values, torch.zeros_like(mask))) == 0


def test_the_hardest_share_is_the_mean_of_the_highest_values():
    assert float(_hard_mean(torch.arange(10.0).view(2, 5), 0.2)) == 8.5


def test_painted_images_given_from_outside_are_those_of_the_penalty(fitted):
    detector, _ = fitted
    clean, mask = images_of(2), torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[:, :16] = True
    terms = [detector._imitate(Batch(clean * (1 - mask.unsqueeze(1) * share), clean, mask)) for share in (0.2, 0.9)]
    assert terms[0]["penalty"] != terms[1]["penalty"]
    assert terms[0]["student"] == terms[1]["student"]


def test_a_size_the_autoencoder_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        EfficientADConfig(image_size=80)
