"""Computation on a CUDA GPU: copies of one batch overlap with the computation of another, and networks are captured.

Of a small network, starting the kernels takes longer than computing them. A CUDA graph starts all of them at once.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.engine.batching import BatchLimit, is_out_of_memory, to_input
from adctl.engine.precision import single_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from adctl.detectors.base import Prediction

log = logging.getLogger(__name__)

CALLERS = 2
"""Threads that should call `predict` at once: one batch is copied while another is computed."""

_UNCAPTURED = 2
"""Batches of a size that are computed before it is captured; capturing takes as long as about a hundred batches."""

_LARGEST_PADDING = 32
"""Factor by which a batch may be padded to a size that was computed before: planning a new size takes longer."""

_MOST_GRAPHS = 4
"""Batch sizes that are captured; each graph keeps the memory of its activations."""


class CudaPipeline:
    """Prediction of batches on a CUDA GPU, from several threads.

    Args:
        forward: Function from images [B,C,H,W] of float32 to scores and maps.
        device: The GPU.
        tf32: Whether products may round their factors to 10 bits.
        capture: Whether the kernels of `forward` depend on the shape of the images only.
    """

    def __init__(
        self, forward: Callable[[Tensor], Prediction], device: torch.device, *, tf32: bool, capture: bool
    ) -> None:
        self._forward = forward
        self._device, self._tf32, self._capture = device, tf32, capture
        self._limit = BatchLimit(1 << 30)
        self._compute = torch.cuda.Stream(device)
        self._lock = Lock()
        # cuDNN plans each convolution anew in each thread, which takes more than a second for a network.
        self._planner = ThreadPoolExecutor(1, "adctl-cuda")
        self._seen: dict[int, int] = {}
        self._graphs: dict[int, _Graph] = {}
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(CALLERS):
            self._slots.put(_Slot(device))

    def predict(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores [B] and maps [B,h,w] of pixels [B,H,W,C].

        Raises:
            TrainingError: A single image does not fit into memory.
        """
        slot = self._slots.get()
        try:
            with torch.inference_mode():
                return self._run(slot, pixels)
        finally:
            self._slots.put(slot)

    def _run(self, slot: _Slot, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        count = len(pixels)
        with self._lock:
            size = self._planned_size(count)
        images, copied = slot.send(pixels, size)
        with self._lock, torch.cuda.stream(self._compute):
            self._compute.wait_event(copied)
            if size in self._graphs:
                scores, maps = self._graphs[size](images)
            else:
                scores, maps = self._planner.submit(self._computed, images).result()
            images.record_stream(self._compute)
            computed = self._compute.record_event()
        return slot.receive(scores[:count], computed), slot.receive(maps[:count], computed)

    def _planned_size(self, count: int) -> int:
        """Return the size in which a batch is computed: that of an earlier, larger one for the rest of many images."""
        larger = [size for size in self._seen if count < size <= _LARGEST_PADDING * count]
        size = count if count in self._seen or not larger else min(larger)
        self._seen[size] = self._seen.get(size, 0) + 1
        return size

    def _computed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps of pixels [B,H,W,C] on the GPU."""
        with torch.inference_mode(), torch.cuda.stream(self._compute), single_precision(tf32=self._tf32):
            if self._capture and self._seen[len(images)] > _UNCAPTURED and self._captured(images):
                return self._graphs[len(images)](images)
            parts = list(self._limit.run(self._one, images))
            return torch.cat([part.scores for part in parts]), torch.cat([part.maps for part in parts])

    def _one(self, images: Tensor) -> Prediction:
        return self._forward(to_input(images, self._device))

    def _captured(self, images: Tensor) -> bool:
        """Capture the kernels for the size of a batch, and return whether that was possible."""
        if len(self._graphs) >= _MOST_GRAPHS or self._limit.size < len(images):
            return False
        try:
            self._graphs[len(images)] = _Graph(self._one, images, self._compute)
        except RuntimeError as error:
            self._capture = False
            reason = "memory ran out" if is_out_of_memory(error) else str(error).partition("\n")[0]
            log.debug("The network is not captured as a CUDA graph: %s.", reason)
            torch.cuda.empty_cache()
            return False
        return True


class _Slot:
    """Stream and page-locked memory for the copies of one batch at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._memory: dict[torch.dtype, Tensor] = {}

    def send(self, pixels: NDArray[np.uint8], size: int) -> tuple[Tensor, torch.cuda.Event]:
        """Start copying pixels to the GPU, as a batch of `size`; return them and the event that ends the copy."""
        host = self._host((size, *pixels.shape[1:]), torch.uint8)
        host.numpy()[: len(pixels)] = pixels
        with torch.cuda.stream(self._stream):
            images = host.to(self._device, non_blocking=True)
            return images, self._stream.record_event()

    def receive(self, values: Tensor, computed: torch.cuda.Event) -> NDArray[np.float32]:
        """Copy computed values from the GPU and wait for them."""
        host = self._host(tuple(values.shape), values.dtype)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            host.copy_(values, non_blocking=True)
            values.record_stream(self._stream)
            done = self._stream.record_event()
        done.synchronize()
        return np.array(host.numpy())

    def _host(self, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        """Return page-locked memory of a shape, the same for each batch."""
        count = int(np.prod(shape))
        if kind not in self._memory or self._memory[kind].numel() < count:
            self._memory[kind] = torch.empty(count, dtype=kind, pin_memory=True)
        return self._memory[kind][:count].view(shape)


class _Graph:
    """Captured kernels of a function for one batch size."""

    def __init__(self, function: Callable[[Tensor], Prediction], images: Tensor, stream: torch.cuda.Stream) -> None:
        self._images = images.clone()
        self._graph = torch.cuda.CUDAGraph()
        stream.synchronize()
        # Other threads go on copying, which a capture of the whole process would not allow.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._scores, self._maps = function(self._images)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps of a batch; the next call does not change them."""
        self._images.copy_(images)
        self._graph.replay()
        return self._scores.clone(), self._maps.clone()
