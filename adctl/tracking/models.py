"""The model that a command means: a file, a run, the last one, or the best one of the index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.errors import UsageError
from adctl.tracking import versions

if TYPE_CHECKING:
    from pathlib import Path

BEST = "best:"
"""Start of a name that asks for the best run, such as `best:line3`."""

METRIC = "image_auroc"


def find_model(runs: Path, model: Path | None) -> Path:
    """Find a model file by its path, by the folder or name of its run, or by `best:NAME`; None finds the last one.

    A name under which a run was accepted means that run, see `adctl.tracking.versions`. `best:NAME` is the run with the
    highest image AUROC among those with this tag, name, category or dataset.

    Raises:
        UsageError: There is no such model.
    """
    if model is None or not str(model).startswith(BEST):
        accepted = None if model is None else versions.accepted_run(runs, str(model))
        return run_folder.find_model(runs, accepted or model)
    from adctl.tracking import queries

    name = str(model).removeprefix(BEST)
    for column in ("tag", "name", "category", "dataset"):
        if queries.find_runs(runs, [f"{column}={name}"], limit=1):
            return queries.model_of(queries.best_run(runs, METRIC, [f"{column}={name}"]))
    raise UsageError(f"No run has the tag, name, category or dataset '{name}'.", "List the runs: adctl runs")
