"""Base of detectors that reconstruct the image: trained on good images, they reconstruct anomalies badly.

Reconstruction error as anomaly map: Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders", 2019.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from adctl.detectors.base import Detector, DetectorConfig, Prediction, Search
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.feature_statistics import Accumulator, VarianceSums
from adctl.detectors.components.losses import TERMS, Objective, parse_spec
from adctl.detectors.components.normalisation import CENTRED, Choice, Normalisation, check_statistics
from adctl.detectors.components.reconstruction_error import (
    SPACES,
    STRIDES,
    ErrorMap,
    NormalErrorStats,
    normal_error_stats,
    parse_weights,
)
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase, Progress


_STATISTICS = ("usual_level", "usual_spread")


class ReconstructionConfig(DetectorConfig):
    """Settings of the map and the score of a reconstruction."""

    search_ranges: ClassVar[Mapping[str, Search]] = {
        "score_share": Search(0.001, 0.1, log=True),
    }

    error: str = Field("l2=0.15,features=0.85", description=f"Error spaces with weights, from {', '.join(SPACES)}")
    relative: bool = Field(
        True,
        description="Standardise the logarithm of the error by its mean and deviation around the place in good images",
    )
    around: float = Field(
        0.25, gt=0, le=1, description="Sigma of that neighbourhood, fraction of the side; large, as images are few"
    )
    blur: tuple[float, ...] = Field((2.0,), min_length=1, description="Sigmas of the smoothing, pixels; averaged")
    score_share: float = Field(0.01, gt=0, le=1, description="Fraction of the highest pixels whose mean is the score")
    backbone: str = Field(DEFAULT, description="timm model for errors and losses in feature space")

    @field_validator("error")
    @classmethod
    def _known_spaces(cls, value: str) -> str:
        parse_weights(value, SPACES)
        return value

    @field_validator("blur")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) < 0:
            raise ValueError("must not be negative")
        return value


class ReconstructionDetector(Detector):
    """Detector that compares an image with its reconstruction; maps have the resolution of the input.

    Attributes:
        usual_level: Tensor [S,H,W] for S error spaces, `level` of `NormalErrorStats`; not used if `relative` is False.
        usual_spread: Tensor [S,H,W], `spread` of `NormalErrorStats`.
    """

    needs_validation = True
    any_shape = True
    warm_start = True
    config: ReconstructionConfig
    usual_level: Tensor
    usual_spread: Tensor

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__(config)
        weights = parse_weights(config.error, SPACES)
        compared = (
            Backbone(config.backbone, None, config.sides, STRIDES, config.channels) if "features" in weights else None
        )
        self.error = ErrorMap(weights, config.blur, compared)
        self._set_statistics(NormalErrorStats(torch.zeros(len(weights), 1, 1), torch.ones(len(weights), 1, 1)))

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,C,H,W] in [0, 1], with the same shape and range."""

    def errors(self, images: Tensor) -> Tensor:
        """Return the reconstruction errors [B,S,H,W] of images [B,C,H,W] in each space."""
        measured: Tensor = self.error(images, self.reconstruct(images))
        return measured

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps are [B,H,W]."""
        statistics = NormalErrorStats(self.usual_level, self.usual_spread) if self.config.relative else None
        maps = self.error.combine(self.errors(images), statistics)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def error_statistics_phase(self) -> tuple[Observe, ...]:
        """Return the last phase, if maps are relative: statistics of the errors on held-out good images."""
        if not self.config.relative:
            return ()
        sums: Accumulator[VarianceSums] = Accumulator()

        def finish(progress: Progress) -> None:
            del progress
            self._set_statistics(normal_error_stats(sums.take(), self.config.around))

        return (
            Observe(
                lambda images: VarianceSums.of(self.error.logarithms(self.errors(images))),
                sums.add,
                finish,
                "usual errors",
                held_out=True,
            ),
        )

    def _set_statistics(self, statistics: NormalErrorStats) -> None:
        device = next(self.buffers()).device
        with torch.inference_mode(mode=False):  # inference tensors could not be loaded into
            for name, tensor in zip(_STATISTICS, statistics, strict=True):
                self.register_buffer(name, tensor.to(device).clone())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all weights and the statistics of normal errors.

        Raises:
            ModelFileError: The tensors do not fit the detector.
        """
        if all(name in tensors for name in _STATISTICS):
            empty = (torch.empty(tensors[name].shape) for name in _STATISTICS)
            self._set_statistics(NormalErrorStats(*empty))
        super().load_state(tensors)

    def check_state(self) -> None:
        """Check the shapes of the statistics of normal errors, and that the deviations are positive.

        Raises:
            ModelFileError: The shapes contradict the settings, or a deviation is not positive.
        """
        unfitted = self.usual_level.shape[1:] == (1, 1)
        shape = (len(self.error.weights), *((1, 1) if unfitted else (self.input.height, self.input.width)))
        self._require_state("usual_level", *shape)
        self._require_state("usual_spread", *shape, positive=True)

    @property
    def backbone_name(self) -> str | None:
        """Name of the frozen backbone if errors are measured in its features, else None."""
        return self.config.backbone if self.error.backbone is not None else None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone."""
        if self.error.backbone is not None:
            self.error.backbone.load_pretrained(weights)


class AutoencoderConfig(ReconstructionConfig):
    """Settings of an autoencoder's training."""

    loss: str = Field(
        "mse=0.5,ssim=0.5,perceptual=1",
        description=f"Loss terms with weights, from {', '.join(TERMS)}; 0:0.1@20 raises a weight over 20 epochs",
    )
    loss_weighting: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="Fixed weights, or weights that are also trained (uncertainty)"
    )
    normalisation: Choice = Field(
        CENTRED, description="Normalisation of the input: none, imagenet, dataset or [[means], [standard deviations]]"
    )

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: str) -> str:
        parse_spec(value)
        return value

    @field_validator("normalisation")
    @classmethod
    def _possible_statistics(cls, value: Choice, info: ValidationInfo) -> Choice:
        return check_statistics(value, info.data.get("channels", 3))


class Autoencoder(ReconstructionDetector):
    """Encoder and decoder, trained on good images by a weighted sum of losses.

    Attributes:
        normalise: Normalisation that subclasses apply to the input of their network; reconstructions are in [0, 1].
    """

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.normalise = Normalisation(config.normalisation, config.channels)
        self._pretrained: Mapping[str, Tensor] | None = None

    def phases(self) -> Sequence[Phase]:
        """Return the phases: normalisation if it is fitted, the reconstruction, statistics of normal errors."""
        objective = self._objective()

        def loss(batch: Batch) -> LossTerms:
            return self.loss(batch, objective)

        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return (
            *self.normalise.phases(),
            Optimize(
                loss,
                [*trained, *objective.trained()],
                "reconstruction",
                objective=objective,
                critic=objective.critic(),
                start_epoch=objective.start_epoch,
                preview=self.reconstruct,
            ),
            *self.error_statistics_phase(),
        )

    def loss(self, batch: Batch, objective: Objective) -> LossTerms:
        """Return the weighted loss terms of a batch."""
        terms: LossTerms = objective(self.reconstruct(batch.images), batch.clean)
        return terms

    @property
    def backbone_name(self) -> str | None:
        """Name of the frozen backbone if errors or losses are measured in its features, else None."""
        perceptual = any(term.needs_backbone for term in parse_spec(self.config.loss))
        return self.config.backbone if perceptual else super().backbone_name

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone, for errors and for losses."""
        super().load_pretrained(weights)
        self._pretrained = weights

    def _objective(self) -> Objective:
        """Return the losses; they own the backbone that they need, so it is not in the model file."""
        terms = parse_spec(self.config.loss)
        backbone = None
        if any(term.needs_backbone for term in terms):
            backbone = Backbone(self.config.backbone, None, self.config.sides, channels=self.config.channels)
            if self._pretrained is not None:
                backbone.load_pretrained(self._pretrained)
        device = next(self.parameters()).device
        return Objective(
            terms, weighting=self.config.loss_weighting, backbone=backbone, channels=self.config.channels
        ).to(device)
