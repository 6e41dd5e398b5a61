"""What detectors that rebuild the image share: they saw only good parts, and what they cannot rebuild is strange.

Reconstruction error as anomaly: Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying
Structural Similarity to Autoencoders", 2019.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from adctl.detectors.base import Detector, DetectorConfig, Prediction
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.losses import TERMS, Objective, parse_spec
from adctl.detectors.components.normalisation import CENTRED, Choice, Normalisation, check_statistics
from adctl.detectors.components.reconstruction_error import (
    SPACES,
    STRIDES,
    ErrorMap,
    ErrorSums,
    NormalErrorStats,
    normal_error_stats,
    parse_weights,
)
from adctl.engine.phases import Batch, LossTerms, Observe, Optimize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.engine.phases import Phase, Progress


_USUAL = ("usual_level", "usual_spread")


class ReconstructionConfig(DetectorConfig):
    """How a reconstruction becomes a map and a score."""

    error: str = Field("l2=0.15,features=0.85", description=f"Spaces of the map and weights, of {', '.join(SPACES)}")
    relative: bool = Field(
        True,
        description="Hold the logarithm of errors against those of good images around the place, in their spread",
    )
    around: float = Field(
        0.25, gt=0, le=1, description="How far around the place, share of the side; wide, as few images are held out"
    )
    blur: tuple[float, ...] = Field((2.0,), min_length=1, description="Smoothing of the map, sigmas in pixels")
    score_share: float = Field(0.01, gt=0, le=1, description="Share of the strangest pixels whose mean is the score")
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
    """Compares an image with its reconstruction; native resolution of the maps is the input's.

    Attributes:
        usual_level: Tensor [S,H,W] of S error spaces, see `NormalErrorStats`; unused if errors are absolute.
        usual_spread: Tensor [S,H,W], in the same form.
    """

    needs_validation = True
    config: ReconstructionConfig
    usual_level: Tensor
    usual_spread: Tensor

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__(config)
        weights = parse_weights(config.error, SPACES)
        compared = (
            Backbone(config.backbone, None, config.image_size, STRIDES, config.channels)
            if "features" in weights
            else None
        )
        self.error = ErrorMap(weights, config.blur, compared)
        self._keep(NormalErrorStats(torch.zeros(len(weights), 1, 1), torch.ones(len(weights), 1, 1)))
        self._seen: ErrorSums | None = None

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0, 1] to what the model makes of them, same shape and range."""

    def errors(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to errors [B,S,H,W] of their reconstructions in each space."""
        measured: Tensor = self.error(images, self.reconstruct(images))
        return measured

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; maps [B,H,W]."""
        usually = NormalErrorStats(self.usual_level, self.usual_spread) if self.config.relative else None
        maps = self.error.join(self.errors(images), usually)
        return Prediction(top_mean(maps, self.config.score_share), maps)

    def error_statistics_phase(self) -> tuple[Observe, ...]:
        """The last phase, where maps are relative: the usual errors of good images that were not learned from."""
        if not self.config.relative:
            return ()
        return (Observe(self._sums, self._absorb, self._finish, "usual errors", held_out=True),)

    def _sums(self, images: Tensor) -> ErrorSums:
        return ErrorSums.of(self.error.logarithms(self.errors(images)))

    def _absorb(self, sums: ErrorSums) -> None:
        self._seen = sums if self._seen is None else self._seen.and_of(sums)

    def _finish(self, progress: Progress) -> None:
        del progress
        seen, self._seen = self._seen, None
        assert seen is not None
        self._keep(normal_error_stats(seen, self.config.around))

    def _keep(self, found: NormalErrorStats) -> None:
        device = next(self.buffers()).device
        with torch.inference_mode(mode=False):  # what is made within it could not be loaded into again
            for name, tensor in zip(_USUAL, found, strict=True):
                self.register_buffer(name, tensor.to(device).clone())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take all weights, and the usual errors in the shape they were found in.

        Raises:
            ModelFileError: The tensors are not this detector's.
        """
        if all(name in tensors for name in _USUAL):
            self._keep(NormalErrorStats(*(torch.empty_like(tensors[name]) for name in _USUAL)))
        super().load_state(tensors)

    @property
    def backbone_name(self) -> str | None:
        """The frozen backbone, where errors are measured in its features."""
        return self.config.backbone if self.error.backbone is not None else None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the backbone's pretrained weights."""
        if self.error.backbone is not None:
            self.error.backbone.load_pretrained(weights)


class AutoencoderConfig(ReconstructionConfig):
    """What an autoencoder learns by."""

    loss: str = Field(
        "mse=0.5,ssim=0.5,perceptual=1",
        description=f"Loss terms and weights, of {', '.join(TERMS)}; '0:0.1@20' grows over epochs",
    )
    loss_weighting: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="Weights as given, or also learned (uncertainty)"
    )
    normalisation: Choice = Field(
        CENTRED, description="Of what the network sees: none, imagenet, dataset, or [[means], [standard deviations]]"
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
    """An encoder and a decoder trained on good images by a weighted sum of losses.

    Attributes:
        normalise: What subclasses put images through before their network; reconstructions are in [0, 1].
    """

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.normalise = Normalisation(config.normalisation, config.channels)
        self._pretrained: Mapping[str, Tensor] | None = None

    def phases(self) -> Sequence[Phase]:
        """Epochs of gradient steps on the reconstruction; before them the data set's statistics, where wanted."""
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
        """Loss terms of a batch, weighted."""
        terms: LossTerms = objective(self.reconstruct(batch.images), batch.clean)
        return terms

    @property
    def backbone_name(self) -> str | None:
        """The frozen backbone, where errors or losses are measured in its features."""
        perceptual = any(term.needs_backbone for term in parse_spec(self.config.loss))
        return self.config.backbone if perceptual else super().backbone_name

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the backbone's pretrained weights, for errors and for losses."""
        super().load_pretrained(weights)
        self._pretrained = weights

    def _objective(self) -> Objective:
        """The losses; a frozen network they need is theirs, so that it stays out of the model file."""
        terms = parse_spec(self.config.loss)
        backbone = None
        if any(term.needs_backbone for term in terms):
            backbone = Backbone(self.config.backbone, None, self.config.image_size, channels=self.config.channels)
            if self._pretrained is not None:
                backbone.load_pretrained(self._pretrained)
        device = next(self.parameters()).device
        return Objective(
            terms, weighting=self.config.loss_weighting, backbone=backbone, channels=self.config.channels
        ).to(device)
