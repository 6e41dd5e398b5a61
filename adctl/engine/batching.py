"""How many images go through at once, and what to do when memory runs out.

Pure policy: the caller gives the function and the batch; nothing here knows detectors or data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from torch import Tensor

from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

T = TypeVar("T")
log = logging.getLogger(__name__)

_MEMORY_SHARE = 0.6
"""Of the memory that is free, what gradient steps may take; the rest is for images, checkpoints and others."""


def to_input(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels [B,H,W,C] of uint8 to images [B,C,H,W] of float32 in [0, 1], channels last in memory."""
    images = torch.from_numpy(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def largest_that_fits(step: Callable[[int], None], wanted: int, device: torch.device) -> int:
    """The largest batch size, `wanted` or a halving of it, whose gradient step fits into memory.

    On a GPU the step is tried for real. On a CPU, where running out of memory would end the process, the
    step is tried with two images only and what it kept for the backward pass is counted and scaled up.

    Args:
        step: One whole gradient step (forward, backward, optimizer) with so many images.
        wanted: Images.
        device: Where.

    Raises:
        TrainingError: Not even one image fits.
    """
    if device.type == "cpu":
        kept = _kept_for_backward(lambda: step(2)) / 2
        free = _MEMORY_SHARE * psutil.virtual_memory().available
        return _halved_until(wanted, lambda size: size * kept <= free)
    return _halved_until(wanted, lambda size: _runs(lambda: step(size), device))


def _halved_until(size: int, fits: Callable[[int], bool]) -> int:
    while not fits(size):
        if size == 1:
            raise TrainingError(
                "There is not enough memory for a gradient step with a single image.",
                "Choose a smaller --image-size, --gradient-checkpointing, another device, or close other programs.",
            )
        size //= 2
    return size


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
    """Bytes of distinct tensors that autograd kept during a step, and as much again for their gradients."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return 2 * sum(storages.values())


def hold_buffers(*modules: nn.Module) -> Callable[[], None]:
    """Remember modules' buffers (batch statistics); what is returned puts them back."""
    held = [[buffer.clone() for buffer in module.buffers()] for module in modules]

    def put_back() -> None:
        for module, values in zip(modules, held, strict=True):
            for buffer, value in zip(module.buffers(), values, strict=True):
                buffer.copy_(value)

    return put_back


@dataclass
class BatchLimit:
    """The largest batch that memory allows, learned on the way.

    Attributes:
        size: Images at once.
    """

    size: int

    def pieces(self, function: Callable[[Tensor], T], images: Tensor) -> Iterator[T]:
        """Run a pure function over a batch [B,...] in pieces of at most `size`; halve and try again on OOM.

        Raises:
            TrainingError: Not even one image fits.
        """
        done = 0
        while done < images.shape[0]:
            piece = images[done : done + self.size]
            try:
                result = function(piece)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.halve(piece.shape[0], error)
                continue
            done += piece.shape[0]
            yield result

    def halve(self, tried: int, error: BaseException) -> None:
        """Go on with half of what was tried.

        Raises:
            TrainingError: It was a single image.
        """
        if tried == 1:
            raise TrainingError(
                "Memory ran out with a single image.",
                "Choose a smaller --image-size, another device, or close other programs.",
            ) from error
        self.size = tried // 2
        log.warning("Memory ran out at batch size %d: going on with %d.", tried, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
