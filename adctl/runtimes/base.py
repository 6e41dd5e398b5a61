"""The runtime interface and the table of runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader


@dataclass(frozen=True)
class RuntimeSpec:
    """One runtime, not imported yet.

    Attributes:
        target: Its class, as `module:Class`.
        suffix: Of the files it opens.
        packages: That it imports.
    """

    target: str
    suffix: str
    packages: tuple[str, ...]


RUNTIMES = {
    "torch": RuntimeSpec("adctl.runtimes.torch:TorchRuntime", ".safetensors", ("torch",)),
    "torch-compile": RuntimeSpec("adctl.runtimes.torch:CompiledTorchRuntime", ".safetensors", ("torch",)),
    "onnxruntime": RuntimeSpec("adctl.runtimes.onnx:OnnxRuntime", ".onnx", ("onnxruntime",)),
    "openvino": RuntimeSpec("adctl.runtimes.openvino:OpenVinoRuntime", ".xml", ("openvino",)),
    "torchscript": RuntimeSpec("adctl.runtimes.torchscript:TorchScriptRuntime", ".ts", ("torch",)),
    "torch-export": RuntimeSpec("adctl.runtimes.torch_export:ArchiveRuntime", ".pt2", ("torch",)),
}
"""By name. Of two with the same ending the first is its own, taken where none is named."""


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
        name: From `RUNTIMES`.
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
