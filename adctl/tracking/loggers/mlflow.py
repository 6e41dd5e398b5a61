"""MLflow: runs on the server that `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.tracking.loggers.base import LoggedRun

_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Variables that are set unless the user sets them; with MLflow's own, a server that is down is called for minutes."""

_EXPERIMENT = "adctl"
_AT_ONCE = 100
"""Largest number of parameters of one call."""
_ODD = re.compile(r"[^\w\-. /]")
"""Characters that names of metrics and parameters cannot have."""


class MlflowLogger:
    """Logger of MLflow; the variable `MLFLOW_EXPERIMENT_NAME` names another experiment than `adctl`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""

    def start(self, run: LoggedRun) -> None:
        """Create a run with its parameters; the group is a tag."""
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        tags = {"folder": run.folder, **({"group": run.group} if run.group else {})}
        created = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        self._run = created.info.run_id
        params = [Param(_ODD.sub("_", name), str(value)) for name, value in run.parameters.items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._run, params=params[first : first + _AT_ONCE])

    def log_metrics(self, values: dict[str, float], epoch: int | None) -> None:
        """Record metrics, all of them in one call."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_ODD.sub("_", name), value, now, epoch or 0) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def log_picture(self, name: str, png: bytes, epoch: int | None) -> None:
        """Upload a picture."""
        from PIL import Image

        file = f"{name}.png" if epoch is None else f"{name}/epoch-{epoch:05}.png"
        self._client.log_image(self._run, Image.open(io.BytesIO(png)), file)

    def log_text(self, name: str, text: str, epoch: int) -> None:
        """Upload a text."""
        self._client.log_text(self._run, text, f"{name}/epoch-{epoch:05}.md")

    def log_model(self, model: Path) -> None:
        """Upload the model file."""
        self._client.log_artifact(self._run, str(model), "model")

    def finish(self, *, succeeded: bool) -> None:
        """End the run."""
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")

    def _experiment(self) -> str:
        """Return the identifier of the experiment, which is created if there is none."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another process has created it in between
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)
