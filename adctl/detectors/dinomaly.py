"""A transformer that rebuilds the features of a frozen backbone, and is kept from rebuilding too well.

Guo et al., "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection", CVPR 2025: dropout in
the bottleneck, attention that cannot focus, groups of levels instead of single ones, and gradients that fade where
the features are rebuilt well. It was made for vision transformers; a convolutional backbone works, too.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig, Prediction
from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.whitening import Whitening, observe
from adctl.engine.phases import Batch, LossTerms, Optimize
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.engine.phases import Phase

_GROUPS = 2
_EASY, _FADED, _RAMP = 0.9, 0.1, 0.1
"""Gradients of so large a share of the cells, the best rebuilt, count so much less, from so early in training on
(section 3.4: 90 %, a tenth)."""


class DinomalyConfig(DetectorConfig):
    """Settings of the rebuilding transformer."""

    backbone: str = Field(DEFAULT, description="timm model whose features are rebuilt, a vision transformer at best")
    layers: tuple[int, ...] | None = Field(
        None, description="Indices of the backbone's feature levels; strides 8 and 16, or four blocks, when left out"
    )
    width: int = Field(128, ge=16, multiple_of=4, description="Length of a cell's vector")
    depth: int = Field(4, ge=_GROUPS, le=24, description="Layers of the decoder")
    heads: int = Field(4, ge=1, description="Attention heads")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of the bottleneck's values dropped in training")
    blur: float = Field(1.0, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest cells whose mean is the score")

    @field_validator("heads")
    @classmethod
    def _divides_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width", value)
        if width % value:
            raise ValueError(f"must divide the width, {width}")
        return value


class Dinomaly(Detector):
    """Features through a noisy bottleneck and a few layers of linear attention: what comes out changed is strange.

    Cells of a convolutional backbone's finer levels are folded into the channels of its coarsest, so that there are
    few vectors; maps have the finest level's cells. Three choices differ from the paper: features are whitened, as
    those of convolutional networks have channels of very different spread; they are compared by their difference and
    not their angle, as the length of a whitened feature already tells of defects; and vectors know their place.
    """

    Config = DinomalyConfig
    needs_validation = True
    config: DinomalyConfig
    places: Tensor

    def __init__(self, config: DinomalyConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.layers, config.image_size, channels=config.channels)
        coarsest = max(self.backbone.strides)
        if config.image_size % coarsest:
            below = max(1, config.image_size // coarsest) * coarsest
            raise UsageError(
                f"The coarsest features are {coarsest} pixels apart, which does not divide {config.image_size}.",
                f"Choose an --image-size that is a multiple of {coarsest}, such as {below}.",
            )
        self.groups = _grouped(self.backbone.channels, self.backbone.strides)
        channels = [self.backbone.channels[group[0]] for group in self.groups]
        self.folds = [coarsest // self.backbone.strides[group[0]] for group in self.groups]
        self.lengths = [length * fold**2 for length, fold in zip(channels, self.folds, strict=True)]
        self.whitenings = nn.ModuleList(Whitening(length) for length in channels)
        self.bottleneck = _Bottleneck(sum(self.lengths), config.width, config.dropout)
        self.decoder = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.depth))
        self.outputs = nn.ModuleList(nn.Linear(config.width, length) for length in self.lengths)
        self.blur = GaussianBlur(config.blur)
        side = config.image_size // coarsest
        self.register_buffer("places", build_sincos2d_pos_embed([side, side], config.width), persistent=False)
        self._easy = 0.0

    def phases(self) -> Sequence[Phase]:
        """Statistics of the features, then epochs of rebuilding them."""
        memory = FeatureCache()
        trained = [*self.bottleneck.parameters(), *self.decoder.parameters(), *self.outputs.parameters()]
        return (
            observe([*self.whitenings], self._groups),
            Optimize(lambda batch: self._loss(batch, memory), trained, "reconstruction", start_epoch=self._harden),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; maps have the cells of the finest level read."""
        features = self._features(images)
        maps = [_distance(*group) for group in self._groups_of(features, self._rebuilt(features))]
        finest = maps[0].shape[-2:]
        enlarged = [F.interpolate(one.unsqueeze(1), size=finest, mode="bilinear", align_corners=False) for one in maps]
        smooth = self.blur(torch.cat(enlarged, 1).mean(1))
        return Prediction(top_mean(smooth, self.config.score_share), smooth)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Those that suit a few hundred images."""
        del config
        return {"epochs": 40, "learning_rate": 1e-3, "batch_size": 16, "warmup": 0.1}

    @property
    def backbone_name(self) -> str:
        """The timm name of the frozen backbone."""
        return self.config.backbone

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the backbone's pretrained weights."""
        self.backbone.load_pretrained(weights)

    def _groups(self, images: Tensor) -> list[Tensor]:
        """Images [B,C,H,W] to the summed levels of each group, [B,C,h,w], finest first."""
        levels = self.backbone(images)
        return [torch.stack([levels[level] for level in group]).sum(0) for group in self.groups]

    def _features(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to the whitened features of all groups on the coarsest grid, [B,F,h,w]."""
        groups = zip(self.whitenings, self._groups(images), self.folds, strict=True)
        return torch.cat([F.pixel_unshuffle(whitening(group), fold) for whitening, group, fold in groups], 1)

    def _rebuilt(self, features: Tensor) -> Tensor:
        """Features [B,F,h,w] to what is made of them.

        The first layers of the decoder, whose sum is the first output, rebuild the deepest group, as in the paper.
        """
        vectors = self.bottleneck(features.flatten(2).transpose(1, 2)) + self.places
        sums = []
        for layers in self._shares():
            seen = []
            for layer in layers:
                vectors = layer(vectors)
                seen.append(vectors)
            sums.append(torch.stack(seen).sum(0))
        made = [output(one) for output, one in zip(self.outputs, reversed(sums), strict=True)]
        rebuilt: Tensor = torch.cat(made, 2).transpose(1, 2).unflatten(2, features.shape[-2:])
        return rebuilt

    def _shares(self) -> list[nn.ModuleList]:
        """The layers of the decoder that rebuild each group, deepest group first."""
        cuts = [round(number * len(self.decoder) / len(self.groups)) for number in range(len(self.groups) + 1)]
        return [self.decoder[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _groups_of(self, wanted: Tensor, made: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features [B,F,h,w] and what was made of them to those of each group on its own grid."""
        return [
            (F.pixel_shuffle(one, fold), F.pixel_shuffle(other, fold))
            for one, other, fold in zip(
                wanted.split(self.lengths, 1), made.split(self.lengths, 1), self.folds, strict=True
            )
        ]

    def _harden(self, epoch: int, epochs: int) -> None:
        """Fade more and more of the easy cells as training begins."""
        self._easy = _EASY * min(1.0, (epoch - 1) / max(1.0, _RAMP * epochs))

    def _loss(self, batch: Batch, memory: FeatureCache) -> LossTerms:
        """Mean squared difference in each group, whose easy cells weigh less (section 3.4)."""
        with torch.no_grad():
            keys = batch.keys or [None] * len(batch.images)
            features = memory(keys, lambda new: self._features(batch.images[new])).to(batch.images.device)
            wanted = features if batch.defects is None else self._features(batch.clean)
        groups = self._groups_of(wanted, self._rebuilt(features))
        return {
            f"group {number}": _distance(one, self._faded(one, other)).mean()
            for number, (one, other) in enumerate(groups)
        }

    def _faded(self, wanted: Tensor, made: Tensor) -> Tensor:
        """What was made, with smaller gradients in the easy cells."""
        if self._easy == 0:
            return made
        distances = _distance(wanted, made.detach()).flatten()
        hard = distances.topk(max(1, round((1 - self._easy) * len(distances)))).values[-1]
        easy = (distances < hard).view(len(made), 1, *made.shape[2:])
        return torch.where(easy, _FADED * made + (1 - _FADED) * made.detach(), made)


class _Bottleneck(nn.Module):
    """Features to vectors through two layers, with values dropped before each: noise the decoder has to undo."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(inputs, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.layers(vectors)
        return made


class _Layer(nn.Module):
    """Linear attention and two linear layers, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = _LinearAttention(width, heads)
        self.between = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors + self.attention(self.before(vectors))
        summed: Tensor = vectors + self.perceptron(self.between(vectors))
        return summed


class _LinearAttention(nn.Module):
    """Attention without softmax: it spreads over the image and cannot copy a vector onto itself (section 3.3).

    Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML 2020.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [B,N,D] to vectors of the same shape."""
        query, key, value = self.inputs(vectors).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        memory = key.transpose(2, 3) @ value
        weights = query @ key.sum(2).unsqueeze(3)
        mixed: Tensor = self.output((query @ memory / weights).transpose(1, 2).flatten(2))
        return mixed


def _distance(wanted: Tensor, made: Tensor) -> Tensor:
    """Mean squared difference of features [B,C,h,w] in each cell, [B,h,w]."""
    return (wanted - made).square().mean(1)


def _grouped(channels: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Levels that are rebuilt as one sum: of those of equal shape the lower half and the upper half.

    A vision transformer's levels are all alike and make two groups; each of a convolutional network's is its own.
    """
    alike = [
        [level for level, _ in run]
        for _, run in itertools.groupby(enumerate(zip(channels, strides, strict=True)), key=lambda pair: pair[1])
    ]
    return [half for run in alike for half in (run[: len(run) // 2], run[len(run) // 2 :]) if half]
