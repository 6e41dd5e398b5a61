"""What a fit is surrounded by: where images come from, and who is told how it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from adctl.engine.training_log import TrainingLog
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from adctl.engine.checkpoints import CheckpointFolder
    from adctl.engine.phases import Batch


class Images(Protocol):
    """Images that can be gone through again and again."""

    def __len__(self) -> int: ...

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Pixels [B,H,W,C] of uint8."""
        ...

    def name(self, index: int) -> str:
        """What an image is called in messages."""
        ...


@dataclass(frozen=True)
class FitContext:
    """What a fit reports to and draws on.

    Attributes:
        reporter: Told how far it is.
        journal: Takes note of each epoch.
        checkpoints: Where they go and come from, or None.
        augment: Images [B,C,H,W] to a batch with variations, or None.
    """

    reporter: Reporter = SILENT
    journal: TrainingLog = field(default_factory=TrainingLog)
    checkpoints: CheckpointFolder | None = None
    augment: Callable[[Tensor], Batch] | None = None
