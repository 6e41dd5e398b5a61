"""Base of detectors that compare the patch features of a frozen backbone."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import Field, field_validator
from torch import Tensor, nn

from adctl.detectors.base import Detector, DetectorConfig, Prediction
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.feature_maps import local_average, stack_levels
from adctl.detectors.components.shared_feature_cache import backbone_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch


class BackboneConfig(DetectorConfig):
    """Settings of the backbone."""

    backbone: str = Field(DEFAULT, description="timm model that computes the features")
    layers: tuple[int, ...] | None = Field(
        None, description="Indices of the backbone's feature levels; chosen by the detector if left out"
    )
    border: Literal["zeros", "replicate"] | None = Field(
        None,
        description="Pixels beyond the border that a convolutional backbone sees: zeros, or the outermost ones "
        "(replicate), in about a quarter more time; by default zeros for square inputs, else replicate",
    )

    @property
    def replicate(self) -> bool:
        """Whether the backbone sees the outermost pixels repeated beyond the border."""
        return self.border == "replicate" or (self.border is None and self.sides[0] != self.sides[1])


class FeatureConfig(BackboneConfig):
    """Settings of the patch features."""

    neighbourhood: int = Field(1, ge=1, le=9, description="Side of the averaging window for features, odd")
    context: int = Field(
        1,
        ge=1,
        le=9,
        description="Side of a window, odd, whose average of the finest level is added to the features; 1 adds none",
    )
    cell: float | None = Field(
        None,
        gt=0,
        description="Side of a map cell, pixels of the network's input; that of the finest level if left out",
    )
    margin: Literal["grey", "masked"] = Field(
        "grey",
        description="Margins of resize=pad: grey, or left out of the model and of all scores (masked, which padim and "
        "patchcore are trained with)",
    )

    @field_validator("neighbourhood", "context")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class BackboneOutline(nn.Module):
    """Shape of a backbone's features, for a detector that gets `SharedImages`."""

    mean: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.channels, self.strides = backbone.channels, backbone.strides
        self.register_buffer("mean", backbone.mean.clone(), persistent=False)


class SharedImages(NamedTuple):
    """Images with the backbone's features, which several detectors read.

    Attributes:
        images: Tensor [B,C,H,W].
        levels: Feature maps [B,C,h,w] of the backbone's levels, finest first.
    """

    images: Tensor
    levels: list[Tensor]


Images: TypeAlias = Tensor | SharedImages
"""Images [B,C,H,W], or the same with their features."""


class FeatureDetector(Detector):
    """Detector with patch features: backbone levels, locally averaged, resized to the finest grid and concatenated.

    Args:
        config: The settings.
        backbone: Outline of the backbone of a detector whose images are always `SharedImages`; None creates a backbone.
    """

    strides: ClassVar[tuple[int, ...]] = (8, 16)
    """Strides of the levels read from a convolutional backbone, unless the settings give `layers`."""

    any_shape = True
    config: FeatureConfig

    def __init__(self, config: FeatureConfig, backbone: BackboneOutline | None = None) -> None:
        super().__init__(config)
        self.backbone = create_backbone(config, self.strides) if backbone is None else backbone

    @abstractmethod
    def forward(self, images: Images) -> Prediction:
        """Score images [B,C,H,W] or images with their features; see `Detector.forward`."""

    def held_out(self, images: Images, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the detector fitted on all others would; see `Detector.held_out`."""
        raise NotImplementedError

    @property
    def backbone_name(self) -> str:
        """Name of the frozen backbone in timm."""
        return self.config.backbone

    @property
    def channels(self) -> int:
        """C, the length of a patch feature."""
        return sum(self.backbone.channels) + (self.backbone.channels[0] if self.config.context > 1 else 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map, at most those of the finest level."""
        stride, cell = min(self.backbone.strides), self.config.cell
        height, width = self.config.sides
        if cell is None:
            return -(-height // stride), -(-width // stride)
        rows, columns = (min(side // stride, max(1, round(side / cell))) for side in (height, width))
        return rows, columns

    @property
    def places(self) -> int:
        """Number of cells of the map."""
        return self.grid[0] * self.grid[1]

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone."""
        assert isinstance(self.backbone, Backbone)
        self.backbone.load_pretrained(weights)

    def in_half_precision(self, kind: torch.dtype) -> Callable[[Tensor], Prediction]:
        """Return `forward` with the backbone in half precision; distances stay in single precision.

        Args:
            kind: float16 or bfloat16.
        """
        assert isinstance(self.backbone, Backbone)
        self.backbone.compute_in(kind)
        return self

    def patches(self, images: Images) -> Tensor:
        """Compute patch features [B,C,h,w] of images [B,3,H,W], or of grey images [B,1,H,W].

        The local average describes the neighbourhood of a place and tolerates small shifts (PatchCore, section 3.1).
        The context describes a wider region, so an anomaly of either size changes the feature.
        """
        levels = images.levels if isinstance(images, SharedImages) else self._levels(images)
        levels = [local_average(level, self.config.neighbourhood) for level in levels]
        if self.config.context > 1:
            levels.append(local_average(levels[0], self.config.context))
        return stack_levels(levels, None if self.config.cell is None else self.grid)

    def _levels(self, images: Tensor) -> list[Tensor]:
        assert isinstance(self.backbone, Backbone)
        return backbone_levels(self.backbone, images[:, : self.config.channels])

    def inside(self, images: Images) -> Tensor | None:
        """Return the mask [B,h,w] of the cells whose centre lies in the image; None if all do.

        If the mask plane of an input is empty, as in measurements of speed, all of its cells count.
        """
        if isinstance(images, SharedImages):
            images = images.images
        if images.shape[1] == self.config.channels:
            return None
        (height, width), (rows, columns) = self.config.sides, self.grid
        down = [int((row + 0.5) * height / rows) for row in range(rows)]
        across = [int((column + 0.5) * width / columns) for column in range(columns)]
        inside = images[:, -1][:, down][:, :, across] > 0.5  # noqa: PLR2004 - the plane is 0 or 1
        return inside | ~inside.flatten(1).any(1).view(-1, 1, 1)


def create_backbone(config: BackboneConfig, strides: tuple[int, ...]) -> Backbone:
    """Create the backbone of the settings, with the levels of these strides unless the settings give `layers`."""
    return Backbone(
        config.backbone,
        config.layers,
        config.image_size,
        strides=strides,
        channels=config.channels,
        replicate=config.replicate,
    )
