"""Going on with a run that was cut short: the settings it was started with, and what may differ from them.

run/
  settings.json   every setting and where it came from, written before training starts
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import files, run_folder
from adctl.config import LoadedSettings, TrainSettings, validated
from adctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from adctl.data.split import Split

SETTINGS = "settings.json"
_SCHEMA = "adctl.settings/1"

MAY_DIFFER = frozenset(
    {
        "resume", "runs", "name", "device", "gpu", "devices", "workers", "cache", "tensorboard",
        "fetch", "accept_license", "checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints",
    }
)  # fmt: skip
"""Settings that change nothing about the result."""


def keep_settings(run: Path, loaded: LoadedSettings[TrainSettings], split: Split) -> None:
    """Write what a later call needs to go on with this run.

    Raises:
        OutputError: It cannot be written.
    """
    table = loaded.table()
    for name, entry in table.items():
        given = getattr(loaded.settings, name)
        if isinstance(given, Path):  # the run may be gone on with from another folder
            entry["value"] = str(given.absolute())
    files.write_json(run / SETTINGS, {"schema": _SCHEMA, "settings": table})
    files.write_json(run / run_folder.SPLIT, split.to_dict())


def find_run(loaded: LoadedSettings[TrainSettings]) -> Path:
    """The folder of the run named by --resume.

    Raises:
        UsageError: There is no such run, or it has finished.
    """
    given = loaded.settings.resume
    assert given is not None
    run = next((one for one in (given, loaded.settings.runs / given) if (one / SETTINGS).is_file()), None)
    if run is None:
        raise UsageError(f"There is no run {given} to resume.", f"Name a folder in {loaded.settings.runs}.")
    if (run / run_folder.MODEL).is_file():
        raise UsageError(f"The run {run} has finished: there is nothing to resume.", "Score with it, or train anew.")
    return run


def settings_of(run: Path, loaded: LoadedSettings[TrainSettings]) -> LoadedSettings[TrainSettings]:
    """The settings a run was started with, but for those given now that change nothing about the result.

    Raises:
        UsageError: A setting given now would change the result; says which, and both values.
        DataError: The run's settings are damaged.
    """
    kept = run_folder.read_json(run / SETTINGS)
    if kept is None or kept.get("schema") != _SCHEMA:
        raise DataError(f"{run / SETTINGS} is damaged.", "Train anew.")
    started: dict[str, dict[str, Any]] = kept["settings"]
    now = loaded.table()
    given = {name for name, origin in loaded.origins.items() if origin != "default"}
    differing = [
        f"{name} (the run has {started[name]['value']!r}, now {now[name]['value']!r})"
        for name in sorted(given - MAY_DIFFER)
        if name in started and _plain(now[name]["value"], started[name]["value"]) != started[name]["value"]
    ]
    if differing:
        raise UsageError(
            f"The run {run} was started with other settings: {'; '.join(differing)}.",
            "Leave those out, or train anew.",
        )
    changed = given & MAY_DIFFER
    values = {name: now[name]["value"] if name in changed else entry["value"] for name, entry in started.items()}
    origins = {name: loaded.origins[name] if name in changed else entry["from"] for name, entry in started.items()}
    return LoadedSettings(validated(TrainSettings, values, origins), origins)


def check_data(run: Path, split: Split) -> None:
    """Refuse to go on with other images than the run was started with.

    Raises:
        DataError: The good images have changed.
    """
    if run_folder.read_json(run / run_folder.SPLIT) != split.to_dict():
        raise DataError(
            f"The good images are not those that {run} was started with.", "Bring those back, or train anew."
        )


def _plain(now: Any, started: Any) -> Any:
    """A path as it was kept: absolute."""
    if isinstance(now, str) and isinstance(started, str) and Path(started).is_absolute():
        return str(Path(now).absolute())
    return now
