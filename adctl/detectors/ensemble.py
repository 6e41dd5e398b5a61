"""Ensemble: several detectors on the same features of a backbone, joined by calibrated p-values.

The backbone, which is most of the cost, computes each image once. Each value of a member becomes the probability that
a good image has a value as high, estimated from scores of good images that the member did not learn from. Their mean
negative logarithms are compared across members: Fisher's method (Statistical Methods for Research Workers, 1932).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor, nn

from adctl.detectors.base import CostEstimate, Detector, Prediction, Search, require_positive
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.feature_maps import resize_grid
from adctl.detectors.components.p_values import PValues
from adctl.detectors.components.shared_feature_cache import backbone_levels
from adctl.detectors.feature_detector import (
    BackboneConfig,
    BackboneOutline,
    FeatureConfig,
    FeatureDetector,
    SharedImages,
    create_backbone,
)
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.detectors.patchcore import PatchCore, PatchCoreConfig
from adctl.engine.phases import Observe
from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.detectors.base import DetectorConfig
    from adctl.engine.phases import Phase, Progress

_MEMBERS: dict[str, tuple[type[FeatureDetector], type[FeatureConfig]]] = {
    "padim": (PaDiM, PaDiMConfig),
    "patchcore": (PatchCore, PatchCoreConfig),
}
_FEWEST_MEMBERS = 2
_FEWEST_IMAGES = 4
_NEEDED = {"covariance": "full", "search": "exact", "margin": "grey", "rotations": 1, "foreground": False}
"""Settings with which a member can score images that it did not learn from."""


class EnsembleConfig(BackboneConfig):
    """Settings of the members, and of the input and backbone that they share."""

    search_ranges: ClassVar[Mapping[str, Search]] = {"score_share": Search(0.001, 0.1, log=True)}

    members: dict[str, dict[str, Any]] = Field(
        {"padim": {}, "patchcore": {}},
        description="Detectors that score together, padim and patchcore, each with its own settings, as "
        '{"padim": {"dimensions": 100}, "patchcore": {}}',
    )
    score_share: float = Field(0.003, gt=0, le=1, description="Fraction of the highest cells whose mean is the score")
    seed: int = Field(0, ge=0, description="Seed of the members")

    @field_validator("members")
    @classmethod
    def _known_members(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if unknown := sorted(set(value) - set(_MEMBERS)):
            raise ValueError(f"'{unknown[0]}' cannot be a member; {' and '.join(_MEMBERS)} can")
        if len(value) < _FEWEST_MEMBERS:
            raise ValueError(f"needs at least {_FEWEST_MEMBERS} members")
        return value

    @model_validator(mode="after")
    def _same_input(self) -> EnsembleConfig:
        for name, own in self.members.items():
            config = self.of_member(name)
            for key in BackboneConfig.model_fields:
                if getattr(config, key) != getattr(self, key):
                    raise self._refused(
                        f"all members take the same input, but {name} has {key}={own[key]} and the ensemble has "
                        f"{key}={getattr(self, key)}. Give {key} to the ensemble, or train the detectors one by one"
                    )
            for key, needed in _NEEDED.items():
                if getattr(config, key, needed) != needed:
                    raise self._refused(
                        f"{name} needs {key}={needed} in an ensemble, which scores each good image as if it had not "
                        "been learned from"
                    )
        return self

    def of_member(self, name: str) -> FeatureConfig:
        """Return the complete settings of a member.

        Raises:
            ValidationError: They are not valid; the error names `members`.
        """
        shared = {key: getattr(self, key) for key in BackboneConfig.model_fields}
        try:
            return _MEMBERS[name][1](**{"seed": self.seed, **shared, **self.members[name]})
        except ValidationError as error:
            first = error.errors()[0]
            reason = first["msg"].removeprefix("Value error, ")
            raise self._refused(f"{name}: {'.'.join(map(str, first['loc']))}: {reason}") from error

    def _refused(self, reason: str) -> ValidationError:
        """Return an error that names `members`, which one from the validator of the model would not."""
        problem = PydanticCustomError("ensemble_members", "{reason}", {"reason": reason})
        details = InitErrorDetails(type=problem, loc=("members",), input=self.members)
        return ValidationError.from_exception_data(type(self).__name__, [details])


class Ensemble(Detector):
    """Detectors that share one pass through the backbone; the map is the mean negative logarithm of their p-values.

    Fitting passes the good images twice: once for all members, and once to score each image as the members fitted on
    all others would (`held_out`), from which the p-values are estimated. The score is the mean of the highest cells.

    Attributes:
        members: The detectors by name.
        p_values: Functions from cells of the members' maps to negative logarithms of p-values, by name.
    """

    Config = EnsembleConfig
    any_shape = True
    largest_auto_side = 320
    config: EnsembleConfig

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        self.backbone = create_backbone(config, FeatureDetector.strides)
        outline = BackboneOutline(self.backbone)
        self.members = nn.ModuleDict(
            {name: _MEMBERS[name][0](config.of_member(name), outline) for name in config.members}
        )
        self.p_values = nn.ModuleDict({name: PValues() for name in config.members})

    @property
    def backbone_name(self) -> str:
        """Name of the frozen backbone in timm."""
        return self.config.backbone

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone."""
        self.backbone.load_pretrained(weights)

    def in_half_precision(self, kind: torch.dtype) -> Callable[[Tensor], Prediction]:
        """Return `forward` with the backbone in half precision; distances stay in single precision.

        Args:
            kind: float16 or bfloat16.
        """
        self.backbone.compute_in(kind)
        return self

    def phases(self) -> Sequence[Phase]:
        """Return one pass that fits all members, and one that scores good images without themselves."""
        fits = [phase for member in self._detectors for phase in member.phases()]
        return self._fitting([phase for phase in fits if isinstance(phase, Observe)]), self._calibration()

    def forward(self, images: Tensor) -> Prediction:
        """Score images [B,C,H,W]; the maps have the cells of the member with the finest map."""
        shared = self._shared(images)
        return self._joined([member.forward(shared) for member in self._detectors])

    def can_hold_out(self) -> bool:
        """Return whether `held_out` is available: directly after fitting."""
        return all(member.can_hold_out() for member in self._detectors)

    @classmethod
    def holds_out(cls, config: DetectorConfig) -> bool:
        """Return whether `held_out` will be available: if it will be for all members."""
        assert isinstance(config, EnsembleConfig)
        return all(_MEMBERS[name][0].holds_out(config.of_member(name)) for name in config.members)

    def held_out(self, images: Tensor, numbers: Sequence[int], together: int = 1) -> Prediction:
        """Score training images as the members fitted on all others would; the p-values stay.

        Args:
            images: Images [B,C,H,W].
            numbers: Their positions among the training images.
            together: Number of consecutive images that are left out together.
        """
        shared = self._shared(images)
        return self._joined([member.held_out(shared, numbers, together) for member in self._detectors])

    def estimate_cost(self, images: int) -> CostEstimate:
        """Estimate the cost of fitting all members."""
        costs = [member.estimate_cost(images) for member in self._detectors]
        kept = 4 * images * sum(member.places for member in self._detectors)
        return CostEstimate(
            memory=kept + sum(cost.memory for cost in costs),
            flops=sum(cost.flops for cost in costs),
            disk=sum(cost.disk for cost in costs),
            per_image=sum(cost.per_image for cost in costs),
        )

    def check_fitted(self) -> None:
        """Check that all members are fitted.

        Raises:
            ModelFileError: A statistic of one is empty.
        """
        for member in self._detectors:
            member.check_fitted()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of the backbone, the statistics of the members, and the p-values.

        Raises:
            ModelFileError: The tensors do not fit the detector.
        """
        for name, member in zip(self.members, self._detectors, strict=True):
            prefix = f"members.{name}."
            member.load_state({key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)})
        super().load_state(tensors)

    def check_state(self) -> None:
        """Check that p-values fall with the values.

        Raises:
            ModelFileError: A slope is not positive.
        """
        for name in self.members:
            require_positive(f"p_values.{name}.slopes", self.get_buffer(f"p_values.{name}.slopes"))

    @property
    def _detectors(self) -> list[FeatureDetector]:
        """The members."""
        return [member for member in self.members.values() if isinstance(member, FeatureDetector)]

    @property
    def _functions(self) -> list[PValues]:
        """The p-values of the members."""
        return [function for function in self.p_values.values() if isinstance(function, PValues)]

    def _shared(self, images: Tensor) -> SharedImages:
        """Return images with the features that the members read."""
        return SharedImages(images, backbone_levels(self.backbone, images[:, : self.config.channels]))

    def _joined(self, predictions: Sequence[Prediction]) -> Prediction:
        """Return the map and the score of all members together."""
        grid = max((member.grid for member in self._detectors), key=math.prod)
        maps = [
            resize_grid(function(prediction.maps).unsqueeze(1), grid).squeeze(1)
            for function, prediction in zip(self._functions, predictions, strict=True)
        ]
        joined = torch.stack(maps).mean(0)
        return Prediction(top_mean(joined, self.config.score_share), joined)

    def _fitting(self, fits: Sequence[Observe]) -> Observe:
        """Return the pass that fits all members."""
        readers: list[Callable[[Any], Any]] = [fit.embed for fit in fits]
        seen = 0

        def embed(images: Tensor) -> tuple[int, list[Any]]:
            shared = self._shared(images)
            return len(images), [read(shared) for read in readers]

        def absorb(embedded: tuple[int, list[Any]]) -> None:
            nonlocal seen
            seen += embedded[0]
            for fit, part in zip(fits, embedded[1], strict=True):
                fit.absorb(part)

        def finish(progress: Progress) -> None:
            if seen < _FEWEST_IMAGES:
                raise TrainingError(
                    f"An ensemble compares its members by the scores of at least {_FEWEST_IMAGES} good images; "
                    f"there are {seen}.",
                    "Add good images, or train --arch patchcore.",
                )
            for fit in fits:
                fit.finish(progress)

        return Observe(embed, absorb, finish, "members")

    def _calibration(self) -> Observe:
        """Return the pass that estimates the p-values."""
        seen = itertools.count()
        kept: list[list[Tensor]] = [[] for _ in self._detectors]

        def absorb(shared: SharedImages) -> None:
            numbers = [next(seen) for _ in shared.images]
            for member, maps in zip(self._detectors, kept, strict=True):
                maps.append(member.held_out(shared, numbers).maps.flatten().cpu())

        def finish(progress: Progress) -> None:
            for done, (function, maps) in enumerate(zip(self._functions, kept, strict=True)):
                progress(done, len(kept))
                function.fit(torch.cat(maps))

        return Observe(self._shared, absorb, finish, "p-values")
