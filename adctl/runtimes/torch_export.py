"""Scoring an archive of `torch.export` (.pt2) with PyTorch, without the detectors of adctl or timm.

`torch.export.load` unpickles example inputs, custom objects and tensors of subclasses. Archives that adctl writes hold
none of these; an archive that does is refused before PyTorch opens it.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch.export.passes import move_to_device_pass

from adctl import documents
from adctl.data.preprocess import InputSpec
from adctl.engine.device import choose_device
from adctl.errors import ModelFileError
from adctl.runtimes.base import RuntimeOutput
from adctl.runtimes.metadata import METADATA, damaged, read_metadata, require_file, require_intact_archive

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_PLAIN = {"weights": "weight_", "constants": "tensor_"}
"""Folders of tensors in an archive, with the prefix that marks a plain, not pickled tensor."""

_OTHER_FOLDERS = ("models/", "extra/", ".data/")
_TOP_LEVEL_FILES = {"archive_format", "archive_version", "byteorder", "version"}


class ArchiveRuntime:
    """Runtime for `torch.export` archives that `adctl export` wrote.

    Args:
        path: The `.pt2` file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.

    Raises:
        UsageError: There is no such device.
        ModelFileError: The file is damaged, not written by adctl or too new, or holds pickled data.
    """

    name = "torch-export"
    callers = 1

    def __init__(self, path: Path, device: str = "auto", gpu: int | None = None) -> None:
        require_file(path)
        self._device = choose_device(device, gpu).device
        self.device = str(self._device)
        content = path.read_bytes()  # read once, so that exactly the checked bytes are loaded
        refuse_pickles(content, path)
        metadata: dict[str, Any] = {METADATA: ""}
        try:
            program = torch.export.load(io.BytesIO(content), extra_files=metadata)
        except Exception as error:  # a damaged archive can raise any exception
            raise damaged(path, "torch.export archive", error) from error
        self.header, self.origin = read_metadata(metadata[METADATA] or None, path)
        self.input = InputSpec.from_config(self.header.config)
        self._graph = move_to_device_pass(program, self._device).module()

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8."""
        with torch.inference_mode():
            outputs = self._graph(torch.from_numpy(pixels).to(self._device))
        return RuntimeOutput.joined([[output.cpu().numpy() for output in outputs]])


def refuse_pickles(content: bytes, path: Path) -> None:
    """Check that PyTorch would unpickle nothing in an archive.

    Args:
        content: Bytes of the archive.
        path: Path for error messages.

    Raises:
        ModelFileError: The bytes are no archive, or hold anything but a graph and plain tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            require_intact_archive(archive)
            for entry in archive.infolist():
                # All files are in one folder, which is named after the archive.
                _require_plain(entry.filename.partition("/")[2], entry.file_size, path)
                if entry.filename.endswith("_config.json"):
                    _require_plain_tensors(documents.parse_json(archive.read(entry)), path)
    except Exception as error:  # zipfile and zlib refuse damaged archives in their own ways
        if isinstance(error, ModelFileError):
            raise
        raise damaged(path, "torch.export archive", error) from error


def _require_plain(name: str, size: int, path: Path) -> None:
    folder, _, last = name.rpartition("/")
    kind = folder.removeprefix("data/")
    if kind in _PLAIN:
        known = last.startswith(_PLAIN[kind]) or last.endswith("_config.json")
    elif name.startswith("data/sample_inputs/"):
        known = size == 0
    else:
        known = name.startswith(_OTHER_FOLDERS) or name in _TOP_LEVEL_FILES
    if not known or name.endswith(("weights.pt", "constants.pt")):
        raise _pickled(name, path)


def _require_plain_tensors(config: dict[str, Any], path: Path) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not str(entry["path_name"]).startswith(tuple(_PLAIN.values())):
            raise _pickled(name, path)


def _pickled(name: str, path: Path) -> ModelFileError:
    return ModelFileError(
        f"{path} holds '{name}', which PyTorch would unpickle. That can run code, so adctl refuses the file.",
        "Use an archive that 'adctl export --format pt2' wrote.",
    )
