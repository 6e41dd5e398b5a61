"""EfficientAD: small student-teacher networks plus an autoencoder; the fastest detector.

Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024. The student
learns to predict the teacher's features on good images, so its error is large at anomalies. The autoencoder detects
anomalies in the arrangement of parts.

Three choices differ from the paper, which needs downloaded weights and ImageNet images. The teacher is distilled from
the packaged backbone on the user's good images and on copies with synthetic defects. The penalty that keeps the student
from imitating the teacher everywhere is computed under synthetic defects. All three networks start with a stride of 4
and are narrower, because on a CPU the networks of the paper would take longer than the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.base import Detector, DetectorConfig, Prediction, Search
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.config_checks import require_multiple
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.components.feature_maps import resize_grid, stack_levels
from adctl.detectors.components.feature_statistics import Accumulator, VarianceSums, smoothed
from adctl.detectors.components.normalisation import Normalisation
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.components.whitening import Whitening, whitening_phase
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase, Progress

_SMALLEST = 1e-8
_STRIDE = 8
_DEEPEST = 32
_LATENT = 64
_DROPOUT = 0.2


class EfficientADConfig(DetectorConfig):
    """Settings of student, teacher and autoencoder."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "width": Search(32, 96, whole=True, step=16),
        "hard_share": Search(0.003, 0.1, log=True),
        "score_share": Search(0.001, 0.1, log=True),
    }

    backbone: str = Field(DEFAULT, description="timm model from which the teacher is distilled; not used for scoring")
    width: int = Field(64, ge=8, multiple_of=2, description="Channels of the three networks")
    features: int = Field(64, ge=2, description="Length of the teacher's features")
    views: int = Field(3, ge=0, description="Copies of each image with synthetic defects for training the teacher")
    hard_share: float = Field(0.01, gt=0, le=1, description="Fraction of the largest errors used in the student's loss")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("EfficientADConfig", self.image_size, _DEEPEST, "the stride of the autoencoder")
        return self


class EfficientAD(Detector):
    """Student, teacher and autoencoder of a few convolutions each; the cells of the maps have 8 pixels a side.

    The paper scales each of the two maps by quantiles over all good cells. Here each place has its own scale, because
    the student's error is larger at places where good parts vary.

    Attributes:
        centre: Tensor [2,h,w], the mean of the student's map and of the autoencoder's map around each place.
        spread: Tensor [2,h,w], their standard deviation around each place.
    """

    Config = EfficientADConfig
    needs_validation = True
    any_shape = True
    config: EfficientADConfig
    centre: Tensor
    spread: Tensor

    def __init__(self, config: EfficientADConfig) -> None:
        super().__init__(config)
        length, channels = config.features, config.channels
        self.normalise = Normalisation("imagenet", channels)
        self.teacher = _feature_network(channels, config.width, length)
        self.student = _feature_network(channels, config.width, 2 * length)
        self.autoencoder = _Autoencoder(channels, config.width, length, _grid(config, _DEEPEST))
        self.register_buffer("centre", torch.zeros(2, *_grid(config, _STRIDE)))
        self.register_buffer("spread", torch.ones(2, *_grid(config, _STRIDE)))
        self._pretrained: Mapping[str, Tensor] | None = None

    def phases(self) -> Sequence[Phase]:
        """Return the phases: statistics of the backbone, teacher, student with autoencoder, and scales of the maps."""
        target = self._distillation_target()
        students = [*self.student.parameters(), *self.autoencoder.parameters()]
        sums: Accumulator[VarianceSums] = Accumulator()
        return (
            whitening_phase([target.whitening], lambda images: [target.features(images)]),
            Optimize(lambda batch: self._distil(batch, target), self.teacher.parameters(), "teacher", target),
            Optimize(self._imitate, students, "student"),
            Observe(
                lambda images: VarianceSums.of(self._distances(images)),
                sums.add,
                lambda progress: self._fit_scales(sums.take(), progress),
                "scales of good maps",
            ),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps are [B,H/8,W/8]."""
        maps = ((self._distances(images) - self.centre) / self.spread).mean(1)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def check_state(self) -> None:
        """Check that the standard deviations of good maps are positive.

        Raises:
            ModelFileError: One is not.
        """
        self._require_state("spread", *self.spread.shape, positive=True)

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return small batches: networks trained from scratch need many steps, and these networks are small."""
        del config
        return {"epochs": 40, "learning_rate": 2e-3, "batch_size": 4}

    @property
    def backbone_name(self) -> str:
        """Name in timm of the backbone from which the teacher is distilled."""
        return self.config.backbone

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Keep the pretrained weights of the backbone for the training of the teacher."""
        self._pretrained = weights

    def _distillation_target(self) -> _DistillationTarget:
        """Return the target of the teacher; it exists during training only, so it is not in the model file."""
        backbone = Backbone(self.config.backbone, None, self.config.sides, channels=self.config.channels)
        if self._pretrained is not None:
            backbone.load_pretrained(self._pretrained)
        return _DistillationTarget(backbone, self.config).to(self.normalise.mean.device)

    def _distil(self, batch: Batch, target: _DistillationTarget) -> LossTerms:
        """Return the mean squared error of the teacher, on each image and on one copy with a synthetic defect."""
        images, features = target(batch, with_defects=self.training)
        return {"distillation": F.mse_loss(self.teacher(self.normalise(images)), features)}

    def _imitate(self, batch: Batch) -> LossTerms:
        """Return the losses of section 3.2 (student and penalty) and section 3.3 (autoencoder and its imitation)."""
        length = self.config.features
        images = self.normalise(batch.clean)
        with torch.no_grad():
            teacher = self.teacher(images)
        student, rebuilt = self.student(images), self.autoencoder(images)
        defective, masks = paint_anomaly(batch.clean) if batch.defects is None else (batch.images, batch.defects)
        return {
            "student": _hard_mean((student[:, :length] - teacher).square(), self.config.hard_share),
            "penalty": _masked_mean(self.student(self.normalise(defective))[:, :length].square(), masks),
            "autoencoder": F.mse_loss(rebuilt, teacher),
            "imitation": F.mse_loss(student[:, length:], rebuilt.detach()),
        }

    def _distances(self, images: Tensor) -> Tensor:
        """Return the distances [B,2,h,w] of the student from the teacher and from the autoencoder."""
        length = self.config.features
        images = self.normalise(images)
        teacher, student, rebuilt = self.teacher(images), self.student(images), self.autoencoder(images)
        squares = (teacher - student[:, :length]).square(), (rebuilt - student[:, length:]).square()
        return torch.stack([square.mean(1) for square in squares], 1).clamp(min=_SMALLEST).sqrt()

    def _fit_scales(self, sums: VarianceSums, progress: Progress) -> None:
        del progress
        mean, variance = sums.mean_and_variance()
        centre, spread = smoothed(mean, variance.sqrt(), _SMALLEST)
        self.centre.copy_(centre)
        self.spread.copy_(spread)


class _DistillationTarget(nn.Module):
    """Target of the teacher: whitened features of the backbone, in the directions with the largest variance."""

    def __init__(self, backbone: Backbone, config: EfficientADConfig) -> None:
        super().__init__()
        self.backbone = backbone
        if config.features > (channels := sum(backbone.channels)):
            raise UsageError(
                f"The setting --set features of efficientad is not valid: the backbone '{config.backbone}' has only "
                f"{channels} features. Got {config.features} instead.",
                f"Give at most {channels}.",
            )
        self.whitening = Whitening(channels, config.features)
        self.views = config.views
        self.grid = _grid(config, _STRIDE)
        self._cache = FeatureCache()

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features [B,C,h,w] of images [B,C,H,W], on the grid of the teacher."""
        return resize_grid(stack_levels(self.backbone(images)), self.grid)

    @torch.no_grad()
    def forward(self, batch: Batch, *, with_defects: bool) -> tuple[Tensor, Tensor]:
        """Return images and their target features, optionally with a copy of each image with a synthetic defect."""
        images, keys = batch.images, batch.keys
        features = self._cached(images, keys)
        if not with_defects or not self.views:
            return images, features
        if keys is not None:
            keys = tuple(f"{key} view {int(torch.randint(self.views, ()))}" for key in keys)
        defective, _ = paint_anomaly(images, keys)
        return torch.cat([images, defective]), torch.cat([features, self._cached(defective, keys)])

    def _cached(self, images: Tensor, keys: Sequence[str] | None) -> Tensor:
        known: Sequence[str | None] = keys or [None] * len(images)
        return self._cache(known, lambda new: self._whitened(images[new])).to(images.device)

    def _whitened(self, images: Tensor) -> Tensor:
        whitened: Tensor = self.whitening(self.features(images))
        return whitened


class _Autoencoder(nn.Module):
    """Autoencoder from the image through a short latent vector to features, which learns typical arrangements only."""

    def __init__(self, channels: int, width: int, outputs: int, grid: tuple[int, int]) -> None:
        super().__init__()
        half = width // 2
        self.encode = nn.Sequential(
            nn.Conv2d(channels, half, 8, 4, 2), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(half, half, 4, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.shape = (half, *grid)
        self.squeeze = nn.Linear(math.prod(self.shape), _LATENT)
        self.spread = nn.Linear(_LATENT, math.prod(self.shape))
        self.decode = nn.Sequential(*_upsample(half, half), *_upsample(half, half), nn.Conv2d(half, outputs, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        latent = self.squeeze(self.encode(images).flatten(1))
        features: Tensor = self.decode(self.spread(latent).unflatten(1, self.shape))
        return features


def _grid(config: EfficientADConfig, stride: int) -> tuple[int, int]:
    """Return the rows and columns of cells that are as wide as a stride."""
    return config.sides[0] // stride, config.sides[1] // stride


def _feature_network(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Return a network from images [B,C,H,W] to features [B,outputs,H/8,W/8] with a receptive field of 52 pixels."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 8, 4, 2), nn.ReLU(),
        nn.Conv2d(half, width, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, outputs, 1),
    )  # fmt: skip


def _upsample(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(inputs, outputs, 3, 1, 1),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
    )


def _hard_mean(values: Tensor, share: float) -> Tensor:
    """Return the mean of the highest values, a fraction `share` of all values."""
    flat = values.flatten()
    return flat.topk(max(1, round(share * len(flat)))).values.mean()


def _masked_mean(values: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of values [B,D,h,w], weighted by the fraction of each cell that the masks [B,H,W] cover."""
    covered = F.interpolate(masks.unsqueeze(1).float(), size=values.shape[-2:], mode="area")
    return (values.mean(1, keepdim=True) * covered).sum() / covered.sum().clamp(min=1)
