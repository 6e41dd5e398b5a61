"""The contract every detector keeps, and nothing about any one of them.

A detector turns images into raw scores and anomaly maps, higher is stranger. Thresholds never enter it,
nor do files, devices, data loading or progress bars.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from adctl.data.preprocess import InputSpec, Resize
from adctl.data.roi import decode_region
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adctl.engine.phases import Phase


_SMALLEST, _LARGEST = 1 / 16, 16.0
"""Scales."""


class DetectorConfig(BaseModel):
    """Explicit, validated, JSON-safe settings of a detector; stored whole in its model file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(256, ge=32, le=4096, description="Side of the square that images are resized to, pixels")
    channels: int = Field(
        3, ge=1, le=64, description="3 for colour, 1 for luminance alone, or all of images stored with other numbers"
    )
    resize: Resize = Field(
        "squash", description="To a square by each side for itself (squash), padding (pad) or a centre crop (crop)"
    )
    bit_depth: int = Field(16, ge=8, le=16, description="Bits in use of 16-bit files: 12 takes 4095 for white")
    tile: int | None = Field(
        None, ge=32, description="Cut images into squares of this side, pixels of the original; each becomes an input"
    )
    tile_overlap: float = Field(0.25, ge=0, le=0.75, description="Share of a tile that the next one repeats, at least")
    scales: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="Magnifications to look at images in, averaged; below 1 they need tiles"
    )
    roi: str | None = Field(None, description="Region of interest: x,y,width,height in pixels, or a mask")

    @field_validator("roi")
    @classmethod
    def _region_in_one_piece(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            decode_region(value)
            if info.data.get("tile") is not None or info.data.get("scales", (1.0,)) != (1.0,):
                raise ValueError("a region of interest is looked at in one piece, which tiles and scales contradict")
        return value

    @field_validator("tile")
    @classmethod
    def _whole_images_in_tiles(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("resize") == "crop":
            raise ValueError("tiles cover the whole image, which a centre crop contradicts")
        return value

    @field_validator("scales")
    @classmethod
    def _possible_scales(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if len(set(value)) < len(value) or not all(_SMALLEST <= scale <= _LARGEST for scale in value):
            raise ValueError(f"must be different numbers from {_SMALLEST:g} to {_LARGEST:g}")
        if min(value) < 1 and info.data.get("tile") is None:
            raise ValueError("below 1 need tiles: an image as a whole is looked at in one piece already")
        if value != (1.0,) and info.data.get("resize") == "crop":
            raise ValueError("scales cover the whole image, which a centre crop contradicts")
        return value


class Prediction(NamedTuple):
    """What a detector says of B images.

    Attributes:
        scores: Tensor [B] of float32.
        maps: Tensor [B,h,w] of float32, at the detector's native resolution.
    """

    scores: Tensor
    maps: Tensor


@dataclass(frozen=True)
class CostEstimate:
    """What fitting needs beyond the batches themselves, known before it starts.

    Attributes:
        memory: Bytes held at the peak.
        flops: Floating-point operations after the images have been seen (coreset, matrix inverses).
        disk: Bytes of temporary files, where memory does not suffice.
    """

    memory: int
    flops: float
    disk: int = 0


class Detector(nn.Module, ABC):
    """B images of H x W pixels to B scores and B maps of h x w cells; higher is stranger, uncalibrated.

    Subclasses register what fitting finds out as buffers named in `fitted`: empty at first, and given the
    stored shape when a model file is loaded.
    """

    Config: ClassVar[type[DetectorConfig]]
    fitted: ClassVar[tuple[str, ...]] = ()
    needs_validation: ClassVar[bool] = False

    recomputed: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Kinds of module whose activations gradient checkpointing computes again."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Settings of `adctl train`, by name, that suit it better than the general ones.

        Only those a user can leave open count: those of `training.fit_plan`.
        """
        del config
        return {}

    @property
    def input(self) -> InputSpec:
        """The images it takes, in [0, 1]; it normalises them itself."""
        return InputSpec.from_config(self.config.model_dump())

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """What the engine runs to fit it, in order; may be empty."""

    @abstractmethod
    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W] of float32 in [0, 1]. Pure and exportable."""

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take pretrained backbone weights; detectors without a backbone never get this call."""
        raise NotImplementedError

    @property
    def backbone_name(self) -> str | None:
        """The timm name of the frozen backbone whose pretrained weights fitting starts from, or None."""
        return None

    def forecast(self, images: int) -> CostEstimate:
        """What fitting on so many images will need, beyond the batches."""
        del images
        return CostEstimate(memory=0, flops=0.0)

    def check_fitted(self) -> None:
        """Refuse to go on with a detector whose statistics were never found.

        Raises:
            ModelFileError: Some fitted buffer is still empty.
        """
        for name in self.fitted:
            if not self.get_buffer(name).numel():
                raise ModelFileError(
                    f"This {type(self).__name__} is not fitted: its '{name}' is empty.",
                    "Train it with 'adctl train' first.",
                )

    def check_exportable(self) -> None:
        """Refuse settings that no exported graph can hold.

        Raises:
            UsageError: Says which, and what to train with instead.
        """

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take all weights and fitted statistics from a model file.

        Raises:
            ModelFileError: The tensors are not this detector's.
        """
        for name in self.fitted:
            if name in tensors:
                self.register_buffer(name, torch.empty_like(tensors[name]))
        try:
            self.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            raise ModelFileError(
                f"The model file does not fit its own settings: {error}",
                "The file is damaged or was edited: train again, or take an intact copy.",
            ) from error
        self.check_fitted()

    def _fit_buffer(self, name: str, value: Tensor) -> None:
        """Set a fitted buffer to what fitting found."""
        assert name in self.fitted, name
        # Found without gradients, but later phases may load other values into it.
        with torch.inference_mode(mode=False):
            self.register_buffer(name, value.contiguous().clone() if value.is_inference() else value.contiguous())

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Prediction:
            """Score images; see `forward`."""
            ...
