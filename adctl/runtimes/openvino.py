"""Scoring with OpenVINO (model.xml with model.bin beside it), without torch."""

from __future__ import annotations

import sys
from collections import deque
from functools import cached_property
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from adctl.data.preprocess import InputSpec
from adctl.errors import MissingExtraError
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import (
    INPUT,
    METADATA,
    damaged,
    read_metadata,
    require_cpu,
    require_file,
    split_batch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Part: TypeAlias = list[NDArray[Any]]

_REQUESTS = 3
"""Inference requests for each stream that computes at the same time."""

_LARGE = 2**24
"""Bytes of weights that no longer stay in the processor's cache."""

_IMAGES_IF_LARGE = 4
"""Images in one request of a large model, so that its weights are read less often."""


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, so that no usage data is sent.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # OpenVINO then uses its own stub
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    return openvino


class OpenVinoRuntime:
    """Runtime for OpenVINO models that `adctl export` wrote.

    All cores compute a single image together. A batch is split into parts that are computed in parallel, which is
    faster. For each of the two, the network is compiled at its first use, with fixed sizes: PatchCore at 256 x 256
    pixels takes four fifths of the time that it takes with variable sizes and two images at a time.

    Args:
        path: The `.xml` file.
        device: `auto` or `cpu`.
        gpu: Must be None.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UsageError: A GPU was requested.
        ModelFileError: The file is damaged, not written by adctl or too new, or its weights file is missing.
    """

    name = "openvino"
    callers = 2
    device = "cpu"

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        openvino = import_openvino()
        require_cpu(device, gpu, self.name)
        require_file(path)
        require_file(path.with_suffix(".bin"))
        self._core = openvino.Core()
        # Mapped weights of a file that is overwritten would change the scores, and a shorter file ends the process.
        self._core.set_property({"ENABLE_MMAP": False})
        try:
            self._model = self._core.read_model(str(path))
            text = self._model.get_rt_info(METADATA).astype(str) if self._model.has_rt_info(METADATA) else None
        except Exception as error:  # the exceptions of OpenVINO have no common base class
            raise damaged(path, "OpenVINO model", error) from error
        self.header, self.origin = read_metadata(text, path)
        self.input = InputSpec.from_config(self.header.config)
        self._images = _IMAGES_IF_LARGE if path.with_suffix(".bin").stat().st_size > _LARGE else 1
        self._compiling, self._single = Lock(), Lock()

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8."""
        if len(pixels) == 1:
            with self._compiling:
                request = self._latency
            with self._single:  # there is only one such request
                request.start(pixels)
                parts = [request.finish()]
        else:
            parts = list(self._in_parallel(pixels))
        return RuntimeOutput.joined(parts)

    def _in_parallel(self, pixels: NDArray[np.uint8]) -> Iterator[Part]:
        """Compute the parts of a batch with the idle requests, and yield the results in order.

        Several threads may call this. A caller waits for an idle request only while it holds none itself; otherwise
        two callers could wait for each other forever.
        """
        with self._compiling:
            idle = self._throughput
        running: deque[_Request] = deque()
        try:
            for part in split_batch(pixels, self._images):
                try:
                    request = idle.get_nowait()
                except Empty:
                    if running:
                        yield running[0].finish()
                        request = running.popleft()
                    else:
                        request = idle.get()
                request.start(part)
                running.append(request)
            while running:
                yield running[0].finish()
                idle.put(running.popleft())
        finally:
            for request in running:  # after an error: give them back to other callers
                idle.put(request)

    @cached_property
    def _latency(self) -> _Request:
        return _Request(self._compiled("LATENCY", images=1))

    @cached_property
    def _throughput(self) -> SimpleQueue[_Request]:
        compiled = self._compiled("THROUGHPUT", images=self._images)
        idle: SimpleQueue[_Request] = SimpleQueue()
        # More requests than streams, so that a stream that finishes has its next part waiting.
        for _ in range(_REQUESTS * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            idle.put(_Request(compiled))
        return idle

    def _compiled(self, hint: str, images: int) -> Any:
        self._model.reshape([images, *self.input.shape])
        # Always single precision, as in the verification, even if the processor has bfloat16.
        return self._core.compile_model(
            self._model, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
        )


class _Request:
    """Inference request that is used again and again, with fixed input and output memory.

    Only one thread at a time may create requests. OpenVINO fills its tables of NumPy types at first use; two threads
    that do so at once deadlock, one with Python's global lock and the other with the lock of the table.
    """

    def __init__(self, compiled: Any) -> None:
        self._count = 0
        self._request = compiled.create_infer_request()
        self._pixels = self._request.get_tensor(INPUT).data
        self._outputs = [self._request.get_output_tensor(number).data for number in range(len(compiled.outputs))]

    def start(self, pixels: NDArray[np.uint8]) -> None:
        """Start computing pixels [B,H,W,C]; at most as many images as the network was compiled for."""
        self._count = len(pixels)
        self._pixels[: self._count] = pixels
        self._request.start_async()

    def finish(self) -> Part:
        """Wait for the result, and return scores [B], maps [B,h,w] and the outputs of a classifier, if there is one."""
        self._request.wait()
        return [output[: self._count].copy() for output in self._outputs]
