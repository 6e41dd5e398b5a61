"""Accepted versions of a model: the run that a name such as line3 means, and the runs that it meant before.

runs/
  versions.json   for each name its accepted runs, oldest first; the last one is in use
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adctl import documents, files, run_folder
from adctl.errors import UsageError, unknown_name
from adctl.tracking import folders

if TYPE_CHECKING:
    from pathlib import Path

FILE = "versions.json"
_LOCK, _WAIT_SECONDS = ".versions.lock", 10

_SCHEMA = "adctl.versions/1"
_REMEDY = "Delete it: each name then means the run of that name."


@dataclass(frozen=True)
class AcceptedVersion:
    """Run that a name means.

    Attributes:
        name: The name.
        run: Name of the run's folder.
        previous: Run that the name means after a roll back; None if there is none.
    """

    name: str
    run: str
    previous: str | None


@dataclass(frozen=True)
class _Versions:
    schema: str
    versions: dict[str, tuple[str, ...]]


def accept(runs: Path, run: str, name: str | None = None) -> AcceptedVersion:
    """Let a name mean a run from now on; earlier versions stay.

    Args:
        runs: Folder of all runs.
        run: Name or folder of the run.
        name: The name; None takes that of the first model of which the run is an update.

    Raises:
        UsageError: There is no such run, it has no model, or it is not in the folder of runs; or another process
            changed the same name meanwhile.
        OutputError: The versions cannot be written.
    """
    from adctl.tracking import queries  # slow to import

    before = _read(runs)
    folder = queries.find_folder(runs, run).absolute()
    if folder.parent != runs.absolute():
        raise UsageError(f"{folder} is not in the folder of runs, {runs}.", "Accept a run of that folder.")
    run_folder.find_model(runs, folder)  # raises if it has no model
    ancestors = _ancestors(runs, folder.name)
    chosen = name or next((one for one, versions in before.items() if set(versions) & set(ancestors)), ancestors[-1])
    history = before.get(chosen, tuple(reversed(ancestors[1:])))
    history = (*(one for one in history if one != folder.name), folder.name)
    _change(runs, chosen, before, history)
    return _version(chosen, history)


def roll_back(runs: Path, name: str) -> AcceptedVersion:
    """Let a name mean the run that it meant before; the later run stays in the folder of runs.

    Raises:
        UsageError: There is no such name, or no earlier version; or another process changed it meanwhile.
        OutputError: The versions cannot be written.
    """
    known = _read(runs)
    if name not in known:
        raise unknown_name("accepted name", name, known)
    if len(known[name]) == 1:
        raise UsageError(f"{name} has no version before {known[name][0]}.", "Accept another run: adctl runs accept RUN")
    history = known[name][:-1]
    _change(runs, name, known, history)
    return _version(name, history)


def accepted_run(runs: Path, name: str) -> Path | None:
    """Return the folder of the run that a name means; None if none was accepted under it."""
    versions = _read(runs).get(name)
    return None if versions is None else runs / versions[-1]


def names_of(folder: Path) -> list[str]:
    """Return the names of which a run is a version, in use or not."""
    return [name for name, versions in _read(folder.parent).items() if folder.name in versions]


def _version(name: str, history: tuple[str, ...]) -> AcceptedVersion:
    return AcceptedVersion(name, history[-1], history[-2] if len(history) > 1 else None)


def _ancestors(runs: Path, run: str) -> list[str]:
    """Return a run and the runs that it updates, one after another."""
    found = [run]
    while True:
        parent = folders.read_parent(runs / found[-1])
        if (
            parent is None
            or parent.run in found
            or (runs / parent.run).parent != runs
            or not (runs / parent.run).is_dir()
        ):
            return found
        found.append(parent.run)


def _read(runs: Path) -> dict[str, tuple[str, ...]]:
    stored = documents.read(runs / FILE, _Versions, _REMEDY)
    return {} if stored is None else {name: versions for name, versions in stored.versions.items() if versions}


def _change(runs: Path, name: str, before: dict[str, tuple[str, ...]], history: tuple[str, ...]) -> None:
    """Write the versions of one name, while no other process writes those of any.

    Args:
        runs: Folder of all runs.
        name: The name.
        before: Versions of all names, from which the new ones were derived.
        history: New versions of the name.

    Raises:
        UsageError: Another process changed the versions of this name meanwhile.
        OutputError: The versions cannot be written.
    """
    with files.folder_lock(runs, "adctl runs accept", "Wait until it is done.", name=_LOCK, wait=_WAIT_SECONDS):
        known = _read(runs)
        if known.get(name) != before.get(name):
            meaning = known[name][-1] if name in known else "no run"
            raise UsageError(
                f"{name} has meanwhile been changed by another process: it means {meaning}.",
                "Look at that run, then repeat the command if yours is still wanted.",
            )
        files.write_json(runs / FILE, asdict(_Versions(_SCHEMA, {**known, name: history})))
