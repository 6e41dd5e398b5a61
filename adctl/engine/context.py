"""Services a fit uses: images, training log, checkpoints, augmentation and progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

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
    """Images that can be iterated many times."""

    def __len__(self) -> int: ...

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of pixels [B,H,W,C], uint8, with at most `size` images, in the given order of indices."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        ...


class LabelledImages(Images, Protocol):
    """Images with the masks of their defects."""

    def defects(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Return the masks [B,H,W] of images by index, empty for good ones."""
        ...


def labels_of(images: Images, indices: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the kinds [B] of images by index, int64; None if the images have no `labels`."""
    labels = getattr(images, "labels", None)
    return None if labels is None else torch.as_tensor(labels[list(indices)], dtype=torch.int64, device=device)


@dataclass(frozen=True)
class FitContext:
    """Services a fit uses.

    Attributes:
        reporter: Receiver of progress.
        training_log: Receiver of each epoch.
        checkpoints: Folder of the checkpoints, or None.
        augment: Function from images [B,C,H,W] to an augmented batch, or None.
        after_epoch: Function called after each epoch with the detector in evaluation mode, the number of the epoch and
            the number of epochs; it may raise to end the fit. None for none.
    """

    reporter: Reporter = SILENT
    training_log: TrainingLog = field(default_factory=TrainingLog)
    checkpoints: CheckpointFolder | None = None
    augment: Callable[[Tensor], Batch] | None = None
    after_epoch: Callable[[Any, int, int], None] | None = None
