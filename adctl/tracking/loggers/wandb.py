"""Weights & Biases: runs at wandb.ai or the server that `WANDB_BASE_URL` names, or files with `WANDB_MODE=offline`."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.tracking.loggers.base import LoggedRun

_PROJECT = "adctl"
_START_SECONDS = 20


class WandbLogger:
    """Logger of Weights & Biases; the variable `WANDB_PROJECT` names another project than `adctl`.

    Its files are written to the folder `wandb` in the run's folder, from where `wandb sync` can upload them later.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: LoggedRun) -> None:
        """Create a run with its parameters, in the group of the grid or cross-validation."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            group=run.group,
            config=run.parameters,
            dir=run.folder,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=_START_SECONDS, disable_git=True, disable_code=True
            ),
        )
        self._run.define_metric("*", step_metric="epoch")

    def log_metrics(self, values: dict[str, float], epoch: int | None) -> None:
        """Record metrics; those of the whole run stand in its summary."""
        if epoch is None:
            self._run.summary.update(values)
        else:
            self._run.log({**values, "epoch": epoch})

    def log_picture(self, name: str, png: bytes, epoch: int | None) -> None:
        """Record a picture."""
        import wandb
        from PIL import Image

        entry = {name: wandb.Image(Image.open(io.BytesIO(png)))}
        self._run.log(entry if epoch is None else {**entry, "epoch": epoch})

    def log_text(self, name: str, text: str, epoch: int) -> None:  # noqa: ARG002 - a summary holds the last one
        """Record a text in the summary of the run."""
        self._run.summary.update({name: text})

    def log_model(self, model: Path) -> None:
        """Record the model file as an artifact; it is not copied."""
        import wandb

        artifact = wandb.Artifact(f"{self._run.id}-model", type="model")
        artifact.add_file(str(model), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def finish(self, *, succeeded: bool) -> None:
        """End the run, and wait until it is uploaded."""
        if self._run is not None:
            self._run.finish(exit_code=0 if succeeded else 1)
