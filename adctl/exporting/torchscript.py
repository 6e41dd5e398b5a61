"""Export to TorchScript: the graph for one image, called for each image of a batch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adctl import files
from adctl.runtimes.metadata import METADATA, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.exporting.graph import ExportSource


class EachImage(nn.Module):
    """Module that calls a graph for each image of a batch, because a traced graph works only for one batch size.

    Args:
        graph: Graph from pixels [1,H,W,C] to scores [1] and maps [1,h,w].
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B] and maps [B,h,w] of pixels [B,H,W,C], uint8."""
        scores = torch.jit.annotate(list[Tensor], [])
        maps = torch.jit.annotate(list[Tensor], [])
        for image in pixels.split(1):
            score, anomaly_map = self.graph(image)
            scores.append(score)
            maps.append(anomaly_map)
        return torch.cat(scores), torch.cat(maps)


class EachImageOfPair(EachImage):
    """Module that calls the graph of a detector and a classifier for each image of a batch."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return scores [B], maps [B,h,w], distances [B] and logits [B,K] of pixels [B,H,W,C], uint8."""
        scores = torch.jit.annotate(list[Tensor], [])
        maps = torch.jit.annotate(list[Tensor], [])
        distances = torch.jit.annotate(list[Tensor], [])
        logits = torch.jit.annotate(list[Tensor], [])
        for image in pixels.split(1):
            score, anomaly_map, distance, logit = self.graph(image)
            scores.append(score)
            maps.append(anomaly_map)
            distances.append(distance)
            logits.append(logit)
        return torch.cat(scores), torch.cat(maps), torch.cat(distances), torch.cat(logits)


def write(source: ExportSource, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
    """Export to TorchScript, atomically.

    Args:
        source: The model.
        target: The `.ts` file.
        precision: Always `fp32`.
        images: Not used.

    Raises:
        OutputError: The target cannot be written.
    """
    del precision, images
    graph = source.single.module(check_guards=False)
    content = io.BytesIO()
    with torch.no_grad():
        traced = torch.jit.trace(graph, (source.example(1),), check_trace=False)
        each = EachImage(traced) if len(source.outputs) == len(OUTPUTS) else EachImageOfPair(traced)
        torch.jit.save(torch.jit.script(each), content, _extra_files={METADATA: source.metadata("fp32")})
    files.write_bytes(target, content.getvalue())
