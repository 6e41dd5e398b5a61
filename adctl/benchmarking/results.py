"""Results of a benchmark, as records and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "adctl.bench/1"


@dataclass(frozen=True)
class Latency:
    """Percentiles of the latency of single images, in milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Machine:
    """Speed of the machine during the benchmark.

    Attributes:
        flops_per_second: Operations per second in a product of float32 matrices of 1024 x 1024.
        bytes_per_second: Bytes read plus bytes written per second in a copy of memory larger than the caches.
        gemm_seconds: Median time of the matrix product, a measure of the speed of the machine.
        others: Share of the cores that other processes used.
    """

    flops_per_second: float
    bytes_per_second: float
    gemm_seconds: float
    others: float


@dataclass(frozen=True)
class ModelBenchmark:
    """Benchmark results of one model file; a value is None if it could not be measured.

    Attributes:
        path: Model file.
        runtime: Name of the runtime.
        size_bytes: Size of the model file and of the files that belong to it.
        load_seconds: Time to open the model file.
        latency_ms: Latency at batch size 1.
        throughput: Median number of images per second for each batch size.
        cold_start_seconds: Median time from the start of a process to its first score, with files in the disk cache.
        host_memory: Peak memory in bytes of a process that predicts the largest batch.
        device_memory: Peak GPU memory in bytes of that process.
        flops: Operations for one image, with a multiply-add as two operations.
        arithmetic_share: Best throughput as a share of the machine's arithmetic limit.
        memory_share: Best throughput as a share of the memory limit, if each batch reads the model and its pixels once.
        from_disk: Images per second with reading and resizing; None without image files.
        from_disk_share: Speed from disk as a share of the speed with as many images in memory.
        noise: Noise of the values that are checked for regressions, by name: half the relative 99 % interval.
    """

    path: Path
    runtime: str
    size_bytes: int
    load_seconds: float
    latency_ms: Latency
    throughput: dict[int, float]
    cold_start_seconds: float | None
    host_memory: int | None
    device_memory: int | None
    flops: float | None
    arithmetic_share: float | None
    memory_share: float
    from_disk: float | None
    from_disk_share: float | None
    noise: dict[str, float]

    @property
    def name(self) -> str:
        """Name of the model file, with its folder."""
        return f"{self.path.parent.name}/{self.path.name}"

    def named(self) -> dict[str, float | None]:
        """Return every value by its name in `--fail-if`."""
        return {
            "p50_ms": self.latency_ms.p50,
            "p95_ms": self.latency_ms.p95,
            "p99_ms": self.latency_ms.p99,
            "images_per_second": max(self.throughput.values()),
            **{f"images_per_second_{size}": rate for size, rate in self.throughput.items()},
            "load_seconds": self.load_seconds,
            "cold_start_seconds": self.cold_start_seconds,
            "host_memory_mib": mebibytes(self.host_memory),
            "device_memory_mib": mebibytes(self.device_memory),
            "size_mib": mebibytes(self.size_bytes),
            "gflop": None if self.flops is None else self.flops / 1e9,
            "arithmetic_share": self.arithmetic_share,
            "memory_share": self.memory_share,
            "from_disk_images_per_second": self.from_disk,
            "from_disk_share": self.from_disk_share,
        }


@dataclass(frozen=True)
class BenchResult:
    """Results of a benchmark run.

    Attributes:
        device: Name of the device.
        repeats: Number of rounds.
        machine: Speed of the machine.
        models: Results of each model file.
    """

    device: str
    repeats: int
    machine: Machine
    models: tuple[ModelBenchmark, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as a JSON-safe dictionary."""
        plain = asdict(self)
        for model in plain["models"]:
            model["path"] = str(model["path"])
        return {"schema": SCHEMA, **plain}


def mebibytes(size: int | None) -> float | None:
    """Convert bytes to MiB; None stays None."""
    return None if size is None else size / 2**20
