"""Scoring with PyTorch, on any device that it supports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from adctl.detectors.components.shared_feature_cache import sharing
from adctl.engine.batching import BatchLimit, to_input
from adctl.engine.device import choose_device
from adctl.engine.precision import reduced_type
from adctl.errors import AdctlError, UsageError
from adctl.model_file import ModelHeader, load_model
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.cuda_pipeline import CALLERS, CudaPipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from adctl.detectors.base import Detector, Prediction

log = logging.getLogger(__name__)


class TorchRuntime:
    """Runtime for `model.safetensors` files.

    Args:
        path: The model file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
        precision: Precision of the network on a CUDA GPU: `32`, `tf32`, `bf16` or `16`.
    """

    name = "torch"
    fixed_graph: ClassVar[bool] = True
    """Whether `_forward` depends on the images only, so that threads may call it, and it can be captured."""

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None, precision: str = "32") -> None:
        choice = choose_device(device, gpu)
        log.debug("Device %s: %s.", choice.device, choice.reason)
        kind = reduced_type(precision, choice.device)
        detector, header = load_model(path)
        self.attach(detector, header, choice.device, tf32=precision != "32", kind=kind)

    @classmethod
    def of(cls, detector: Detector, header: ModelHeader, device: torch.device) -> Self:
        """Create a runtime from a detector in memory."""
        runtime = cls.__new__(cls)
        runtime.attach(detector, header, device)
        return runtime

    def attach(
        self,
        detector: Detector,
        header: ModelHeader,
        device: torch.device,
        *,
        tf32: bool = False,
        kind: torch.dtype | None = None,
    ) -> None:
        """Use a detector, and move it to a device.

        Args:
            detector: The detector; with a `kind`, it cannot be used otherwise afterwards.
            header: Header of its model file.
            device: The device.
            tf32: Whether products on a CUDA GPU may round their factors to 10 bits.
            kind: Half-precision type of the network on a CUDA GPU; None for single precision.
        """
        self.header = header
        self.input = detector.input
        self.device = str(device)
        self._device = device
        self._detector = detector.eval().to(device)
        self._detector.to(memory_format=torch.channels_last)
        self._network: Callable[[Tensor], Prediction] = detector if kind is None else detector.in_half_precision(kind)
        self._limit = BatchLimit(1 << 30)
        self._pipeline: CudaPipeline | None = None
        if device.type == "cuda":
            capture = self.fixed_graph and _has_fixed_graph(detector)
            self._pipeline = CudaPipeline(self._forward, device, tf32=tf32, capture=capture)

    @property
    def detector(self) -> Detector:
        """The detector, on the device."""
        return self._detector

    @property
    def callers(self) -> int:
        """Number of threads that should call `predict` at once."""
        return 1 if self._pipeline is None or not self.fixed_graph or sharing() else CALLERS

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8; a batch that does not fit into memory is split and computed again."""
        if self._pipeline is not None:
            found, cells = self._pipeline.predict(pixels)
            return RuntimeOutput(found.astype(np.float64), cells)
        with torch.inference_mode():
            images = to_input(pixels, self._device)
            parts: list[Prediction] = list(self._limit.run(self._forward, images))
        scores = torch.cat([part.scores for part in parts]).cpu().numpy().astype(np.float64)
        maps = torch.cat([part.maps for part in parts]).cpu().numpy()
        return RuntimeOutput(scores, maps)

    def _forward(self, images: Tensor) -> Prediction:
        return self._network(images)


def _has_fixed_graph(detector: Detector) -> bool:
    try:
        detector.check_exportable()
    except UsageError:
        return False
    return not sharing()


class CompiledTorchRuntime(TorchRuntime):
    """PyTorch with `torch.compile`; compiling takes about a minute at the first batch."""

    name = "torch-compile"
    fixed_graph = False

    def attach(
        self,
        detector: Detector,
        header: ModelHeader,
        device: torch.device,
        *,
        tf32: bool = False,
        kind: torch.dtype | None = None,
    ) -> None:
        """Use a detector, and move it to a device; it is compiled at the first batch."""
        super().attach(detector, header, device, tf32=tf32, kind=kind)
        # One compilation for each batch size: with a variable size, compiling takes far too long.
        self._compiled = torch.compile(self._network, dynamic=False)

    def _forward(self, images: Tensor) -> Prediction:
        from torch._dynamo.exc import BackendCompilerFailed  # slow to import

        try:
            prediction: Prediction = self._compiled(images)
        except BackendCompilerFailed as error:
            raise AdctlError(
                f"PyTorch cannot compile this detector here: {str(error).strip().partition(chr(10))[0]}",
                "Install a C++ compiler, or omit --runtime torch-compile.",
            ) from error
        return prediction
