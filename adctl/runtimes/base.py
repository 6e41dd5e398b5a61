"""The runtime interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader


@dataclass(frozen=True)
class RuntimeOutput:
    """Scores and anomaly maps of B images.

    Attributes:
        scores: Raw scores [B], float64.
        maps: Raw anomaly maps [B,h,w], float32, in the detector's own resolution.
        distances: Distances [B] of the classifier in the same graph; None without one.
        logits: Logits [B,K] of the classifier in the same graph; None without one.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    distances: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Sequence[NDArray[Any]]]) -> RuntimeOutput:
        """Return the output for a batch from that for its parts: each holds all outputs of the graph, in order."""
        scores, maps, *of_classifier = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(scores.astype(np.float64), maps, *of_classifier)


class Runtime(Protocol):
    """Interface of a loaded model.

    Attributes:
        name: Name in `adctl.choices.RUNTIMES`.
        header: Header of the model file.
        input: Size and channels of the images it takes.
        device: Device that computes, as `cpu` or `cuda:0`.
    """

    name: str
    header: ModelHeader
    input: InputSpec
    device: str

    @property
    def callers(self) -> int:
        """Number of threads that should call `predict` at once.

        With 2, cores that finish early start on the next batch.
        """
        ...

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8, already resized to `input`."""
        ...
