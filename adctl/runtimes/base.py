"""The runtime interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader


@dataclass(frozen=True)
class RuntimeOutput:
    """Scores and anomaly maps of B images.

    Attributes:
        scores: Raw scores [B], float64.
        maps: Raw anomaly maps [B,h,w], float32, in the detector's own resolution.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]


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
