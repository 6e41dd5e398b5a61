"""The calls by which commands say what they made; each leaves a file in the run's folder and an entry in the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adctl.tracking import folders

if TYPE_CHECKING:
    from pathlib import Path


def training_started(folder: Path) -> None:
    """Note that a training has started in a run's folder."""
    from adctl.tracking import index

    with index.warned(folder):
        folders.mark_started(folder)
        index.index_run(folder.parent, folder)


def training_finished(folder: Path) -> None:
    """Note that the training in a run's folder has finished and its manifest is written."""
    from adctl.tracking import index

    with index.warned(folder):
        index.index_run(folder.parent, folder)


def made(model: Path, kind: folders.Kind, path: Path, source: Path | None = None, **facts: Any) -> None:
    """Note that something was made from a model. Nothing happens if the model does not lie in its run's folder.

    Args:
        model: Model file.
        kind: Kind of the thing.
        path: File or folder that was made.
        source: File or folder that it was made from; the model if left out.
        facts: `metrics`, `intervals` and `facts` of the `adctl.tracking.folders.Artifact`.
    """
    folder = model.parent
    if not folders.is_run(folder):
        return
    from adctl.tracking import index

    with index.warned(folder):
        folders.write_artifact(folder, kind, path, source or model, **facts)
        index.index_run(folder.parent, folder)
