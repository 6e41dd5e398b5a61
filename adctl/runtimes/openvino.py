"""Scoring an exported OpenVINO model (model.xml with model.bin beside it); torch is not needed."""

from __future__ import annotations

import sys
from collections import deque
from functools import cached_property
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.data.preprocess import InputSpec
from adctl.errors import MissingExtraError
from adctl.runtimes.contract import Scored
from adctl.runtimes.exported import METADATA, OUTPUTS, damaged, pieces, read_metadata, require_cpu, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


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
    all; the network is prepared for either when it is first asked for.

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
        # Its tables of NumPy's types are made at the first use of each, and two threads that come first together wait
        # for each other for ever: one holds the interpreter's lock, the other the table's.
        np.array(openvino.Tensor(np.zeros(1, np.uint8)).data)
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(str(path))
            text = self._model.get_rt_info(METADATA).astype(str) if self._model.has_rt_info(METADATA) else None
        except Exception as error:  # its exceptions are plain RuntimeErrors and more
            raise damaged(path, "OpenVINO model", error) from error
        self.header, self.origin = read_metadata(text, path)
        self.input = InputSpec.from_config(self.header.config)
        self._preparing, self._alone = Lock(), Lock()

    def predict(self, pixels: NDArray[np.uint8]) -> Scored:
        """Score pixels [B,H,W,C] of uint8."""
        if len(pixels) == 1:
            with self._alone:  # it takes all cores, and is one request
                parts = [_outputs(self._latency.infer([np.ascontiguousarray(pixels)]))]
        else:
            parts = list(self._in_parallel(pixels))
        scores = np.concatenate([scores for scores, _ in parts])
        return Scored(scores.astype(np.float64), np.concatenate([maps for _, maps in parts]))

    def _in_parallel(self, pixels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """The requests at rest take piece after piece, also for several callers at a time; order is kept.

        A caller waits for another only while it holds no request itself: two that waited for each other would for ever.
        """
        with self._preparing:
            resting = self._throughput
        under_way: deque[Any] = deque()
        try:
            for piece in pieces(pixels):
                try:
                    request = resting.get_nowait()
                except Empty:
                    if under_way:
                        yield _finished(under_way[0])
                        request = under_way.popleft()
                    else:
                        request = resting.get()
                # The pixels are not copied: they are held until the request is done.
                request.start_async([np.ascontiguousarray(piece)], share_inputs=True)
                under_way.append(request)
            while under_way:
                yield _finished(under_way[0])
                resting.put(under_way.popleft())
        finally:
            for request in under_way:  # after an error; nobody is to wait for them
                resting.put(request)

    @cached_property
    def _latency(self) -> Any:
        return self._compiled("LATENCY").create_infer_request()

    @cached_property
    def _throughput(self) -> SimpleQueue[Any]:
        compiled = self._compiled("THROUGHPUT")
        resting: SimpleQueue[Any] = SimpleQueue()
        # Twice as many as are computed at a time: a stream that is done finds the next piece waiting.
        for _ in range(2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            resting.put(compiled.create_infer_request())
        return resting

    def _compiled(self, hint: str) -> Any:
        # Single precision whatever the processor has: what was proved is what is computed.
        return self._core.compile_model(
            self._model, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
        )


def _finished(request: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    request.wait()
    return _outputs(request.results)


def _outputs(results: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Copies, since a request writes its next results over these."""
    scores, maps = (np.array(results[name]) for name in OUTPUTS)
    return scores, maps
