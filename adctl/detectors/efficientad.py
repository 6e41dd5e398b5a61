"""A small student that learned to see as a small teacher does, on good parts only; the fastest of the detectors.

Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024: where the
student cannot follow its teacher, something is strange; an autoencoder watches over how things are arranged.

Three choices differ from the paper, whose weights and ImageNet images would be downloads. The teacher is distilled
from the packaged backbone on the user's good images and painted variations of them. The student's penalty, which
keeps it from following its teacher everywhere, is taken under painted defects. All three networks look at every
fourth pixel from the start, and are narrower: on a processor the paper's would take longer than the backbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig, Prediction
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.image_size import require_multiple
from adctl.detectors.components.normalisation import Normalisation
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.components.whitening import Whitening, observe
from adctl.detectors.feature_detector import stack_levels
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.engine.phases import Phase, Progress

_SMALLEST = 1e-8
_USUAL = 0.1
_STRIDE = 8
_DEEPEST = 32
_LATENT = 64
_DROPOUT = 0.2


class EfficientADConfig(DetectorConfig):
    """Settings of the student, its teacher and the autoencoder."""

    backbone: str = Field(DEFAULT, description="timm model the teacher is distilled from; scoring does without it")
    width: int = Field(64, ge=8, multiple_of=2, description="Channels of the three networks")
    features: int = Field(64, ge=2, description="Length of the teacher's features")
    views: int = Field(3, ge=0, description="Painted variations of each image that the teacher is shown, too")
    hard_share: float = Field(0.01, gt=0, le=1, description="Share of the worst imitated values the student learns by")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest cells whose mean is the score")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("EfficientADConfig", self.image_size, _DEEPEST, "the stride of the autoencoder")
        return self


class EfficientAD(Detector):
    """Student, teacher and autoencoder, none of them larger than a few convolutions; maps have cells of 8 pixels.

    Where the paper scales both maps by two quantiles over all good cells, here each place has its own scale: where
    good parts vary, the student never follows well.

    Attributes:
        centre: Tensor [2,h,w], of the student's map and of the autoencoder's: the mean around each place.
        spread: Tensor [2,h,w], the standard deviation around each place.
    """

    Config = EfficientADConfig
    needs_validation = True
    config: EfficientADConfig
    centre: Tensor
    spread: Tensor

    def __init__(self, config: EfficientADConfig) -> None:
        super().__init__(config)
        length, channels = config.features, config.channels
        self.normalise = Normalisation("imagenet", channels)
        self.teacher = _describer(channels, config.width, length)
        self.student = _describer(channels, config.width, 2 * length)
        self.autoencoder = _Autoencoder(channels, config.width, length, config.image_size // _DEEPEST)
        cells = config.image_size // _STRIDE
        self.register_buffer("centre", torch.zeros(2, cells, cells))
        self.register_buffer("spread", torch.ones(2, cells, cells))
        self._pretrained: Mapping[str, Tensor] | None = None
        self._seen: list[Tensor] = []

    def phases(self) -> Sequence[Phase]:
        """What the backbone sees; the teacher learns it; student and autoencoder learn from the teacher; ranges."""
        lesson = self._lesson()
        followers = [*self.student.parameters(), *self.autoencoder.parameters()]
        return (
            observe([lesson.whitening], lambda images: [lesson.features(images)]),
            Optimize(lambda batch: self._distil(batch, lesson), self.teacher.parameters(), "teacher", lesson),
            Optimize(self._imitate, followers, "student"),
            Observe(self._moments, self._seen.append, self._finish, "scales of good maps"),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; maps [B,H/8,W/8]."""
        maps = ((self._distances(images) - self.centre) / self.spread).mean(1)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Small batches: networks that begin with nothing need many steps, and small ones waste little by them."""
        del config
        return {"epochs": 40, "learning_rate": 2e-3, "batch_size": 4}

    @property
    def backbone_name(self) -> str:
        """The timm name of what the teacher is distilled from."""
        return self.config.backbone

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the backbone's pretrained weights, for the teacher's training."""
        self._pretrained = weights

    def _lesson(self) -> _DistillationTarget:
        """What the teacher learns; of training only, so that it stays out of the model file."""
        backbone = Backbone(self.config.backbone, None, self.config.image_size, channels=self.config.channels)
        if self._pretrained is not None:
            backbone.load_pretrained(self._pretrained)
        return _DistillationTarget(backbone, self.config).to(self.normalise.mean.device)

    def _distil(self, batch: Batch, lesson: _DistillationTarget) -> LossTerms:
        """Mean squared difference of the teacher from the backbone, on each image and one painted variation of it."""
        images, wanted = lesson(batch, varied=self.training)
        return {"distillation": F.mse_loss(self.teacher(self.normalise(images)), wanted)}

    def _imitate(self, batch: Batch) -> LossTerms:
        """Section 3.2: hard imitation and its penalty; section 3.3: autoencoder and its imitation."""
        length = self.config.features
        images = self.normalise(batch.clean)
        with torch.no_grad():
            taught = self.teacher(images)
        student, rebuilt = self.student(images), self.autoencoder(images)
        spoilt, where = paint_anomaly(batch.clean) if batch.defects is None else (batch.images, batch.defects)
        return {
            "student": _hardest((student[:, :length] - taught).square(), self.config.hard_share),
            "penalty": _mean_where(self.student(self.normalise(spoilt))[:, :length].square(), where),
            "autoencoder": F.mse_loss(rebuilt, taught),
            "imitation": F.mse_loss(student[:, length:], rebuilt.detach()),
        }

    def _distances(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to squared differences [B,2,h,w]: from the teacher, and from the autoencoder."""
        length = self.config.features
        images = self.normalise(images)
        taught, student, rebuilt = self.teacher(images), self.student(images), self.autoencoder(images)
        differences = (taught - student[:, :length]).square(), (rebuilt - student[:, length:]).square()
        return torch.stack([difference.mean(1) for difference in differences], 1).clamp(min=_SMALLEST).sqrt()

    def _moments(self, images: Tensor) -> Tensor:
        """Count, sum and sum of squares of good images' maps, [3,2,h,w]."""
        maps = self._distances(images).cpu().double()
        return torch.stack([torch.full_like(maps[0], len(maps)), maps.sum(0), maps.square().sum(0)])

    def _finish(self, progress: Progress) -> None:
        del progress
        count, total, squares = torch.stack(self._seen).sum(0)
        self._seen.clear()
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        mean, deviation = (
            F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False) for values in (mean, deviation)
        )
        # A share of the usual spread keeps places that never varied from drowning out all others.
        usual = deviation.mean((1, 2), keepdim=True)
        self.centre.copy_(mean)
        self.spread.copy_((1 - _USUAL) * deviation + _USUAL * usual + _SMALLEST)


class _DistillationTarget(nn.Module):
    """What the teacher is to learn: whitened features of the backbone, the directions of most variance."""

    def __init__(self, backbone: Backbone, config: EfficientADConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.whitening = Whitening(sum(backbone.channels), config.features)
        self.views = config.views
        self.cells = config.image_size // _STRIDE
        self._memory = FeatureCache()

    def features(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to what the backbone makes of them, [B,C,h,w] on the teacher's grid."""
        features = stack_levels(self.backbone(images))
        if features.shape[-1] == self.cells:
            return features
        return F.interpolate(features, size=(self.cells, self.cells), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def forward(self, batch: Batch, *, varied: bool) -> tuple[Tensor, Tensor]:
        """Images and, where varied, one painted variation of each; with what the teacher is to say of them."""
        images, keys = batch.images, batch.keys
        wanted = self._recalled(images, keys)
        if not varied or not self.views:
            return images, wanted
        if keys is not None:
            keys = tuple(f"{key} view {int(torch.randint(self.views, ()))}" for key in keys)
        spoilt, _ = paint_anomaly(images, keys)
        return torch.cat([images, spoilt]), torch.cat([wanted, self._recalled(spoilt, keys)])

    def _recalled(self, images: Tensor, keys: Sequence[str] | None) -> Tensor:
        known: Sequence[str | None] = keys or [None] * len(images)
        return self._memory(known, lambda new: self._whitened(images[new])).to(images.device)

    def _whitened(self, images: Tensor) -> Tensor:
        whitened: Tensor = self.whitening(self.features(images))
        return whitened


class _Autoencoder(nn.Module):
    """The whole image through a few numbers, then to features: it can say what usually is where, and nothing else."""

    def __init__(self, channels: int, width: int, outputs: int, side: int) -> None:
        super().__init__()
        half = width // 2
        self.encode = nn.Sequential(
            nn.Conv2d(channels, half, 8, 4, 2), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.shape = (half, side, side)
        self.squeeze = nn.Linear(half * side**2, _LATENT)
        self.spread = nn.Linear(_LATENT, half * side**2)
        self.decode = nn.Sequential(*_doubling(half, half), *_doubling(half, half), nn.Conv2d(half, outputs, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        latent = self.squeeze(self.encode(images).flatten(1))
        features: Tensor = self.decode(self.spread(latent).unflatten(1, self.shape))
        return features


def _describer(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Images [B,C,H,W] to features [B,outputs,H/8,W/8], each of what lies within 52 pixels."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 8, 4, 2), nn.ReLU(),
        nn.Conv2d(half, width, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, outputs, 1),
    )  # fmt: skip


def _doubling(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(inputs, outputs, 3, 1, 1),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
    )


def _hardest(values: Tensor, share: float) -> Tensor:
    """The mean of the highest share of all values."""
    flat = values.flatten()
    return flat.topk(max(1, round(share * len(flat)))).values.mean()


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of values [B,D,h,w] weighted by the share of each cell that a mask [B,H,W] covers."""
    covered = F.interpolate(where.unsqueeze(1).float(), size=values.shape[-2:], mode="area")
    return (values.mean(1, keepdim=True) * covered).sum() / covered.sum().clamp(min=1)
