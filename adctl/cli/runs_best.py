"""Command `adctl runs best`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.runs import as_json

if TYPE_CHECKING:
    from adctl.cli.output import Call
    from adctl.config import RunsBestSettings


def run(call: Call[RunsBestSettings]) -> None:
    """Print the model file of the best run."""
    from adctl.tracking import queries

    settings = call.settings
    row = queries.best_run(settings.runs, settings.metric, queries.conditions_of(settings))
    model = queries.model_of(row)
    call.finish({**as_json(row), "path": model}, lambda: str(model))
