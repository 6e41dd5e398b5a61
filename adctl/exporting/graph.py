"""A detector as one graph: pixels to scores and maps, normalisation inside, the number of images free.

Every format is made from the same graph, which `torch.export` traces once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl.model_file import load_model, tensors_digest
from adctl.runtimes.metadata import ExportOrigin, metadata_text

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader

_MOST = 4096
"""Images at once that a graph allows for: `torch.export` wants to know."""


class FromPixels(nn.Module):
    """A detector that takes pixels as they come from a decoder.

    Args:
        detector: Fitted, in evaluation mode.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B,H,W,C] of uint8 to scores [B] and maps [B,h,w]."""
        scores, maps = self.detector(pixels.permute(0, 3, 1, 2).float() / 255)
        return scores, maps


@dataclass(frozen=True)
class ExportSource:
    """A model file, read once for all formats.

    Attributes:
        detector: Fitted, on the CPU.
        header: Of the model file.
        tensors: SHA-256 of its tensors.
    """

    detector: Detector
    header: ModelHeader
    tensors: str

    @classmethod
    def read(cls, model: Path) -> ExportSource:
        """Read a `model.safetensors`.

        Raises:
            ModelFileError: It cannot be read.
        """
        detector, header = load_model(model)
        detector.check_exportable()
        return cls(detector, header, str(tensors_digest(model)))

    def metadata(self, precision: str) -> str:
        """What travels with a graph of that precision."""
        return metadata_text(self.header, ExportOrigin(self.tensors, precision))

    def example(self, count: int) -> Tensor:
        """Pixels [count,H,W,C] of noise."""
        shape = (count, *self.detector.input.shape)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @property
    def module(self) -> FromPixels:
        """The whole detector."""
        return FromPixels(self.detector).eval()

    @cached_property
    def program(self) -> ExportedProgram:
        """The graph, for any number of images."""
        sizes: Any = ({0: torch.export.Dim("batch", min=1, max=_MOST)},)
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(2),), dynamic_shapes=sizes)

    @cached_property
    def single(self) -> ExportedProgram:
        """The graph for one image, in which every size is a number."""
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(1),))

    def is_quantisable(self, scope: str) -> bool:
        """Whether the part of a graph that came from a module is the network rather than what judges its features.

        Distances and whitening are differences of numbers that eight bits would round away. Where the detector has a
        backbone, that alone is the network.

        Args:
            scope: The module's name within `module`, as `detector.backbone.network.conv_stem`.
        """
        if "blur" in scope or "whitening" in scope:
            return False
        return self.detector.backbone_name is None or ".backbone." in f".{scope}."
