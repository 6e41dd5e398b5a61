"""Resuming a run: the settings it was started with, the settings that may differ, and the folder after a failure.

run/
  settings.json   every setting and its origin, written before training starts
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import documents, files, run_folder
from adctl.config import LoadedSettings, TrainSettings, names_of, validated
from adctl.engine.checkpoints import FOLDER as CHECKPOINTS
from adctl.engine.checkpoints import CheckpointFolder
from adctl.errors import DataError, UsageError
from adctl.tracking.own_files import clear_own_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from adctl.data.split import Split

log = logging.getLogger(__name__)

_SCHEMA = "adctl.settings/1"

MAY_DIFFER = frozenset(
    {
        "resume", "runs", "name", "device", "gpu", "devices", "workers", "cache", "log", "tensorboard",
        "fetch", "accept_license", "export", "checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints",
        "ray", "ray_cpus", "ray_gpu",
    }
)  # fmt: skip
"""Settings that do not influence the result."""


@dataclass(frozen=True)
class _StoredSettings:
    schema: str
    settings: dict[str, dict[str, Any]]


def save_settings(run: Path, loaded: LoadedSettings[TrainSettings], split: Split) -> None:
    """Write the settings and the split, which are needed to resume the run.

    Raises:
        OutputError: They cannot be written.
    """
    table = loaded.table()
    for name, entry in table.items():
        given = getattr(loaded.settings, name)
        if isinstance(given, Path):  # the run may be resumed from another folder
            entry["value"] = str(given.absolute())
    files.write_json(run / run_folder.SETTINGS, {"schema": _SCHEMA, "settings": table})
    files.write_json(run / run_folder.SPLIT, split.to_dict())


def find_run(loaded: LoadedSettings[TrainSettings]) -> tuple[Path | None, LoadedSettings[TrainSettings]]:
    """Return the folder of the run to resume and its settings; None and the given settings for a new run.

    Raises:
        UsageError: There is no such run, it has finished, or its settings differ from the given ones.
        DataError: The settings of the run are damaged.
    """
    given = loaded.settings.resume
    if given is None:
        return None, loaded
    run = next((one for one in (given, loaded.settings.runs / given) if (one / run_folder.SETTINGS).is_file()), None)
    if run is None:
        raise UsageError(f"There is no run {given} to resume.", f"Give the name of a folder in {loaded.settings.runs}.")
    if (run / run_folder.MODEL).is_file():
        raise UsageError(
            f"The run {run} has finished, so it cannot be resumed.", "Score with its model, or train again."
        )
    return run, load_settings(run, loaded)


def task_of(loaded: LoadedSettings[TrainSettings]) -> str:
    """Return the task of a training: that of the run to resume, or that of the settings.

    Raises:
        UsageError: There is no such run, it has finished, or its settings differ from the given ones.
        DataError: The settings of the run are damaged.
    """
    run = loaded.settings.resume
    of_grid = run is not None and not any(
        (one / run_folder.SETTINGS).is_file() for one in (run, loaded.settings.runs / run)
    )
    return loaded.settings.task if of_grid else find_run(loaded)[1].settings.task


def load_settings(run: Path, loaded: LoadedSettings[TrainSettings]) -> LoadedSettings[TrainSettings]:
    """Return the settings of a run, updated by those given now that do not influence the result.

    Raises:
        UsageError: A setting given now would change the result; the message names it, with both values.
        DataError: The settings of the run are damaged.
    """
    stored = documents.read(run / run_folder.SETTINGS, _StoredSettings, "Train again.")
    if stored is None or stored.schema != _SCHEMA:
        raise DataError(f"{run / run_folder.SETTINGS} is damaged: it has another format.", "Train again.")
    started = stored.settings
    wrong = next((name for name, entry in started.items() if not {"value", "from"} <= entry.keys()), None)
    if wrong is not None:
        raise DataError(f"{run / run_folder.SETTINGS} is damaged: '{wrong}' has no value or no origin.", "Train again.")
    now = loaded.table()
    given = {name for name, origin in loaded.origins.items() if origin != "default"}
    differing = [
        f"{name} (the run has {started[name]['value']!r}, now {now[name]['value']!r})"
        for name in sorted(given - MAY_DIFFER)
        if name in started and _comparable(now[name]["value"], started[name]["value"]) != started[name]["value"]
    ]
    if differing:
        raise UsageError(
            f"The run {run} was started with other settings: {'; '.join(differing)}.",
            "Leave these settings out, or train again.",
        )
    changed = given & MAY_DIFFER
    values = {name: now[name]["value"] if name in changed else entry["value"] for name, entry in started.items()}
    # Settings that the version of the start did not have keep their defaults.
    origins = dict.fromkeys(names_of(TrainSettings), "default") | {
        name: loaded.origins[name] if name in changed else entry["from"] for name, entry in started.items()
    }
    return LoadedSettings(validated(TrainSettings, values, origins), origins)


def check_data(run: Path, split: Split) -> None:
    """Check that the images are those that the run was started with.

    Raises:
        DataError: The good images have changed.
    """
    if run_folder.read_json(run / run_folder.SPLIT) != split.to_dict():
        raise DataError(
            f"The good images are not those that {run} was started with.", "Restore the images, or train again."
        )


def run_lock(run: Path) -> AbstractContextManager[None]:
    """Return a context that holds the only right to train into the folder of a run.

    Raises:
        UsageError: Another process holds it.
    """
    return files.folder_lock(run, "adctl train", "Wait until it is done, or train under another --name.")


@contextmanager
def kept_if_resumable(run: Path) -> Iterator[None]:
    """Hold the folder of a run; after a failure in the block, keep it if it can be resumed, or else remove it.

    Raises:
        UsageError: Another process trains into the folder.
    """
    with run_lock(run):
        try:
            yield
        except BaseException:
            if CheckpointFolder(run / CHECKPOINTS).newest() is not None or any(run.glob("fold-*")):
                log.warning("The run is kept. Resume it with 'adctl train --resume %s'.", run)
            else:
                clear_own_files(run)
            raise


@contextmanager
def opened_folder(
    run: Path | None, loaded: LoadedSettings[TrainSettings], split: Split, category: str
) -> Iterator[Path]:
    """Hold the folder of a run: that of an interrupted one, or a new one with its settings.

    Args:
        run: Folder of an interrupted run, or None.
        loaded: The settings and their origins.
        split: Split of the good images.
        category: Category of the dataset, for the name of a new folder.

    Raises:
        UsageError: Another process trains into the folder, or a run of this name exists.
        OutputError: The folder cannot be written.
    """
    if run is not None:
        with run_lock(run):
            yield run
        return
    settings = loaded.settings
    kind = "classifier" if settings.task == "classify" else settings.arch
    run = run_folder.new_folder(settings.runs, kind, category, name=settings.name)
    with kept_if_resumable(run):
        save_settings(run, loaded, split)
        yield run


def _comparable(now: Any, started: Any) -> Any:
    """Return a path as it is stored, absolute; other values unchanged."""
    if isinstance(now, str) and isinstance(started, str) and Path(started).is_absolute():
        return str(Path(now).absolute())
    return now
