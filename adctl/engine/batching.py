"""Batch sizes that fit into memory, and smaller batches after an out-of-memory error.

This module knows neither detectors nor data: the caller gives the function and the batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
from torch import Tensor

from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

T = TypeVar("T")
log = logging.getLogger(__name__)

_PROBED = (16, 32)
"""Batch sizes whose memory is measured before a larger one is tried."""

_FILLED = 0.9
"""Fraction of the free memory of a GPU that a gradient step may fill."""

_MEMORY_SHARE = 0.6
"""Fraction of the free memory for gradient steps; the rest is for images, checkpoints and other programs."""


def to_input(pixels: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Convert pixels [B,H,W,C], uint8, to images [B,C,H,W], float32 in [0, 1], channels last in memory."""
    moved = (pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)).to(device, non_blocking=True)
    images = moved.permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def masks_of(images: Any, indices: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the masks [B,H,W] of images by index, of bool; None for images without labels."""
    read = getattr(images, "defects", None)
    return None if read is None else torch.from_numpy(read(indices)).to(device)


def largest_batch_size(step: Callable[[int], None], wanted: int, device: torch.device) -> int:
    """Return the largest batch size whose gradient step fits into memory: `wanted`, halved as often as necessary.

    On a GPU the step is run at each size. On a CPU, where running out of memory would end the process, the step is run
    with two images, and the memory that it keeps for the backward pass is scaled up.

    Args:
        step: Function that runs a complete gradient step (forward, backward, optimizer) with a number of images.
        wanted: Batch size to start with.
        device: The device.

    Raises:
        TrainingError: Not even one image fits.
    """
    if device.type == "cpu":
        kept = _kept_for_backward(lambda: step(2)) / 2
        free = _MEMORY_SHARE * psutil.virtual_memory().available
        return _lowered_until(wanted, lambda size: size * kept <= free, _half)
    return _lowered_until(wanted, lambda size: _runs(lambda: step(size), device), _half)


def filling_batch_size(step: Callable[[int], None], most: int, device: torch.device) -> int:
    """Return the batch size whose gradient step takes about nine tenths of the free memory of a GPU.

    The step is run with a few images, and its memory is extrapolated; then with the size found, to be sure.

    Args:
        step: Function that runs a complete gradient step with a number of images.
        most: Largest size wanted.
        device: The GPU.

    Raises:
        TrainingError: Not even one image fits.
    """
    few, more = _PROBED
    if most <= more or not _runs(lambda: step(more), device):
        return largest_batch_size(step, min(most, more), device)
    peaks = [_peak(step, size, device) for size in (few, more)]
    each = max(1.0, (peaks[1] - peaks[0]) / (more - few))
    free, _ = torch.cuda.mem_get_info(device)
    room = _FILLED * (free + torch.cuda.memory_allocated(device)) - peaks[1]
    size = min(most, max(more, more + int(room / each)))
    return _lowered_until(size, lambda images: _runs(lambda: step(images), device), lambda images: images * 19 // 20)


def _peak(step: Callable[[int], None], size: int, device: torch.device) -> int:
    """Return the peak of reserved bytes during a step, beginning with no unused reserved memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step(size)
    return torch.cuda.max_memory_reserved(device)


def _lowered_until(size: int, fits: Callable[[int], bool], lower: Callable[[int], int]) -> int:
    while not fits(size):
        if size == 1:
            raise TrainingError(
                "There is not enough memory for a gradient step with a single image.",
                "Choose a smaller --image-size, --gradient-checkpointing, another device, or close other programs.",
            )
        size = max(1, lower(size))
    return size


def _half(size: int) -> int:
    return size // 2


def _runs(step: Callable[[], None], device: torch.device) -> bool:
    try:
        step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _kept_for_backward(step: Callable[[], None]) -> int:
    """Return the bytes of distinct tensors that autograd keeps during a step, doubled for their gradients."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return 2 * sum(storages.values())


def hold_buffers(*modules: nn.Module) -> Callable[[], None]:
    """Copy the buffers of modules (batch statistics), and return a function that restores them."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    held = [torch.empty_like(buffer) for buffer in buffers]
    _copy_all(held, buffers)
    return lambda: _copy_all(buffers, held)


@torch.no_grad()
def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors, those of one type together: a GPU starts one kernel instead of hundreds."""
    for kind in {target.dtype for target in targets}:
        chosen = [place for place, target in enumerate(targets) if target.dtype == kind]
        torch._foreach_copy_([targets[place] for place in chosen], [sources[place] for place in chosen])


@dataclass
class BatchLimit:
    """Largest batch that fits into memory, lowered after each out-of-memory error.

    Attributes:
        size: Number of images.
    """

    size: int

    def run(self, function: Callable[[Tensor], T], images: Tensor) -> Iterator[T]:
        """Yield the results of a function without side effects on parts of a batch [B,...].

        A part has at most `size` images; after an out-of-memory error `size` is halved and the part is repeated.

        Raises:
            TrainingError: Not even one image fits.
        """
        done = 0
        while done < images.shape[0]:
            part = images[done : done + self.size]
            try:
                result = function(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.halve(part.shape[0], error)
                continue
            done += part.shape[0]
            yield result

    def halve(self, tried: int, error: BaseException) -> None:
        """Set the size to half of the size that ran out of memory.

        Raises:
            TrainingError: The batch had a single image.
        """
        if tried == 1:
            raise TrainingError(
                "A single image does not fit into memory.",
                "Choose a smaller --image-size, another device, or close other programs.",
            ) from error
        self.size = tried // 2
        log.warning("Memory ran out at batch size %d: continuing with %d.", tried, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
