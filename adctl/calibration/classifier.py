"""Calibration of a classifier anew, on labelled images that it has not learned from.

Temperature, limits of the unknown, conformal sets and the threshold of each kind are computed again; the network stays.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl import documents, files, run_folder
from adctl.classification.decision import Decision, fit_decision
from adctl.classification.header import header_of
from adctl.classification.predict import predict_images
from adctl.data.datasets.layouts import list_images
from adctl.data.split import file_digest
from adctl.engine import safetensors_file
from adctl.engine.device import choose_device
from adctl.errors import DataError, UsageError
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD, Sample
from adctl.tracking import record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import CalibrateSettings, LoadedSettings

_ONLY = frozenset(
    {
        *("model", "good", "defects", "max_false_alarm", "out", "in_place", "overwrite", "runs", "device", "gpu"),
        *("batch_size", "workers"),
    }
)
"""Settings of `adctl calibrate` that a classifier takes."""

_LEAST = 20
"""Least number of images; with fewer, no limit of the unknown would hold 95 % of them."""


@dataclass(frozen=True)
class KindsCalibration:
    """Result of the calibration of a classifier.

    Attributes:
        source: Original model file.
        model: Calibrated model file.
        images: Number of images of each kind.
        decision: New decision.
        previous: Decision of the original model file.
    """

    source: Path
    model: Path
    images: dict[str, int]
    decision: Decision
    previous: Decision


def calibrate_classifier(
    loaded: LoadedSettings[CalibrateSettings], source: Path, reporter: Reporter = SILENT
) -> KindsCalibration:
    """Calibrate a classifier on the images of --good, and those of --defects in a folder for each kind.

    Args:
        loaded: Settings; `max_false_alarm` is the share of known kinds that may be called unknown.
        source: Model file.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A setting is only for detectors, or no images are given.
        DataError: Images are too few, have kinds that the classifier does not know, or were used to train it.
        OutputError: The model file cannot be written.
    """
    from adctl.classification.model_file import load_classifier

    settings = loaded.settings
    for name, origin in loaded.origins.items():
        if origin.startswith("--") and name not in _ONLY:
            raise UsageError(f"{flag_name(name)} belongs to detectors, and {source} is a classifier.", "Leave it out.")
    if source.suffix != ".safetensors":
        raise UsageError(f"{source} is an exported model.", "Calibrate its model.safetensors, then export it again.")
    if settings.in_place and settings.out is not None:
        raise UsageError("--in-place and --out contradict each other.", "Give one of them.")
    target = source if settings.in_place else settings.out or source.with_name("model-calibrated.safetensors")
    if target == source and not settings.in_place:
        raise UsageError(f"--out {target} is the model file itself.", "Give another file, or use --in-place.")
    if not settings.in_place:
        files.require_replaceable([target], overwrite=settings.overwrite)
    header = header_of(safetensors_file.read_header(source), source)
    samples = _images(settings, header.classes)
    _check_unseen(source, samples)
    device = choose_device(settings.device, settings.gpu).device
    output = predict_images(
        load_classifier(source)[0].to(device),
        samples,
        device,
        reporter,
        batch_size=settings.batch_size,
        workers=settings.workers,
    )
    labels = np.array([header.classes.index(str(sample.label)) for sample in samples], np.int64)
    known_share = header.decision.known_share if settings.max_false_alarm is None else 1 - settings.max_false_alarm
    decision = fit_decision(*output, labels, known_share)
    safetensors_file.replace_header(source, target, asdict(replace(header, decision=decision)))
    run_folder.set_last(settings.runs, "model", target)
    record.made(source, "calibration", target, facts={"known_share": known_share, "temperature": decision.temperature})
    counts = Counter(str(sample.label) for sample in samples)
    return KindsCalibration(source, target, dict(sorted(counts.items())), decision, header.decision)


def _images(settings: CalibrateSettings, classes: Sequence[str]) -> list[Sample]:
    """Return the labelled images; those of --defects are labelled by their folders."""
    found: list[Sample] = []
    if settings.good is not None:
        found += [replace(sample, label=GOOD) for sample in list_images([settings.good])[0]]
    if settings.defects is not None:
        found += [replace(sample, label=sample.path.parent.name) for sample in list_images([settings.defects])[0]]
    if not found:
        raise UsageError(
            "A classifier is calibrated on labelled images, and none were given.",
            "Give --defects DIR with a folder for each kind; good images can also be in --good DIR.",
        )
    if other := sorted({str(sample.label) for sample in found} - set(classes)):
        raise DataError(f"The classifier does not know the kind '{other[0]}'.", f"Its kinds: {', '.join(classes)}.")
    if len(found) < _LEAST:
        raise DataError(f"{len(found)} images are too few to calibrate a classifier.", f"Give at least {_LEAST}.")
    return found


@dataclass(frozen=True)
class _Split:
    """Parts of the split of a classifier's run, and digests of its images by their keys."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    digests: dict[str, str]


def _check_unseen(source: Path, samples: Sequence[Sample]) -> None:
    """Raise if the classifier was trained on one of the images, as far as the split of its run is there."""
    path = source.parent / run_folder.SPLIT
    if not path.is_file():
        return
    split = documents.read(
        path, _Split, "Delete it: the images are then not compared with those of the training.", "ignore"
    )
    assert split is not None
    trained = {split.digests.get(key) for key in (*split.train, *split.validation)}
    for sample in samples:
        if file_digest(sample) in trained:
            raise DataError(f"The classifier was trained on {sample.path}.", "Give images that it has not seen.")
