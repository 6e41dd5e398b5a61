"""What a benchmark finds out, as plain records and as JSON. Knows no runtime and no clock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "adctl.bench/1"


@dataclass(frozen=True)
class Latency:
    """Of single images, milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Machine:
    """What the machine could do in the same minutes.

    Attributes:
        flops_per_second: Of a product of float32 matrices of 1024 x 1024.
        bytes_per_second: Read and written together, copying memory that no cache holds.
        gemm_seconds: Median time of that product: the measure of how fast the machine was just then.
        others: Share of the cores that other processes took meanwhile.
    """

    flops_per_second: float
    bytes_per_second: float
    gemm_seconds: float
    others: float


@dataclass(frozen=True)
class ModelBenchmark:
    """One model file's figures; None where one could not be measured.

    Attributes:
        path: The model file.
        runtime: What ran it.
        size_bytes: Of the file, with those that belong to it.
        load_seconds: To open it.
        latency_ms: At batch size 1.
        throughput: Images a second, median, for each batch size.
        cold_start_seconds: From the start of a process to its first verdict, median; files in the disk's cache.
        host_memory: Bytes at the peak of a process that predicts the largest batch.
        device_memory: Likewise, of the GPU.
        flops: Operations for one image, a multiplication and its addition counted as two.
        arithmetic_share: Of the machine's limit that the best throughput reaches.
        memory_share: Likewise of memory: what must move at least is the model once a batch, and the pixels.
        from_disk: Images a second read, resized and scored; None where no images were at hand.
        from_disk_share: Of what the model alone did on as many images in memory.
        noise: Of the figures a regression is looked for in, by name: half the 99 % interval, relative.
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
        """The file and its folder."""
        return f"{self.path.parent.name}/{self.path.name}"

    def named(self) -> dict[str, float | None]:
        """Every figure by the name it has in `--fail-if`."""
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
    """All figures.

    Attributes:
        device: Where it was computed.
        repeats: Rounds behind each figure.
        machine: Its limits.
        models: One entry a model file.
    """

    device: str
    repeats: int
    machine: Machine
    models: tuple[ModelBenchmark, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        plain = asdict(self)
        for model in plain["models"]:
            model["path"] = str(model["path"])
        return {"schema": SCHEMA, **plain}


def mebibytes(size: int | None) -> float | None:
    """Bytes in MiB."""
    return None if size is None else size / 2**20
