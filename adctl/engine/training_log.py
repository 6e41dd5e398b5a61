"""What can be watched while a training runs, and looked at afterwards: history.csv, a picture of the loss, TensorBoard.

Knows a run's folder and records; nothing of networks.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adctl import files
from adctl.engine.history import to_csv

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.engine.history import Epoch

HISTORY = "history.csv"
PICTURE = "loss.png"
TENSORBOARD = "tensorboard"

_DRAWN_EVERY = 10.0
"""Seconds: a picture takes longer than many an epoch."""


@dataclass(frozen=True)
class Preview:
    """Fixed validation images as a network in training sees them.

    Attributes:
        images: Tensor [N,C,H,W] in [0, 1].
        rebuilt: Tensor [N,C,H,W] in [0, 1], or None where the method rebuilds nothing.
        maps: Tensor [N,h,w], anomaly maps.
    """

    images: Tensor
    rebuilt: Tensor | None
    maps: Tensor


class TrainingLog:
    """Takes note of each epoch; this one keeps nothing."""

    wants_pictures = False

    def epoch(self, history: list[Epoch], preview: Preview | None) -> None:
        """Take note of the last epoch of the history."""

    def close(self) -> None:
        """Finish what is open."""


class FolderTrainingLog(TrainingLog):
    """Writes into a run's folder.

    Args:
        folder: The run's.
        tensorboard: Whether to write TensorBoard's event files too.
    """

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self.folder = folder
        self.wants_pictures = tensorboard
        self._undrawn: list[Epoch] = []
        self._drawn = -math.inf
        self._writer: Any = None  # opened at the first epoch, so that the journal can be handed to another process

    def epoch(self, history: list[Epoch], preview: Preview | None) -> None:
        """Rewrite the history, and now and then the picture; add to TensorBoard."""
        files.write_text(self.folder / HISTORY, to_csv(history))
        self._undrawn = history
        if time.monotonic() - self._drawn > _DRAWN_EVERY:
            self._draw()
        if not self.wants_pictures:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / TENSORBOARD))
        for name, value in _scalars(history[-1]).items():
            self._writer.add_scalar(name, value, history[-1].number)
        if preview is not None:
            self._writer.add_image("validation", contact_sheet(preview), history[-1].number)
        self._writer.flush()

    def close(self) -> None:
        """Draw the last picture, close TensorBoard's file."""
        if self._undrawn:
            self._draw()
        if self._writer is not None:
            self._writer.close()

    def _draw(self) -> None:
        files.write_bytes(self.folder / PICTURE, loss_picture(self._undrawn))
        self._undrawn, self._drawn = [], time.monotonic()


def _scalars(epoch: Epoch) -> dict[str, float]:
    values = {"loss/training": epoch.loss, **{f"terms/{name}": value for name, value in epoch.terms.items()}}
    if epoch.validation is not None:
        values["loss/validation"] = epoch.validation
    return values | {
        "learning_rate": epoch.learning_rate,
        "speed/images_per_second": epoch.images_per_second,
        "memory/GiB": epoch.memory / 2**30,
    }


def contact_sheet(preview: Preview) -> Tensor:
    """One column an image: original, reconstruction and map below each other, [3,H,W] in [0, 1]."""
    size = preview.images.shape[-2:]
    maps = torch.nn.functional.interpolate(preview.maps.unsqueeze(1), size=size, mode="bilinear")
    low, high = maps.min(), maps.max()
    rows = [
        preview.images,
        *([] if preview.rebuilt is None else [preview.rebuilt]),
        (maps - low) / (high - low + 1e-12),
    ]
    columns = [_coloured(row.float()).clamp(0, 1).permute(1, 2, 0, 3).flatten(2) for row in rows]
    return torch.cat(columns, dim=1).cpu()


def _coloured(images: Tensor) -> Tensor:
    """Images [B,C,H,W] as colour [B,3,H,W]: the first three channels, or the first for grey."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)  # noqa: PLR2004 - colours


def loss_picture(history: list[Epoch]) -> bytes:
    """Loss over epochs, training and validation, as PNG."""
    from matplotlib.figure import Figure  # takes a third of a second
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [epoch.number for epoch in history]
    marker = "o" if len(history) == 1 else None
    axes.plot(epochs, [epoch.loss for epoch in history], label="training", color="#0072b2", marker=marker)
    checked = [(epoch.number, epoch.validation) for epoch in history if epoch.validation is not None]
    if checked:
        axes.plot(*zip(*checked, strict=True), label="validation", color="#d55e00", marker=marker)
    values = [epoch.loss for epoch in history] + [value for _, value in checked]
    if min(values) > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
