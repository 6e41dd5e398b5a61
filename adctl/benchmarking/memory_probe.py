"""Cold start and peak memory of a model file, measured in a new process.

The process runs `python -m adctl.benchmarking.memory_probe`; the memory and imports of the parent are not included.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from adctl.config import BenchSettings


@dataclass(frozen=True)
class ProbeResult:
    """Time and memory of one process.

    Attributes:
        seconds: Time from the start of the process to its first score.
        host_memory: Peak memory in bytes.
        device_memory: Peak GPU memory in bytes; None without a GPU or if the runtime does not report it.
    """

    seconds: float
    host_memory: int
    device_memory: int | None


def probe(model: Path, settings: BenchSettings, batch_size: int, runtime: str | None = None) -> ProbeResult | None:
    """Run processes one after the other, and return their median time and their largest memory.

    Args:
        model: Model file.
        settings: Settings with the device, the precision and the number of processes; with 0 of them nothing is
            measured and None is returned.
        batch_size: Batch size for the measurement of memory.
        runtime: Name of the runtime, or None for the default.

    Raises:
        ModelFileError: A process failed.
    """
    opening = {
        "device": settings.device, "gpu": settings.gpu, "runtime": runtime, "precision": settings.precision
    }  # fmt: skip
    results = [_run_process(model, opening, batch_size) for _ in range(settings.cold_starts)]
    if not results:
        return None
    device_memory = [result.device_memory for result in results if result.device_memory is not None]
    return ProbeResult(
        statistics.median(result.seconds for result in results),
        max(result.host_memory for result in results),
        max(device_memory, default=None),
    )


def _run_process(model: Path, opening: dict[str, Any], batch_size: int) -> ProbeResult:
    command = [sys.executable, "-m", __name__, str(model.resolve()), json.dumps(opening), str(batch_size)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own interpreter
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
        output, errors = process.communicate()
    if process.returncode:
        last = errors.strip().rpartition("\n")[2]
        raise ModelFileError(
            f"Scoring with {model} in a new process failed: {last}", "Try 'adctl score' with this model."
        )
    return ProbeResult(seconds, **json.loads(output))


def main(model: str, opening: str, batch_size: str) -> None:
    """Run in the new process: print a line after the first score, then the peak memory as JSON.

    Args:
        model: Path of the model file.
        opening: Arguments of `open_any` as JSON.
        batch_size: Batch size for the measurement of memory.
    """
    import numpy as np

    from adctl.runtimes.classifier import open_any

    runtime = open_any(Path(model), **json.loads(opening))
    runtime.predict(np.zeros((1, *runtime.input.shape), np.uint8))
    sys.stdout.write("first score\n")
    sys.stdout.flush()
    runtime.predict(np.zeros((int(batch_size), *runtime.input.shape), np.uint8))
    json.dump({"host_memory": _host_peak(), "device_memory": _device_peak(runtime.device)}, sys.stdout)


def _host_peak() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage returns the memory of the parent if that was larger
        fields = dict(line.partition(":")[::2] for line in status.read_text(encoding="utf-8").splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
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
    return int(torch.cuda.max_memory_reserved(device)) or None  # 0 if another runtime uses the GPU


if __name__ == "__main__":
    main(*sys.argv[1:])
