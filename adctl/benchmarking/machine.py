"""Speed limits of the machine (a large matrix product, a copy of memory larger than the caches) and its other load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import psutil
from threadpoolctl import ThreadpoolController

from adctl.benchmarking.results import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

GEMM, COPY = "machine: gemm", "machine: copy"
"""Names of the two timed calls."""

_SIDE = 1024
_CELLS = 2**24
"""Number of float32 values in a copy: 64 MiB."""


def machine_cases(device: str) -> dict[str, Callable[[], object]]:
    """Return the two calls to time, by name; each returns when its work is finished.

    Args:
        device: `cpu`, or the name of a PyTorch device.
    """
    return _on_cpu() if device == "cpu" else _on_device(device)


def describe_machine(gemm: NDArray[np.float64], copy: NDArray[np.float64], others: float) -> Machine:
    """Compute the limits of the machine.

    Args:
        gemm: Seconds of the matrix products, in any shape.
        copy: Seconds of the memory copies, in any shape.
        others: Share of the cores that other processes used.
    """
    seconds = float(np.median(gemm))
    return Machine(
        flops_per_second=2 * _SIDE**3 / seconds,
        bytes_per_second=2 * 4 * _CELLS / float(np.median(copy)),
        gemm_seconds=seconds,
        others=others,
    )


class CpuContention:
    """Measurement of the share of the cores that other processes use, from creation until `share` is called."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        """Return the share of the cores that other processes used since creation, 0 to 1."""
        busy, total, own = (now - before for now, before in zip(self._now(), self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total else 0.0

    def _now(self) -> tuple[float, float, float]:
        """Return the busy time of the cores, their total time and the CPU time of this process, in seconds."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # The time of guests is already included in the user time.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle, total, own.user + own.system


def _on_cpu() -> dict[str, Callable[[], object]]:
    left, right = np.random.default_rng(0).random((2, _SIDE, _SIDE), np.float32)
    product = np.empty_like(left)
    source, target = np.zeros((2, _CELLS), np.float32)
    pools = ThreadpoolController()

    def gemm() -> None:
        # All cores are used, even if OMP_NUM_THREADS is lower, because this is the limit of the machine.
        with pools.limit(limits=processors(), user_api="blas"):
            np.matmul(left, right, out=product)

    return {GEMM: gemm, COPY: lambda: np.copyto(target, source)}


def processors() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_device(device: str) -> dict[str, Callable[[], object]]:
    import torch

    square = torch.rand(_SIDE, _SIDE, device=device)
    source, target = torch.zeros(2, _CELLS, device=device)

    def wait_for(value: torch.Tensor) -> float:
        return float(value.flatten()[0])  # reading one value waits until the device has finished

    return {GEMM: lambda: wait_for(square @ square), COPY: lambda: wait_for(target.copy_(source))}
