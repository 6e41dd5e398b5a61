"""How many images go through at once, and what to do when memory runs out.

Pure policy: the caller gives the function and the batch; nothing here knows detectors or data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from adctl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
log = logging.getLogger(__name__)

_AUTO = {"cpu": 8, "mps": 16, "cuda": 32}


def starting_batch_size(wanted: int | str, device: torch.device) -> int:
    """The batch size to begin with: what was asked for, or what keeps the device's caches busy."""
    return _AUTO.get(device.type, 8) if wanted == "auto" else int(wanted)


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
                self._halve(piece.shape[0], error)
                continue
            done += piece.shape[0]
            yield result

    def _halve(self, tried: int, error: BaseException) -> None:
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
