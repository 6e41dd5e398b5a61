"""The model file: one `model.safetensors` with everything needed to score.

The tensors are the weights (backbone included) and the fitted statistics. The header holds the arch, its config, the
calibration and a description of the training data. Nothing in the file depends on when or where it was written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl import __version__, documents, files, run_folder
from adctl.choices import DETECTORS
from adctl.detectors.registry import DetectorPackage, detector_class, package_of
from adctl.engine import safetensors_file
from adctl.errors import AdctlError, ModelFileError, OutputError, UsageError
from adctl.records import Calibration  # noqa: TC001 - pydantic resolves it at run time

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.detectors.base import Detector

FORMAT = 2
SUFFIX = ".safetensors"
DIGEST_LENGTH = 16
"""Hexadecimal digits stored of each training image's digest: enough to recognise it, and short."""


@dataclass(frozen=True)
class Training:
    """Description of the data that a model was trained on.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category.
        images: Number of training images.
        digest: Digest of the training set, independent of the order of the images.
        image_digests: Shortened digest of each training image; the scores of these images are not used to calibrate.
        backbone_weights: Source of the backbone's weights, or None.
    """

    dataset: str
    category: str
    images: int
    digest: str
    image_digests: tuple[str, ...]
    backbone_weights: str | None

    def was_trained_on(self, image: Path) -> bool:
        """Return True if a training image had the same bytes; False if the file no longer exists."""
        return image.is_file() and files.sha256_file(image)[:DIGEST_LENGTH] in self.image_digests


@dataclass(frozen=True)
class ModelHeader:
    """All information about a model except its tensors.

    Attributes:
        arch: Name of the detector in the registry.
        config: Settings of the detector.
        training: Description of the training data.
        calibration: Thresholds that turn its scores into verdicts, or None.
        adctl_version: Version of adctl that trained the model.
        package: Package that provides the detector; None for a built-in one.
    """

    arch: str
    config: dict[str, Any]
    training: Training
    calibration: Calibration | None = None
    adctl_version: str = __version__
    package: DetectorPackage | None = None

    def with_calibration(self, calibration: Calibration) -> ModelHeader:
        """Return a copy with another calibration."""
        return replace(self, calibration=calibration)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary with the format version."""
        value = {"format": FORMAT, **asdict(self)}
        if self.package is None:
            del value["package"]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> ModelHeader:
        """Rebuild from the dictionary of `to_dict`.

        Raises:
            ModelFileError: The format is newer or older than `FORMAT`, or a field is missing or has a wrong type.
        """
        if value.get("arch") == "classifier":
            raise is_no_detector(path)
        stored = value.get("format", 0)
        if isinstance(stored, int) and stored > FORMAT:
            raise ModelFileError(
                f"{path} has model format {stored}; adctl {__version__} reads up to {FORMAT}.",
                "Upgrade adctl on this machine: pip install --upgrade adctl",
            )
        if isinstance(stored, int) and stored < FORMAT:
            raise ModelFileError(
                f"{path} has model format {value.get('format')}, which stores no calibration scores; adctl "
                f"{__version__} reads format {FORMAT}.",
                "Train the model again with this adctl; the same data and settings give the same weights.",
            )
        try:
            header = documents.convert(value, _StoredHeader)
        except ValueError as error:
            raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error
        return cls(**{name: getattr(header, name) for name in cls.__dataclass_fields__})


def is_no_detector(path: Path) -> ModelFileError:
    """Return the error for a classifier where a detector is needed."""
    return ModelFileError(
        f"{path} is a classifier, which names kinds and detects nothing.", "Give the model of a detector."
    )


@dataclass(frozen=True)
class _StoredHeader:
    """Header as it is stored: complete, with the format and without defaults."""

    format: int
    arch: str
    config: dict[str, Any]
    training: Training
    calibration: Calibration | None
    adctl_version: str
    package: DetectorPackage | None = None


def save_model(path: Path, detector: Detector, header: ModelHeader) -> None:
    """Write a model file atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    safetensors_file.write(path, detector.state_dict(), header.to_dict())


def read_header(path: Path) -> ModelHeader:
    """Read the header of a model file; no tensor is read.

    Raises:
        ModelFileError: The file is missing, damaged, not written by adctl or too new.
    """
    return ModelHeader.from_dict(safetensors_file.read_header(path), path)


def load_model(path: Path) -> tuple[Detector, ModelHeader]:
    """Load a detector from its model file, on the CPU, in evaluation mode.

    Raises:
        ModelFileError: The file is missing, damaged, not written by adctl or too new.
    """
    tensors, raw = safetensors_file.read(path)
    header = ModelHeader.from_dict(raw, path)
    detector = build_detector(header, path)
    try:
        detector.load_state(tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}", error.remedy) from error
    return detector.eval(), header


def recalibrate(source: Path, target: Path, calibration: Calibration) -> None:
    """Write a copy of a model file with another calibration; `target` may be `source`.

    Raises:
        ModelFileError: The source cannot be read.
        OutputError: The target cannot be written.
    """
    header = read_header(source).with_calibration(calibration)
    safetensors_file.replace_header(source, target, header.to_dict())


def tensors_digest(path: Path) -> str | None:
    """Return the SHA-256 of a model file's tensors, which `recalibrate` does not change; None for exported files.

    Raises:
        ModelFileError: The file is missing, damaged or not written by adctl.
    """
    return safetensors_file.tensors_digest(path) if path.suffix == SUFFIX else None


def run_of(model: Path, runs: Path) -> Path:
    """Return the folder of the run that a model belongs to: its own, or that of a run trained on the same images.

    Args:
        model: Model file; one that was moved or written with `calibrate --out` belongs to a run elsewhere.
        runs: Folder of all runs.

    Raises:
        ModelFileError: The header of the model cannot be read.
    """
    if model.suffix != SUFFIX or (model.parent / run_folder.RUN).is_file():
        return model.parent
    return run_folder.find_trained_on(runs, read_header(model).training.digest) or model.parent


def build_detector(header: ModelHeader, path: Path) -> Detector:
    """Create an unfitted detector from the header's arch and config.

    Raises:
        ModelFileError: The arch is unknown, its package is not installed, or the config is invalid.
        PluginError: The package cannot be loaded.
        OutputError: PyTorch cannot write a temporary file.
    """
    installed = _require_installed(header, path)
    cls = detector_class(header.arch)
    try:
        return cls(cls.Config(**header.config))
    except OSError as error:  # old releases of PyTorch write a temporary file when they are imported
        raise OutputError(
            f"Cannot write a temporary file: {error}.", "Free space in the folder of temporary files, or set TMPDIR."
        ) from error
    except Exception as error:  # networks refuse impossible settings in their own ways
        if isinstance(error, AdctlError) and not isinstance(error, UsageError):
            raise
        remedy = "Use an intact copy."
        if header.package is not None and installed != header.package:
            remedy = f"It was trained with {header.package}, and {installed} is installed: {_how_to_install(header)}"
        raise ModelFileError(f"The settings in {path} are not valid: {error}", remedy) from error


def _require_installed(header: ModelHeader, path: Path) -> DetectorPackage | None:
    """Return the installed package that provides the header's detector, or None for a built-in one."""
    installed, wanted = package_of(header.arch), header.package
    if header.arch in DETECTORS or (installed and (wanted is None or installed.name == wanted.name)):
        return installed
    if wanted is None:
        raise ModelFileError(
            f"{path} holds a '{header.arch}' detector, which adctl {__version__} does not know.",
            "Upgrade adctl, or install the package that provides it.",
        )
    raise ModelFileError(
        f"{path} holds a '{header.arch}' detector of the package {wanted}, which is not installed.",
        _how_to_install(header),
    )


def _how_to_install(header: ModelHeader) -> str:
    assert header.package is not None
    return f"Install it with: pip install '{header.package.name}=={header.package.version}'"
