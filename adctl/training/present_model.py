"""Present model of an update: its detector, the images of its training, and the settings that an update keeps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl import run_folder
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.split import Split, file_digest
from adctl.datasets import dataset_of_run
from adctl.errors import AdctlError, DataError, UsageError
from adctl.model_file import DIGEST_LENGTH, SUFFIX, load_model, run_of
from adctl.tracking.models import find_model
from adctl.training import resume

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.records import Calibration, Sample
    from adctl.training.reviews import Way

log = logging.getLogger(__name__)

UPDATE = "update.json"
"""Name of the file of a run with the result of its update."""

THRESHOLD_ALONE: Way = "threshold alone"

WARM_ORIGIN = "a third, from trained weights"
"""Origin of the number of epochs that the user did not give."""

OWN_SETTINGS = frozenset(
    {
        "update", "recalibrate", "good", "defects", "trust_reviews", "confirmed", "group", "name", "resume", "runs",
        "device", "gpu", "workers", "cache", "tensorboard", "log", "export", "fetch", "accept_license",
    }
)  # fmt: skip
"""Settings that come from this call only."""

CHANGEABLE_SETTINGS = frozenset(
    {"epochs", "patience", "batch_size", "checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints"}
)
"""Settings of the present model's run that this call may change."""

_CLEARED: dict[str, Any] = {
    "data": None, "dataset": None, "category": None, "test": None, "masks": None, "folds": None, "fold": None,
    "seeds": (), "devices": None, "new_groups": False,
}  # fmt: skip
"""Settings of the present model's run that do not apply to an update."""


@dataclass(frozen=True)
class PresentModel:
    """Model to update.

    Attributes:
        model: Model file.
        run: Folder of its run.
        detector: The detector.
        header: Its header.
        split: Images of its training with absolute paths as keys; None if they are not all there.
        test: Test images of its dataset.
        missing: Reason why the images are unknown; empty if they are known.
    """

    model: Path
    run: Path
    detector: Detector
    header: ModelHeader
    split: Split | None
    test: tuple[Sample, ...]
    missing: str

    @property
    def calibration(self) -> Calibration:
        """Its calibration.

        Raises:
            UsageError: It has none.
        """
        if self.header.calibration is None:
            raise UsageError(f"{self.model} has no threshold.", "Calibrate it first: adctl calibrate --model")
        return self.header.calibration

    @property
    def recalibrated(self) -> bool:
        """Whether reviewed images set its threshold, which are not in its split, so that it may learn from them yet."""
        return (run_folder.read_json(self.run / UPDATE) or {}).get("way") == THRESHOLD_ALONE

    @property
    def known(self) -> set[str]:
        """Beginnings of the digests of all images that it knows."""
        held_out = () if self.split is None else self.split.digests.values()
        return {*self.header.training.image_digests, *(digest[:DIGEST_LENGTH] for digest in held_out)}


def open_present(settings: TrainSettings) -> PresentModel:
    """Open the model to update, with the images of its training where they are all there.

    Raises:
        UsageError: The model does not exist, or is an exported one.
    """
    assert settings.update is not None
    model = find_model(settings.runs, settings.update).absolute()
    if model.suffix != SUFFIX:
        raise UsageError(f"{model} is an exported model.", "Update its model.safetensors, then export it again.")
    detector, header = load_model(model)
    run = run_of(model, settings.runs)
    try:
        split, test = _old_images(run)
    except AdctlError as error:
        return PresentModel(model, run, detector, header, None, (), error.message)
    return PresentModel(model, run, detector, header, split, test, "")


def _old_images(run: Path) -> tuple[Split, tuple[Sample, ...]]:
    """Return the images of a run, with absolute paths as keys, and its test images.

    Raises:
        AdctlError: Its dataset or images are missing, or images have changed.
    """
    dataset = dataset_of_run(run)
    if dataset is None:
        raise DataError(f"{run} is not the folder of a training run.")
    split = Split.read(run / run_folder.SPLIT, dataset.train, "Train again.")
    used = (*split.train, *split.validation, *split.calibration)
    changed = [sample.key for sample in used if file_digest(sample) != split.digests[sample.key]]
    if changed:
        raise DataError(f"Images of {run} have changed: {len(changed)}, such as {changed[0]}.")
    train, validation, calibration = (
        tuple(map(with_absolute_key, part)) for part in (split.train, split.validation, split.calibration)
    )
    digests = {with_absolute_key(sample).key: split.digests[sample.key] for sample in used}
    moved = replace(split, train=train, validation=validation, calibration=calibration, digests=digests)
    return moved, tuple(map(with_absolute_key, dataset.test))


def with_absolute_key(sample: Sample) -> Sample:
    """Return a sample with its absolute path, and that path as its key."""
    return replace(sample, path=sample.path.absolute(), key=sample.path.absolute().as_posix().lstrip("/"))


def with_settings_of(present: PresentModel, loaded: LoadedSettings[TrainSettings]) -> LoadedSettings[TrainSettings]:
    """Return the settings of the present model's run, with those of this call where they apply."""
    names = names_of(TrainSettings)
    base = LoadedSettings(TrainSettings(), dict.fromkeys(names, "default"))
    try:
        base = resume.load_settings(present.run, base)
    except AdctlError as error:
        log.debug("The settings of %s are unknown: %s", present.run, error.message)
    here = OWN_SETTINGS | (CHANGEABLE_SETTINGS & loaded.given)
    fixed = {
        **_CLEARED,
        "update": present.model,
        "arch": present.header.arch,
        "image_size": present.detector.config.image_size,
    }
    values = {name: getattr(loaded.settings if name in here else base.settings, name) for name in names} | fixed
    origins = {name: (loaded if name in here else base).origins[name] for name in names}
    origins |= dict.fromkeys(_CLEARED, "default") | dict.fromkeys(("arch", "image_size"), "--update")
    if "epochs" not in here:
        origins["epochs"] = WARM_ORIGIN
    return LoadedSettings(TrainSettings(**values), origins)
