"""Diffusion model of good images: noise is added to an image and removed again, and the change is the anomaly map.

Network, loss and sampling: Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM), NeurIPS 2020. Sampling in few
steps: Song et al., "Denoising Diffusion Implicit Models" (DDIM), ICLR 2021. Partial noise and simplex noise: Wyatt et
al., "AnoDDPM", CVPR Workshops 2022. Network and schedules are from `diffusers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.config_checks import require_multiple
from adctl.detectors.components.simplex_noise import simplex_noise
from adctl.detectors.components.upsampling import use_exportable_upsampling
from adctl.detectors.reconstruction_detector import ReconstructionConfig, ReconstructionDetector
from adctl.engine.phases import Optimize
from adctl.errors import MissingExtraError
from adctl.image_sizes import ImageSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.engine.phases import Batch, LossTerms, Phase

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (32, 64, 96), "blocks": 1},
    "small": {"widths": (64, 96, 128), "blocks": 1},
    "base": {"widths": (128, 256, 256, 256), "blocks": 2},
}
_GROUPS = 8
_LONGEST = 1000
"""Number of steps for which the linear schedule and the timestep embedding are defined; other numbers are rescaled."""

_FIRST_BETA, _LAST_BETA = 1e-4, 0.02
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_CHECKED = 4
"""Number of timesteps at which the loss of held-out images is computed."""


class DiffusionConfig(ReconstructionConfig):
    """Settings of the diffusion model; explicit values have precedence over `size`."""

    image_size: ImageSize = Field(64, description=ReconstructionConfig.model_fields["image_size"].description)
    error: str = Field("l2", description=ReconstructionConfig.model_fields["error"].description)
    around: float = Field(0.06, gt=0, le=1, description=ReconstructionConfig.model_fields["around"].description)
    blur: tuple[float, ...] = Field(
        (1.0,), min_length=1, description=ReconstructionConfig.model_fields["blur"].description
    )
    size: Literal["tiny", "small", "base"] = Field("tiny", description="Widths and blocks; base is similar to DDPM")
    widths: tuple[int, ...] = Field(
        (32, 64, 96), min_length=2, max_length=6, description="Channels at each resolution, from full to lowest"
    )
    blocks: int = Field(1, ge=1, le=4, description="Residual blocks at each resolution")
    patch: Literal[1, 2, 4] = Field(2, description="Side of the pixel squares that form a cell of the input")
    steps: int = Field(1000, ge=50, le=1000, description="Steps from an image to pure noise")
    schedule: Literal["linear", "cosine"] = Field("linear", description="Noise schedule")
    noise: Literal["gaussian", "simplex"] = Field(
        "gaussian", description="Kind of noise; simplex noise is smooth and hides larger defects"
    )
    noise_level: tuple[float, ...] = Field(
        (0.05,), min_length=1, description="Noise levels, as fractions of the steps; their maps are averaged"
    )
    draws: int = Field(4, ge=1, le=64, description="Noise samples per level; their reconstructions are averaged")
    sampler: Literal["ddim", "ddpm"] = Field(
        "ddim", description="Sampler that removes noise: ddim is deterministic, ddpm adds fresh noise in each step"
    )
    sampling_steps: int | None = Field(
        None, ge=1, le=1000, description="Sampling steps per level; if left out, 1 for ddim and all steps for ddpm"
    )
    seed: int = Field(0, ge=0, description="Seed of the noise for scoring")

    @model_validator(mode="before")
    @classmethod
    def _filled_from_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**_SIZES.get(values.get("size", "tiny"), {}), **values}

    @field_validator("widths")
    @classmethod
    def _in_groups(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < _GROUPS or width % _GROUPS for width in value):
            raise ValueError(f"must be multiples of {_GROUPS}, the number of groups in group norm")
        return value

    @field_validator("noise_level")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < level <= 1 for level in value):
            raise ValueError("must be above 0 and at most 1")
        return value

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("DiffusionConfig", self.image_size, self.reduction, "the reduction by patch and widths")
        return self

    @property
    def reduction(self) -> int:
        """Ratio of the image's resolution to the lowest resolution in the network."""
        return int(self.patch * 2 ** (len(self.widths) - 1))


@dataclass(frozen=True)
class Step:
    """Coefficients of one sampling step, from `x = signal * image + noise * standard noise` at `timestep`.

    The next `x` is `clean * image + noisy * x + predicted * noise + fresh * new noise`, with the image and the noise
    that the network predicts from `x`.
    """

    timestep: int
    signal: float
    noise: float
    clean: float
    noisy: float
    predicted: float
    fresh: float


def sampling_path(config: DiffusionConfig, level: float) -> tuple[Step, ...]:
    """Return the evenly spaced steps from a noise level back to the image.

    `ddim` is Song et al. 2021, equation 12 with sigma 0; `ddpm` is Ho et al. 2020, equation 7.
    """
    kept = _kept_signal(config)
    count = max(1, round(level * config.steps))
    wanted = config.sampling_steps or (1 if config.sampler == "ddim" else count)
    stops = [round(count * number / min(wanted, count)) - 1 for number in range(min(wanted, count), 0, -1)]
    rule = _ddim_step if config.sampler == "ddim" else _ddpm_step
    nexts = [kept[stop] for stop in stops[1:]] + [1.0]
    return tuple(rule(stop, kept[stop], after) for stop, after in zip(stops, nexts, strict=True))


def _ddim_step(timestep: int, kept: float, after: float) -> Step:
    return Step(timestep, kept**0.5, (1 - kept) ** 0.5, after**0.5, 0.0, (1 - after) ** 0.5, 0.0)


def _ddpm_step(timestep: int, kept: float, after: float) -> Step:
    alpha = kept / after
    return Step(
        timestep,
        kept**0.5,
        (1 - kept) ** 0.5,
        clean=after**0.5 * (1 - alpha) / (1 - kept),
        noisy=alpha**0.5 * (1 - after) / (1 - kept),
        predicted=0.0,
        fresh=((1 - after) / (1 - kept) * (1 - alpha)) ** 0.5,
    )


def _kept_signal(config: DiffusionConfig) -> list[float]:
    """Return the fraction of the image's variance that remains at each timestep (cumulative product of alphas)."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    stretch = _LONGEST / config.steps
    schedule = DDPMScheduler(
        num_train_timesteps=config.steps,
        beta_start=_FIRST_BETA * stretch,
        beta_end=_LAST_BETA * stretch,
        beta_schedule=_SCHEDULES[config.schedule],
    )
    kept: list[float] = schedule.alphas_cumprod.tolist()
    return kept


class NoisePredictor(nn.Module):
    """U-Net that predicts the noise in images [B,C,H,W] at given timesteps."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        levels = len(config.widths)
        packed = config.channels * config.patch**2
        self.patch = config.patch
        self.stretch = _LONGEST / config.steps
        self.unet = UNet2DModel(
            sample_size=(config.sides[0] // config.patch, config.sides[1] // config.patch),
            in_channels=packed,
            out_channels=packed,
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=_GROUPS,
            attention_head_dim=None,
        )
        use_exportable_upsampling(self.unet)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the noise [B,C,H,W]; timesteps are [1], the same for all images, or [B]."""
        packed = F.pixel_unshuffle(noisy, self.patch)
        (predicted,) = self.unet(packed, timesteps * self.stretch, return_dict=False)
        return F.pixel_shuffle(predicted, self.patch)


class Diffusion(ReconstructionDetector):
    """Noise prediction trained on good images; for scoring, noise is added to an image and removed again.

    The noise for scoring is drawn once and stored, so that scores are reproducible and independent of the batch.

    Attributes:
        paths: Sampling steps of each noise level.
        drawn: Noise for scoring, tensor [draws*N,C,H,W]: N samples per draw, for the start of each level and for each
            ddpm step that adds noise.
    """

    Config = DiffusionConfig
    config: DiffusionConfig
    drawn: Tensor
    signal: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        try:
            from diffusers.models.resnet import ResnetBlock2D
        except ImportError as error:
            raise MissingExtraError("diffusers", "diffusion") from error
        self.recomputed = (ResnetBlock2D,)  # type: ignore[misc]  # set here, because diffusers is imported on demand
        self.network = NoisePredictor(config)
        self.paths = tuple(sampling_path(config, level) for level in config.noise_level)
        count = sum(1 + sum(step.fresh > 0 for step in path) for path in self.paths)
        generator = torch.Generator().manual_seed(config.seed)
        self.register_buffer("drawn", self._draw(config.draws * count, generator))
        self.register_buffer("signal", torch.tensor(_kept_signal(config)).sqrt(), persistent=False)

    @classmethod
    def size_step(cls, config: DetectorConfig) -> int:
        """Return the reduction of the network."""
        assert isinstance(config, DiffusionConfig)
        return config.reduction

    def phases(self) -> Sequence[Phase]:
        """Return the phases: training of the noise prediction, statistics of normal errors."""
        training = Optimize(self.loss, self.network.parameters(), "diffusion", preview=self.reconstruct)
        return (training, *self.error_statistics_phase())

    def loss(self, batch: Batch) -> LossTerms:
        """Return the mean squared error of the predicted noise; in evaluation, for fixed timesteps and fixed noise."""
        images = batch.clean * 2 - 1
        if not self.training:
            return {"noise": self._validation_error(images)}
        timesteps = torch.randint(self.config.steps, (len(images),), device=images.device)
        noise = self._draw(len(images)).to(images.device)
        return {"noise": self._prediction_error(images, timesteps, noise)}

    def errors(self, images: Tensor) -> Tensor:
        """Return the reconstruction errors [B,S,H,W] of images [B,C,H,W], averaged over the levels."""
        return torch.stack([self.error(images, rebuilt) for rebuilt in self._reconstructions(images)]).mean(0)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] in [0, 1]: add noise, remove it, and average over the levels."""
        return torch.stack(self._reconstructions(images)).mean(0)

    def _reconstructions(self, images: Tensor) -> list[Tensor]:
        """Return the reconstructions of each level; all draws of a level form one batch."""
        draws = self.config.draws
        rows = self.drawn.unflatten(0, (draws, -1)).unbind(1)
        noise = (row.unsqueeze(1).expand(-1, images.shape[0], -1, -1, -1).flatten(0, 1) for row in rows)
        copies = images.repeat(draws, 1, 1, 1) * 2 - 1
        rebuilt = []
        for path in self.paths:
            noisy = path[0].signal * copies + path[0].noise * next(noise)
            for step in path:
                noisy = self._denoise(noisy, step)
                if step.fresh:
                    noisy = noisy + step.fresh * next(noise)
            rebuilt.append((noisy.unflatten(0, (draws, -1)).mean(0).clamp(-1, 1) + 1) / 2)
        return rebuilt

    def _denoise(self, noisy: Tensor, step: Step) -> Tensor:
        """Take one sampling step, without the fresh noise."""
        timestep = torch.full((1,), float(step.timestep), device=noisy.device)
        noise = self.network(noisy, timestep)
        image = ((noisy - step.noise * noise) / step.signal).clamp(-1, 1)
        earlier: Tensor = step.clean * image + step.noisy * noisy + step.predicted * noise
        return earlier

    def _prediction_error(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        signal = self.signal[timesteps].view(-1, 1, 1, 1)
        noisy = signal * images + (1 - signal.square()).sqrt() * noise
        predicted: Tensor = self.network(noisy, timesteps.float())
        return F.mse_loss(predicted, noise)

    def _validation_error(self, images: Tensor) -> Tensor:
        """Return the prediction error at a few evenly spaced timesteps, with noise for scoring."""
        noise = self.drawn[0].expand_as(images)
        errors = []
        for number in range(_CHECKED):
            timestep = math.floor((number + 0.5) / _CHECKED * self.config.steps)
            timesteps = torch.full((len(images),), timestep, device=images.device)
            errors.append(self._prediction_error(images, timesteps, noise))
        return torch.stack(errors).mean()

    def _draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise [count,C,H,W] of unit variance, on the CPU."""
        shape = (count, self.config.channels, *self.config.sides)
        if self.config.noise == "gaussian":
            return torch.randn(shape, generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        planes = simplex_noise((count * shape[1], *shape[2:]), np.random.default_rng(seed))
        return torch.from_numpy(planes).view(shape)
