"""Scoring with PyTorch, on any device that it supports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from adctl.engine.batching import BatchLimit, to_input
from adctl.engine.device import choose_device
from adctl.errors import AdctlError
from adctl.model_file import ModelHeader, load_model
from adctl.runtimes.base import RuntimeOutput

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.detectors.base import Detector, Prediction

log = logging.getLogger(__name__)


class TorchRuntime:
    """Runtime for `model.safetensors` files.

    Args:
        path: The model file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
    """

    name = "torch"
    callers = 1

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        choice = choose_device(device, gpu)
        log.debug("Device %s: %s.", choice.device, choice.reason)
        detector, header = load_model(path)
        self.attach(detector, header, choice.device)

    @classmethod
    def of(cls, detector: Detector, header: ModelHeader, device: torch.device) -> Self:
        """Create a runtime from a detector in memory."""
        runtime = cls.__new__(cls)
        runtime.attach(detector, header, device)
        return runtime

    def attach(self, detector: Detector, header: ModelHeader, device: torch.device) -> None:
        """Use a detector, and move it to a device."""
        self.header = header
        self.input = detector.input
        self.device = str(device)
        self._device = device
        self._detector = detector.eval().to(device)
        self._detector.to(memory_format=torch.channels_last)
        self._limit = BatchLimit(1 << 30)

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8; a batch that does not fit into memory is split and computed again."""
        with torch.inference_mode():
            images = to_input(pixels, self._device)
            parts: list[Prediction] = list(self._limit.run(self._forward, images))
        scores = torch.cat([part.scores for part in parts]).cpu().numpy().astype(np.float64)
        maps = torch.cat([part.maps for part in parts]).cpu().numpy()
        return RuntimeOutput(scores, maps)

    def _forward(self, images: torch.Tensor) -> Prediction:
        return self._detector(images)


class CompiledTorchRuntime(TorchRuntime):
    """PyTorch with `torch.compile`; compiling takes about a minute at the first batch."""

    name = "torch-compile"

    def attach(self, detector: Detector, header: ModelHeader, device: torch.device) -> None:
        """Use a detector, and move it to a device; it is compiled at the first batch."""
        super().attach(detector, header, device)
        # One compilation for each batch size: with a variable size, compiling takes far too long.
        self._compiled = torch.compile(self._detector, dynamic=False)

    def _forward(self, images: torch.Tensor) -> Prediction:
        from torch._dynamo.exc import BackendCompilerFailed  # slow to import

        try:
            prediction: Prediction = self._compiled(images)
        except BackendCompilerFailed as error:
            raise AdctlError(
                f"PyTorch cannot compile this detector here: {str(error).strip().partition(chr(10))[0]}",
                "Install a C++ compiler, or omit --runtime torch-compile.",
            ) from error
        return prediction
