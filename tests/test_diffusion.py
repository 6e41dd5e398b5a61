"""The diffusion detector: simplex noise, sampling as in diffusers, fixed noise in scoring, training, ONNX export."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import descend, pictures_of, rebuilding_error
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from adctl.config import TrainSettings
from adctl.detectors.components.simplex_noise import simplex_noise
from adctl.detectors.diffusion import Diffusion, DiffusionConfig, sampling_path
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.phases import Batch, Optimize
from adctl.errors import MissingExtraError, UsageError
from adctl.testing import check_onnx
from adctl.training.plan import detector_config

ROOT = Path(__file__).parent.parent
SMALL = {"image_size": 32, "widths": (16, 32), "patch": 2}


def build(**options):
    torch.manual_seed(0)
    return Diffusion(DiffusionConfig(**{**SMALL, **options})).eval()


def pictures(count, size=32, seed=0):
    """Smooth random images."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


class Oracle(nn.Module):
    """Knows the images, hence the noise in what is made of them."""

    def __init__(self, detector, images):
        super().__init__()
        self.signal, self.images = detector.signal, images * 2 - 1

    def forward(self, noisy, timesteps):
        signal = self.signal[timesteps.long()].view(-1, 1, 1, 1)
        images = self.images.repeat(len(noisy) // len(self.images), 1, 1, 1)
        return (noisy - signal * images) / (1 - signal.square()).sqrt()


class Constant(nn.Module):
    """Says the same whatever it sees."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, noisy, timesteps):
        return self.noise


def neighbours(planes, axis):
    """Correlation of values next to each other."""
    size = planes.shape[axis]
    first, second = planes.take(range(size - 1), axis).ravel(), planes.take(range(1, size), axis).ravel()
    return float(np.corrcoef(first, second)[0, 1])


@given(st.integers(1, 4), st.integers(16, 70), st.integers(16, 70), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_simplex_noise_is_standardised_and_repeatable(planes, height, width, octaves, seed):
    noise, again = (
        simplex_noise((planes, height, width), np.random.default_rng(seed), octaves=octaves) for _ in range(2)
    )
    assert noise.shape == (planes, height, width)
    assert noise.dtype == np.float32
    assert np.array_equal(noise, again)
    np.testing.assert_allclose(noise.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(noise.std((1, 2)), 1, rtol=1e-4)


def test_simplex_noise_is_smooth_in_all_directions_and_white_noise_is_not():
    generator = np.random.default_rng(0)
    noise = simplex_noise((24, 64, 64), generator)
    along_columns, along_rows = neighbours(noise, 1), neighbours(noise, 2)
    assert min(along_columns, along_rows) > 0.6
    assert along_columns == pytest.approx(along_rows, abs=0.1)
    assert abs(neighbours(generator.standard_normal((24, 64, 64)), 1)) < 0.05


def test_octaves_and_persistence_roughen_simplex_noise():
    smoothness = [
        neighbours(simplex_noise((12, 64, 64), np.random.default_rng(0), octaves=octaves), 1) for octaves in (1, 3, 6)
    ]
    assert all(rougher < smoother for smoother, rougher in pairwise(smoothness))
    faint = simplex_noise((12, 64, 64), np.random.default_rng(0), persistence=0.1)
    assert neighbours(faint, 1) > smoothness[-1]


def test_planes_of_simplex_noise_are_independent_and_no_place_is_special():
    noise = simplex_noise((400, 16, 16), np.random.default_rng(0), octaves=3, frequency=0.25)
    correlations = np.corrcoef(noise.reshape(400, -1))[np.triu_indices(400, 1)]
    assert abs(correlations.mean()) < 0.01
    spread = noise.std(0)
    assert spread.min() > 0.8
    assert spread.max() < 1.2


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_one_layer_of_simplex_noise_has_no_jumps(seed):
    """Lattice cells join without an edge: fine sampling shows only small steps."""
    noise = simplex_noise((1, 64, 64), np.random.default_rng(seed), octaves=1, frequency=1 / 32)
    steps = max(np.abs(np.diff(noise, axis=axis)).max() for axis in (1, 2))
    assert steps < 0.7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "level", "count"), [(1000, 0.25, 5), (100, 0.5, 10), (50, 1.0, 50), (60, 0.6, 9)])
def test_ddim_steps_as_diffusers_does(schedule, steps, level, count):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = DiffusionConfig(steps=steps, schedule=schedule, sampling_steps=count)
    path = sampling_path(config, level)
    theirs = DDIMScheduler(**_schedule(config), set_alpha_to_one=True)
    theirs.set_timesteps(round(count / level))
    _require_same_steps(path, theirs, Diffusion(config))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "level", "count"), [(1000, 0.25, 7), (100, 0.5, None), (50, 1.0, 50), (60, 0.33, 9)])
def test_ddpm_steps_as_diffusers_does(schedule, steps, level, count, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    config = DiffusionConfig(steps=steps, schedule=schedule, sampler="ddpm", sampling_steps=count)
    path = sampling_path(config, level)
    assert len(path) == (count or round(level * steps))
    theirs = scheduling_ddpm.DDPMScheduler(**_schedule(config))
    theirs.set_timesteps(timesteps=[step.timestep for step in path])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.full(shape, 0.7))
    _require_same_steps(path, theirs, Diffusion(config), fresh=0.7)


def _schedule(config):
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[config.schedule]
    stretch = 1000 / config.steps
    return {
        "num_train_timesteps": config.steps,
        "beta_start": 1e-4 * stretch,
        "beta_end": 0.02 * stretch,
        "beta_schedule": name,
    }


def _require_same_steps(path, theirs, detector, fresh=0.0):
    """Each step, from the same noisy image and with the same predicted noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    noise, predicted = (torch.randn(images.shape, generator=generator) for _ in range(2))
    detector.network = Constant(predicted)
    for step in path:
        noisy = step.signal * images + step.noise * noise
        timestep = torch.tensor(step.timestep)
        torch.testing.assert_close(noisy, theirs.add_noise(images, noise, timestep.expand(2)), rtol=1e-4, atol=1e-5)
        ours = detector._denoise(noisy, step) + step.fresh * fresh
        torch.testing.assert_close(ours, theirs.step(predicted, timestep, noisy).prev_sample, rtol=1e-3, atol=1e-4)
    assert path[-1].clean == 1
    assert path[-1].noisy == path[-1].predicted == path[-1].fresh == 0


@given(
    st.sampled_from(["linear", "cosine"]), st.integers(50, 1000), st.floats(0.001, 1), st.none() | st.integers(1, 1000)
)
@settings(max_examples=30, deadline=None)
def test_paths_lead_down_from_the_level(schedule, steps, level, count):
    for sampler in ("ddim", "ddpm"):
        config = DiffusionConfig(steps=steps, schedule=schedule, sampler=sampler, sampling_steps=count)
        path = sampling_path(config, level)
        timesteps = [step.timestep for step in path]
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert timesteps[0] == max(1, round(level * steps)) - 1
        assert timesteps[-1] >= 0
        assert len(path) <= (count or steps)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_share_of_the_steps_means_the_same_noise_whatever_their_number(schedule):
    for level in (0.1, 0.2, 0.5, 1.0):
        starts = [sampling_path(DiffusionConfig(steps=steps, schedule=schedule), level)[0] for steps in (50, 200, 1000)]
        assert max(start.signal for start in starts) - min(start.signal for start in starts) < 0.04


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
@torch.inference_mode()
def test_who_knows_the_noise_gets_the_image_back(sampler, noise):
    images = pictures(3)
    detector = build(sampler=sampler, noise=noise, steps=50, noise_level=(0.3, 0.6))
    detector.network = Oracle(detector, images)
    torch.testing.assert_close(detector.reconstruct(images), images, rtol=0, atol=1e-4)
    assert detector(images).maps.max() < 1e-3


@torch.inference_mode()
def test_errors_are_the_mean_over_levels():
    images = pictures(2)
    both = build(noise_level=(0.2, 0.5), relative=False)
    maps = []
    for number, level in enumerate((0.2, 0.5)):
        one = build(noise_level=(level,), relative=False)
        one.drawn.copy_(both.drawn[number::2])
        maps.append(one(images).maps)
    assert not torch.equal(*maps)
    torch.testing.assert_close(both(images).maps, (maps[0] + maps[1]) / 2)


@torch.inference_mode()
def test_reconstructions_are_the_mean_over_draws():
    images = pictures(2)
    detector = build(draws=3, sampler="ddpm", sampling_steps=2)
    alone = []
    for number in range(3):
        one = build(draws=1, sampler="ddpm", sampling_steps=2)
        one.drawn.copy_(detector.drawn.unflatten(0, (3, -1))[number])
        # What is clamped does not average.
        alone.append(one.reconstruct(images))
    mean = torch.stack(alone).mean(0)
    inside = torch.stack([(image > 0) & (image < 1) for image in alone]).all(0)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(detector.reconstruct(images)[inside], mean[inside], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"noise": "simplex"}, {"sampler": "ddpm", "steps": 50}])
def test_noise_of_scoring_comes_from_the_seed(options):
    assert torch.equal(build(seed=3, **options).drawn, build(seed=3, **options).drawn)
    assert not torch.equal(build(seed=3, **options).drawn, build(seed=4, **options).drawn)


@torch.no_grad()
def test_the_validation_loss_is_fixed_and_a_mean_over_images():
    detector = build()
    phase, *_ = detector.phases()
    assert isinstance(phase, Optimize)
    images = pictures(6)
    together = float(phase.loss(Batch(images, images))["noise"])
    torch.manual_seed(1)
    alone = [float(phase.loss(Batch(image, image))["noise"]) for image in images.split(1)]
    assert np.mean(alone) == pytest.approx(together, rel=1e-4)
    detector.train()
    assert len({float(phase.loss(Batch(images, images))["noise"]) for _ in range(5)}) == 5


@torch.no_grad()
def test_it_learns_the_clean_image():
    detector = build().train()
    images = pictures(4)
    losses = []
    for seen in (images, torch.zeros_like(images)):
        torch.manual_seed(0)
        losses.append(float(detector.loss(Batch(seen, images))["noise"]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("options", [{}, {"size": "small"}, {"patch": 1, "blocks": 2}, {"channels": 1, "patch": 4}])
def test_every_weight_is_trained_also_when_activations_are_recomputed(options):
    detector = build(**options).train()
    images = pictures(2)[:, : detector.config.channels]
    gradients = []
    for kinds in ((), detector.recomputed):
        torch.manual_seed(0)
        detector.zero_grad()
        with checkpoint_activations(detector, kinds) as count:
            detector.loss(Batch(images, images))["noise"].backward()
        gradients.append({name: weight.grad for name, weight in detector.named_parameters()})
    assert count > 5
    assert [name for name, gradient in gradients[0].items() if gradient is None] == []
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (16, 20)},
        {"widths": (16,)},
        {"noise_level": (0.0,)},
        {"noise_level": (0.5, 1.5)},
        {"noise_level": ()},
        {"steps": 49},
        {"steps": 1001},
        {"sampling_steps": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(options):
    with pytest.raises(ValidationError) as caught:
        DiffusionConfig(**options)
    assert caught.value.errors()[0]["loc"][0] in options


def test_a_size_that_does_not_fit_names_those_that_do():
    with pytest.raises(UsageError) as caught:
        detector_config(TrainSettings(arch="diffusion", image_size=100))
    assert "--image-size" in caught.value.message
    assert "96 or 104" in caught.value.message


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.resnet", None)
    with pytest.raises(MissingExtraError, match="diffusers") as caught:
        build()
    assert "adctl[diffusion]" in caught.value.remedy


def test_settings_need_no_diffusers_and_nothing_needs_a_network():
    program = """
import socket, sys
def refuse(*arguments, **options): raise AssertionError("reached for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from adctl.detectors.diffusion import Diffusion, DiffusionConfig
config = DiffusionConfig(image_size=32)
assert not any(name.split(".")[0] == "diffusers" for name in sys.modules)
import torch
with torch.inference_mode():
    Diffusion(config).eval()(torch.rand(1, 3, 32, 32))
print("diffusers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.parametrize("noise", ["gaussian", "simplex"])
def test_it_restores_unseen_real_images_better_than_their_mean_does(noise, shared_data):
    train = pictures_of(shared_data / "hazelnut_toy" / "train" / "good", 32)
    test = pictures_of(shared_data / "hazelnut_toy" / "test" / "good", 32)
    detector = build(noise=noise)
    untrained = rebuilding_error(detector, test)
    descend(detector, train, rate=3e-3, batch=14, epochs=80)
    assert rebuilding_error(detector, test) < 0.5 * untrained
    assert rebuilding_error(detector, test) < float((test - test.mean((2, 3), keepdim=True)).square().mean())


@pytest.mark.parametrize(
    "options",
    [{"noise_level": (0.05, 0.2)}, {"sampler": "ddpm", "sampling_steps": 2, "noise": "simplex"}],
)
def test_onnx_scores_as_torch_does_at_any_batch_size(options, tmp_path):
    check_onnx("diffusion", build(**options), pictures(3), tmp_path)
