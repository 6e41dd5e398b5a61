"""Model file of a classifier: one `model.safetensors` with everything needed to name images."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from adctl.classification.classifier import Classifier
from adctl.classification.config import ClassifierConfig
from adctl.classification.header import ClassifierHeader, header_of
from adctl.engine import safetensors_file
from adctl.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def save_classifier(path: Path, classifier: Classifier, header: ClassifierHeader) -> None:
    """Write a model file atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    safetensors_file.write(path, classifier.state_dict(), asdict(header))


def load_classifier(path: Path) -> tuple[Classifier, ClassifierHeader]:
    """Load a classifier, on the CPU, in evaluation mode.

    Raises:
        ModelFileError: The file is missing, damaged, too new, or not a classifier.
    """
    tensors, raw = safetensors_file.read(path)
    header = header_of(raw, path)
    try:
        classifier = Classifier(ClassifierConfig(**header.config), len(header.classes))
    except (ValueError, UsageError) as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error
    try:
        classifier.load_state(tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}", error.remedy) from error
    return classifier.eval(), header
