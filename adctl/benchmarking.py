"""Latency and throughput of model files, measured in turn within one run so that drift meets all alike.

Times the model alone, on pixels in memory; `adctl score` prints its own speed from disk to disk.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files, runs
from adctl.progress import SILENT, Reporter
from adctl.runtimes.contract import open_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import BenchSettings, Loaded
    from adctl.runtimes.contract import Runtime


@dataclass(frozen=True)
class Latency:
    """Of single images, milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class ModelFigures:
    """One model file's figures.

    Attributes:
        path: The model file.
        runtime: What ran it.
        size_bytes: Of the file.
        load_seconds: To open it.
        latency_ms: At batch size 1.
        throughput: Images a second, median, for each batch size.
    """

    path: Path
    runtime: str
    size_bytes: int
    load_seconds: float
    latency_ms: Latency
    throughput: dict[int, float]


@dataclass(frozen=True)
class BenchResult:
    """All figures.

    Attributes:
        device: Where it was computed.
        repeats: Timed calls behind each figure.
        models: One entry a model file.
    """

    device: str
    repeats: int
    models: tuple[ModelFigures, ...]


def bench(loaded: Loaded[BenchSettings], reporter: Reporter = SILENT) -> BenchResult:
    """Measure model files side by side.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model or device.
        ModelFileError: A file is damaged or foreign.
        OutputError: The figures cannot be written.
    """
    settings = loaded.settings
    paths = [runs.find_model(settings.runs, given) for given in settings.models or (None,)]
    opened = [_open(path, settings) for path in paths]
    sizes = sorted({1, *settings.batch_sizes})
    times = _interleaved([runtime for runtime, _ in opened], sizes, settings.repeats, reporter)
    figures = tuple(
        _figures(path, runtime, load, {size: times[index, size] for size in sizes})
        for index, (path, (runtime, load)) in enumerate(zip(paths, opened, strict=True))
    )
    result = BenchResult(opened[0][0].device, settings.repeats, figures)
    if settings.out is not None:
        files.write_json(settings.out, _document(result))
    return result


def _open(path: Path, settings: BenchSettings) -> tuple[Runtime, float]:
    start = time.perf_counter()
    runtime = open_runtime(path, settings.device, settings.gpu)
    return runtime, time.perf_counter() - start


def _interleaved(
    runtimes: Sequence[Runtime], sizes: Sequence[int], repeats: int, reporter: Reporter
) -> dict[tuple[int, int], list[float]]:
    """Seconds of each call, by model and batch size; every round calls each of them once."""
    generator = np.random.default_rng(0)
    batches = {
        (index, size): generator.integers(0, 256, (size, *runtime.input.shape), np.uint8)
        for index, runtime in enumerate(runtimes)
        for size in sizes
    }
    times: dict[tuple[int, int], list[float]] = {case: [] for case in batches}
    with reporter.stage("measuring", repeats + 1) as update:
        for turn in range(repeats + 1):
            for (index, size), pixels in batches.items():
                start = time.perf_counter()
                # The result is on the host when predict returns, so a GPU's queue is empty as well.
                runtimes[index].predict(pixels)
                if turn > 0:  # the first round warms up
                    times[index, size].append(time.perf_counter() - start)
            update(turn + 1, repeats + 1)
    return times


def _figures(path: Path, runtime: Runtime, load: float, times: dict[int, list[float]]) -> ModelFigures:
    p50, p95, p99 = (1000 * float(np.percentile(times[1], share)) for share in (50, 95, 99))
    return ModelFigures(
        path=path,
        runtime=runtime.name,
        size_bytes=path.stat().st_size,
        load_seconds=load,
        latency_ms=Latency(p50, p95, p99),
        throughput={size: size / float(np.median(seconds)) for size, seconds in times.items()},
    )


def _document(result: BenchResult) -> dict[str, Any]:
    plain = asdict(result)
    for model in plain["models"]:
        model["path"] = str(model["path"])
    return {"schema": "adctl.bench/1", "time": runs.now(), "environment": runs.environment(), **plain}
