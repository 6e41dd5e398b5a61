"""Settings of a classifier: validated, JSON-safe, stored completely in the model file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from adctl.detectors.base import DetectorConfig
from adctl.detectors.components.backbones import DEFAULT

HeadName = Literal["linear", "logistic", "svm", "knn", "forest", "gradient_boosting"]
LossName = Literal["cross_entropy", "focal"]


class ClassifierConfig(DetectorConfig):
    """Settings of a classifier: those of the network's input, the features, the head and the decision."""

    backbone: str = Field(DEFAULT, description="timm model that computes the features")
    layers: tuple[int, ...] | None = Field(
        None, description="Indices of the backbone's feature levels; those of strides 16 and 32 if left out"
    )
    border: Literal["zeros", "replicate"] | None = Field(
        None, description="Pixels beyond the border that a convolutional backbone sees; as for detectors"
    )
    pool: Literal["mean", "mean+max"] = Field("mean+max", description="Pooling of each level over the image")
    head: HeadName = Field("logistic", description="Classifier of the features")
    regularisation: float = Field(0.01, gt=0, description="Inverse strength C of linear, logistic and svm")
    neighbours: int = Field(5, ge=1, description="Neighbours of knn")
    trees: int = Field(200, ge=1, le=5000, description="Trees of forest, or of gradient_boosting for each kind")
    depth: int = Field(3, ge=1, le=32, description="Depth of the trees of gradient_boosting")
    beta: float = Field(0.999, ge=0, lt=1, description="Parameter of the effective number of images (class-balanced)")
    logit_adjustment: float = Field(
        0.0, ge=0, le=10, description="Factor of the logarithm of each kind's share that training adds to the logits"
    )
    fine_tune: Literal["none", "last", "all"] = Field(
        "none", description="Parts of the backbone that are trained: none, its last stage, or all"
    )
    backbone_rate: float = Field(0.1, gt=0, le=1, description="Learning rate of the backbone, relative to the head's")
    rate_decay: float = Field(
        0.8, gt=0, le=1, description="Factor of the learning rate from each stage of the backbone to the one before it"
    )
    attention: Literal["none", "se", "eca", "cbam"] = Field(
        "none", description="Attention block behind each level, for a tuned backbone"
    )
    monitor: Literal["loss", "balanced_accuracy", "macro_f1"] = Field(
        "loss", description="Number on the validation images that chooses the epoch of a tuned backbone"
    )
    known_share: float = Field(0.95, gt=0.5, lt=1, description="Share of known kinds that are not called unknown")
    leave_out: tuple[str, ...] = Field(
        (), description="Kinds that are left out of training, to measure how often they are called unknown"
    )
    seed: int = Field(0, ge=0, description="Seed of forests, of gradient boosting and of the split")

    @property
    def replicate(self) -> bool:
        """Whether the backbone sees the outermost pixels repeated beyond the border."""
        return self.border == "replicate" or (self.border is None and self.sides[0] != self.sides[1])

    @field_validator("tile")
    @classmethod
    def _whole_images(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("a classifier takes whole images, no tiles")
        return value

    @field_validator("scales")
    @classmethod
    def _one_scale(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value != (1.0,):
            raise ValueError("a classifier takes images at one scale")
        return value

    @field_validator("attention")
    @classmethod
    def _only_tuned(cls, value: str, info: object) -> str:
        if value != "none" and getattr(info, "data", {}).get("fine_tune") == "none":
            raise ValueError("attention blocks are trained with the backbone: add --set fine_tune=last")
        return value
