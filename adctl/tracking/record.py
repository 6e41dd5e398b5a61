"""The calls by which commands say what they made; each leaves a file in the run's folder, and a mark for the index.

SQLAlchemy is imported only if the index lies on a server that other machines read.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adctl.errors import AdctlError
from adctl.tracking import SERVER_VARIABLE, changes, folders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)


def training_started(folder: Path) -> None:
    """Note that a training has started in a run's folder."""
    with _warned(folder):
        folders.mark_started(folder)
        changed(folder)


def training_finished(folder: Path) -> None:
    """Note that the training in a run's folder has finished and its manifest is written."""
    with _warned(folder):
        changed(folder)


def made(
    model: Path, kind: folders.Kind, path: Path, source: Path | None = None, *, run: Path | None = None, **facts: Any
) -> None:
    """Note that something was made from a model. Nothing happens if the model has no run.

    Args:
        model: Model file.
        kind: Kind of the thing.
        path: File or folder that was made.
        source: File or folder that it was made from; the model if left out.
        run: Folder of the run; that of the model if left out.
        facts: `metrics`, `intervals` and `facts` of the `adctl.tracking.folders.Artifact`.
    """
    folder = run or model.parent
    if not folders.is_run(folder):
        return
    with _warned(folder):
        folders.write_artifact(folder, kind, path, source or model, **facts)
        changed(folder)


def changed(folder: Path) -> None:
    """Mark a run for the index; if that lies on a server, bring it up to date at once.

    Raises:
        AdctlError: The mark cannot be written, or the server cannot be used.
    """
    runs = folders.runs_of(folder)
    if runs is None:
        return
    changes.add(runs, folder)
    if SERVER_VARIABLE in os.environ:
        from adctl.tracking import index

        index.refresh(runs)


@contextmanager
def _warned(folder: Path) -> Iterator[None]:
    """Turn an error of tracking into a warning, because the work itself is done."""
    try:
        yield
    except (AdctlError, OSError, ImportError) as error:
        reason = error.message if isinstance(error, AdctlError) else str(error)
        log.warning("The run %s is complete, but this is not recorded: %s", folder.name, reason)
