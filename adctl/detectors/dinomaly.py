"""Dinomaly: a transformer that reconstructs the features of a frozen backbone.

Guo et al., "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection", CVPR 2025. Dropout in
the bottleneck, linear attention, groups of levels, and smaller gradients for well reconstructed cells keep the network
from reconstructing anomalies. The paper uses vision transformers; convolutional backbones work too.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig, Prediction, Search
from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.config_checks import check_heads
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.timm_models import import_timm
from adctl.detectors.components.whitening import Whitening, whitening_phase
from adctl.engine.phases import Batch, LossTerms, Optimize
from adctl.errors import UsageError
from adctl.image_sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase

log = logging.getLogger(__name__)

_GROUPS = 2
_EASY_SHARE, _EASY_WEIGHT, _RAMP = 0.9, 0.1, 0.1
"""Fraction of the cells that count as easy, weight of their gradients (section 3.4), and fraction of the epochs over
which the fraction of easy cells grows from 0."""


class DinomalyConfig(DetectorConfig):
    """Settings of Dinomaly."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "dropout": Search(0, 0.5),
        "depth": Search(2, 8, whole=True, step=2),
        "blur": Search(0, 2),
        "score_share": Search(0.001, 0.1, log=True),
    }

    backbone: str = Field(
        DEFAULT, description="timm model whose features are reconstructed; a vision transformer is best"
    )
    layers: tuple[int, ...] | None = Field(
        None, description="Indices of the backbone's feature levels; strides 8 and 16, or four blocks, if left out"
    )
    width: int = Field(128, ge=16, multiple_of=4, description="Length of the vector of a cell")
    depth: int = Field(4, ge=_GROUPS, le=24, description="Layers of the decoder")
    heads: int = Field(4, ge=1, validate_default=True, description="Attention heads")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout in the bottleneck during training")
    blur: float = Field(1.0, ge=0, description="Gaussian smoothing of the map, sigma in cells")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")

    _heads = field_validator("heads")(check_heads)


class Dinomaly(Detector):
    """Noisy bottleneck and decoder of linear attention; the map is the error of the reconstructed features.

    The cells of a convolutional backbone's finer levels are folded into the channels of the coarsest level, so that
    there are few vectors; the maps have the cells of the finest level. Three choices differ from the paper. Features
    are whitened, because the channels of convolutional networks have very different variances. They are compared by
    their difference, not their angle, because the length of a whitened feature indicates anomalies. Position embeddings
    are added to the vectors.
    """

    Config = DinomalyConfig
    needs_validation = True
    any_shape = True
    config: DinomalyConfig
    places: Tensor

    def __init__(self, config: DinomalyConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.layers, config.sides, channels=config.channels)
        levels, strides = self.backbone.levels, self.backbone.strides
        if len(set(levels)) < len(levels) or sorted(strides) != list(strides):
            raise UsageError(
                f"The layers {levels} are not different, or not from fine to coarse.", "Name each once, in that order."
            )
        coarsest = max(strides)
        if any(side % coarsest for side in config.sides):
            height, width = (max(1, side // coarsest) * coarsest for side in config.sides)
            raise UsageError(
                f"The coarsest features are {coarsest} pixels apart, which does not divide "
                f"{size_text(config.image_size)}.",
                f"Choose an --image-size that is a multiple of {coarsest}, such as {size_text((height, width))}.",
            )
        self.groups = _group_levels(self.backbone.channels, self.backbone.strides)
        channels = [self.backbone.channels[group[0]] for group in self.groups]
        self.folds = [coarsest // self.backbone.strides[group[0]] for group in self.groups]
        self.lengths = [length * fold**2 for length, fold in zip(channels, self.folds, strict=True)]
        self.whitenings = nn.ModuleList(Whitening(length) for length in channels)
        self.bottleneck = _Bottleneck(sum(self.lengths), config.width, config.dropout)
        self.decoder = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.depth))
        self.outputs = nn.ModuleList(nn.Linear(config.width, length) for length in self.lengths)
        self.blur = GaussianBlur(config.blur)
        grid = [side // coarsest for side in config.sides]
        embedding = import_timm("timm.layers.pos_embed_sincos").build_sincos2d_pos_embed
        self.register_buffer("places", embedding(grid, config.width), persistent=False)
        self._easy_share = 0.0

    def phases(self) -> Sequence[Phase]:
        """Return the phases: statistics of the features, then training of the reconstruction."""
        if len(set(self.backbone.strides)) > 1:
            log.warning(
                "dinomaly is made for the features of a vision transformer; with %s it finds less than padim and "
                "patchcore. Use one of these, or --backbone vit_small_patch14_dinov2 after adctl fetch weights.",
                self.config.backbone,
            )
        cache = FeatureCache()
        trained = [*self.bottleneck.parameters(), *self.decoder.parameters(), *self.outputs.parameters()]
        return (
            whitening_phase([*self.whitenings], self._groups),
            Optimize(lambda batch: self._loss(batch, cache), trained, "reconstruction", start_epoch=self._start_epoch),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps have the cells of the finest level."""
        features = self._features(images)
        maps = [_error(*group) for group in self._split(features, self._reconstruct(features))]
        finest = maps[0].shape[-2:]
        enlarged = [F.interpolate(one.unsqueeze(1), size=finest, mode="bilinear", align_corners=False) for one in maps]
        smooth = self.blur(torch.cat(enlarged, 1).mean(1))
        return Prediction(top_mean(smooth, self.config.score_share), smooth)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return defaults for a few hundred images."""
        del config
        return {"epochs": 40, "learning_rate": 1e-3, "batch_size": 16, "warmup": 0.1}

    @property
    def backbone_name(self) -> str:
        """Name of the frozen backbone in timm."""
        return self.config.backbone

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone."""
        self.backbone.load_pretrained(weights)

    def _groups(self, images: Tensor) -> list[Tensor]:
        """Return the sum of the levels of each group, [B,C,h,w], finest group first."""
        levels = self.backbone(images)
        return [torch.stack([levels[level] for level in group]).sum(0) for group in self.groups]

    def _features(self, images: Tensor) -> Tensor:
        """Return the whitened features of all groups on the coarsest grid, [B,F,h,w]."""
        groups = zip(self.whitenings, self._groups(images), self.folds, strict=True)
        return torch.cat([F.pixel_unshuffle(whitening(group), fold) for whitening, group, fold in groups], 1)

    def _reconstruct(self, features: Tensor) -> Tensor:
        """Return the reconstruction of features [B,F,h,w].

        As in the paper, the sum of the decoder's first layers reconstructs the deepest group.
        """
        vectors = self.bottleneck(features.flatten(2).transpose(1, 2)) + self.places
        sums = []
        for layers in self._layers_by_group():
            outputs = []
            for layer in layers:
                vectors = layer(vectors)
                outputs.append(vectors)
            sums.append(torch.stack(outputs).sum(0))
        groups = [output(one) for output, one in zip(self.outputs, reversed(sums), strict=True)]
        rebuilt: Tensor = torch.cat(groups, 2).transpose(1, 2).unflatten(2, features.shape[-2:])
        return rebuilt

    def _layers_by_group(self) -> list[nn.ModuleList]:
        """Return the decoder layers that reconstruct each group, deepest group first."""
        cuts = [round(number * len(self.decoder) / len(self.groups)) for number in range(len(self.groups) + 1)]
        return [self.decoder[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _split(self, target: Tensor, rebuilt: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split features [B,F,h,w] and their reconstruction into the groups, each on its own grid."""
        pairs = zip(target.split(self.lengths, 1), rebuilt.split(self.lengths, 1), self.folds, strict=True)
        return [(F.pixel_shuffle(one, fold), F.pixel_shuffle(other, fold)) for one, other, fold in pairs]

    def _start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the fraction of easy cells, which grows over the first epochs."""
        self._easy_share = _EASY_SHARE * min(1.0, (epoch - 1) / max(1.0, _RAMP * epochs))

    def _loss(self, batch: Batch, cache: FeatureCache) -> LossTerms:
        """Return the mean squared error of each group, with a low weight of easy cells (section 3.4)."""
        with torch.no_grad():
            keys = batch.keys or [None] * len(batch.images)
            features = cache(keys, lambda new: self._features(batch.images[new])).to(batch.images.device)
            target = features if batch.defects is None else self._features(batch.clean)
        groups = self._split(target, self._reconstruct(features))
        return {
            f"group {number}": _error(one, self._weaken_easy_cells(one, other)).mean()
            for number, (one, other) in enumerate(groups)
        }

    def _weaken_easy_cells(self, target: Tensor, rebuilt: Tensor) -> Tensor:
        """Return the reconstruction with smaller gradients in the easy cells."""
        if self._easy_share == 0:
            return rebuilt
        errors = _error(target, rebuilt.detach()).flatten()
        limit = errors.topk(max(1, round((1 - self._easy_share) * len(errors)))).values[-1]
        easy = (errors < limit).view(len(rebuilt), 1, *rebuilt.shape[2:])
        return torch.where(easy, _EASY_WEIGHT * rebuilt + (1 - _EASY_WEIGHT) * rebuilt.detach(), rebuilt)


class _Bottleneck(nn.Module):
    """Two layers from features to vectors, with dropout before each: noise that the decoder learns to remove."""

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
        reduced: Tensor = self.layers(vectors)
        return reduced


class _Layer(nn.Module):
    """Transformer layer with pre-normalisation, linear attention and a perceptron, each with a residual connection."""

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
    """Attention without softmax, which spreads over the image and cannot copy a vector onto itself (section 3.3).

    Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML 2020.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Apply attention to vectors [B,N,D]."""
        query, key, value = self.inputs(vectors).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        memory = key.transpose(2, 3) @ value
        weights = query @ key.sum(2).unsqueeze(3)
        mixed: Tensor = self.output((query @ memory / weights).transpose(1, 2).flatten(2))
        return mixed


def _error(target: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the mean squared error of features [B,C,h,w] in each cell, [B,h,w]."""
    return (target - rebuilt).square().mean(1)


def _group_levels(channels: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Group the levels whose sum is reconstructed: of levels with equal shape the lower half and the upper half.

    All levels of a vision transformer have the same shape and form two groups. In a convolutional network each level
    forms its own group.
    """
    alike = [
        [level for level, _ in run]
        for _, run in itertools.groupby(enumerate(zip(channels, strides, strict=True)), key=lambda pair: pair[1])
    ]
    return [half for run in alike for half in (run[: len(run) // 2], run[len(run) // 2 :]) if half]
