"""Benchmark of several model files in one run: latency, throughput, memory, cold start and shares of the limits.

Each round runs every model at every batch size, a matrix product and a memory copy, in alternating order, so that a
change of the machine's speed affects all of them. Pixels are in memory, except for the results "from disk", which
include reading and resizing of files.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adctl import files, run_folder
from adctl.benchmarking.flops import count_flops
from adctl.benchmarking.machine import COPY, GEMM, CpuContention, describe_machine, machine_cases
from adctl.benchmarking.memory_probe import ProbeResult, probe
from adctl.benchmarking.regression import compare, read_baseline
from adctl.benchmarking.results import BenchResult, Latency, Machine, ModelBenchmark
from adctl.benchmarking.rounds import estimate_noise, run_interleaved
from adctl.benchmarking.tables import write_markdown, write_plot
from adctl.classification.header import is_classifier
from adctl.classification.predictions import PREDICTIONS
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.datasets import dataset_of_run
from adctl.errors import DataError
from adctl.gate_files import gate_files, write_gate_files
from adctl.gates import Gate, GateResult, check
from adctl.model_file import run_of
from adctl.progress import SILENT, Reporter
from adctl.runtimes.auto_select import files_of
from adctl.runtimes.classifier import ClassifierRuntime, open_any
from adctl.scoring.classify import images_of_run, predict_rows
from adctl.scoring.predict import predict
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.config import BenchSettings, LoadedSettings
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

Seconds: TypeAlias = dict[str, NDArray[np.float64]]

_SINGLES = 5
"""Number of calls with a single image in a round; percentiles of latency need many."""

_BUSY = 0.1
"""Share of the cores used by other processes above which a warning is logged."""

_MAX_FILES = 32
_DISK_EVERY = 4
"""Files are read only in every fourth round, because reading them takes as long as the rest of a round."""


@dataclass(frozen=True)
class Benchmark:
    """Measured results and the results of the gates.

    Attributes:
        results: Measured results.
        gates: Result of each condition and of each comparison with an earlier run.
    """

    results: BenchResult
    gates: tuple[GateResult, ...]


@dataclass(frozen=True)
class _Case:
    """Opened model file.

    Attributes:
        path: Model file.
        runtime: Runtime that holds the model.
        load_seconds: Time to open the file.
        files: Images to read and score; may be empty.
    """

    path: Path
    runtime: Runtime | ClassifierRuntime
    load_seconds: float
    files: tuple[Sample, ...]

    def label(self, case: object) -> str:
        """Return the name of a timed case of this model."""
        return f"{self.path} {self.runtime.name} {case}"


def bench(loaded: LoadedSettings[BenchSettings], reporter: Reporter = SILENT) -> Benchmark:
    """Measure model files in one run, and compare the results with conditions and with an earlier run.

    Args:
        loaded: Settings.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A model, device, measured value or earlier run does not exist.
        ModelFileError: A model file is damaged or was not written by adctl.
        DataError: The images or the earlier results cannot be used.
        OutputError: A file cannot be written.
    """
    settings = loaded.settings
    gates = [Gate.parse(text) for text in settings.fail_if]
    outputs = (settings.out, *gate_files(settings).values(), settings.markdown, settings.plot)
    files.require_replaceable(outputs, overwrite=settings.overwrite)
    baseline = None if settings.against is None else read_baseline(settings.against)
    paths = [find_model(settings.runs, given) for given in _models(settings)]
    wanted = [(path, runtime) for path in paths for runtime in settings.runtime or (None,)]
    cases = [_open(path, runtime, settings) for path, runtime in wanted]
    sizes = sorted({1, *settings.batch_sizes})
    for gate in gates:  # an unknown name must give an error before a long measurement
        check([gate], dict.fromkeys(_names(sizes)), "")
    probes = _probes(wanted, settings, sizes, reporter)
    contention = CpuContention()
    seconds = _measure(cases, sizes, settings, reporter)
    machine = describe_machine(seconds[GEMM], seconds[COPY], contention.share())
    if machine.others > _BUSY:
        log.warning("Other processes used %.0f %% of the cores, which made the results worse.", 100 * machine.others)
    models = tuple(
        _model_benchmark(case, sizes, seconds, machine, process) for case, process in zip(cases, probes, strict=True)
    )
    results = BenchResult(cases[0].runtime.device, settings.repeats, machine, models)
    checked = [gate for model in models for gate in check(gates, model.named(), f"{model.name} {model.runtime}")]
    benchmark = Benchmark(results, (*checked, *(compare(results, baseline) if baseline else ())))
    _write(benchmark, settings)
    return benchmark


def _models(settings: BenchSettings) -> tuple[Path | None, ...]:
    """Return the named models; None stands for the last one."""
    return (*settings.models, settings.model) if settings.model else settings.models or (None,)


def _open(path: Path, wanted: str | None, settings: BenchSettings) -> _Case:
    start = time.perf_counter()
    runtime = open_any(path, settings.device, settings.gpu, wanted, settings.precision)
    load_seconds = time.perf_counter() - start
    return _Case(path, runtime, load_seconds, _readable(_find_images(path, settings), runtime))


def _find_images(path: Path, settings: BenchSettings) -> Sequence[Sample]:
    """Return the named images, or else the test images of the model's dataset if it still exists."""
    if settings.images:
        return list_images(settings.images)[0]
    if is_classifier(path):
        return images_of_run(path) if (path.parent / PREDICTIONS).is_file() else ()
    try:
        dataset = dataset_of_run(run_of(path, settings.runs))
    except DataError as error:
        log.debug("No images to read from disk: %s", error.message)
        return ()
    return dataset.test if dataset else ()


def _readable(samples: Sequence[Sample], runtime: Runtime | ClassifierRuntime) -> tuple[Sample, ...]:
    spread = samples[:: max(1, len(samples) // _MAX_FILES)][:_MAX_FILES]
    return tuple(sample for sample in spread if load_image(sample, runtime.input).error is None)


def _names(sizes: Sequence[int]) -> list[str]:
    """Return the names of all values that will be measured."""
    empty = ModelBenchmark(
        Path(), "", 0, 0.0, Latency(0, 0, 0), dict.fromkeys(sizes, 0.0), *(None,) * 5, 0.0, None, None, {}
    )
    return list(empty.named())


def _probes(
    wanted: Sequence[tuple[Path, str | None]], settings: BenchSettings, sizes: Sequence[int], reporter: Reporter
) -> list[ProbeResult | None]:
    results = []
    with reporter.stage("cold starts", len(wanted)) as update:
        for done, (path, runtime) in enumerate(wanted, 1):
            results.append(probe(path, settings, max(sizes), runtime))
            update(done, len(wanted))
    return results


def _measure(cases: Sequence[_Case], sizes: Sequence[int], settings: BenchSettings, reporter: Reporter) -> Seconds:
    """Return the seconds of every timed call in every round."""
    machine = machine_cases(cases[0].runtime.device)
    calls: dict[str, Callable[[], object]] = {COPY: machine[COPY]}
    every: dict[str, int] = {}
    for case in cases:
        # The matrix product is timed three times per model, because it is the reference for all other times.
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}
        calls |= {case.label(f"single {number}"): _predict_call(case, 1) for number in range(_SINGLES)}
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}
        calls |= {case.label(size): _predict_call(case, size) for size in sizes if size > 1}
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}
        if case.files and not case.runtime.input.tiled:
            sources = {
                "memory": _memory_call(case, max(sizes)),
                "disk": _disk_call(case, max(sizes), settings.workers),
            }
            calls |= {case.label(source): call for source, call in sources.items()}
            every |= {case.label(source): _DISK_EVERY for source in sources}
    with reporter.stage("measuring", settings.repeats + 1) as update:
        seconds = run_interleaved(calls, settings.repeats, update, every)
    return seconds | {GEMM: np.stack([taken for name, taken in seconds.items() if name.startswith(GEMM)], axis=1)}


def _predict_call(case: _Case, size: int) -> Callable[[], object]:
    pixels = np.random.default_rng(0).integers(0, 256, (size, *case.runtime.input.shape), np.uint8)
    # predict returns after the result is on the host, so the work of a GPU is included in the time.
    return lambda: case.runtime.predict(pixels)


def _memory_call(case: _Case, size: int) -> Callable[[], object]:
    """Return a call that predicts as many images from memory as `_disk_call` reads from disk."""
    shape = (len(case.files), *case.runtime.input.shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: [case.runtime.predict(pixels[start : start + size]) for start in range(0, len(pixels), size)]


def _disk_call(case: _Case, size: int, workers: int) -> Callable[[], object]:
    runtime = case.runtime
    if isinstance(runtime, ClassifierRuntime):
        return lambda: predict_rows(runtime, case.files, size, workers, SILENT)
    return lambda: sum(1 for _ in predict(runtime, case.files, batch_size=size, workers=workers))


def _model_benchmark(
    case: _Case, sizes: Sequence[int], seconds: Seconds, machine: Machine, process: ProbeResult | None
) -> ModelBenchmark:
    singles = np.stack([seconds[case.label(f"single {number}")] for number in range(_SINGLES)], axis=1)
    timed = {size: singles if size == 1 else seconds[case.label(size)] for size in sizes}
    throughput = {size: size / float(np.median(taken)) for size, taken in timed.items()}
    best = max(throughput, key=lambda size: throughput[size])
    size_bytes, flops = _model_size(case.path), count_flops(case.path)
    bytes_per_image = size_bytes / best + float(np.prod(case.runtime.input.shape))
    disk = seconds.get(case.label("disk"))
    noise = {"p50_ms": estimate_noise(singles, seconds[GEMM])}
    noise |= {
        f"images_per_second_{size}": estimate_noise(taken, seconds[GEMM]) for size, taken in timed.items() if size > 1
    }
    p50, p95, p99 = (1000 * float(np.percentile(singles, share)) for share in (50, 95, 99))
    return ModelBenchmark(
        path=case.path,
        runtime=case.runtime.name,
        size_bytes=size_bytes,
        load_seconds=case.load_seconds,
        latency_ms=Latency(p50, p95, p99),
        throughput=throughput,
        cold_start_seconds=None if process is None else process.seconds,
        host_memory=None if process is None else process.host_memory,
        device_memory=None if process is None else process.device_memory,
        flops=flops,
        arithmetic_share=None if flops is None else flops * throughput[best] / machine.flops_per_second,
        memory_share=bytes_per_image * throughput[best] / machine.bytes_per_second,
        from_disk=None if disk is None else len(case.files) / float(np.nanmedian(disk)),
        from_disk_share=None if disk is None else float(np.nanmedian(seconds[case.label("memory")] / disk)),
        noise=noise,
    )


def _model_size(path: Path) -> int:
    """Return the size in bytes of a model file, including a separate file of weights."""
    weights = path.with_name(path.name + ".data")
    return sum(file.stat().st_size for file in (*files_of(path), weights) if file.is_file())


def _write(benchmark: Benchmark, settings: BenchSettings) -> None:
    """Write the files that the settings name."""
    results, gates = benchmark.results, benchmark.gates
    if settings.out is not None:
        files.write_json(
            settings.out, {"time": run_folder.timestamp(), "environment": run_folder.environment(), **results.to_dict()}
        )
    places = {f"{model.name} {model.runtime}": model.path for model in results.models}
    write_gate_files(settings, "adctl.bench", gates, places)
    if settings.markdown is not None:
        write_markdown(settings.markdown, results, gates)
    if settings.plot is not None:
        write_plot(settings.plot, results)
