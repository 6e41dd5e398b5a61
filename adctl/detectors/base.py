"""Base class of all detectors, with their settings and predictions.

A detector computes raw scores and anomaly maps of images, higher for more anomalous images. It does not know
thresholds, files, devices, data loading or progress bars.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from adctl.data.preprocess import InputSpec, Resize
from adctl.data.roi import decode_region
from adctl.detectors.components import backbones
from adctl.errors import ModelFileError, UsageError
from adctl.image_sizes import ImageSize, both_sides, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.detectors.components.known_defects import KnownDefects
    from adctl.engine.phases import Phase


_SMALLEST_SCALE, _LARGEST_SCALE = 1 / 16, 16.0

DAMAGED = "The file is damaged or was edited: train again, or take an intact copy."


@dataclass(frozen=True)
class Search:
    """Range in which tuning searches a setting.

    Attributes:
        low: Lower end; None for choices.
        high: Upper end; None for choices.
        log: Whether it is searched on a logarithmic scale.
        whole: Whether values are whole numbers.
        step: Step of whole numbers.
        choices: Values, for a setting that is not a number.
        when: Name and value of another setting that must hold; None for a setting that always matters.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    step: int | None = None
    choices: tuple[Any, ...] = ()
    when: tuple[str, Any] | None = None


class DetectorConfig(BaseModel):
    """Settings of a detector: validated, JSON-safe, stored completely in the model file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search_ranges: ClassVar[Mapping[str, Search]] = {}
    """Ranges in which `adctl tune` searches settings, by name."""

    image_size: ImageSize = Field(
        256, description="Size of the network's input, pixels: the side of a square, or height and width"
    )
    channels: int = Field(
        3, ge=1, le=64, description="Image channels: 3 for colour, 1 for grey, others for multichannel files"
    )
    resize: Resize = Field(
        "squash",
        description="How images are fitted into it: without keeping the aspect ratio (squash), by padding (pad) or by "
        "a centre crop (crop)",
    )
    bit_depth: int = Field(16, ge=8, le=16, description="Used bits of 16-bit files; with 12, 4095 is white")
    tile: int | None = Field(
        None, ge=32, description="Side of square tiles, pixels of the original image; each tile becomes an input"
    )
    tile_overlap: float = Field(0.25, ge=0, le=0.75, description="Minimum overlap of neighbouring tiles, fraction")
    scales: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="Magnifications whose results are averaged; those below 1 need tiles"
    )
    roi: str | None = Field(None, description="Region of interest: x,y,width,height in pixels, or a mask")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        return both_sides(self.image_size)

    @field_validator("roi")
    @classmethod
    def _region_in_one_piece(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            decode_region(value)
            if info.data.get("tile") is not None or info.data.get("scales", (1.0,)) != (1.0,):
                raise ValueError("a region of interest cannot be combined with tiles or scales")
        return value

    @field_validator("tile")
    @classmethod
    def _whole_images_in_tiles(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("resize") == "crop":
            raise ValueError("tiles cannot be combined with a centre crop")
        return value

    @field_validator("scales")
    @classmethod
    def _possible_scales(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if len(set(value)) < len(value) or not all(_SMALLEST_SCALE <= scale <= _LARGEST_SCALE for scale in value):
            raise ValueError(f"must be different numbers from {_SMALLEST_SCALE:g} to {_LARGEST_SCALE:g}")
        if min(value) < 1 and info.data.get("tile") is None:
            raise ValueError("below 1 need tiles")
        if value != (1.0,) and info.data.get("resize") == "crop":
            raise ValueError("scales cannot be combined with a centre crop")
        return value


class Prediction(NamedTuple):
    """Scores and anomaly maps of B images.

    Attributes:
        scores: Tensor [B] of float32.
        maps: Tensor [B,h,w] of float32, in the native resolution of the detector.
    """

    scores: Tensor
    maps: Tensor


@dataclass(frozen=True)
class CostEstimate:
    """Estimated cost of fitting, besides the cost of computing batches.

    Attributes:
        memory: Peak of memory, bytes.
        flops: Floating-point operations after the last batch, for coreset selection or matrix inverses.
        disk: Bytes of temporary files, used if memory is too small.
        per_image: Floating-point operations of scoring an image that grow with the number of training images.
    """

    memory: int
    flops: float
    disk: int = 0
    per_image: float = 0.0


class Detector(nn.Module, ABC):
    """Base class of detectors: from images to uncalibrated scores and maps, higher for more anomalous images.

    Subclasses register the statistics that fitting computes as buffers and name them in `fitted`. These buffers are
    empty at first, of the type that fitting gives, and get the stored shape when a model file is loaded.
    """

    Config: ClassVar[type[DetectorConfig]]
    """Class of the settings."""

    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that fitting fills."""

    needs_validation: ClassVar[bool] = False
    """Whether held-out images choose the best epoch."""

    recomputed: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Types of modules whose activations gradient checkpointing recomputes."""

    any_shape: ClassVar[bool] = False
    """Whether the input may have a height that differs from its width."""

    fewest_images: ClassVar[int] = 2
    """Smallest number of different good images, where all are learned from and each is scored without it for the
    threshold."""

    largest_auto_side: ClassVar[int | None] = None
    """Largest side of the square whose area an automatically chosen input may have, where images are large; None keeps
    the side of the settings."""

    warm_start: ClassVar[bool] = False
    """Whether training on more images may start from the weights of a trained detector."""

    takes_base: ClassVar[bool] = False
    """Whether it reads a base model that `--weights FOLDER` names."""

    takes_labels: ClassVar[bool] = False
    """Whether it learns from the labelled defects of `--auxiliary`."""

    takes_defects: ClassVar[bool] = False
    """Whether it learns from the known defects of `--defects`, which `known_defects` then holds."""

    known_defects: KnownDefects | None = None
    """Known defects to learn from in the next fit; None for none."""

    scores_untrained: ClassVar[bool] = False
    """Whether it can score without gradient training, after `--epochs 0`."""

    update_lowers_scores: ClassVar[bool] = False
    """Whether `update_phases` raises no score, apart from rounding: earlier scores are then upper bounds."""

    def __init__(self, config: DetectorConfig) -> None:
        height, width = config.sides
        if height != width and not self.any_shape:
            raise UsageError(
                f"This detector takes square images only, not {size_text(config.image_size)}.",
                f"Give one number, such as --image-size {min(height, width)}.",
            )
        super().__init__()
        self.config = config

    @classmethod
    def completed(
        cls, config: DetectorConfig, *, weights: str | None, epochs: int | None, labelled: bool
    ) -> DetectorConfig:
        """Return the settings with values that flags of a training decide.

        Args:
            config: The settings.
            weights: Value of `--weights`.
            epochs: Value of `--epochs`.
            labelled: Whether labelled defects were given with `--auxiliary`.
        """
        del weights, epochs, labelled
        return config

    @classmethod
    def training_defaults(cls, config: DetectorConfig) -> dict[str, Any]:
        """Return defaults of `adctl train` that suit the detector better than the general ones, by name.

        Possible names are `epochs`, `min_steps`, `learning_rate`, `weight_decay`, `schedule`, `warmup` and
        `batch_size`. A value that the user gives has precedence.
        """
        del config
        return {}

    @classmethod
    def learns_good(cls, config: DetectorConfig) -> bool:
        """Return whether it learns from the good images of its category, also where there are labelled defects."""
        del config
        return True

    @classmethod
    def masks_margin(cls, config: DetectorConfig) -> bool:
        """Return whether the detector can leave out the margins of `resize=pad`, by the mask plane of its input.

        Its settings then have the field `margin`, which training sets to `masked`.
        """
        del config
        return False

    @classmethod
    def size_step(cls, config: DetectorConfig) -> int:
        """Return the number of pixels of which both sides of an automatically chosen input are multiples."""
        return backbones.size_step(getattr(config, "backbone", None) or backbones.DEFAULT)

    @property
    def input(self) -> InputSpec:
        """Format of the input images; the detector normalises them itself."""
        return InputSpec.from_config(self.config.model_dump())

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases of fitting, in order; may be empty."""

    def update_phases(self, images: int) -> Sequence[Phase]:
        """Return the phases by which a fitted detector learns from new good images alone.

        They are empty if the detector must be trained on the old and the new images together.

        Args:
            images: Number of images that it has learned from.
        """
        del images
        return ()

    @abstractmethod
    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W] of float32 in [0, 1]; without side effects, and exportable."""

    def in_half_precision(self, kind: torch.dtype) -> Callable[[Tensor], Prediction]:
        """Return `forward` with the network in half precision; afterwards the detector is used through it only.

        Args:
            kind: float16 or bfloat16.
        """

        def predict(images: Tensor) -> Prediction:
            with torch.autocast(images.device.type, kind):
                scores, maps = self(images)
            return Prediction(scores.float(), maps.float())

        return predict

    def can_hold_out(self) -> bool:
        """Return whether `held_out` is available: only directly after fitting, and not for all settings."""
        return False

    @classmethod
    def holds_out(cls, config: DetectorConfig) -> bool:
        """Return whether `held_out` will be available after fitting with these settings."""
        del config
        return False

    def held_out(self, images: Tensor, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the detector that is fitted on all other training images would, without fitting it.

        Args:
            images: Images [B,C,H,W].
            numbers: Position of each among the training images, in the order of fitting.
            together: Number of consecutive images that are left out together; it divides B.
        """
        raise NotImplementedError

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone; called only if `backbone_name` is not None."""
        raise NotImplementedError

    @property
    def backbone_name(self) -> str | None:
        """Name in timm of the frozen backbone that needs pretrained weights for fitting, or None."""
        return None

    def estimate_cost(self, images: int) -> CostEstimate:
        """Estimate the cost of fitting on a number of images, besides the cost of computing batches."""
        del images
        return CostEstimate(memory=0, flops=0.0)

    def check_fitted(self) -> None:
        """Check that the detector is fitted.

        Raises:
            ModelFileError: A buffer named in `fitted` is empty.
        """
        for name in self.fitted:
            if not self.get_buffer(name).numel():
                raise ModelFileError(
                    f"This {type(self).__name__} is not fitted: its '{name}' is empty.",
                    "Train it with 'adctl train' first.",
                )

    def check_exportable(self) -> None:
        """Check that the settings allow an export.

        Raises:
            UsageError: A setting does not; the message says which, and what to train with instead.
        """

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all weights and fitted statistics from the tensors of a model file.

        Raises:
            ModelFileError: The tensors do not fit the detector: they are missing, of another type or shape, hold values
                that are not finite, or contradict each other.
        """
        check_tensors(self, tensors)
        for name in self.fitted:
            if name in tensors:
                self.register_buffer(name, torch.empty_like(tensors[name]))
        try:
            self.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            raise ModelFileError(f"The tensors do not fit the model's own settings: {error}", DAMAGED) from error
        self.check_fitted()
        self._check_divisors()
        self.check_state()

    def _check_divisors(self) -> None:
        """Check the standard deviations of normalisations, which divide.

        Raises:
            ModelFileError: One is not positive.
        """
        for name, buffer in self.named_buffers():
            part = name.rpartition(".")[2]
            if part in {"std", "running_var"}:  # a small constant is added to a variance, which may be zero
                require_positive(name, buffer, or_zero=part == "running_var")

    def check_state(self) -> None:
        """Check the relations between loaded statistics: their shapes, and values that must be positive.

        Subclasses that name buffers in `fitted` extend it; all tensors are finite and of the right type already.

        Raises:
            ModelFileError: The statistics contradict each other or the settings.
        """

    def _require_state(self, name: str, *shape: int | None, positive: bool = False) -> Tensor:
        """Return a buffer after checking its shape, where None stands for any length, and its sign.

        Raises:
            ModelFileError: The shape is another, or a value that must be positive is not.
        """
        value = self.get_buffer(name)
        fits = len(shape) == value.ndim and all(
            want in (None, have) for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits:
            wanted = [*("any" if length is None else length for length in shape)]
            raise ModelFileError(f"'{name}' has the shape {[*value.shape]}; it must be {wanted}.", DAMAGED)
        if positive:
            require_positive(name, value)
        return value

    @property
    def can_recentre(self) -> bool:
        """Whether `place_features` and `recentre` work."""
        return False

    def place_features(self, images: Tensor) -> Tensor:
        """Return the features [B,...] of images [B,C,H,W] that are compared with usual ones at the same place."""
        raise NotImplementedError

    def recentre(self, usual: Tensor) -> None:
        """Replace the usual features, in the shape of `place_features` of one image."""
        raise NotImplementedError

    def _fit_buffer(self, name: str, value: Tensor) -> None:
        """Set a fitted buffer."""
        assert name in self.fitted, name
        # The value may be an inference tensor, into which later phases could not load other values.
        with torch.inference_mode(mode=False):
            self.register_buffer(name, value.contiguous().clone() if value.is_inference() else value.contiguous())

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Prediction:
            """Score images; see `forward`."""
            ...


def require_positive(name: str, value: Tensor, *, or_zero: bool = False) -> None:
    """Raise a `ModelFileError` that names a buffer if one of its values is not positive (or zero)."""
    if not bool(((value >= 0) if or_zero else (value > 0)).all()):
        raise ModelFileError(f"'{name}' holds values that are not positive.", DAMAGED)


def check_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that stored tensors have the types of a module's own and hold finite values.

    Raises:
        ModelFileError: A tensor has another type, or a value that is not finite.
    """
    own = module.state_dict()
    for name, tensor in tensors.items():
        if name in own and tensor.dtype != own[name].dtype:
            raise ModelFileError(f"'{name}' is {_type(tensor)}; it must be {_type(own[name])}.", DAMAGED)
        # The extremes are infinite or NaN if any value is; they need no memory.
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ModelFileError(f"'{name}' holds values that are not finite numbers.", DAMAGED)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
