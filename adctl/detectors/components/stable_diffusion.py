"""Frozen parts of Stable Diffusion: tokenizer, text encoder, image encoder and denoiser.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022. The networks are those of
diffusers and transformers. Shapes of published bases allow forecasts without their weights.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl import documents, reading
from adctl.detectors.components import base_models
from adctl.detectors.components.upsampling import use_exportable_upsampling
from adctl.errors import ModelFileError, UsageError, unknown_name

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.detectors.components.base_models import BaseModel

PARTS = ("vae", "text_encoder", "unet")
"""Folders with the weights of a base."""

Shapes = dict[str, dict[str, Any]]
"""Settings of the networks `text`, `unet` and `vae`, and of the noise `schedule`."""

_FOLDERS = {"vae": "vae", "text": "text_encoder", "unet": "unet"}
_SPECIAL = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SCHEDULE = (*_BETAS, "num_train_timesteps")


def _shapes(text: dict[str, Any], unet: dict[str, Any], vae: dict[str, Any]) -> Shapes:
    return {
        "text": text,
        "unet": {"in_channels": 4, "out_channels": 4, **unet},
        "vae": {"latent_channels": 4, **vae},
        "schedule": _BETAS,
    }


_LARGE_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_LARGE_UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}  # fmt: skip

SHAPES: dict[str, Shapes] = {
    "tiny": _shapes(
        {
            "vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, **_SPECIAL,
        },
        {
            "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "cross_attention_dim": 32, "attention_head_dim": 8,
        },
        {
            "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 64,
            "scaling_factor": 5.0,
            "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
    ),
    "sd-1-5": _shapes(
        {
            "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "hidden_act": "quick_gelu",
        },
        {**_LARGE_UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
        _LARGE_VAE,
    ),
    "sd-2-1": _shapes(
        {
            "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
            "num_attention_heads": 16, "hidden_act": "gelu",
        },
        {
            **_LARGE_UNET, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        _LARGE_VAE,
    ),
}  # fmt: skip
"""Settings of the networks by base; `random-NAME` builds one with random weights. SD 2.1 and SD 1.5 as published."""


PUBLISHED = {"sd-2-1-base": "sd-2-1", "sd-1-5": "sd-1-5"}
"""Shapes of bases that `adctl fetch weights` knows."""


class StableDiffusion(nn.Module):
    """Frozen base model, without the decoder of images.

    Args:
        shapes: Settings of the networks, as from `read_shapes`.
        folder: Folder in diffusers' layout to read the weights from; None leaves them random, the same ones each time.

    Raises:
        UsageError: The text encoder and the denoiser do not fit each other.
        ModelFileError: The files of the base are damaged.
        MissingExtraError: diffusers or transformers is not installed.
    """

    signal: Tensor

    def __init__(self, shapes: Shapes, folder: Path | None) -> None:
        super().__init__()
        base_models.quiet()
        diffusers, transformers = _library("diffusers"), _library("transformers")
        width, reads = shapes["text"]["hidden_size"], shapes["unet"]["cross_attention_dim"]
        if width != reads:
            raise UsageError(
                f"The text encoder of the base has width {width}, but its denoiser reads width {reads}.",
                "Take all parts from one base model.",
            )
        if folder is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.text = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(dict(shapes["text"])))
                self.vae = diffusers.AutoencoderKL.from_config(shapes["vae"])
                self.unet = diffusers.UNet2DConditionModel.from_config(shapes["unet"])
        else:
            self.text = base_models.load_part(transformers.CLIPTextModel, folder, "text_encoder")
            self.vae = base_models.load_part(diffusers.AutoencoderKL, folder, "vae")
            self.unet = base_models.load_part(diffusers.UNet2DConditionModel, folder, "unet")
        use_exportable_upsampling(self.unet)
        del self.vae.decoder, self.vae.post_quant_conv
        kept: Tensor = diffusers.DDPMScheduler(**shapes["schedule"]).alphas_cumprod
        self.register_buffer("signal", kept.sqrt(), persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    @property
    def factor(self) -> int:
        """Ratio of the resolutions of images and latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def step(self) -> int:
        """Number of pixels of which the sides of an image must be multiples."""
        return int(self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.latent_channels)

    @property
    def width(self) -> int:
        """Length of the vector of a token."""
        return int(self.text.config.hidden_size)

    def train(self, mode: bool = True) -> StableDiffusion:
        """Set the mode of the denoiser, so that gradient checkpointing works; dropout stays off, all else too."""
        super().train(False)
        self.unet.train(mode)
        for part in self.unet.modules():
            if isinstance(part, nn.Dropout):
                part.eval()
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents [B,4,h,w] of images [B,C,H,W] in [0, 1], with grey ones repeated: the posterior's mode."""
        pixels = images.expand(-1, 3, -1, -1) * 2 - 1
        latents: Tensor = self.vae.encode(pixels).latent_dist.mode()
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noisy latents: DDPM (Ho et al., NeurIPS 2020), equation 4; timesteps are [B]."""
        signal = self.signal[timesteps].view(-1, 1, 1, 1)
        noisy: Tensor = signal * latents + (1 - signal.square()).sqrt() * noise
        return noisy


def read_shapes(base: BaseModel) -> Shapes:
    """Return the settings of a base's networks and of its noise schedule; JSON-safe.

    Raises:
        UsageError: A random base is unknown.
        ModelFileError: A settings file is damaged.
    """
    if base.folder is None:
        name = base.name.removeprefix(f"{base_models.RANDOM}-")
        if name not in SHAPES:
            raise unknown_name("random base", base.name, [f"{base_models.RANDOM}-{one}" for one in SHAPES])
        return SHAPES[name]
    found = {name: _read(base.folder / part / "config.json") for name, part in _FOLDERS.items()}
    schedule = base.folder / "scheduler" / "scheduler_config.json"
    stored = _read(schedule) if schedule.is_file() else {}
    return {**found, "schedule": _BETAS | {name: stored[name] for name in _SCHEDULE if name in stored}}


def _library(name: str) -> Any:
    """Import a library without types."""
    return importlib.import_module(name)


def _read(path: Path) -> dict[str, Any]:
    try:
        return documents.parse(reading.read_bytes(path), dict)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged: {error}.", "Take an intact copy of the base model.") from error
