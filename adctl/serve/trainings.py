"""Trainings that the server starts: `adctl train` in a process of its own, one at a time.

    DATA/trainings/ID.json      one training: its state and progress
    DATA/trainings/ID.stop      asks the process that watches the training to stop it
    DATA/trainings/images/ID/   uploaded images, named by their content
    DATA/trainings/reviewed/ID/ reviewed images of one model

All processes of the server read these files; the process that started a training watches it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import psutil

from adctl import documents, files, run_folder
from adctl.errors import DataError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

DETECTORS = ("patchcore", "padim", "simplenet")
"""Detectors that the page offers: the others need settings that it does not have."""

State = Literal["running", "finished", "stopped", "failed"]

_MOST_IMAGES = 20_000
_KEPT_SECONDS = 86_400
"""Seconds after which uploaded images that no training used are removed."""

_STOP_SECONDS = 20.0
"""Seconds that a training has to end after it was asked to."""

_LOCK_SECONDS = 2.0
"""Seconds after a training in which its lock is freed."""

_POLL_SECONDS = 0.2
_NICE = 10
"""Added to the niceness of a training, so that scoring goes first."""

_REMEDY = "Delete it."


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        id: Identifier.
        name: Name of the model that it makes.
        arch: Name of the detector.
        state: State.
        started: Time when it was started, ISO 8601.
        who: Name of the caller.
        seconds: Duration so far, or in total.
        progress: `stage`, `done`, `total` and `note` of the work; empty before it begins.
        model: Path of the model file; None until it is finished.
        error: Reason of the failure, and how to mend it; None if there is none.
        updates: Model file that it improves by reviewed parts; None for a new model.
    """

    id: str
    name: str
    arch: str
    state: State
    started: str
    who: str
    seconds: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    error: str | None = None
    updates: str | None = None


class Trainings:
    """The trainings of a server.

    Args:
        runs: Folder of runs, where the models are written.
        folder: Folder of the trainings.
        tell: Function that is called with a kind of event and its facts.
    """

    def __init__(self, runs: Path, folder: Path, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._runs = runs
        self._folder = folder
        self._tell = tell
        self._watchers: list[threading.Thread] = []
        self._ending = threading.Event()

    def all(self) -> list[Training]:
        """Return all trainings, the newest first."""
        found = (self._read(path.stem) for path in sorted(self._folder.glob("*.json"), reverse=True))
        return [training for training in found if training is not None]

    def get(self, identifier: str) -> Training | None:
        """Return a training; None if there is none."""
        return self._read(identifier) if identifier.isalnum() else None

    def _read(self, identifier: str) -> Training | None:
        path = self._folder / f"{identifier}.json"
        with suppress(DataError):
            training = documents.read(path, Training, _REMEDY)
            if training is None or training.state != "running" or self._is_running():
                return training
            training = documents.read(path, Training, _REMEDY)  # it may have ended just now
            if training is not None and training.state == "running":
                return replace(training, state="stopped")  # the server ended before the training did
            return training
        return None

    def _is_running(self) -> bool:
        lock = self._lock()
        with suppress(filelock.Timeout), lock.acquire(timeout=0):
            return False
        return True

    def _lock(self) -> filelock.FileLock:
        return filelock.FileLock(self._folder / "lock", is_singleton=False, thread_local=False)  # a thread frees it

    # ---- images

    def add_image(self, upload: str | None, data: bytes, suffix: str) -> tuple[str, int]:
        """Store an uploaded image.

        Args:
            upload: Identifier of earlier images that it belongs to; None begins a new set.
            data: Bytes of the image file.
            suffix: Suffix of its format.

        Returns:
            Identifier of the set, and its number of images.

        Raises:
            UsageError: There is no such set, or it is full.
            OutputError: The image cannot be written.
        """
        if upload is None:
            self._sweep()
            upload = run_folder.new_id()
            files.make_folder(self._images(upload))
        folder = self.uploaded(upload)
        count = len(os.listdir(folder))  # noqa: PTH208 - a Path for each of many files is slow
        if count >= _MOST_IMAGES:
            raise UsageError(f"A training takes at most {_MOST_IMAGES} uploaded images.", "Use a folder on the server.")
        target = folder / f"{hashlib.sha256(data).hexdigest()[:24]}{suffix}"
        if target.exists():
            return upload, count
        files.write_bytes(target, data, flush=False)
        return upload, count + 1

    def uploaded(self, upload: str) -> Path:
        """Return the folder of uploaded images.

        Raises:
            UsageError: There are none.
        """
        folder = self._images(upload)
        if not upload.isalnum() or not folder.is_dir():
            raise UsageError("There are no such uploaded images.", "Upload them again.")
        return folder

    def reviewed(self, identifier: str) -> Path:
        """Return a new folder for the reviewed images of one model, `good` and `defect`."""
        return files.make_folder(self._folder / "reviewed" / identifier)

    def _images(self, upload: str) -> Path:
        return self._folder / "images" / upload

    def _sweep(self) -> None:
        """Remove images that were uploaded long ago, except while a training may read them."""
        if self._is_running():
            return
        for folder in (*(self._folder / "images").glob("*"), *(self._folder / "reviewed").glob("*")):
            if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    # ---- start and stop

    def start(self, name: str, arch: str, who: str, arguments: Sequence[str], updates: Path | None = None) -> Training:
        """Start a training.

        Args:
            name: Name of the model.
            arch: Name of the detector.
            who: Name of the caller.
            arguments: Arguments of `adctl train` that name images and model.
            updates: Model file that it improves; None for a new model.

        Raises:
            UsageError: Another training is running.
            OutputError: The folder of trainings cannot be written.
        """
        files.make_folder(self._folder)
        lock = self._lock()
        try:
            lock.acquire(timeout=0 if any(one.state == "running" for one in self.all()) else _LOCK_SECONDS)
        except filelock.Timeout as error:
            raise UsageError("Another training is running.", "Wait until it is done, or stop it.") from error
        try:
            identifier, started = run_folder.new_id(), run_folder.timestamp()
            improved = None if updates is None else str(updates)
            training = Training(identifier, name, arch, "running", started, who, updates=improved)
            self._store(training)
            process = self._launch(training, arguments)
        except BaseException:
            lock.release()
            raise
        watcher = threading.Thread(target=self._watch, args=(training, process, lock), name="adctl-training")
        self._watchers.append(watcher)
        watcher.start()
        return training

    def stop(self, identifier: str) -> None:
        """Ask for the end of a training; nothing happens if it has ended."""
        training = self.get(identifier)
        if training is not None and training.state == "running":
            files.write_text(self._folder / f"{identifier}.stop", "")

    def close(self) -> None:
        """Stop the training that this process watches."""
        self._ending.set()
        for watcher in self._watchers:
            watcher.join(_STOP_SECONDS)

    def _launch(self, training: Training, arguments: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
            command_of(training, arguments, self._runs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ADCTL_PROGRESS": "json"},
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C at the server reaches it through `close`
        )
        with suppress(psutil.Error):
            psutil.Process(process.pid).nice(_NICE)
        return process

    def _watch(self, training: Training, process: subprocess.Popen[str], lock: filelock.FileLock) -> None:
        """Follow a training to its end, then let the next one begin."""
        try:
            self._follow(training, process)
        finally:
            lock.release()

    def _follow(self, training: Training, process: subprocess.Popen[str]) -> None:
        output: list[str] = []
        progress: dict[str, Any] = {}
        readers = [
            threading.Thread(target=lambda: output.append(process.stdout.read() if process.stdout else "")),
            threading.Thread(target=_read_progress, args=(process, progress)),
        ]
        for reader in readers:
            reader.start()
        start, asked = time.monotonic(), 0.0
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            seconds = time.monotonic() - start
            if dict(progress) != training.progress:
                training = replace(training, progress=dict(progress), seconds=seconds)
                self._publish(training)
            if not asked and (self._ending.is_set() or (self._folder / f"{training.id}.stop").exists()):
                asked = seconds
                process.terminate()
            elif asked and seconds - asked > _STOP_SECONDS:
                process.kill()
        for reader in readers:
            reader.join()
        with process:  # closes its streams
            pass
        ended = replace(training, seconds=time.monotonic() - start, **_outcome(process, output[0], bool(asked)))
        with suppress(OSError):
            (self._folder / f"{training.id}.stop").unlink()
        self._publish(ended)

    def _publish(self, training: Training) -> None:
        try:
            self._store(training)
        except OutputError as error:  # a full disk does not end the training
            log.warning("The state of the training %s cannot be written: %s", training.name, error)
        self._tell("training", asdict(training))

    def _store(self, training: Training) -> None:
        files.write_json(self._folder / f"{training.id}.json", asdict(training))


def command_of(training: Training, arguments: Sequence[str], runs: Path) -> list[str]:
    """Return the command of a training; its run has the name of the model and the end of the identifier."""
    name = f"{training.name}-{training.id[-8:].lower()}"
    return [sys.executable, "-m", "adctl", "train", *arguments, "--name", name, "--runs", str(runs), "--json"]


def _read_progress(process: subprocess.Popen[str], progress: dict[str, Any]) -> None:
    for line in process.stderr or ():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "stage" in found:
                progress.update(found)


def _outcome(process: subprocess.Popen[str], output: str, stopped: bool) -> dict[str, Any]:
    """Return the changes that the end of a training makes to its record."""
    try:
        document = json.loads(output)
    except ValueError:
        document = {}
    if process.returncode == 0 and document.get("ok"):
        return {"state": "finished", "model": str(Path(document["result"]["model"]).absolute()), "error": None}
    if stopped:
        return {"state": "stopped"}
    error = document.get("error", {})
    reason = " ".join(filter(None, (error.get("message"), error.get("remedy"))))
    return {"state": "failed", "error": reason or f"The training ended with the code {process.returncode}."}
