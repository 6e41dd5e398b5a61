"""TensorBoard: event files in the run's folder, written in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adctl.tracking.loggers.base import LoggedRun

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Logger that writes event files; they are opened at the first entry, so that it can be sent to another process."""

    def __init__(self) -> None:
        self._run: LoggedRun | None = None
        self._opened: Any = None

    def start(self, run: LoggedRun) -> None:
        """Keep the description of the run."""
        self._run = run

    def log_metrics(self, values: dict[str, float], epoch: int | None) -> None:
        """Write scalars; those of the whole run have step 0."""
        writer = self._writer()
        for name, value in values.items():
            writer.add_scalar(name, value, epoch or 0)
        writer.flush()

    def log_picture(self, name: str, png: bytes, epoch: int | None) -> None:
        """Write a picture of an epoch; the chart of the loss is left out, because TensorBoard draws one."""
        if epoch is None:
            return
        import numpy as np
        from PIL import Image

        picture = np.asarray(Image.open(io.BytesIO(png)))
        self._writer().add_image(name, picture, epoch, dataformats="HWC")
        self._writer().flush()

    def log_text(self, name: str, text: str, epoch: int) -> None:
        """Write a text."""
        self._writer().add_text(name, text, epoch)
        self._writer().flush()

    def log_model(self, model: Path) -> None:
        """Do nothing: the model lies beside the event files."""

    def finish(self, *, succeeded: bool) -> None:  # noqa: ARG002 - event files have no state
        """Close the file."""
        if self._opened is not None:
            self._opened.close()

    def _writer(self) -> Any:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            assert self._run is not None
            self._opened = SummaryWriter(str(Path(self._run.folder) / FOLDER))
            lines = (f"| {name} | {value} |" for name, value in self._run.parameters.items())
            self._opened.add_text("parameters", "\n".join(("| name | value |", "|---|---|", *lines)))
        return self._opened
