"""What every runtime offers, and opening a model file with the one it needs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adctl.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader

RUNTIMES = {".safetensors": "adctl.runtimes.torch:TorchRuntime", ".onnx": "adctl.runtimes.onnx:OnnxRuntime"}


@dataclass(frozen=True)
class Scored:
    """What a runtime says of B images.

    Attributes:
        scores: Array [B] of float64, raw.
        maps: Array [B,h,w] of float32, raw, native resolution.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]


class Runtime(Protocol):
    """A model ready to score."""

    name: str
    header: ModelHeader
    input: InputSpec
    device: str

    def predict(self, pixels: NDArray[np.uint8]) -> Scored:
        """Score pixels [B,H,W,C] of uint8, brought to `input` already."""
        ...


def open_runtime(path: Path, device: str = "auto", gpu: int | None = None) -> Runtime:
    """Open a model file with the runtime its ending asks for.

    Args:
        path: `model.safetensors` or an exported file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.

    Raises:
        UsageError: The ending or the device is unknown.
        ModelFileError: The file is damaged, foreign or too new.
        MissingExtraError: The runtime is not installed.
    """
    if path.suffix not in RUNTIMES:
        raise UsageError(
            f"{path} is not a model file by its ending.", f"Models end in {' or '.join(sorted(RUNTIMES))}."
        )
    module, _, name = RUNTIMES[path.suffix].partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), name)(path, device, gpu)
    return runtime
