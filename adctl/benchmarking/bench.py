"""Model files measured side by side within one run: latency, throughput, memory, cold start, shares of the limits.

Every round calls each model at each batch size, a matrix product and a copy of memory, in alternating order, so that
drift meets all alike. Pixels lie in memory, but for the figures from disk, which read, resize and score files.
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
from adctl.benchmarking.memory_probe import Probe, probe
from adctl.benchmarking.regression import compare, read_baseline
from adctl.benchmarking.results import BenchResult, Latency, Machine, ModelBenchmark
from adctl.benchmarking.rounds import estimate_noise, run_interleaved
from adctl.benchmarking.tables import write_markdown, write_plot
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.datasets import dataset_of_run
from adctl.errors import DataError
from adctl.gates import Gate, GateResult, check, write_junit
from adctl.progress import SILENT, Reporter
from adctl.runtimes.auto_select import files_of
from adctl.runtimes.loading import open_runtime
from adctl.scoring.predict import predict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.config import BenchSettings, LoadedSettings
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

Seconds: TypeAlias = dict[str, NDArray[np.float64]]

_SINGLES = 5
"""Calls with one image in a round: percentiles of latency need many."""

_BUSY = 0.1
"""Share of the cores that others may take before it is worth a warning."""

_MOST_FILES = 32
_DISK_EVERY = 4
"""Files are read in every so many-th round only: one pass over them takes as long as a round of all else."""


@dataclass(frozen=True)
class Benchmark:
    """Figures and what the gates say of them.

    Attributes:
        figures: What was measured.
        gates: One for each condition and each comparison asked for; empty without any.
    """

    figures: BenchResult
    gates: tuple[GateResult, ...]


@dataclass(frozen=True)
class _Case:
    """One model file, open.

    Attributes:
        path: The file.
        runtime: Ready to score.
        load_seconds: It took to open.
        files: To read and score, or none.
    """

    path: Path
    runtime: Runtime
    load_seconds: float
    files: tuple[Sample, ...]

    def label(self, what: object) -> str:
        """The name of one of its timed cases."""
        return f"{self.path} {self.runtime.name} {what}"


def bench(loaded: LoadedSettings[BenchSettings], reporter: Reporter = SILENT) -> Benchmark:
    """Measure model files side by side, and hold the figures against gates and earlier figures.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model, device, figure or earlier run.
        ModelFileError: A file is damaged or foreign.
        DataError: The images or the earlier figures cannot be used.
        OutputError: The figures cannot be written.
    """
    settings = loaded.settings
    gates = [Gate.parse(text) for text in settings.fail_if]
    before = None if settings.against is None else read_baseline(settings.against)
    paths = [run_folder.find_model(settings.runs, given) for given in settings.models or (None,)]
    wanted = [(path, runtime) for path in paths for runtime in settings.runtime or (None,)]
    cases = [_open(path, runtime, settings) for path, runtime in wanted]
    sizes = sorted({1, *settings.batch_sizes})
    for gate in gates:  # a name that is not known is told before an hour of measuring
        check([gate], dict.fromkeys(_names(sizes)), "")
    probes = _probes(wanted, settings, sizes, reporter)
    others = CpuContention()
    seconds = _timed(cases, sizes, settings, reporter)
    machine = describe_machine(seconds[GEMM], seconds[COPY], others.share())
    if machine.others > _BUSY:
        log.warning(
            "Other processes took %.0f %% of the cores: figures are worse than they might be.", 100 * machine.others
        )
    figures = BenchResult(
        cases[0].runtime.device,
        settings.repeats,
        machine,
        tuple(_figures(case, sizes, seconds, machine, found) for case, found in zip(cases, probes, strict=True)),
    )
    results = [one for model in figures.models for one in check(gates, model.named(), f"{model.name} {model.runtime}")]
    benchmark = Benchmark(figures, (*results, *(compare(figures, before) if before else ())))
    _write(benchmark, settings)
    return benchmark


def _open(path: Path, wanted: str | None, settings: BenchSettings) -> _Case:
    start = time.perf_counter()
    runtime = open_runtime(path, settings.device, settings.gpu, wanted)
    load_seconds = time.perf_counter() - start
    return _Case(path, runtime, load_seconds, _readable(_images(path, settings), runtime))


def _images(path: Path, settings: BenchSettings) -> Sequence[Sample]:
    """Those named, or the test images of the data set the model was trained on where it is still there."""
    if settings.images:
        return list_images(settings.images)[0]
    try:
        dataset = dataset_of_run(path.parent)
    except DataError as error:
        log.debug("No images to read from disk: %s", error.message)
        return ()
    return dataset.test if dataset else ()


def _readable(samples: Sequence[Sample], runtime: Runtime) -> tuple[Sample, ...]:
    spread = samples[:: max(1, len(samples) // _MOST_FILES)][:_MOST_FILES]
    return tuple(sample for sample in spread if load_image(sample, runtime.input).error is None)


def _names(sizes: Sequence[int]) -> list[str]:
    """Of all figures there will be."""
    nothing = ModelBenchmark(
        Path(), "", 0, 0.0, Latency(0, 0, 0), dict.fromkeys(sizes, 0.0), *(None,) * 5, 0.0, None, None, {}
    )
    return list(nothing.named())


def _probes(
    wanted: Sequence[tuple[Path, str | None]], settings: BenchSettings, sizes: Sequence[int], reporter: Reporter
) -> list[Probe | None]:
    found = []
    with reporter.stage("cold starts", len(wanted)) as update:
        for done, (path, runtime) in enumerate(wanted, 1):
            found.append(probe(path, settings.device, settings.gpu, max(sizes), settings.cold_starts, runtime))
            update(done, len(wanted))
    return found


def _timed(cases: Sequence[_Case], sizes: Sequence[int], settings: BenchSettings, reporter: Reporter) -> Seconds:
    """Seconds of every case in every round."""
    machine = machine_cases(cases[0].runtime.device)
    calls: dict[str, Callable[[], object]] = {COPY: machine[COPY]}
    every: dict[str, int] = {}
    for case in cases:
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}  # the others are held against it: it must be sure
        calls |= {case.label(f"single {number}"): _predicting(case, 1) for number in range(_SINGLES)}
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}
        calls |= {case.label(size): _predicting(case, size) for size in sizes if size > 1}
        calls |= {f"{GEMM} {len(calls)}": machine[GEMM]}
        if case.files and not case.runtime.input.tiled:
            reading = {"memory": _in_memory(case, max(sizes)), "disk": _from_disk(case, max(sizes), settings.workers)}
            calls |= {case.label(what): call for what, call in reading.items()}
            every |= {case.label(what): _DISK_EVERY for what in reading}
    with reporter.stage("measuring", settings.repeats + 1) as update:
        seconds = run_interleaved(calls, settings.repeats, update, every)
    return seconds | {GEMM: np.stack([taken for name, taken in seconds.items() if name.startswith(GEMM)], axis=1)}


def _predicting(case: _Case, size: int) -> Callable[[], object]:
    pixels = np.random.default_rng(0).integers(0, 256, (size, *case.runtime.input.shape), np.uint8)
    # The result is on the host when predict returns, so a GPU's queue is empty as well.
    return lambda: case.runtime.predict(pixels)


def _in_memory(case: _Case, size: int) -> Callable[[], object]:
    """The model alone on as many images as are read."""
    shape = (len(case.files), *case.runtime.input.shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: [case.runtime.predict(pixels[start : start + size]) for start in range(0, len(pixels), size)]


def _from_disk(case: _Case, size: int, workers: int) -> Callable[[], object]:
    return lambda: sum(1 for _ in predict(case.runtime, case.files, batch_size=size, workers=workers))


def _figures(
    case: _Case, sizes: Sequence[int], seconds: Seconds, machine: Machine, found: Probe | None
) -> ModelBenchmark:
    singles = np.stack([seconds[case.label(f"single {number}")] for number in range(_SINGLES)], axis=1)
    timed = {size: singles if size == 1 else seconds[case.label(size)] for size in sizes}
    throughput = {size: size / float(np.median(taken)) for size, taken in timed.items()}
    best = max(throughput, key=lambda size: throughput[size])
    size_bytes, flops = _size(case.path), count_flops(case.path)
    least = size_bytes / best + float(np.prod(case.runtime.input.shape))
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
        cold_start_seconds=None if found is None else found.seconds,
        host_memory=None if found is None else found.host_memory,
        device_memory=None if found is None else found.device_memory,
        flops=flops,
        arithmetic_share=None if flops is None else flops * throughput[best] / machine.flops_per_second,
        memory_share=least * throughput[best] / machine.bytes_per_second,
        from_disk=None if disk is None else len(case.files) / float(np.nanmedian(disk)),
        from_disk_share=None if disk is None else float(np.nanmedian(seconds[case.label("memory")] / disk)),
        noise=noise,
    )


def _size(path: Path) -> int:
    """Of a model file, and of the weights that some formats keep beside it."""
    beside = path.with_name(path.name + ".data")
    return sum(one.stat().st_size for one in (*files_of(path), beside) if one.is_file())


def _write(benchmark: Benchmark, settings: BenchSettings) -> None:
    """Every file that was asked for."""
    figures, gates = benchmark.figures, benchmark.gates
    if settings.out is not None:
        files.write_json(
            settings.out, {"time": run_folder.timestamp(), "environment": run_folder.environment(), **figures.to_dict()}
        )
    if settings.junit is not None:
        write_junit(settings.junit, "adctl.bench", gates)
    if settings.markdown is not None:
        write_markdown(settings.markdown, figures, gates)
    if settings.plot is not None:
        write_plot(settings.plot, figures)
