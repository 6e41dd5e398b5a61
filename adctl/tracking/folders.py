"""Run folders as they are tracked: the run itself, the things made from it, tags and a note.

run/
  run.json             the manifest of a finished training
  settings.json        the settings, written before training starts
  started.json         the process that trains
  notes.json           tags and a note of the user
  lineage/KIND-X.json  one file for each thing made from the run; X is a digest of its path
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adctl import documents, files, run_folder
from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED = "started.json"
NOTES = "notes.json"
LINEAGE = run_folder.LINEAGE

Kind = Literal["calibration", "export", "scores", "report", "served", "update"]
State = Literal["finished", "running", "interrupted"]

_REMEDY = "Delete the file; 'adctl runs index' then reads the folder again."
_LARGEST = 2**63 - 1
"""Largest whole number of a database."""
_ID, _DIGEST = 26, 64
"""Most characters of an identifier and of a digest."""


@dataclass(frozen=True)
class Notes:
    """Words of the user about a run.

    Attributes:
        tags: Short names, such as the line that the model is for.
        note: Text of any length.
    """

    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Artifact:
    """A thing made from a run.

    Attributes:
        id: Unique, sortable identifier.
        kind: Kind of the thing.
        path: File or folder; relative to the run's folder if it lies there, otherwise absolute.
        time: Time when it was made, ISO 8601.
        source: Path, written the same way, of the thing that it was made from.
        sha256: Digest of the file; None for a folder.
        metrics: Measured values by name.
        intervals: Confidence intervals by the same names.
        facts: Other JSON-safe facts.
    """

    id: str
    kind: Kind
    path: str
    time: str
    source: str
    sha256: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as its folder describes it.

    Attributes:
        id: Unique, sortable identifier.
        name: Name of the folder.
        folder: Absolute path of the folder.
        state: `finished`, `running` or `interrupted`.
        started: Time of the start, ISO 8601; empty if unknown.
        finished: Time of the end; empty if it has not finished.
        arch: Name of the detector.
        dataset: Name of the dataset.
        category: Name of the category.
        seed: Seed.
        images: Number of training images.
        seconds: Duration of the training.
        energy_j: Energy of the machine meanwhile, joules; None if it is unknown.
        model: Name of the model file; empty if there is none.
        model_sha256: Digest of the model file.
        images_sha256: Digest of the training set.
        version: Version of adctl.
        machine: Platform and device.
        notes: Tags and note.
        settings: Settings that differ from their defaults, and the configuration of the detector.
        artifacts: Things made from the run, oldest first.
    """

    id: str
    name: str
    folder: Path
    state: State
    started: str = ""
    finished: str = ""
    arch: str = ""
    dataset: str = ""
    category: str = ""
    seed: int | None = None
    images: int | None = None
    seconds: float | None = None
    energy_j: float | None = None
    model: str = ""
    model_sha256: str = ""
    images_sha256: str = ""
    version: str = ""
    machine: str = ""
    notes: Notes = field(default_factory=Notes)
    settings: dict[str, Any] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all artifacts, of the same metric the newest; and the energy of the training."""
        energy = {} if self.energy_j is None else {"energy_j": self.energy_j}
        return {name: value for one in self.artifacts for name, value in one.metrics.items()} | energy


@dataclass(frozen=True)
class _Started:
    id: str
    time: str
    host: str
    pid: int


@dataclass(frozen=True)
class _Facts:
    """Attributes of a `Run` that come from its manifest or its settings."""

    arch: str
    dataset: str
    category: str
    seed: int | None
    settings: dict[str, Any]
    finished: str = ""
    images: int | None = None
    seconds: float | None = None
    energy_j: float | None = None
    model: str = ""
    model_sha256: str = ""
    images_sha256: str = ""
    version: str = ""
    machine: str = ""


@dataclass(frozen=True)
class _Artifact(Artifact):
    schema: str = "adctl.artifact/1"


def run_folders(runs: Path) -> Iterator[Path]:
    """Yield the folders of runs, those inside grids included, in the order of their names.

    The folds of a cross-validation are parts of its run.
    """
    try:
        entries = sorted(os.scandir(runs), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        folder = Path(entry.path)
        if is_run(folder):
            yield folder
        else:
            yield from run_folders(folder)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, finished or not."""
    return (folder / run_folder.SETTINGS).is_file() or (folder / run_folder.RUN).is_file()


def runs_of(folder: Path) -> Path | None:
    """Return the folder of runs that a run is indexed in; None for the fold of a cross-validation."""
    parent = folder.absolute().parent
    if is_run(parent):
        return None
    return parent.parent if (parent / run_folder.SUMMARY).is_file() else parent


def read_run(folder: Path) -> Run:
    """Read everything that is tracked of a run.

    Raises:
        DataError: A file in the folder is damaged; the message names it.
    """
    manifest = run_folder.read_json(folder / run_folder.RUN)
    started = documents.read(folder / STARTED, _Started, _REMEDY)
    notes = documents.read(folder / NOTES, Notes, _REMEDY) or Notes()
    artifacts = tuple(sorted(_artifacts(folder), key=lambda one: one.id))
    identity = started.id if started else _derived_id(folder)
    ids = [one.id for one in artifacts]
    known: dict[str, Any] = {"name": folder.name, "folder": folder.absolute(), "notes": notes, "artifacts": artifacts}
    state: State = "finished"
    if manifest is None:
        state = "running" if started and _is_training(folder, started) else "interrupted"
    file = folder / (run_folder.SETTINGS if manifest is None else run_folder.RUN)
    try:
        facts = _wanted(folder) if manifest is None else _of_manifest(manifest)
        checked = documents.parse(json.dumps(facts, allow_nan=False), _Facts)
    except KeyError as error:
        raise DataError(f"{file} is damaged: {error} is missing.", _REMEDY) from error
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}.", _REMEDY) from error
    digests = [checked.model_sha256, checked.images_sha256, *(one.sha256 or "" for one in artifacts)]
    too_long = any(len(one) > _DIGEST for one in digests) or any(len(one) > _ID for one in (identity, *ids))
    if too_long or any(abs(number or 0) > _LARGEST for number in (checked.seed, checked.images)):
        raise DataError(f"{file} is damaged: an identifier, a digest or a number is too long.", _REMEDY)
    return Run(identity, state=state, started=started.time if started else "", **vars(checked), **known)


@dataclass(frozen=True)
class Parent:
    """Model that a run updates.

    Attributes:
        run: Name of its run.
        model: Its file.
        sha256: Digest of that file.
    """

    run: str
    model: str
    sha256: str


@dataclass(frozen=True)
class _Descent:
    parent: Parent | None = None


def read_parent(folder: Path) -> Parent | None:
    """Return the model that a run updates; None if it updates none.

    Raises:
        DataError: The manifest is damaged.
    """
    found = documents.read(folder / run_folder.RUN, _Descent, _REMEDY, others="ignore")
    return None if found is None else found.parent


def mark_started(folder: Path) -> None:
    """Write the process that trains, so that a killed training is told from a running one.

    Raises:
        OutputError: The file cannot be written.
    """
    kept = documents.read(folder / STARTED, _Started, _REMEDY)
    identity = kept.id if kept else run_folder.new_id()
    started = _Started(identity, run_folder.timestamp(), socket.gethostname(), os.getpid())
    files.write_json(folder / STARTED, asdict(started))


def write_artifact(folder: Path, kind: Kind, path: Path, source: Path, **facts: Any) -> Artifact:
    """Write down that something was made from a run; an earlier entry of the same path is replaced.

    Args:
        folder: Folder of the run.
        kind: Kind of the thing.
        path: File or folder that was made.
        source: File or folder that it was made from.
        facts: `metrics`, `intervals` and `facts` of the `Artifact`.

    Raises:
        OutputError: The entry cannot be written.
    """
    place = portable(path, folder)
    digest = files.sha256_file(path) if path.is_file() else None
    artifact = Artifact(
        run_folder.new_id(), kind, place, run_folder.timestamp(), portable(source, folder), digest, **facts
    )
    name = f"{kind}-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:12]}.json"
    files.make_folder(folder / LINEAGE)
    files.write_json(folder / LINEAGE / name, {"schema": _Artifact.schema, **asdict(artifact)})
    return artifact


def write_notes(folder: Path, notes: Notes) -> None:
    """Write tags and note of a run.

    Raises:
        OutputError: They cannot be written.
    """
    files.write_json(folder / NOTES, asdict(notes))


def portable(path: Path, folder: Path) -> str:
    """Return a path relative to the run's folder if it lies there, otherwise the absolute path."""
    absolute, base = Path(os.path.abspath(path)), Path(os.path.abspath(folder))  # noqa: PTH100 - links stay links
    return (absolute.relative_to(base) if absolute.is_relative_to(base) else absolute).as_posix()


def _artifacts(folder: Path) -> Iterator[Artifact]:
    if not (folder / LINEAGE).is_dir():
        return
    for path in (folder / LINEAGE).glob("*.json"):
        stored = documents.read(path, _Artifact, _REMEDY)
        if stored is not None:
            yield Artifact(**{name: getattr(stored, name) for name in Artifact.__dataclass_fields__})


def _of_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    dataset, software = manifest["dataset"], manifest["environment"]
    changed = {name: entry["value"] for name, entry in manifest["settings"].items() if entry["from"] != "default"}
    return {
        "finished": manifest["finished"],
        "arch": manifest["arch"],
        "dataset": dataset["name"] or "",
        "category": dataset["category"] or "",
        "seed": manifest["settings"]["seed"]["value"],
        "images": manifest["split"]["train"],
        "seconds": manifest["seconds"],
        "energy_j": manifest.get("energy_j"),
        "model": manifest["model"]["file"],
        "model_sha256": manifest["model"]["sha256"],
        "images_sha256": dataset["training_digest"],
        "version": software["adctl"],
        "machine": f"{software['platform']}, {manifest['device']['name']}",
        "settings": changed | manifest["config"],
    }


def _wanted(folder: Path) -> dict[str, Any]:
    """Return the facts of a training that has not finished, from its settings."""
    document = run_folder.read_json(folder / run_folder.SETTINGS) or {}
    entries = document.get("settings")
    if not isinstance(entries, dict):
        raise DataError(f"{folder / run_folder.SETTINGS} is damaged: it holds no settings.", _REMEDY)
    values = {name: entry["value"] for name, entry in entries.items() if entry.get("from") != "default"}
    known = {name: str(values.get(name) or "") for name in ("arch", "dataset", "category")}
    return {**known, "seed": entries.get("seed", {}).get("value"), "settings": values}


def _derived_id(folder: Path) -> str:
    """Return an identifier of a run that has none stored: equal whenever the folder is read again."""
    manifest = folder / run_folder.RUN
    source = manifest if manifest.is_file() else folder / run_folder.SETTINGS
    digest = hashlib.sha256(source.read_bytes() + os.fsencode(folder.name)).digest()
    return run_folder.encode_id(int(source.stat().st_mtime * 1000), digest[:10])


def _is_training(folder: Path, started: _Started) -> bool:
    """Return whether a training holds the lock of its folder; locks of other machines cannot be seen from here."""
    return started.host != socket.gethostname() or files.is_locked(folder)


_NO_COLUMNS = ("artifacts", "notes", "energy_j")
"""Facts of a run that are rows of another table or entries of another column."""


def to_row(run: Run) -> dict[str, Any]:
    """Return a run as a row of the database."""
    row = {name: getattr(run, name) for name in Run.__dataclass_fields__ if name not in _NO_COLUMNS}
    return {
        **row,
        "folder": str(run.folder),
        "tags": list(run.notes.tags),
        "note": run.notes.note,
        "metrics": run.metrics,
        "settings": json.loads(json.dumps(run.settings, sort_keys=True)),
    }
