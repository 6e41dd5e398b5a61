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
    """What a runtime says of B images.

    Attributes:
        scores: Array [B] of float64, raw.
        maps: Array [B,h,w] of float32, raw, native resolution.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]


class Runtime(Protocol):
    """A model ready to score.

    Attributes:
        name: A name from `adctl.choices.RUNTIMES`.
        header: Of the model file.
        input: What it takes.
        device: Where it computes.
        callers: Threads that may call `predict` at a time; more than one where a core that is done with its part of one
            batch then goes on with the next.
    """

    name: str
    header: ModelHeader
    input: InputSpec
    device: str
    callers: int

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C] of uint8, brought to `input` already."""
        ...
