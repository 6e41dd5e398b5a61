"""Scoring with ONNX Runtime, without torch.

On NVIDIA GPUs, TensorRT is used if ONNX Runtime was built with it, otherwise CUDA.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from adctl.data.preprocess import InputSpec
from adctl.errors import MissingExtraError, UsageError
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import INPUT, METADATA, damaged, read_metadata, require_file, split_batch

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OnnxRuntime:
    """Runtime for ONNX files that `adctl export` wrote.

    On the CPU, all cores compute a single image together. Of a batch, each thread computes one image at a time:
    dividing every small layer among the cores is slower, and if several images pass through the network together, the
    last digits of their scores depend on each other.

    Args:
        path: The `.onnx` file.
        device: `auto`, `cpu` or `cuda`.
        gpu: Number of a CUDA GPU.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        UsageError: ONNX Runtime does not support the device.
        ModelFileError: The file is damaged, not written by adctl or too new.
    """

    name = "onnxruntime"
    callers = 2

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        # Its telemetry would print warnings where the home folder cannot be written.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime") from error
        require_file(path)
        self._path = path
        self.device, self._providers = _choose(device, gpu, onnxruntime.get_available_providers())
        try:
            self._session = self._open(threads=0)  # 0: all cores
        except Exception as error:  # the exceptions of onnxruntime have no common base class
            raise damaged(path, "ONNX file", error) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        self.header, self.origin = read_metadata(text, path)
        self.input = InputSpec.from_config(self.header.config)
        self._lock = Lock()

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8."""
        if len(pixels) == 1 or self.device != "cpu":
            return RuntimeOutput.joined([_run(self._session, pixels)])
        with self._lock:  # two callers must not create them twice
            session, threads = self._single, self._threads
        return RuntimeOutput.joined(list(threads.map(lambda part: _run(session, part), split_batch(pixels, 1))))

    @cached_property
    def _single(self) -> Any:
        """Session that computes in the calling thread."""
        return self._open(threads=1)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(psutil.cpu_count(logical=False) or 1, "adctl-onnx")

    def _open(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Spinning threads would take processor time from the threads that read images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(self._path), options, providers=self._providers)


def _run(session: Any, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = session.run(None, {INPUT: np.ascontiguousarray(pixels)})
    return outputs


def _choose(device: str, gpu: int | None, available: list[str]) -> tuple[str, list[Any]]:
    """Return the device's name and the ONNX Runtime providers for it, fastest first."""
    wants_gpu = gpu is not None or device == "cuda"
    has_gpu = _CUDA in available
    if device == "mps" or (wants_gpu and not has_gpu):
        raise UsageError(
            f"The installed ONNX Runtime does not support the device '{device if gpu is None else f'cuda:{gpu}'}'.",
            f"Use --device cpu{' or --device cuda' if has_gpu else ''}. For CUDA, install onnxruntime-gpu.",
        )
    if wants_gpu or (device == "auto" and has_gpu):
        index = gpu or 0
        fast = [(name, {"device_id": index}) for name in (_TENSORRT, _CUDA) if name in available]
        return f"cuda:{index}", [*fast, _CPU]
    return "cpu", [_CPU]
