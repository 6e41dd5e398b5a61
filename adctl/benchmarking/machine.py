"""What the machine itself can do: a large matrix product, a copy of memory no cache holds; and who else is at it."""

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
"""Names of the two cases."""

_SIDE = 1024
_CELLS = 2**24
"""Copied at once: 64 MiB of float32."""


def machine_cases(device: str) -> dict[str, Callable[[], object]]:
    """The two cases, each of which returns once it is done.

    Args:
        device: `cpu`, or a device of torch's.
    """
    return _on_cpu() if device == "cpu" else _on_device(device)


def describe_machine(gemm: NDArray[np.float64], copy: NDArray[np.float64], others: float) -> Machine:
    """The limits from the seconds of the two cases, any shape, and the share of the cores that others took."""
    seconds = float(np.median(gemm))
    return Machine(
        flops_per_second=2 * _SIDE**3 / seconds,
        bytes_per_second=2 * 4 * _CELLS / float(np.median(copy)),
        gemm_seconds=seconds,
        others=others,
    )


class CpuContention:
    """The share of the cores that other processes take, from its making until it is asked."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        """Between 0 and 1."""
        busy, every, own = (now - before for now, before in zip(self._now(), self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / every)) if every else 0.0

    def _now(self) -> tuple[float, float, float]:
        """Seconds that the cores were busy, in all, and for this process."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests count as users too.
        every = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return every - idle, every, own.user + own.system


def _on_cpu() -> dict[str, Callable[[], object]]:
    one, other = np.random.default_rng(0).random((2, _SIDE, _SIDE), np.float32)
    product = np.empty_like(one)
    source, target = np.zeros((2, _CELLS), np.float32)
    pools = ThreadpoolController()

    def gemm() -> None:
        # On all cores, whatever OMP_NUM_THREADS says: the limit is the machine's.
        with pools.limit(limits=processors(), user_api="blas"):
            np.matmul(one, other, out=product)

    return {GEMM: gemm, COPY: lambda: np.copyto(target, source)}


def processors() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_device(device: str) -> dict[str, Callable[[], object]]:
    import torch

    square = torch.rand(_SIDE, _SIDE, device=device)
    source, target = torch.zeros(2, _CELLS, device=device)

    def finished(value: torch.Tensor) -> float:
        return float(value.flatten()[0])  # reading one number waits for the device

    return {GEMM: lambda: finished(square @ square), COPY: lambda: finished(target.copy_(source))}
