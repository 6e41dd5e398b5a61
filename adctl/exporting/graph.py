"""Detector as one graph from pixels to scores and anomaly maps, traced with `torch.export`.

The graph includes the normalisation of the pixels. All export formats are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl.classification.header import is_classifier
from adctl.classification.model_file import load_classifier
from adctl.model_file import load_model, tensors_digest
from adctl.runtimes.metadata import CLASSIFIER_OUTPUTS, OUTPUTS, ExportOrigin, metadata_text

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from adctl.classification.classifier import Classifier
    from adctl.classification.header import ClassifierHeader
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader

_MAX_BATCH = 4096
"""Largest batch of an exported graph; `torch.export` needs a limit."""


class FromPixels(nn.Module):
    """Wrapper that lets a detector take uint8 pixels, as an image decoder returns them.

    Args:
        detector: Fitted detector in evaluation mode.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B] and maps [B,h,w] of pixels [B,H,W,C], uint8."""
        scores, maps = self.detector(pixels.permute(0, 3, 1, 2).float() / 255)
        return scores, maps


class ClassifierFromPixels(FromPixels):
    """Wrapper that lets a classifier take uint8 pixels."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances [B] and logits [B,K] of pixels [B,H,W,C], uint8."""
        logits, distances = super().forward(pixels)
        return distances, logits


@dataclass(frozen=True)
class ExportSource:
    """Model to export, read once for all formats.

    Attributes:
        detector: Fitted detector, or classifier, on the CPU.
        header: Header of the model file.
        tensors: SHA-256 of the tensors in the model file.
    """

    detector: Detector | Classifier
    header: ModelHeader | ClassifierHeader
    tensors: str

    @classmethod
    def read(cls, model: Path) -> ExportSource:
        """Read a `model.safetensors`.

        Raises:
            ModelFileError: The file cannot be read.
            UsageError: The detector's settings cannot be exported.
        """
        detector, header = load_model(model)
        detector.check_exportable()
        return cls(detector, header, str(tensors_digest(model)))

    def metadata(self, precision: str) -> str:
        """Return the metadata text for a graph in a precision."""
        return metadata_text(self.header, ExportOrigin(self.tensors, precision))

    def example(self, count: int) -> Tensor:
        """Return random pixels [count,H,W,C], uint8, always the same."""
        shape = (count, *self.detector.input.shape)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @property
    def outputs(self) -> tuple[str, str]:
        """Names of the outputs."""
        return OUTPUTS

    @property
    def module(self) -> nn.Module:
        """Detector that takes pixels, in evaluation mode."""
        return FromPixels(self.detector).eval()

    @cached_property
    def program(self) -> ExportedProgram:
        """Graph for any number of images, to be run by PyTorch."""
        return self._traced()

    @cached_property
    def convertible(self) -> ExportedProgram:
        """Graph for any number of images, to be converted: in-place activations take converters as long as the rest."""
        in_place: list[Any] = [part for part in self.detector.modules() if getattr(part, "inplace", False)]
        try:
            for part in in_place:
                part.inplace = False
            return self._traced()
        finally:
            for part in in_place:
                part.inplace = True

    def _traced(self) -> ExportedProgram:
        sizes: Any = ({0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)},)
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(2),), dynamic_shapes=sizes)

    @cached_property
    def single(self) -> ExportedProgram:
        """Graph for exactly one image, with all sizes fixed."""
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(1),))

    def is_quantisable(self, scope: str) -> bool:
        """Return whether the operations of a module may be quantised to eight bits.

        In a detector with a backbone, only the backbone may be. Whitening and distances between features need more
        bits, because they subtract numbers that are almost equal.

        Args:
            scope: Name of the module within `module`, as `detector.backbone.network.conv_stem`.
        """
        if "blur" in scope or "whitening" in scope:
            return False
        return getattr(self.detector, "backbone_name", None) is None or ".backbone." in f".{scope}."


@dataclass(frozen=True)
class ClassifierSource(ExportSource):
    """Classifier to export: one graph from pixels to distances and logits, with every head."""

    @classmethod
    def read(cls, model: Path) -> ClassifierSource:
        """Read a `model.safetensors`.

        Raises:
            ModelFileError: The file cannot be read.
        """
        classifier, header = load_classifier(model)
        return cls(classifier, header, str(tensors_digest(model)))

    @property
    def outputs(self) -> tuple[str, str]:
        """Names of the outputs."""
        return CLASSIFIER_OUTPUTS

    @property
    def module(self) -> nn.Module:
        """Classifier that takes pixels, in evaluation mode."""
        return ClassifierFromPixels(self.detector).eval()

    def is_quantisable(self, scope: str) -> bool:
        """Return whether a module belongs to the backbone."""
        return ".backbone." in f".{scope}."


def read_source(model: Path) -> ExportSource:
    """Read a model file of a detector or a classifier.

    Raises:
        ModelFileError: The file cannot be read.
        UsageError: The detector's settings cannot be exported.
    """
    return ClassifierSource.read(model) if is_classifier(model) else ExportSource.read(model)
