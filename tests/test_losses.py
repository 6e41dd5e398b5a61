"""Losses against reference implementations, and their weighted sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.discriminator import FeatureMatching, GradientPenalty, Hinge, NonSaturating
from adctl.detectors.components.losses import TERMS, Objective, Term, parse_spec, structural_similarity

EVERYTHING = "mse=1,l1=1,ssim=1,msssim=1,focal=1,perceptual=1,hinge=1,matching=1,gp=1"


def pair(side=48, channels=3, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(batch, channels, side, side, generator=generator)
    rebuilt = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    return rebuilt, target


def measured(spec, rebuilt, target, **options):
    terms = parse_spec(spec)
    backbone = Backbone(DEFAULT, None, rebuilt.shape[-1]) if any(term.needs_backbone for term in terms) else None
    return Objective(terms, backbone=backbone, channels=rebuilt.shape[1], **options)(rebuilt, target)


@given(side=st.integers(16, 64), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99), contrast=st.floats(0, 1))
@settings(max_examples=15)
def test_ssim_equals_scikit_image_away_from_the_border(side, channels, seed, contrast):
    from skimage.metrics import structural_similarity as reference

    rebuilt, target = (contrast * one for one in pair(side, channels, seed=seed))
    own = structural_similarity(rebuilt.double(), target.double())[0].permute(1, 2, 0).numpy()
    first, second = (one[0].permute(1, 2, 0).double().numpy() for one in (rebuilt, target))
    _, theirs = reference(
        first, second, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, truncate=5 / 1.5, full=True,
    )  # fmt: skip
    np.testing.assert_allclose(own[5:-5, 5:-5], theirs[5:-5, 5:-5], atol=1e-6)


@given(
    side=st.sampled_from([176, 192, 256]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
    blend=st.floats(0, 1),
)
@settings(max_examples=8)
def test_multi_scale_ssim_equals_pytorch_msssim(side, channels, seed, blend):
    from pytorch_msssim import ms_ssim

    rebuilt, target = pair(side, channels, seed=seed)
    rebuilt = blend * rebuilt + (1 - blend) * target
    own = measured("msssim", rebuilt, target)["msssim"]
    assert 1 - own.item() == pytest.approx(ms_ssim(rebuilt, target, data_range=1.0).item(), abs=1e-5)


@pytest.mark.parametrize("side", [32, 48, 100])
def test_small_images_take_fewer_scales(side):
    rebuilt, target = pair(side)
    assert measured("msssim", target, target)["msssim"].item() == pytest.approx(0, abs=1e-6)
    assert 0 < measured("msssim", rebuilt, target)["msssim"].item() < 1


def test_pixel_losses_equal_torchs():
    rebuilt, target = pair()
    terms = measured("mse=2,l1", rebuilt, target)
    assert terms["mse"].item() == pytest.approx(2 * nn.MSELoss()(rebuilt, target).item())
    assert terms["l1"].item() == pytest.approx(nn.L1Loss()(rebuilt, target).item())


def test_perceptual_compares_directions_of_features():
    rebuilt, target = pair()
    backbone = Backbone(DEFAULT, None, 48)
    cosines = [
        torch.nn.functional.cosine_similarity(made, real).mean()
        for made, real in zip(backbone(rebuilt), backbone(target), strict=True)
    ]
    found = Objective(parse_spec("perceptual"), backbone=backbone)(rebuilt, target)["perceptual"]
    assert found.item() == pytest.approx(sum(2 - 2 * cosine.item() for cosine in cosines) / len(cosines), abs=1e-5)


def test_perceptual_takes_vgg():
    rebuilt, target = pair(channels=1)
    rebuilt.requires_grad_()
    objective = Objective(parse_spec("perceptual"), backbone=Backbone("vgg11", None, 48), channels=1)
    (slope,) = torch.autograd.grad(objective(rebuilt, target)["perceptual"], rebuilt)
    assert torch.isfinite(slope).all()
    assert not list(objective.trained())


def test_focal_frequency_by_its_equations():
    rebuilt, target = pair(side=32, channels=1, batch=1)
    difference = np.fft.fft2((rebuilt - target)[0, 0].double().numpy(), norm="ortho")
    distance = np.abs(difference) ** 2
    expected = (np.sqrt(distance) / np.sqrt(distance).max() * distance).mean()
    assert measured("focal", rebuilt, target)["focal"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("adversarial", "hinge", "matching", "gp")])
def test_nothing_is_lost_where_nothing_differs(name):
    _, target = pair()
    assert measured(name, target, target)[name].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64])
def test_every_term_has_finite_gradients(channels, side):
    rebuilt, target = pair(side, channels)
    rebuilt.requires_grad_()
    for name, value in measured(EVERYTHING, rebuilt, target).items():
        (slope,) = torch.autograd.grad(value, rebuilt, retain_graph=True)
        assert torch.isfinite(slope).all(), name
        assert slope.abs().sum() > 0, name


@pytest.mark.parametrize("form", ["hinge", "adversarial"])
def test_generator_and_critic_leave_each_other_alone(form):
    torch.manual_seed(0)
    _, target = pair(64)
    generator = nn.Conv2d(3, 3, 3, padding=1)
    objective = Objective(parse_spec(f"mse,{form}=1,matching=1,gp=1"))
    critic = objective.critic()
    parameters = list(critic.parameters)
    sum(objective(generator(target), target).values()).backward()
    assert all(parameter.grad is None for parameter in parameters)
    generator.zero_grad(set_to_none=True)
    terms = critic.loss()
    assert terms.keys() == {"critic", "gp"}
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in parameters)
    assert generator.weight.grad is None


def test_the_forms_of_judgement_by_their_equations():
    real, made = torch.randn(2, 1, 5, 5), torch.randn(2, 1, 5, 5)
    chance = torch.sigmoid(made)
    assert NonSaturating()(made).item() == pytest.approx(-chance.log().mean().item(), rel=1e-5)
    cross_entropy = nn.BCEWithLogitsLoss()
    expected = cross_entropy(real, torch.ones_like(real)) + cross_entropy(made, torch.zeros_like(made))
    assert NonSaturating().critic(real, made).item() == pytest.approx(expected.item(), rel=1e-5)
    assert Hinge()(made).item() == pytest.approx(-made.mean().item())
    assert Hinge().critic(torch.full_like(real, 2), torch.full_like(made, -3)).item() == 0
    assert Hinge().critic(torch.zeros_like(real), torch.full_like(made, 0.5)).item() == pytest.approx(2.5)


def test_matching_is_the_mean_difference_of_each_layer():
    made = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 9, 2, 2)]
    real = [torch.full((1, 2, 4, 4), 1.0), torch.full((1, 9, 2, 2), -3.0)]
    assert FeatureMatching()(made, real).item() == pytest.approx(2)


@pytest.mark.parametrize("side", [32, 64])
def test_gradient_penalty_of_a_linear_critic(side):
    images = torch.rand(2, 3, side, side, requires_grad=True)
    kernel = torch.randn(1, 3, 8, 8)
    logits = nn.functional.conv2d(images, kernel, stride=8)  # each pixel is in one patch
    assert GradientPenalty()(logits, images).item() == pytest.approx(0.5 * kernel.square().sum().item(), rel=1e-4)


def test_the_critic_computes_in_float32():
    torch.manual_seed(0)
    rebuilt, target = pair()
    objective = Objective(parse_spec("mse,adversarial,gp=10")).eval()  # no power iterations between the two
    critic = objective.critic()
    objective.adversary(rebuilt, target, ("adversarial",))
    expected = critic.loss()
    with torch.autocast("cpu", torch.bfloat16):
        found = critic.loss()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )
    assert all(value.dtype == torch.float32 for value in found.values())


def test_the_critic_learns_to_tell_apart():
    torch.manual_seed(0)
    _, target = pair(64, batch=4)
    objective = Objective(parse_spec("mse,hinge=1"))
    critic = objective.critic()
    optimizer = torch.optim.Adam(critic.parameters, lr=2e-3)
    blurred = torch.nn.functional.avg_pool2d(target, 5, 1, 2)
    values = []
    for _ in range(25):
        objective(blurred, target)
        optimizer.zero_grad()
        loss = sum(critic.loss().values())
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_weights_change_over_epochs():
    objective = Objective(parse_spec("mse=1,l1=0:0.4@5"))
    rebuilt, target = pair()
    plain = (rebuilt - target).abs().mean().item()
    for epoch, weight in [(1, 0.0), (3, 0.2), (5, 0.4), (9, 0.4)]:
        objective.start_epoch(epoch, 10)
        assert objective(rebuilt, target)["l1"].item() == pytest.approx(weight * plain, abs=1e-7)


@given(st.floats(0, 10), st.floats(0.01, 10), st.integers(1, 50), st.integers(1, 100))
def test_a_schedule_stays_between_its_ends_and_arrives(start, end, epochs, epoch):
    term = parse_spec(f"mse={start!r}:{end!r}@{epochs}")[0]
    low, high = sorted((start, end))
    assert low - 1e-9 <= term.weight(epoch) <= high + 1e-9
    assert epochs == 1 or term.weight(1) == start
    assert term.weight(epochs) == pytest.approx(end)
    assert term.weight(epochs + epoch) == pytest.approx(end)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_epochs_compare_in_evaluation(weighting):
    rebuilt, target = pair()
    objective = Objective(parse_spec("mse=2,l1=0:0.4@5,hinge=0:1@5,matching"), weighting=weighting)
    for parameter in objective.trained():
        nn.init.constant_(parameter, 3)
    objective.eval()
    expected = {
        "mse": 2 * (rebuilt - target).square().mean().item(),
        "l1": 0.4 * (rebuilt - target).abs().mean().item(),
    }
    for epoch in (1, 3, 9):
        objective.start_epoch(epoch, 10)
        assert {name: value.item() for name, value in objective(rebuilt, target).items()} == pytest.approx(expected)


def learned_variances(objective, rebuilt, target):
    optimizer = torch.optim.Adam(objective.trained(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        sum(objective(rebuilt, target).values()).backward()
        optimizer.step()
    return {name: value.item() for name, value in objective.log_variances.items()}


def test_uncertainty_learns_the_size_of_each_term():
    rebuilt, target = pair()
    learned = learned_variances(Objective(parse_spec("mse=1,l1=5"), weighting="uncertainty"), rebuilt, target)
    assert learned["mse"] == pytest.approx((rebuilt - target).square().mean().log().item(), abs=0.1)
    assert learned["l1"] == pytest.approx((rebuilt - target).abs().mean().log().item(), abs=0.1)


def test_uncertainty_waits_while_a_weight_is_zero():
    objective = Objective(parse_spec("mse=1,l1=0:1@5"), weighting="uncertainty")
    assert learned_variances(objective, *pair())["l1"] == 0


def test_half_precision_around_it_changes_nothing():
    rebuilt, target = pair()
    expected = measured("mse,ssim,focal", rebuilt, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = measured("mse,ssim,focal", rebuilt, target)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(value.item())


def test_a_spec_is_read():
    assert parse_spec("mse=1, ssim = 0.5,l1") == (Term("mse", 1, 1), Term("ssim", 0.5, 0.5), Term("l1", 1, 1))
    assert parse_spec("mse,hinge=0:0.1@20")[1] == Term("hinge", 0, 0.1, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mes=1", "'mes' is not one of mse"),
        ("mse,mse", "twice"),
        ("mse=a", "must be a number"),
        ("mse=0", "must be positive"),
        ("mse=-1", "must be positive"),
        ("mse=1:2", "must be a number"),
        ("mse=inf", "must be positive"),
        ("mse=nan", "must be positive"),
        ("mse=1:nan@5", "must be positive"),
        ("mse=0:0@5", "must be positive"),
        ("mse=0:1@0", "must be a number or like 0:0.1@20"),
        ("mse,hinge,gp=0:10@5", "must be the same in all epochs"),
        ("mse,gp=1", "needs adversarial or hinge"),
        ("mse,hinge,adversarial", "give one of them"),
        ("hinge=1", "add mse"),
        ("", "'' is not one of"),
    ],
)
def test_a_bad_spec_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(text)
