"""The model file: one `model.safetensors` with everything needed to score.

Weights (backbone included) and fitted statistics as tensors; in the header the arch, its config, the
calibration and what it was trained on. Nothing in it depends on when or where it was made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from adctl import __version__, files
from adctl.detectors.registry import DETECTORS, detector_class
from adctl.engine import safetensors_file
from adctl.errors import ModelFileError, UsageError
from adctl.records import Calibration

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.detectors.base import Detector

FORMAT = 2
MODEL = "model.safetensors"
SUFFIX = ".safetensors"
DIGEST_LENGTH = 16
"""Hexadecimal digits kept of each training image's digest: enough to recognise it, small in the header."""


@dataclass(frozen=True)
class Training:
    """What a model was trained on.

    Attributes:
        dataset: Name of the data set.
        category: Its category.
        images: How many images it learned from.
        digest: Of the whole training set, whatever the order.
        image_digests: Of each training image, shortened; their scores never calibrate anything.
        backbone_weights: Where the backbone's weights came from, or None.
    """

    dataset: str
    category: str
    images: int
    digest: str
    image_digests: tuple[str, ...]
    backbone_weights: str | None

    def was_trained_on(self, image: Path) -> bool:
        """Whether the model learned from an image file of the same bytes; not known, so no, where it has gone."""
        return image.is_file() and files.sha256_file(image)[:DIGEST_LENGTH] in self.image_digests


@dataclass(frozen=True)
class ModelHeader:
    """Everything about a model but its tensors.

    Attributes:
        arch: Name of the detector in the registry.
        config: Its settings.
        training: What it was trained on.
        calibration: What turns its scores into verdicts, or None.
        adctl_version: Of the adctl that trained it.
    """

    arch: str
    config: dict[str, Any]
    training: Training
    calibration: Calibration | None = None
    adctl_version: str = __version__

    def calibrated(self, calibration: Calibration) -> ModelHeader:
        """The same model with another calibration."""
        return replace(self, calibration=calibration)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, with the format version."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> ModelHeader:
        """Rebuild from `to_dict`.

        Raises:
            ModelFileError: The format is newer or older than this adctl's, or something is missing.
        """
        if value.get("format", 0) > FORMAT:
            raise ModelFileError(
                f"{path} has model format {value['format']}; adctl {__version__} reads up to {FORMAT}.",
                "Upgrade adctl on this machine: pip install --upgrade adctl",
            )
        if value.get("format", 0) < FORMAT:
            raise ModelFileError(
                f"{path} has model format {value.get('format')}, which keeps no calibration scores; adctl "
                f"{__version__} reads format {FORMAT}.",
                "Train the model again with this adctl; the same data and settings give the same weights.",
            )
        try:
            training = {**value["training"], "image_digests": tuple(value["training"]["image_digests"])}
            calibration = value["calibration"]
            return cls(
                arch=value["arch"],
                config=value["config"],
                training=Training(**training),
                calibration=Calibration.from_dict(calibration) if calibration else None,
                adctl_version=value["adctl_version"],
            )
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"The header of {path} is incomplete: {error}.", "Take an intact copy.") from error


def save_model(path: Path, detector: Detector, header: ModelHeader) -> None:
    """Write a model file atomically.

    Raises:
        OutputError: It cannot be written.
    """
    safetensors_file.write(path, detector.state_dict(), header.to_dict())


def read_header(path: Path) -> ModelHeader:
    """What a model file says of itself, without its tensors.

    Raises:
        ModelFileError: It is absent, damaged, foreign or too new.
    """
    return ModelHeader.from_dict(safetensors_file.read_header(path), path)


def load_model(path: Path) -> tuple[Detector, ModelHeader]:
    """Rebuild a detector from its model file, on the CPU, in evaluation mode.

    Raises:
        ModelFileError: It is absent, damaged, foreign or too new.
    """
    tensors, raw = safetensors_file.read(path)
    header = ModelHeader.from_dict(raw, path)
    detector = build_detector(header, path)
    detector.load_state(tensors)
    return detector.eval(), header


def recalibrate(source: Path, target: Path, calibration: Calibration) -> None:
    """Write a copy of a model file with another calibration; `target` may be `source`.

    Raises:
        ModelFileError: The source cannot be read.
        OutputError: The target cannot be written.
    """
    header = read_header(source).calibrated(calibration)
    safetensors_file.replace_header(source, target, header.to_dict())


def tensors_digest(path: Path) -> str | None:
    """The SHA-256 of a model file's tensors, the same after `recalibrate`; None for exported files.

    Raises:
        ModelFileError: It is absent, damaged or foreign.
    """
    return safetensors_file.tensors_digest(path) if path.suffix == SUFFIX else None


def build_detector(header: ModelHeader, path: Path) -> Detector:
    """An unfitted detector of the header's arch and config."""
    if header.arch not in DETECTORS:
        raise ModelFileError(
            f"{path} holds a '{header.arch}', which adctl {__version__} does not know.",
            "Upgrade adctl, or install the plugin that brings it.",
        )
    cls = detector_class(header.arch)
    try:
        return cls(cls.Config(**header.config))
    except (ValidationError, UsageError) as error:
        raise ModelFileError(f"The settings in {path} are not valid: {error}", "Take an intact copy.") from error
