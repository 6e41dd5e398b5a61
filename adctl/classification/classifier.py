"""Classifier: a backbone, pooled features, a head, and the distance to what training has seen.

B images, H x W pixels, D features, K kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adctl.classification.attention import ATTENTION
from adctl.classification.heads import HEADS, HeadTargets
from adctl.data.preprocess import InputSpec
from adctl.detectors.base import DAMAGED
from adctl.detectors.components.backbones import Backbone
from adctl.detectors.components.shared_feature_cache import backbone_levels
from adctl.engine.phases import Observe
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from adctl.classification.config import ClassifierConfig
    from adctl.engine.phases import Phase, Progress

STRIDES = (16, 32)
"""Strides of the levels read from a convolutional backbone, unless the settings give `layers`."""


class Classification(NamedTuple):
    """Output for B images.

    Attributes:
        logits: Logits [B,K], uncalibrated.
        distance: Distance [B] to the nearest kind: Mahalanobis distance of the features to its mean.
    """

    logits: Tensor
    distance: Tensor


class Classifier(nn.Module):
    """Network from images to the logits of kinds.

    Args:
        config: Settings.
        kinds: Number of kinds.

    Attributes:
        whitening: Tensor [D,P], which makes the covariance of features within kinds the identity.
        centres: Tensor [K,P], the whitened mean of each kind.
    """

    any_shape: ClassVar[bool] = True
    largest_auto_side: ClassVar[int | None] = 384
    recomputed: ClassVar[tuple[type[nn.Module], ...]] = ()

    whitening: Tensor
    centres: Tensor

    def __init__(self, config: ClassifierConfig, kinds: int) -> None:
        super().__init__()
        self.config, self.kinds = config, kinds
        self.backbone = Backbone(
            config.backbone,
            config.layers,
            config.image_size,
            strides=STRIDES,
            channels=config.channels,
            replicate=config.replicate,
        )
        self.attention = nn.ModuleList(ATTENTION[config.attention](channels) for channels in self.backbone.channels)
        self.head = HEADS[config.head](config, kinds)
        for name in ("whitening", "centres"):
            self.register_buffer(name, torch.empty(0))
        self._collected: list[Tensor] = []
        self._phase: Callable[[Classifier], Phase] | None = None

    @classmethod
    def size_step(cls, config: ClassifierConfig) -> int:
        """Return the number of pixels of which both sides of an automatically chosen input are multiples."""
        del config
        return 32

    @property
    def input(self) -> InputSpec:
        """Format of the input images."""
        return InputSpec.from_config(self.config.model_dump())

    @property
    def width(self) -> int:
        """D, the number of features."""
        return sum(self.backbone.channels) * (2 if self.config.pool == "mean+max" else 1)

    def pooled(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the features [B,D] of the backbone's levels [B,C,h,w]."""
        levels = [block(level) for block, level in zip(self.attention, levels, strict=True)]
        parts = [level.mean((2, 3)) for level in levels]
        if self.config.pool == "mean+max":
            parts += [level.amax((2, 3)) for level in levels]
        return torch.cat(parts, 1)

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B,D] of images [B,C,H,W]."""
        images = images[:, : self.config.channels]
        # The cache identifies a backbone by its weights when it first sees it, so they must not change.
        frozen = self.config.fine_tune == "none"
        return self.pooled(backbone_levels(self.backbone, images) if frozen else self.backbone(images))

    def classify(self, features: Tensor) -> Classification:
        """Return logits and distance of features [B,D]."""
        logits = self.head(features)
        white = ((features - self.head.mean) / self.head.scale) @ self.whitening
        # Differences rather than a matrix product: equal in every runtime, and kinds are few.
        squares = (white.unsqueeze(1) - self.centres).square().sum(2)
        return Classification(logits, squares.amin(1).sqrt())

    def forward(self, images: Tensor) -> Classification:
        """Return logits and distance of images [B,C,H,W] of float32 in [0, 1]; without side effects."""
        return self.classify(self.features(images))

    def phases(self) -> Sequence[Phase]:
        """Return the phase of `train_by`; without one, a pass that collects the features, for `collected`."""
        self._collected = []
        if self._phase is not None:
            return [self._phase(self)]
        return [Observe(self.features, self._absorb, _nothing, title="features")]

    def train_by(self, phase: Callable[[Classifier], Phase] | None) -> None:
        """Set the function that makes the only phase of the next fit, in the process that fits; it is pickled."""
        self._phase = phase

    def _absorb(self, features: Tensor) -> None:
        self._collected.append(features.float().cpu())

    def collected(self) -> NDArray[np.float32]:
        """Return the features [N,D] of the last pass, in the order of the images."""
        features = np.asarray(torch.cat(self._collected).numpy(), np.float32)
        self._collected = []
        return features

    def fit_decision(self, features: NDArray[np.float32], targets: HeadTargets) -> None:
        """Fit the distance to the kinds, from the training features [N,D]; the head is fitted already.

        The covariance within kinds is that of Ledoit and Wolf, which is regular with few images ("A well-conditioned
        estimator for large-dimensional covariance matrices", 2004).
        """
        from sklearn.covariance import ledoit_wolf

        rows = (features - self.head.mean.cpu().numpy()) / self.head.scale.cpu().numpy()
        means = np.stack([rows[targets.labels == kind].mean(0) for kind in range(self.kinds)])
        covariance = ledoit_wolf(rows - means[targets.labels], assume_centered=True)[0]
        values, vectors = np.linalg.eigh(covariance.astype(np.float64))
        whitening = vectors / np.sqrt(np.maximum(values, 1e-9))
        device = self.head.mean.device
        for name, value in (("whitening", whitening), ("centres", means @ whitening)):
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)).to(device))

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load the pretrained weights of the backbone."""
        self.backbone.load_pretrained(weights)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all tensors of a model file.

        Raises:
            ModelFileError: They do not fit the settings, or are not finite.
        """
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ModelFileError(f"'{name}' holds values that are not finite.", DAMAGED)
        self.head.prepare(tensors, "head.")
        for name in ("whitening", "centres"):
            self.register_buffer(name, torch.empty_like(tensors.get(name, torch.empty(0))))
        try:
            self.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            raise ModelFileError(f"The tensors do not fit the model's own settings: {error}", DAMAGED) from error
        if self.whitening.shape[:1] != (self.width,) or self.centres.shape != (self.kinds, *self.whitening.shape[1:]):
            raise ModelFileError("The statistics of the classifier have shapes that do not fit.", DAMAGED)

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Classification:
            """Classify images; see `forward`."""
            ...


def _nothing(progress: Progress) -> None:
    del progress
