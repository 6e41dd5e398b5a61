"""Training of one network on several devices or processes, with Lightning Fabric.

Each process takes a part of every step's images. Before the step, the gradients of all processes are summed, weighted
by their numbers of images, so the result is that of one process with the global batch. This works on the GPUs of one
machine (`--devices 2`), in several processes on a CPU, and under `torchrun` and SLURM, which start the processes.
"""

from __future__ import annotations

import logging
import os
import threading
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

for _name in ("distributed", "rank_zero"):  # these log a message for every process
    logging.getLogger(f"lightning_fabric.utilities.{_name}").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Devices:
    """Devices of one machine that train together.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        numbers: Numbers of the GPUs; on a CPU, 0, 1, … for its processes.
    """

    kind: str
    numbers: tuple[int, ...] = (0,)

    @classmethod
    def single(cls, device: torch.device) -> Devices:
        """Return a single device."""
        return cls(device.type, (device.index or 0,))

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.numbers)


def parse_devices(text: str, kind: str) -> Devices:
    """Parse a number of devices, as `2`, or a list of device numbers, as `0,1`.

    Raises:
        UsageError: The text is neither, or the machine does not have the devices.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers) or (len(numbers) == 1 and not numbers[0]):
        raise UsageError(
            f"The value '{text}' of --devices is not valid.", "Give a number of devices, as 2, or a list, as 0,1."
        )
    if "," not in text:
        numbers = tuple(range(numbers[0]))
    count = torch.cuda.device_count()
    if kind == "cuda" and max(numbers) >= count:
        raise UsageError(f"This machine has no CUDA GPU {max(numbers)}.", f"It has {count} GPU(s): change --devices.")
    if kind == "mps" and len(numbers) > 1:
        raise UsageError("Training on several Apple GPUs is not supported.", "Leave --devices out.")
    return Devices(kind, numbers)


def is_launched_externally() -> bool:
    """Return whether torchrun or SLURM started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1


def is_secondary_process() -> bool:
    """Return whether torchrun or SLURM started this process, and another process writes the results."""
    return is_launched_externally() and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0


def make_fabric(devices: Devices, precision: str) -> Fabric:
    """Return Fabric for the devices; if there are several, `run` or torchrun starts the processes.

    Args:
        devices: The devices.
        precision: Precision, by Fabric's name.
    """
    from lightning_fabric import Fabric

    strategy = "ddp_spawn" if devices.count > 1 else "auto"
    nodes = 1
    if is_launched_externally():
        strategy, nodes = "ddp", int(os.environ.get("SLURM_NNODES", os.environ.get("GROUP_WORLD_SIZE", "1")))
    chosen: Any = devices.count if devices.kind != "cuda" else list(devices.numbers)
    return Fabric(
        accelerator=devices.kind,
        devices=chosen,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


class _Call:
    """Function with its arguments; Fabric would change arguments that it can see.

    In a process that Fabric started, the result goes into the queue; in the calling one it is returned.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], results: Any, failures: Any) -> None:
        self.function, self.arguments, self.results, self.failures = function, arguments, results, failures
        self.caller = os.getpid()

    def __call__(self, fabric: Fabric) -> Any:
        try:
            result = self.function(fabric, *self.arguments)
        except AdctlError as error:
            self.failures.put((type(error).__name__, error.message, error.remedy))
            raise
        if os.getpid() == self.caller:
            return result
        if fabric.global_rank == 0:
            self.results.put(result)
        return None


def run(fabric: Fabric, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(fabric, *arguments)` in one new process per device, and return the result of the first.

    Raises:
        AdctlError: Raised in any of the processes.
    """
    context = torch.multiprocessing.get_context("spawn")
    results, failures = context.SimpleQueue(), context.SimpleQueue()
    # Fabric reads a result after all processes have ended, but the first cannot end before a large one is read.
    received: list[Any] = []
    reader = threading.Thread(target=lambda: received.append(results.get()), daemon=True)
    reader.start()
    try:
        result = fabric.launch(_Call(function, arguments, results, failures))
    except ProcessRaisedException:
        if failures.empty():
            raise
        name, message, remedy = failures.get()
        raise getattr(errors, name)(message, remedy) from None
    finally:
        results.put(None)  # ends the reader where there is no result
        reader.join()
    return received[0] if received[0] is not None else result


def sum_gradients(fabric: Fabric, parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message for each dtype."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:  # another process may have a gradient
            parameter.grad = torch.zeros_like(parameter)
        by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        total = fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="sum")
        assert isinstance(total, Tensor)
        for gradient, part in zip(gradients, total.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def average_batch_statistics(fabric: Fabric, module: nn.Module) -> None:
    """Average the running batch statistics over all processes, so that they validate and save the same network."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            for buffer in part.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(fabric.all_reduce(buffer, reduce_op="mean"))  # type: ignore[arg-type]
