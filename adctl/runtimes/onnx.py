"""Scoring an exported ONNX file with ONNX Runtime; torch is not needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.data.preprocess import InputSpec
from adctl.errors import MissingExtraError, ModelFileError, UsageError
from adctl.model_file import ModelHeader
from adctl.runtimes.contract import Scored

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_METADATA = "adctl"
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class OnnxRuntime:
    """An ONNX file that `adctl export` wrote.

    Args:
        path: The file.
        device: `auto`, `cpu` or `cuda`.
        gpu: Number of a CUDA GPU.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "export") from error
        self.device, providers = _choose(device, gpu, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise ModelFileError(
                f"{path} is not a whole ONNX file: {error}", "Export it again with 'adctl export'."
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if _METADATA not in metadata:
            raise ModelFileError(f"{path} is an ONNX file, but not one of adctl.", "Export one with 'adctl export'.")
        self.header = ModelHeader.from_dict(json.loads(metadata[_METADATA]), path)
        self.input = InputSpec.from_config(self.header.config)

    def predict(self, pixels: NDArray[np.uint8]) -> Scored:
        """Score pixels [B,H,W,C] of uint8."""
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        images /= 255
        scores, maps = self._session.run(["scores", "maps"], {"images": images})
        return Scored(scores.astype(np.float64), maps)


def _choose(device: str, gpu: int | None, available: list[str]) -> tuple[str, list[Any]]:
    """The device's name and the providers to hand to ONNX Runtime, best first."""
    wants_gpu = gpu is not None or device == "cuda"
    has_gpu = _PROVIDERS["cuda"] in available
    if device == "mps" or (wants_gpu and not has_gpu):
        raise UsageError(
            f"This ONNX Runtime has no device '{device if gpu is None else f'cuda:{gpu}'}'.",
            "It has: --device cpu" + (", --device cuda" if has_gpu else "") + ". For CUDA install onnxruntime-gpu.",
        )
    if wants_gpu or (device == "auto" and has_gpu):
        index = gpu or 0
        return f"cuda:{index}", [(_PROVIDERS["cuda"], {"device_id": index}), _PROVIDERS["cpu"]]
    return "cpu", [_PROVIDERS["cpu"]]
