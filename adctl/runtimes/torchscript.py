"""Scoring a TorchScript file with PyTorch, without the detectors of adctl or timm.

PyTorch reads the file in C++ and never with Python's pickle: only tensors, lists and TorchScript classes are created,
and code in the file runs in TorchScript's interpreter. It is still a program: open only files that you trust.
"""

from __future__ import annotations

import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch.jit._fuser import optimized_execution

from adctl.data.preprocess import InputSpec
from adctl.engine.device import choose_device
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import METADATA, damaged, read_metadata, require_file, require_intact_archive

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class TorchScriptRuntime:
    """Runtime for TorchScript files that `adctl export` wrote.

    Args:
        path: The `.ts` file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.

    Raises:
        UsageError: There is no such device.
        ModelFileError: The file is damaged, not written by adctl or too new.
    """

    name = "torchscript"
    callers = 1

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        require_file(path)
        self._device = choose_device(device, gpu).device
        self.device = str(self._device)
        metadata: dict[str, Any] = {METADATA: ""}
        try:
            with zipfile.ZipFile(path) as archive:
                require_intact_archive(archive)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch recommends torch.export, which --format pt2 uses
                self._graph = torch.jit.load(str(path), map_location=self._device, _extra_files=metadata)
        except Exception as error:  # zipfile and torch refuse damaged archives in their own ways
            raise damaged(path, "TorchScript file", error) from error
        text = metadata[METADATA]
        self.header, self.origin = read_metadata((text.decode() if isinstance(text, bytes) else text) or None, path)
        self.input = InputSpec.from_config(self.header.config)

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8."""
        # The optimizer would compile the graph again for each batch size.
        with torch.inference_mode(), optimized_execution(False):
            outputs = self._graph(torch.from_numpy(pixels).to(self._device))
        return RuntimeOutput.joined([[output.cpu().numpy() for output in outputs]])
