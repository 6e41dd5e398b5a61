"""Log of a training in the folder of its run: history.csv and a chart of the loss, updated after each epoch.

This module knows the folder and the records, not the network.
"""

from __future__ import annotations

import io
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adctl import files
from adctl.engine.history import to_csv
from adctl.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adctl.engine.history import Epoch
    from adctl.engine.phases import Explanation

log = logging.getLogger(__name__)

HISTORY = "history.csv"
PICTURE = "loss.png"

_FEW = 3
"""Largest number of epochs whose losses are marked with dots."""

_WIDE, _MANY_DECADES = 8, 1e3
"""Ratios of the highest to the lowest loss from which the axis is logarithmic, and has powers of ten only."""

_DRAWN_EVERY = 10.0
"""Minimum seconds between two charts, because drawing a chart takes longer than a short epoch."""


@dataclass(frozen=True)
class Preview:
    """Fixed validation images with the current output of the network.

    Attributes:
        images: Tensor [N,C,H,W] in [0, 1].
        shown: Reconstructions or other pictures, or None.
        maps: Anomaly maps, tensor [N,h,w].
    """

    images: Tensor
    shown: Explanation | None
    maps: Tensor


class TrainingLog:
    """Receiver of each epoch; this base class ignores them."""

    wants_pictures = False

    def epoch(self, history: list[Epoch], preview: Preview | None) -> None:
        """Log the last epoch of the history."""

    def close(self) -> None:
        """Close open files."""


class FolderTrainingLog(TrainingLog):
    """Training log in the folder of a run.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undrawn: list[Epoch] = []
        self._drawn = -math.inf
        self._failed = False

    def epoch(self, history: list[Epoch], preview: Preview | None) -> None:  # noqa: ARG002 - a table has no pictures
        """Rewrite the history and, if it is old, the chart."""
        self._write(HISTORY, to_csv(history).encode())
        self._undrawn = history
        if time.monotonic() - self._drawn > _DRAWN_EVERY:
            self._draw()

    def close(self) -> None:
        """Draw the final chart."""
        if self._undrawn:
            self._draw()

    def _draw(self) -> None:
        self._write(PICTURE, loss_picture(self._undrawn, self.folder.name))
        self._undrawn, self._drawn = [], time.monotonic()

    def _write(self, name: str, data: bytes) -> None:
        """Write a file; one that cannot be written is no reason to end a training, and is warned of once."""
        try:
            files.write_bytes(self.folder / name, data)
        except OutputError as error:
            log.log(logging.DEBUG if self._failed else logging.WARNING, "%s", error.message)
            self._failed = True


def scalars(epoch: Epoch) -> dict[str, float]:
    """Return the numbers of an epoch by the names that loggers show, such as `loss/training`."""
    values = {"loss/training": epoch.loss, **{f"terms/{name}": value for name, value in epoch.terms.items()}}
    if epoch.validation is not None:
        values["loss/validation"] = epoch.validation
    return values | {
        "learning_rate": epoch.learning_rate,
        "speed/images_per_second": epoch.images_per_second,
        "memory/GiB": epoch.memory / 2**30,
    }


def contact_sheet(preview: Preview) -> Tensor:
    """Return a picture [3,H,W] in [0, 1] with a column for each image: original, other pictures, map."""
    size = preview.images.shape[-2:]
    maps = torch.nn.functional.interpolate(preview.maps.unsqueeze(1), size=size, mode="bilinear")
    low, high = maps.min(), maps.max()
    rows = [
        preview.images,
        *(preview.shown.pictures.values() if preview.shown else ()),
        (maps - low) / (high - low + 1e-12),
    ]
    columns = [_coloured(row.float()).clamp(0, 1).permute(1, 2, 0, 3).flatten(2) for row in rows]
    return torch.cat(columns, dim=1).cpu()


def contact_sheet_png(preview: Preview) -> bytes:
    """Return `contact_sheet` as PNG."""
    from PIL import Image

    pixels = (contact_sheet(preview).permute(1, 2, 0) * 255).round().to(torch.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(out, "PNG")
    return out.getvalue()


def _coloured(images: Tensor) -> Tensor:
    """Return images [B,C,H,W] as colour [B,3,H,W]: the first three channels, or the first channel repeated."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)  # noqa: PLR2004 - colours


def loss_picture(history: list[Epoch], name: str = "") -> bytes:
    """Return a chart of training and validation loss per epoch, as PNG.

    Args:
        history: Records of the epochs, one or more.
        name: Name of the run, for the title.
    """
    figure = loss_figure(history, name)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def loss_figure(history: list[Epoch], name: str = "") -> Figure:
    """Return the chart of `loss_picture` as a figure of matplotlib."""
    from matplotlib.figure import Figure  # the import takes a third of a second
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [epoch.number for epoch in history]
    marker = "o" if len(history) <= _FEW else None
    axes.plot(epochs, [epoch.loss for epoch in history], label="training", color="#0072b2", marker=marker)
    checked = [(epoch.number, epoch.validation) for epoch in history if epoch.validation is not None]
    if checked:
        axes.plot(*zip(*checked, strict=True), label="validation", color="#d55e00", marker=marker)
    values = [epoch.loss for epoch in history] + [value for _, value in checked]
    if 0 < _WIDE * min(values) < max(values):
        _set_log_scale(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_title(" · ".join(filter(None, ("Loss by epoch", name))))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _set_log_scale(axes: Axes) -> None:
    """Set a logarithmic loss axis with plain numbers: 1, 2 and 5 in each decade, or only powers of ten if many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    factors = (1.0, 2.0, 5.0) if high / low < _MANY_DECADES else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(10, subs=factors, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
