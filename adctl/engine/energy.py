"""Energy that the processors and GPUs of the machine use meanwhile, where their counters can be read.

Processors count in RAPL's files of Linux, `/sys/class/powercap/intel-rapl:N`, which most systems let only root read.
GPUs of NVIDIA count in NVML, read by the package `pynvml` if it is installed. The counters belong to the whole machine:
other programs count too.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

POWERCAP = Path("/sys/class/powercap")

_SAMPLE_SECONDS = 60.0
"""Seconds between two readings; RAPL's counters start again after minutes at high power."""
_WHOLE_PLATFORM = "psys"
"""Zone that includes the others."""
_SEPARATE = "dram"
"""Subzone that its parent does not include."""


class EnergyMeter:
    """Meter that runs from its creation until `stop`.

    Args:
        devices: Devices that work; their GPUs are counted.
        powercap: Folder of RAPL's zones.
    """

    def __init__(self, devices: Sequence[torch.device] = (), powercap: Path = POWERCAP) -> None:
        self._counters = [*_processors(powercap), *_gpus(devices)]
        self._last = [read() for read, _ in self._counters]
        self._joules = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        if self._counters:
            threading.Thread(target=_sample, args=(weakref.ref(self), self._stopped), daemon=True).start()

    def stop(self) -> float | None:
        """Return the energy in joules since the creation; None if no counter can be read."""
        self._stopped.set()
        self.add()
        return round(self._joules, 3) if self._counters else None

    def add(self) -> None:
        """Add the energy since the last reading; a counter that has started again is lower than before."""
        with self._lock:
            for number, (read, largest) in enumerate(self._counters):
                with suppress(OSError, ValueError):
                    now = read()
                    gained = now - self._last[number]
                    self._joules += gained if gained >= 0 else gained + largest
                    self._last[number] = now


def _sample(reference: weakref.ref[EnergyMeter], stopped: threading.Event) -> None:
    """Read the counters now and then, until the meter is stopped or no longer used."""
    while not stopped.wait(_SAMPLE_SECONDS):
        meter = reference()
        if meter is None:
            return
        meter.add()
        del meter


def _processors(powercap: Path) -> Iterator[tuple[Callable[[], float], float]]:
    """Yield a function that reads joules, and the largest value, for each zone of RAPL that can be read."""
    for zone in sorted(powercap.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name = (zone / "name").read_text(encoding="ascii").strip()
            is_part = zone.name.count(":") > 1
            if name.startswith(_WHOLE_PLATFORM) or (is_part and name != _SEPARATE):
                continue
            counter = _MicroJoules(zone / "energy_uj")
            counter()
            yield counter, float((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6


class _MicroJoules:
    """Reader of a counter in microjoules."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> float:
        return float(self._path.read_text(encoding="ascii")) / 1e6


def _gpus(devices: Sequence[torch.device]) -> Iterator[tuple[Callable[[], float], float]]:
    """Yield a function that reads joules for each GPU of NVIDIA that counts; its counter does not start again."""
    cuda = [device for device in devices if device.type == "cuda"]
    if not cuda:
        return
    try:
        import pynvml
    except ModuleNotFoundError:
        return
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for device in cuda:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            counter = _MilliJoules(pynvml, handle)
            counter()
            yield counter, 0.0


class _MilliJoules:
    """Reader of the counter of a GPU, in millijoules."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml, self._handle = pynvml, handle

    def __call__(self) -> float:
        try:
            return float(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._pynvml.NVMLError as error:
            raise OSError(str(error)) from error
