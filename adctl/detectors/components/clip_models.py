"""Frozen CLIP models of transformers: loading, and the similarity of whole images to learnt prompts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components import base_models
from adctl.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.detectors.components.text_prompts import PromptLearner

CLIP_PARTS = ("",)
"""Folders with the weights of a CLIP: the folder itself."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the colours that CLIP takes."""

_TEMPERATURE = 0.01
_COLOURS = 3
_TINY = {
    "text_config": {
        "vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513,
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8,
    },
    "projection_dim": 32,
}  # fmt: skip


def load_clip(folder: Path | None) -> Any:
    """Load a CLIP from a folder, frozen, or build the one with random weights."""
    transformers: Any = importlib.import_module("transformers")
    if folder is not None:
        return base_models.load_part(transformers.CLIPModel, folder, "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = transformers.CLIPModel(transformers.CLIPConfig(**_TINY))
    return model.eval().requires_grad_(requires_grad=False)


class ClipSimilarity(nn.Module):
    """Probability of the abnormal prompt for whole images, in a CLIP that reads the same tokens as the prompts.

    Args:
        folder: Folder of the CLIP; None builds the one with random weights.
        text: Text encoder that the prompts were made for.

    Raises:
        UsageError: The CLIP has another vocabulary or another width.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path | None, text: Any) -> None:
        super().__init__()
        self.clip = load_clip(folder)
        own, wanted = (
            (one.vocab_size, one.hidden_size) for one in (self.clip.config.text_config, text.config)
        )  # learnt tokens are vectors of the text encoder
        if own != wanted:
            raise UsageError(
                f"The CLIP of clip_similarity reads {own[0]} words as vectors of length {own[1]}, but the base model "
                f"{wanted[0]} of length {wanted[1]}.",
                "Take the CLIP whose text encoder the base has: clip-vit-large-patch14 for Stable Diffusion 1.5.",
            )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def text(self, prompts: PromptLearner) -> Tensor:
        """Return unit vectors [2,D] of the normal and the abnormal prompt."""
        ends = prompts.ends(prompts.encode(self.clip.text_model))
        return F.normalize(self.clip.text_projection(ends).float(), dim=1)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Return the probabilities [B] for images [B,C,H,W] in [0, 1]: softmax over the cosines to both prompts / 0.01.

        Args:
            images: Images.
            text: Unit vectors of the prompts, from `text`.
        """
        side = self.clip.config.vision_config.image_size
        pixels = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        pooled = self.clip.vision_model((pixels.expand(-1, _COLOURS, -1, -1) - self.mean) / self.std).pooler_output
        vectors = F.normalize(self.clip.visual_projection(pooled).float(), dim=1)
        shares: Tensor = (vectors @ text.T / _TEMPERATURE).softmax(1)
        return shares[:, 1]

    def train(self, mode: bool = True) -> ClipSimilarity:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)
