"""Maps of the cross-attention of a denoiser of diffusers, collected while it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses


@dataclass
class AttentionMaps:
    """Attention of each place to groups of tokens, gathered from the layers of chosen resolutions.

    Attributes:
        owner: Weight of each token in each group, [L,G]; a token may belong to none.
        sides: Sides of the attention maps to collect; others are left out.
        layers: Collected maps [B,G,side,side], mean over heads, in the order of the layers.
    """

    owner: Tensor
    sides: frozenset[int]
    layers: list[Tensor] = field(default_factory=list)

    def collect(self, attention: Tensor) -> None:
        """Add the attention [B,heads,places,L] of a layer, if its resolution is wanted."""
        side = round(attention.shape[2] ** 0.5)
        if side not in self.sides:
            return
        mass = attention.mean(1) @ self.owner.to(attention.dtype)
        self.layers.append(mass.transpose(1, 2).unflatten(2, (side, side)))

    def enlarged(self, side: int) -> Tensor:
        """Return all layers [layers,B,G,side,side] at one resolution, by bilinear interpolation."""
        size = (side, side)
        return torch.stack(
            [F.interpolate(one.float(), size=size, mode="bilinear", align_corners=False) for one in self.layers]
        )


class _SelfAttention(AttnProcessor2_0):
    """Attention of diffusers that ignores the collector."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        del maps
        out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return out


class _CrossAttention:
    """Attention of places to tokens, with its weights given to the collector."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        del attention_mask, temb
        assert encoder_hidden_states is not None

        def split(vectors: Tensor) -> Tensor:
            heads: Tensor = vectors.unflatten(2, (attn.heads, -1))
            return heads.transpose(1, 2)

        query = split(attn.to_q(hidden_states))
        key, value = split(attn.to_k(encoder_hidden_states)), split(attn.to_v(encoder_hidden_states))
        weights = ((query @ key.transpose(2, 3)).float() * attn.scale).softmax(3)
        if maps is not None:
            maps.collect(weights)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


def use_collectors(unet: Any) -> None:
    """Let the attention layers of a denoiser take `cross_attention_kwargs={"maps": AttentionMaps}`."""
    own: Any = _SelfAttention  # diffusers has no types
    unet.set_attn_processor({name: _CrossAttention() if ".attn2." in name else own() for name in unet.attn_processors})
