"""Checkpoint files of a training: one safetensors file per checkpoint, written atomically; the newest few are kept.

    checkpoints/
      step-00000420.safetensors   weights, best weights, optimizers; header: epoch, losses, schedule

A file is complete or absent, so a training can be resumed from the newest file, whenever the process was killed.
Random states are not stored, because all random numbers depend on the seed and the number of the step.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl import files
from adctl.engine import safetensors_file
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = "adctl.checkpoint/1"
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass
class Snapshot:
    """Content of a checkpoint.

    Attributes:
        tensors: Tensors by dotted name.
        values: All other values; JSON-safe.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def put_tensors(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors, with a prefix to their names."""
        self.tensors |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

    def get_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors that `put_tensors` added with this prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}

    def put_optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> None:
        """Add the state of an optimizer."""
        state = optimizer.state_dict()
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, entries in state["state"].items()
            for name, value in entries.items()
        }
        self.put_tensors(prefix, moments)
        self.values[prefix] = state["param_groups"]

    def get_optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> None:
        """Load the state that `put_optimizer` added into an optimizer."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.get_tensors(prefix).items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = [{**group, "betas": tuple(group["betas"])} for group in self.values[prefix]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                if name != "step":
                    # A fused step needs weights and moments in the same memory layout.
                    entries[name] = torch.empty_like(parameter).copy_(value)


class CheckpointFolder:
    """Folder with the checkpoints of one run.

    Args:
        folder: Path; created with the first checkpoint.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(1, keep)

    def write(self, step: int, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then remove old ones, and return its path.

        Raises:
            OutputError: The checkpoint cannot be written; the earlier ones are kept.
        """
        files.make_folder(self.folder)
        path = self.folder / f"step-{step:08d}.safetensors"
        safetensors_file.write(path, snapshot.tensors, {"format": FORMAT, **snapshot.values})
        kept = {path, *self._paths()[-self.keep :]}
        for other in self.folder.iterdir():  # includes temporary files of a killed process
            if other not in kept:
                other.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """Return the path of the newest checkpoint, or None."""
        return next(reversed(self._paths()), None)

    def read(self, path: Path) -> Snapshot:
        """Read a checkpoint.

        Raises:
            ModelFileError: The file is damaged or not a checkpoint.
        """
        tensors, values = safetensors_file.read(path)
        if values.pop("format", None) != FORMAT:
            raise ModelFileError(f"{path} is not a training checkpoint.", "Give the folder of a run to --resume.")
        return Snapshot(tensors, values)

    def clear(self, keep: int = 0) -> None:
        """Remove all checkpoints but the newest `keep`; with 0, remove the folder."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self._paths()[:-keep]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the state dict of a module; fitted buffers take the stored shape.

    Raises:
        ModelFileError: The tensors do not fit the module.
    """
    for name, buffer in module.named_buffers():
        if name in tensors and tensors[name].shape != buffer.shape:
            owner, _, own = name.rpartition(".")
            module.get_submodule(owner).register_buffer(own, torch.empty_like(tensors[name], device=buffer.device))
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ModelFileError(
            f"The checkpoint belongs to another network: {error}", "Resume with the settings the run was started with."
        ) from error
