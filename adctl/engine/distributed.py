"""Several devices or processes training one network, through Lightning Fabric.

Each process takes its share of every step's images and all of them add up their gradients, weighted by their
images, before the step: the result is that of one process with the global batch. Works on GPUs of one machine
(`--devices 2`), on several processes of a CPU, and under `torchrun` and SLURM, which start the processes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.modules.batchnorm import _BatchNorm

from adctl import errors
from adctl.errors import AdctlError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_fabric import Fabric

for _name in ("distributed", "rank_zero"):  # they announce every process
    logging.getLogger(f"lightning_fabric.utilities.{_name}").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Devices:
    """Which devices of a machine take part.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        numbers: Of the GPUs; or 0, 1, … for processes of a CPU.
    """

    kind: str
    numbers: tuple[int, ...] = (0,)

    @classmethod
    def single(cls, device: torch.device) -> Devices:
        """That device alone."""
        return cls(device.type, (device.index or 0,))

    @property
    def count(self) -> int:
        """How many on this machine."""
        return len(self.numbers)


def parse_devices(text: str, kind: str) -> Devices:
    """Read `2` (the first two) or `0,1` (these).

    Raises:
        UsageError: It is neither, or the machine does not have them.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers) or (len(numbers) == 1 and not numbers[0]):
        raise UsageError(f"--devices {text} names no devices.", "Write how many, as 2, or which, as 0,1.")
    if "," not in text:
        numbers = tuple(range(numbers[0]))
    there = torch.cuda.device_count()
    if kind == "cuda" and max(numbers) >= there:
        raise UsageError(
            f"This machine has no CUDA GPU {max(numbers)}.", f"It has {there}: name others with --devices."
        )
    if kind == "mps" and len(numbers) > 1:
        raise UsageError("Apple GPUs train alone.", "Leave --devices out.")
    return Devices(kind, numbers)


def launched_outside() -> bool:
    """Whether torchrun or SLURM started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1


def is_follower() -> bool:
    """Whether another process of those started together does the writing."""
    return launched_outside() and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0


def make_fabric(devices: Devices, precision: str) -> Fabric:
    """Fabric for these devices; several processes are launched by `run` or were by torchrun.

    Args:
        devices: Which.
        precision: Fabric's name.
    """
    from lightning_fabric import Fabric

    strategy = "ddp_spawn" if devices.count > 1 else "auto"
    nodes = 1
    if launched_outside():
        strategy, nodes = "ddp", int(os.environ.get("SLURM_NNODES", os.environ.get("GROUP_WORLD_SIZE", "1")))
    chosen: Any = devices.count if devices.kind != "cuda" else list(devices.numbers)
    return Fabric(
        accelerator=devices.kind,
        devices=chosen,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


class _Sealed:
    """A function with its arguments, which Fabric would take apart if it saw them."""

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...], failures: Any) -> None:
        self.work, self.arguments, self.failures = work, arguments, failures

    def __call__(self, fabric: Fabric) -> Any:
        try:
            return self.work(fabric, *self.arguments)
        except AdctlError as error:
            self.failures.put((type(error).__name__, error.message, error.remedy))
            raise


def run(fabric: Fabric, work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work(fabric, *arguments)` in new processes, one a device; what the first one returned.

    Raises:
        AdctlError: The one raised in any of them.
    """
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        return fabric.launch(_Sealed(work, arguments, failures))
    except ProcessRaisedException:
        if failures.empty():
            raise
        name, message, remedy = failures.get()
        raise getattr(errors, name)(message, remedy) from None


def add_up(fabric: Fabric, parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message for each number type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:  # another process may have one
            parameter.grad = torch.zeros_like(parameter)
        by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        total = fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="sum")
        assert isinstance(total, Tensor)
        for gradient, part in zip(gradients, total.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def agree_on_statistics(fabric: Fabric, module: nn.Module) -> None:
    """Average the running statistics of all processes, so that they validate and save the same network."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            for buffer in part.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(fabric.all_reduce(buffer, reduce_op="mean"))  # type: ignore[arg-type]
