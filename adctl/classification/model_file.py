"""Model file of a classifier: one `model.safetensors` with everything needed to name images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from adctl import __version__, documents
from adctl.classification.classifier import Classifier
from adctl.classification.config import ClassifierConfig
from adctl.classification.decision import Decision  # noqa: TC001 - pydantic resolves it at run time
from adctl.engine import safetensors_file
from adctl.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
ARCH = "classifier"


@dataclass(frozen=True)
class ClassifierHeader:
    """All information about a classifier except its tensors.

    Attributes:
        config: Settings of the classifier.
        classes: Names of the kinds, in the order of the logits.
        counts: Training images of each kind.
        decision: Calibrated decision.
        dataset: Name of the dataset.
        digest: Digest of the training images.
        backbone_weights: Source of the backbone's weights, or None.
        arch: Always `classifier`, which tells the file from that of a detector.
        classifier_format: Version of this format.
        adctl_version: Version of adctl that trained it.
    """

    config: dict[str, Any]
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    decision: Decision
    dataset: str
    digest: str
    backbone_weights: str | None
    arch: Literal["classifier"] = "classifier"
    classifier_format: int = FORMAT
    adctl_version: str = __version__


def save_classifier(path: Path, classifier: Classifier, header: ClassifierHeader) -> None:
    """Write a model file atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    safetensors_file.write(path, classifier.state_dict(), asdict(header))


def is_classifier(path: Path) -> bool:
    """Return whether a model file holds a classifier.

    Raises:
        ModelFileError: The file is missing or damaged, or was not written by adctl.
    """
    return path.suffix == ".safetensors" and safetensors_file.read_header(path).get("arch") == ARCH


def load_classifier(path: Path) -> tuple[Classifier, ClassifierHeader]:
    """Load a classifier, on the CPU, in evaluation mode.

    Raises:
        ModelFileError: The file is missing, damaged, too new, or not a classifier.
    """
    tensors, raw = safetensors_file.read(path)
    if raw.get("arch") != ARCH:
        raise ModelFileError(
            f"{path} is no classifier, but a detector.", "Train one with 'adctl train --task classify'."
        )
    if isinstance(raw.get("classifier_format"), int) and raw["classifier_format"] > FORMAT:
        raise ModelFileError(
            f"{path} has classifier format {raw['classifier_format']}; adctl {__version__} reads up to {FORMAT}.",
            "Upgrade adctl on this machine: pip install --upgrade adctl",
        )
    try:
        header = documents.convert(raw, ClassifierHeader)
        classifier = Classifier(ClassifierConfig(**header.config), len(header.classes))
    except (ValueError, UsageError) as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error
    try:
        classifier.load_state(tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}", error.remedy) from error
    return classifier.eval(), header
