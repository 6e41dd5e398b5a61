"""A process that opens one model file, scores once and prints its peak memory.

Run as `python -m adctl.benchmarking.memory_probe`.

Nothing that the parent imported counts here, so cold start and memory are those of scoring alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adctl.errors import ModelFileError


@dataclass(frozen=True)
class Probe:
    """What one process took.

    Attributes:
        seconds: From its start to its first verdict.
        host_memory: Bytes at its peak.
        device_memory: Bytes of the GPU at its peak; None without one, or where the runtime does not tell.
    """

    seconds: float
    host_memory: int
    device_memory: int | None


def probe(
    model: Path, device: str, gpu: int | None, batch_size: int, repeats: int, runtime: str | None = None
) -> Probe | None:
    """Start processes one after the other; the median of their times and the most of their memory.

    Args:
        model: The model file.
        device: As typed.
        gpu: As typed.
        batch_size: Of the batch that memory is measured with.
        repeats: Processes; 0 measures nothing.
        runtime: As typed.

    Raises:
        ModelFileError: A process failed.
    """
    found = [_once(model, device, gpu, batch_size, runtime) for _ in range(repeats)]
    if not found:
        return None
    on_device = [one.device_memory for one in found if one.device_memory is not None]
    return Probe(
        statistics.median(one.seconds for one in found),
        max(one.host_memory for one in found),
        max(on_device, default=None),
    )


def _once(model: Path, device: str, gpu: int | None, batch_size: int, runtime: str | None) -> Probe:
    command = [sys.executable, "-m", __name__, str(model.resolve()), device, str(gpu), str(batch_size), str(runtime)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own interpreter
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
        told, errors = process.communicate()
    if process.returncode:
        last = errors.strip().rpartition("\n")[2]
        raise ModelFileError(f"Scoring {model} in a process of its own failed: {last}", "Try 'adctl score' with it.")
    return Probe(seconds, **json.loads(told))


def main(model: str, device: str, gpu: str, batch_size: str, wanted: str) -> None:
    """In the process itself: a line after the first verdict, then the memory as JSON."""
    import numpy as np

    from adctl.runtimes.loading import open_runtime

    runtime = open_runtime(
        Path(model), device, None if gpu == "None" else int(gpu), None if wanted == "None" else wanted
    )
    runtime.predict(np.zeros((1, *runtime.input.shape), np.uint8))
    sys.stdout.write("first verdict\n")
    sys.stdout.flush()
    runtime.predict(np.zeros((int(batch_size), *runtime.input.shape), np.uint8))
    json.dump({"host_memory": _host_peak(), "device_memory": _device_peak(runtime.device)}, sys.stdout)


def _host_peak() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where the figure of getrusage is that of the parent when that was larger
        told = dict(line.partition(":")[::2] for line in status.read_text(encoding="utf-8").splitlines())
        if "VmHWM" in told:
            return int(told["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_peak(device: str) -> int | None:
    torch = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None:
        return None
    return int(torch.cuda.max_memory_reserved(device)) or None  # another runtime's memory is not torch's


if __name__ == "__main__":
    main(*sys.argv[1:])
