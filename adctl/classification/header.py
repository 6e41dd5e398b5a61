"""Header of a classifier's file: everything except its tensors. Needs no torch."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from adctl import __version__, documents
from adctl.classification.decision import Decision  # noqa: TC001 - pydantic resolves it at run time
from adctl.engine import safetensors_file
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
ARCH = "classifier"

_MARKS = (b'"arch": "classifier"', b"&quot;arch&quot;: &quot;classifier&quot;")
"""Texts in the metadata of an exported classifier: as JSON, and as JSON inside XML."""


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


def header_of(raw: dict[str, Any], path: Path) -> ClassifierHeader:
    """Return the header from the metadata of a file.

    Raises:
        ModelFileError: It is damaged, too new, or that of a detector.
    """
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
        return documents.convert(raw, ClassifierHeader)
    except ValueError as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error


def is_classifier(path: Path) -> bool:
    """Return whether a model file or an exported file holds a classifier; False for a file that cannot be read."""
    if path.suffix == ".safetensors":
        try:
            return safetensors_file.read_header(path).get("arch") == ARCH
        except ModelFileError:
            return False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(mark) >= 0 for mark in _MARKS)
    except (OSError, ValueError):
        return False
