"""Detector, classifier or both as one graph from pixels to their outputs, traced with `torch.export`.

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
from adctl.classification.shared_pass import Continuation, obstacles
from adctl.errors import UsageError
from adctl.image_sizes import size_text
from adctl.model_file import load_model, tensors_digest
from adctl.runtimes.metadata import CLASSIFIER_OUTPUTS, OUTPUTS, ExportOrigin, metadata_text

if TYPE_CHECKING:
    from collections.abc import Mapping
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


class PairFromPixels(nn.Module):
    """Detector and classifier in one graph with one backbone pass.

    Args:
        detector: Fitted detector in evaluation mode.
        classifier: Classifier without `obstacles`.
    """

    def __init__(self, detector: Detector, classifier: Classifier) -> None:
        super().__init__()
        self.detector, self.classifier = detector, classifier
        self._backbone: list[Any] = [detector.backbone]  # in a list, so that it is not a second name of the module
        self._continue = Continuation(self._backbone[0], classifier)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scores [B], maps [B,h,w], distances [B] and logits [B,K] of pixels [B,H,W,C], uint8."""
        passes: list[list[Tensor]] = []
        hook = self._backbone[0].network.register_forward_hook(lambda *given: passes.append(given[-1]))
        try:
            scores, maps = self.detector(pixels.permute(0, 3, 1, 2).float() / 255)
        finally:
            hook.remove()
        if len(passes) != 1:
            raise UsageError(
                f"The detector runs its backbone {len(passes)} times for an image, so a classifier cannot share it.",
                "Export the two by themselves.",
            )
        logits, distances = self._continue(passes[0])
        return scores, maps, distances, logits


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
    def outputs(self) -> tuple[str, ...]:
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
        in_place: list[Any] = [part for part in self.module.modules() if getattr(part, "inplace", False)]
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
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return CLASSIFIER_OUTPUTS

    @property
    def module(self) -> nn.Module:
        """Classifier that takes pixels, in evaluation mode."""
        return ClassifierFromPixels(self.detector).eval()

    def is_quantisable(self, scope: str) -> bool:
        """Return whether a module belongs to the backbone."""
        return ".backbone." in f".{scope}."


@dataclass(frozen=True)
class PairSource(ExportSource):
    """Detector and classifier to export: one graph with one backbone pass and the outputs of both.

    Attributes:
        classifier: Classifier with the detector's backbone, on the CPU.
        classes: Header of its file.
    """

    classifier: Classifier
    classes: ClassifierHeader

    @classmethod
    def read_both(cls, model: Path, kinds: Path) -> PairSource:
        """Read the model files of a detector and of a classifier.

        Raises:
            ModelFileError: A file cannot be read.
            UsageError: The detector's settings cannot be exported, or the two cannot share a backbone pass.
        """
        detector = ExportSource.read(model)
        classifier, classes = load_classifier(kinds)
        found = obstacles(detector.detector, classifier)
        if found:
            raise UsageError(
                f"{model} and {kinds} cannot share one backbone pass: {'; '.join(found)}.",
                f"{_remedy(detector.header.config)} Or export the two by themselves, and score with --classifier.",
            )
        both = f"{detector.tensors} {tensors_digest(kinds)}"
        return cls(detector.detector, detector.header, both, classifier, classes)

    def metadata(self, precision: str) -> str:
        """Return the metadata text for a graph in a precision."""
        return metadata_text(self.header, ExportOrigin(self.tensors, precision, self.classes))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return *OUTPUTS, *CLASSIFIER_OUTPUTS

    @property
    def module(self) -> nn.Module:
        """Detector and classifier that take pixels, in evaluation mode."""
        return PairFromPixels(self.detector, self.classifier).eval()  # type: ignore[arg-type]

    def is_quantisable(self, scope: str) -> bool:
        """Return whether a module belongs to the backbone."""
        return ".backbone." in f".{scope}."


def _remedy(config: Mapping[str, Any]) -> str:
    """Return the command that trains a classifier which fits a detector."""
    if "backbone" not in config or config.get("tile") is not None or tuple(config.get("scales", (1.0,))) != (1.0,):
        return "Take a detector with a backbone, and without tiles and scales."
    flags = [f"--backbone {config['backbone']}", f"--image-size {size_text(config['image_size'])}"]
    flags += [
        f"--set {name}={config[name]}" for name in ("channels", "resize", "border") if config.get(name) is not None
    ]
    flags += [f"--roi {config['roi']}"] if config.get("roi") else []
    return f"Train one that fits: adctl train --task classify {' '.join(flags)} (with the same --weights)."


def read_source(model: Path, classifier: Path | None = None) -> ExportSource:
    """Read a model file of a detector or a classifier, or the files of both for one graph.

    Raises:
        ModelFileError: A file cannot be read.
        UsageError: The detector's settings cannot be exported, or the two cannot share a backbone pass.
    """
    if classifier is not None:
        return PairSource.read_both(model, classifier)
    return ClassifierSource.read(model) if is_classifier(model) else ExportSource.read(model)
