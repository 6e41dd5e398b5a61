"""Models by name: opening, replacing and closing them while requests run.

A request holds the model it began with, so that a replaced one ends only after its last request.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files
from adctl.choices import RUNTIMES
from adctl.engine.batch_size import starting_batch_size
from adctl.errors import ModelFileError, UsageError
from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.naming import NamingRuntime, with_names
from adctl.scoring.registry import Registry, is_registry, read_registry
from adctl.scoring.score import ScoreSummary, open_model
from adctl.scoring.watch import DRIFT_EVERY, DRIFT_SIGNIFICANCE, DRIFT_WINDOW
from adctl.serve.batcher import Batcher
from adctl.thresholds.decision import DecisionRule
from adctl.tracking import record
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from adctl.config import ServeSettings
    from adctl.records import Calibration, ScoredImage
    from adctl.runtimes.base import Runtime
    from adctl.serve.history import History
    from adctl.serve.row_writer import Row
    from adctl.thresholds.drift import Drift

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A model version in use.

    Attributes:
        name: Name under which it is served.
        version: Number, counted from 1.
        path: Model file.
        model_digest: SHA-256 of the file; empty until it is opened.
        threshold: Threshold that replaces that of the calibration; None for none.
    """

    name: str
    version: int
    path: Path
    model_digest: str
    threshold: float | None = None


class ServedModel:
    """One open model.

    Args:
        version: Its version.
        runtime: Runtime that holds it.
        drifted: Function that is called when drift begins or ends.
    """

    def __init__(self, version: Version, runtime: Runtime, drifted: Callable[[ServedModel, Drift], None]) -> None:
        self.version = version
        self.trained: Calibration | None = runtime.header.calibration
        self.calibration = with_threshold(self.trained, version.threshold)
        self.runtime = runtime.judged_by(self.calibration) if isinstance(runtime, NamingRuntime) else runtime
        self.rule = DecisionRule(self.calibration) if self.calibration else None
        self.scale = ColourScale.from_calibration(self.calibration) if self.calibration else None
        self.calibration_digest = digest_of(self.calibration)
        self.batcher = Batcher(self.runtime, version.name)
        self.drift: Drift | None = None
        self._summary = ScoreSummary(self.calibration, DRIFT_WINDOW, DRIFT_SIGNIFICANCE)
        self._tell = drifted
        self._lock = threading.Lock()
        self._since_comparison = 0
        self._users = 0
        self._retired = False

    @property
    def name(self) -> str:
        """Name under which it is served."""
        return self.version.name

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep the model open for a request."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close the model after its last request."""
        with self._lock:
            self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self._lock:
            ends = self._retired and self._users == 0
        if ends:
            self.batcher.close()

    def add(self, row: ScoredImage, inputs: tuple[float, ...]) -> None:
        """Count a scored image, and compare the newest ones with those of the calibration now and then."""
        with self._lock:
            self._summary.add(row, inputs)
            self._since_comparison += 1
            if self._since_comparison < DRIFT_EVERY:
                return
            self._since_comparison = 0
            before, self.drift = self.drift, self._summary.drift()
            changed = self.drift is not None and self.drift.drifted != (before is not None and before.drifted)
        if changed and self.drift is not None:
            self._tell(self, self.drift)

    @property
    def counts(self) -> dict[str, int]:
        """Number of verdicts of each kind since the model was opened."""
        return dict(self._summary.counts)

    def describe(self) -> dict[str, Any]:
        """Return what the API tells about the model."""
        calibration, spec = self.calibration, self.runtime.input
        return {
            "name": self.name,
            "arch": self.runtime.header.arch,
            "model_digest": self.version.model_digest,
            "calibration_digest": self.calibration_digest,
            "version": self.version.version,
            "loaded": True,
            "runtime": self.runtime.name,
            "device": self.runtime.device,
            "image_size": [spec.height, spec.width],
            "method": calibration.method if calibration else None,
            "level": calibration.level if calibration else None,
            "threshold": calibration.threshold if calibration else None,
            "warn_threshold": calibration.warn_threshold if calibration else None,
            "promise": promise(self.trained, self.version.threshold),
            "calibration_images": calibration.good_images if calibration else 0,
            "classes": [*self.runtime.classes_header.classes] if isinstance(self.runtime, NamingRuntime) else None,
            "drift": self.drift.reason if self.drift is not None and self.drift.drifted else None,
        }


class ServedModels:
    """The models of a server by name.

    Args:
        settings: Folder of runs, `models` folder, runtime and device.
        history: Store of the versions in use.
        tell: Function that is called with a kind of event and its facts.

    Attributes:
        registry: Registry that names the products of images; None without one.
    """

    def __init__(self, settings: ServeSettings, history: History, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._settings = settings
        self._history = history
        self._tell = tell
        self.registry: Registry | None = None
        self._models: dict[str, ServedModel] = {}
        self._unloaded: dict[str, Version] = {}
        self._lock = threading.Lock()  # one change at a time

    def open_given(self) -> None:
        """Open the models that the command line names, with the version and threshold that each had last.

        Raises:
            AdctlError: A model cannot be found or opened.
        """
        for name, path in self._given():
            served = self._history.served(name)
            last = served[0] if served and served[0]["given"] == str(path) else None
            if last is not None and Path(last["model"]).is_file():
                version = Version(name, last["version"], Path(last["model"]), "", last["threshold"])
                if version.path != path:
                    log.info("%s: version %d, %s, is in use.", name, version.version, version.path)
            else:
                version = Version(name, served[0]["version"] + 1 if served else 1, path, "")
            with self._lock:
                opened = self._open(version)
                if last is None or last["model_sha256"] != opened.version.model_digest:
                    self._store(opened.version, path, "command line")

    def _given(self) -> Iterator[tuple[str, Path]]:
        runs = self._settings.runs
        for text in self._settings.model or ("",):
            name, equals, place = text.partition("=")
            if not equals:
                name, place = "", text
            if not equals and is_registry(text):
                yield from self._products(Path(text))
                continue
            path = find_model(runs, Path(place) if place else None).absolute()
            _check_name(name)
            yield name or name_of(path), path

    def _products(self, path: Path) -> Iterator[tuple[str, Path]]:
        self.registry = read_registry(path)
        for name in self.registry.products:
            _check_name(name)
            yield name, self.registry.model_of(name, self._settings.runs).absolute()

    def follow(self) -> None:
        """Use the versions and thresholds that other processes of this server have stored."""
        for name in [model.name for model in self.loaded]:
            newest = self._history.served(name)[0]
            with self._lock:
                present = self._models[name].version
                stored = (newest["version"], newest["threshold"])
                if stored == (present.version, present.threshold):
                    continue
                self._open(Version(name, newest["version"], Path(newest["model"]), "", newest["threshold"]))

    def get(self, name: str) -> ServedModel | None:
        """Return a loaded model."""
        return self._models.get(name)

    @property
    def loaded(self) -> list[ServedModel]:
        """Loaded models, in the order of their names."""
        return [model for _, model in sorted(self._models.items())]

    @property
    def unloaded(self) -> list[Version]:
        """Models that were unloaded, in the order of their names."""
        return [version for _, version in sorted(self._unloaded.items())]

    def load(self, name: str, path: str | None, who: str) -> ServedModel:
        """Load or reload a model; requests that run keep the one they have.

        Args:
            name: Name of the model.
            path: Path below the folder of `--models`; None loads the file that the name had last.
            who: Name of the caller.

        Raises:
            UsageError: There is no such file, or it lies elsewhere.
            AdctlError: The model cannot be opened; the present one stays.
        """
        with self._lock:
            known = self._known(name)
            if path is None and known is None:
                raise UsageError(f"There is no model '{name}'.", "Name its file with 'path'.")
            target = self._inside(path) if path is not None else known.path if known is not None else Path()
            return self._activate(name, target, None, who)

    def activate(self, name: str, path: Path, who: str, threshold: float | None = None) -> ServedModel:
        """Use another file for a name from now on, as `load` does; the path is trusted."""
        with self._lock:
            return self._activate(name, path, threshold, who)

    def set_threshold(self, name: str, threshold: float | None, who: str) -> ServedModel:
        """Judge by another threshold from now on; None returns to that of the calibration.

        Raises:
            UsageError: There is no such model, or it has no calibration.
        """
        with self._lock:
            present = self._models.get(name)
            if present is None or present.trained is None:
                raise UsageError(f"There is no calibrated model '{name}'.")
            version = replace(present.version, threshold=threshold)
            self._store(version, _given_path(self._history.served(name), version.path), who)
            return self._put(ServedModel(version, present.runtime, self._drifted))

    def unload(self, name: str) -> None:
        """Close a model after its last request.

        Raises:
            UsageError: There is no such model.
        """
        with self._lock:
            model = self._models.pop(name, None)
            if model is None:
                raise UsageError(f"There is no loaded model '{name}'.")
            self._unloaded[name] = model.version
            model.retire()
            self._tell("model", {"name": name, "loaded": False, "version": model.version.version})

    def close(self) -> None:
        """Close all models."""
        for model in self.loaded:
            model.retire()

    def _known(self, name: str) -> Version | None:
        model = self._models.get(name)
        return self._unloaded.get(name) if model is None else model.version

    def _activate(self, name: str, path: Path, threshold: float | None, who: str) -> ServedModel:
        known = self._known(name)
        history = self._history.served(name)
        digest = _digest(path)
        same = known is not None and known.path == path and known.model_digest == digest
        stored = (row["version"] for row in history if (row["model"], row["model_sha256"]) == (str(path), digest))
        number = next(stored, 1 + max((row["version"] for row in history), default=0))
        kept = known.threshold if same and known is not None and threshold is None else threshold
        opened = self._open(Version(name, number, path, digest, kept))
        self._store(opened.version, _given_path(history, path), who)
        return opened

    def _open(self, version: Version) -> ServedModel:
        settings = self._settings
        version = replace(version, model_digest=version.model_digest or _digest(version.path))
        runtime = open_model(
            version.path, settings.device, settings.gpu, settings.runtime, precision=settings.precision
        )
        classifier = None if settings.classifier is None else find_model(settings.runs, settings.classifier)
        runtime = with_names(runtime, version.path, classifier, "rejected")
        _warm_up(runtime)
        return self._put(ServedModel(version, runtime, self._drifted))

    def _put(self, model: ServedModel) -> ServedModel:
        before = self._models.get(model.name)
        self._models[model.name] = model
        self._unloaded.pop(model.name, None)
        if before is not None:
            before.retire()
        self._tell("model", model.describe())
        return model

    def _store(self, version: Version, given: Path, who: str) -> Row:
        # The run is then kept: a roll back may need it.
        facts = {"name": version.name, "version": version.version}
        record.made(version.path, "served", self._settings.runs / "serve" / version.name, facts=facts)
        return self._history.add_served(
            {
                "name": version.name,
                "version": version.version,
                "given": str(given),
                "model": str(version.path),
                "model_sha256": version.model_digest,
                "threshold": version.threshold,
                "changed_by": who,
            }
        )

    def _inside(self, path: str) -> Path:
        """Return the model file that a client means: below the folder of `--models`, links resolved."""
        folder = self._settings.models
        if folder is None:
            raise UsageError("This server loads no other models.", "Start it with --models DIR.")
        root = folder.resolve()
        try:
            target = (root / path).resolve()
            found = find_model(root, target).resolve() if target.is_relative_to(root) else None
        except (OSError, ValueError) as error:
            raise UsageError("There is no such model in the folder of models.") from error
        except UsageError:
            found = None
        if found is None or not found.is_relative_to(root) or found.suffix not in _SUFFIXES:
            raise UsageError("There is no such model in the folder of models.", "Give its path inside that folder.")
        return found

    def _drifted(self, model: ServedModel, drift: Drift) -> None:
        level = logging.WARNING if drift.drifted else logging.INFO
        log.log(level, "%s: %s", model.name, drift.reason if drift.drifted else "no drift any more.")
        self._tell("drift", {"name": model.name, "drifted": drift.drifted, "reason": drift.reason})


def _given_path(history: Sequence[Row], path: Path) -> Path:
    """Return the path that the command line gave for a name, so that a restart finds its version.

    Args:
        history: Versions of the name, the newest first.
        path: Path of the first version.
    """
    return Path(history[0]["given"]) if history else path


def _warm_up(runtime: Runtime) -> None:
    """Compute one image and one batch, because runtimes compile the network at its first use; load the drift test."""
    importlib.import_module("scipy.stats")
    for count in (1, starting_batch_size("auto", runtime.device)):
        runtime.predict(np.zeros((count, *runtime.input.shape), np.uint8))


_SUFFIXES = {spec.suffix for spec in RUNTIMES.values()}
_OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_NAME = 100


def _check_name(name: str) -> None:
    if _OTHER_CHARACTERS.search(name) or len(name) > _LONGEST_NAME:
        raise UsageError(f"'{name}' cannot be the name of a model.", "Use letters, digits and _ . -")


def name_of(path: Path) -> str:
    """Return the usual name of a model file: that of its run, or its own, with characters that addresses allow."""
    name = path.parent.name if path.stem.startswith("model") and path.parent.name else path.stem
    return _OTHER_CHARACTERS.sub("_", name)[:_LONGEST_NAME]


def _digest(path: Path) -> str:
    try:
        return files.sha256_file(path)
    except OSError as error:
        raise ModelFileError(
            f"Cannot read the model file {path.name}: {error.strerror}.", "Put the file back, or load another one."
        ) from error


def with_threshold(calibration: Calibration | None, threshold: float | None) -> Calibration | None:
    """Return a calibration with another threshold; one for warnings stays below it."""
    if calibration is None or threshold is None:
        return calibration
    warn = calibration.warn_threshold
    lower = None if warn is None else min(warn, threshold)
    return replace(calibration, threshold=threshold, warn_threshold=lower, categories={})


def digest_of(calibration: Calibration | None) -> str:
    """Return a digest of thresholds and calibration scores; empty for None."""
    if calibration is None:
        return ""
    return hashlib.sha256(files.to_json(asdict(calibration)).encode()).hexdigest()


def promise(calibration: Calibration | None, threshold: float | None = None) -> str:
    """Return in one sentence what is known of the false alarms of a threshold.

    Args:
        calibration: Calibration of the model.
        threshold: Threshold that was set by hand; None for that of the calibration.
    """
    if calibration is None:
        return "The model is not calibrated: there are no verdicts."
    count = calibration.good_images
    if calibration.evidence.copies:
        return "Nothing is known about false alarms: the threshold rests on one good image."
    if threshold is not None:
        above = sum(score > threshold for score in calibration.evidence.good)
        return f"Set by hand: {above} of {len(calibration.evidence.good)} good images would be false alarms."
    if calibration.promised_false_alarm is not None:
        return f"At most {100 * calibration.promised_false_alarm:.3g} % false alarms, by {count} good images."
    if calibration.false_alarm_range is not None:
        return f"Probably {calibration.false_alarm_range} false alarms, by {count} good images."
    return f"About {100 * calibration.expected_false_alarm:.2g} % false alarms, by {count} good images."
