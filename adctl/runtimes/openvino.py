"""Scoring an exported OpenVINO model (model.xml with model.bin beside it); torch is not needed."""

from __future__ import annotations

import sys
from collections import deque
from functools import cached_property
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from adctl.data.preprocess import InputSpec
from adctl.errors import MissingExtraError
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import (
    INPUT,
    METADATA,
    OUTPUTS,
    damaged,
    read_metadata,
    require_cpu,
    require_file,
    split_batch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Part: TypeAlias = tuple[NDArray[Any], NDArray[Any]]

_REQUESTS = 3
"""To each piece of a batch that is computed at a time."""

_LARGE = 2**24
_TOGETHER = 4
"""Weights of more bytes than that do not stay in cache: read once for so many images instead of for each."""


def import_openvino() -> Any:
    """The package, without its telemetry: scoring and exporting tell nobody.

    Raises:
        MissingExtraError: It is not installed.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # it then takes its own stand-in
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    return openvino


class OpenVinoRuntime:
    """An OpenVINO model that `adctl export` wrote.

    A single image is computed by all cores at once. Of a batch each core takes pieces of its own, which is faster in
    all; the network is prepared for either when it is first asked for, with every size fixed. Measured with 256 x 256
    pixels, PatchCore one image at a time takes four fifths of the time of pairs with open sizes.

    Args:
        path: The `.xml`.
        device: `auto` or `cpu`.
        gpu: None.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UsageError: A GPU was asked for.
        ModelFileError: The file is damaged, foreign or too new, or its weights are missing.
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
        try:
            self._model = self._core.read_model(str(path))
            text = self._model.get_rt_info(METADATA).astype(str) if self._model.has_rt_info(METADATA) else None
        except Exception as error:  # its exceptions are plain RuntimeErrors and more
            raise damaged(path, "OpenVINO model", error) from error
        self.header, self.origin = read_metadata(text, path)
        self.input = InputSpec.from_config(self.header.config)
        self._piece = _TOGETHER if path.with_suffix(".bin").stat().st_size > _LARGE else 1
        self._preparing, self._alone = Lock(), Lock()

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C] of uint8."""
        if len(pixels) == 1:
            with self._preparing:
                request = self._latency
            with self._alone:  # it takes all cores, and is one request
                request.start(pixels)
                parts = [request.finish()]
        else:
            parts = list(self._in_parallel(pixels))
        scores, maps = zip(*parts, strict=True)
        return RuntimeOutput(np.concatenate(scores).astype(np.float64), np.concatenate(maps))

    def _in_parallel(self, pixels: NDArray[np.uint8]) -> Iterator[Part]:
        """The requests at rest take piece after piece, also for several callers at a time; order is kept.

        A caller waits for another only while it holds no request itself: two that waited for each other would for ever.
        """
        with self._preparing:
            resting = self._throughput
        under_way: deque[_Request] = deque()
        try:
            for piece in split_batch(pixels, self._piece):
                try:
                    request = resting.get_nowait()
                except Empty:
                    if under_way:
                        yield under_way[0].finish()
                        request = under_way.popleft()
                    else:
                        request = resting.get()
                request.start(piece)
                under_way.append(request)
            while under_way:
                yield under_way[0].finish()
                resting.put(under_way.popleft())
        finally:
            for request in under_way:  # after an error; nobody is to wait for them
                resting.put(request)

    @cached_property
    def _latency(self) -> _Request:
        return _Request(self._compiled("LATENCY", images=1))

    @cached_property
    def _throughput(self) -> SimpleQueue[_Request]:
        compiled = self._compiled("THROUGHPUT", images=self._piece)
        resting: SimpleQueue[_Request] = SimpleQueue()
        # More than are computed at a time: a stream that is done finds the next piece waiting.
        for _ in range(_REQUESTS * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            resting.put(_Request(compiled))
        return resting

    def _compiled(self, hint: str, images: int) -> Any:
        self._model.reshape([images, *self.input.shape])
        # Single precision whatever the processor has: what was proved is what is computed.
        return self._core.compile_model(
            self._model, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
        )


class _Request:
    """The computation of one piece after another, in memory that stays in its place.

    Made by one thread at a time: two that come first to OpenVINO's tables of NumPy's types, which are filled at their
    first use, wait for each other for ever, one holding the interpreter's lock and one the table's.
    """

    def __init__(self, compiled: Any) -> None:
        self._count = 0
        self._request = compiled.create_infer_request()
        self._pixels = self._request.get_tensor(INPUT).data
        self._outputs = [self._request.get_tensor(name).data for name in OUTPUTS]

    def start(self, pixels: NDArray[np.uint8]) -> None:
        """Begin with pixels [B,H,W,C], at most as many images as the network was prepared for."""
        self._count = len(pixels)
        self._pixels[: self._count] = pixels
        self._request.start_async()

    def finish(self) -> Part:
        """Wait for their scores [B] and maps [B,h,w]."""
        self._request.wait()
        scores, maps = (output[: self._count].copy() for output in self._outputs)
        return scores, maps
