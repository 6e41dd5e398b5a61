"""Checkpoints of a training in progress: one safetensors file each, the last few kept, written atomically.

    checkpoints/
      step-00000420.safetensors   weights, best weights, optimizers; in its header epoch, losses, schedule

A file is whole or absent, so whatever moment the process dies at, the newest one can be gone on from. No
random state is kept: everything random is drawn from the seed and the number of the step.
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
    """One moment of a training.

    Attributes:
        tensors: By dotted names.
        values: JSON-safe.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def put_tensors(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a prefix."""
        self.tensors |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

    def get_tensors(self, prefix: str) -> dict[str, Tensor]:
        """What `put_tensors` kept."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}

    def put_optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> None:
        """Keep an optimizer's state."""
        state = optimizer.state_dict()
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, entries in state["state"].items()
            for name, value in entries.items()
        }
        self.put_tensors(prefix, moments)
        self.values[prefix] = state["param_groups"]

    def get_optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer the state that `put_optimizer` kept."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.get_tensors(prefix).items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        groups = [{**group, "betas": tuple(group["betas"])} for group in self.values[prefix]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                if name != "step":
                    # A fused step reads weights and moments as they lie in memory: they must lie alike.
                    entries[name] = torch.empty_like(parameter).copy_(value)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made when the first is written.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(1, keep)

    def write(self, step: int, snapshot: Snapshot) -> Path:
        """Write one, and only then remove those too many.

        Raises:
            OutputError: It cannot be written; those already there stay.
        """
        files.make_folder(self.folder)
        path = self.folder / f"step-{step:08d}.safetensors"
        safetensors_file.write(path, snapshot.tensors, {"format": FORMAT, **snapshot.values})
        kept = {path, *self._paths()[-self.keep :]}
        for other in self.folder.iterdir():  # what a killed process left half-written goes too
            if other not in kept:
                other.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """The newest one, or None."""
        return next(reversed(self._paths()), None)

    def read(self, path: Path) -> Snapshot:
        """Read one.

        Raises:
            ModelFileError: It is damaged, or no checkpoint.
        """
        tensors, values = safetensors_file.read(path)
        if values.pop("format", None) != FORMAT:
            raise ModelFileError(
                f"{path} is not a checkpoint of a training.", "Name the folder of a run with --resume."
            )
        return Snapshot(tensors, values)

    def clear(self, keep: int = 0) -> None:
        """Remove all but the newest `keep`; with none left, the folder too."""
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
    """Give a module its weights back; buffers that fitting has filled since take the stored shape.

    Raises:
        ModelFileError: The tensors are not this module's.
    """
    for name, buffer in module.named_buffers():
        if name in tensors and tensors[name].shape != buffer.shape:
            owner, _, own = name.rpartition(".")
            module.get_submodule(owner).register_buffer(own, torch.empty_like(tensors[name], device=buffer.device))
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ModelFileError(
            f"The checkpoint is of another network: {error}", "Resume with the settings the run was started with."
        ) from error
