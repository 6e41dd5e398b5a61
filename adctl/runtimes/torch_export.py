"""Scoring an archive of `torch.export` (.pt2) with PyTorch, without this package's detectors or timm.

`torch.export.load` unpickles whatever an archive holds pickled: example inputs, tensors of subclasses, custom objects.
Those adctl writes hold none of these, and one that does is refused before PyTorch sees it.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch.export.passes import move_to_device_pass

from adctl.data.preprocess import InputSpec
from adctl.engine.device import choose_device
from adctl.errors import ModelFileError
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import METADATA, damaged, read_metadata, require_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_PLAIN = {"weights": "weight_", "constants": "tensor_"}
"""Folders of an archive, and how the names of plain tensors in them begin."""

_ELSEWHERE = ("models/", "extra/", ".data/")
_AT_THE_TOP = {"archive_format", "archive_version", "byteorder", "version"}


class ArchiveRuntime:
    """An archive that `adctl export` wrote.

    Args:
        path: The `.pt2`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.

    Raises:
        UsageError: There is no such device.
        ModelFileError: The file is damaged, foreign or too new, or holds pickled data.
    """

    name = "torch-export"
    callers = 1

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        require_file(path)
        self._device = choose_device(device, gpu).device
        self.device = str(self._device)
        content = path.read_bytes()  # once: what is looked through is what is loaded
        refuse_pickles(content, path)
        found: dict[str, Any] = {METADATA: ""}
        try:
            program = torch.export.load(io.BytesIO(content), extra_files=found)
        except Exception as error:  # a damaged archive fails in as many ways as it has parts
            raise damaged(path, "torch.export archive", error) from error
        self.header, self.origin = read_metadata(found[METADATA] or None, path)
        self.input = InputSpec.from_config(self.header.config)
        self._graph = move_to_device_pass(program, self._device).module()

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C] of uint8."""
        with torch.inference_mode():
            scores, maps = self._graph(torch.from_numpy(pixels).to(self._device))
        return RuntimeOutput(scores.cpu().double().numpy(), maps.cpu().numpy())


def refuse_pickles(content: bytes, path: Path) -> None:
    """Let only archives through in which nothing would be unpickled.

    Args:
        content: Of the archive.
        path: Where it came from.

    Raises:
        ModelFileError: It is no archive, or holds anything but a graph and plain tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                # Everything lies in one folder, named after the file.
                _require_plain(entry.filename.partition("/")[2], entry.file_size, path)
                if entry.filename.endswith("_config.json"):
                    _require_plain_tensors(json.loads(archive.read(entry)), path)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise damaged(path, "torch.export archive", error) from error


def _require_plain(name: str, size: int, path: Path) -> None:
    folder, _, last = name.rpartition("/")
    kind = folder.removeprefix("data/")
    if kind in _PLAIN:
        known = last.startswith(_PLAIN[kind]) or last.endswith("_config.json")
    elif name.startswith("data/sample_inputs/"):
        known = size == 0
    else:
        known = name.startswith(_ELSEWHERE) or name in _AT_THE_TOP
    if not known or name.endswith(("weights.pt", "constants.pt")):
        raise _pickled(name, path)


def _require_plain_tensors(config: dict[str, Any], path: Path) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not str(entry["path_name"]).startswith(tuple(_PLAIN.values())):
            raise _pickled(name, path)


def _pickled(name: str, path: Path) -> ModelFileError:
    return ModelFileError(
        f"{path} holds '{name}', which PyTorch would unpickle; adctl never does.",
        "Take an archive that 'adctl export --format pt2' wrote.",
    )
