"""Benchmark of the pixel metrics, against torchmetrics and anomalib on the same maps: time and memory.

    python examples/benchmarks/metrics.py [--maps 200] [--stream 10000] [--anomalib PYTHON]

PYTHON is an interpreter that has anomalib (default: this one). The maps are smooth noise of 256 x 256 pixels, every
second one with defects; generating them is not timed. Each case runs in its own process, and the best of three times
counts. CPU seconds are summed over all threads and are more reliable on a busy machine. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Pair = tuple[NDArray[np.float32], NDArray[np.bool_]]

SIDE = 256
REPEATS = 3
FPR_LIMIT = 0.3
LOW, HIGH = -8.0, 12.0
"""Range of all map values."""


def pairs(number: int) -> Iterator[Pair]:
    """Generate maps with their masks, always the same."""
    generator = np.random.default_rng(0)
    for index in range(number):
        noise = cv2.GaussianBlur(generator.standard_normal((SIDE, SIDE), np.float32), (0, 0), 2)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(3 * (index % 2)):
            x, y, radius = (int(value) for value in generator.integers((20, 20, 3), (236, 236, 18)))
            cv2.circle(mask, (x, y), radius, 1, -1)
        yield noise * 7 + 1.5 * mask, mask.astype(bool)


def adctl_aupro(images: list[Pair]) -> dict[str, float]:
    """Compute only the exact AUPRO."""
    from adctl.metrics.exact import aupro_exact

    maps, masks = zip(*images, strict=True)
    return {"aupro": aupro_exact(maps, masks, FPR_LIMIT)}


def adctl_exact(images: list[Pair]) -> dict[str, float]:
    """Compute all pixel metrics exactly, also by defect type and size."""
    from adctl.metrics.exact import ExactMeter

    return _all_metrics(ExactMeter(3.0), images)


def adctl_streaming(images: list[Pair]) -> dict[str, float]:
    """Compute all pixel metrics from histograms, also by defect type and size."""
    from adctl.metrics.streaming import HistogramMeter

    return _all_metrics(HistogramMeter(LOW, HIGH, 3.0), images)


def _all_metrics(meter: Any, images: list[Pair]) -> dict[str, float]:
    for anomaly_map, mask in images:
        meter.add(anomaly_map, mask, "circle" if mask.any() else "good")
    found = meter.result()
    return {"aupro": found.aupro, "auroc": found.auroc, "ap": found.average_precision}


def anomalib_aupro(images: list[Pair]) -> dict[str, float]:
    """Compute AUPRO with anomalib."""
    import torch
    from anomalib.metrics.aupro import _AUPRO

    torch.set_num_threads(2)
    metric = _AUPRO(fpr_limit=FPR_LIMIT)
    for anomaly_map, mask in images:
        metric.update(torch.from_numpy(anomaly_map)[None], torch.from_numpy(mask)[None].int())
    return {"aupro": float(metric.compute())}


def torchmetrics_ranking(images: list[Pair]) -> dict[str, float]:
    """Compute exact AUROC and average precision with torchmetrics."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    torch.set_num_threads(2)
    values = torch.from_numpy(np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images]))
    truth = torch.from_numpy(np.concatenate([mask.ravel() for _, mask in images])).int()
    # Scaled to 0-1, because torchmetrics would apply a sigmoid to other values.
    values = (values - LOW) / (HIGH - LOW)
    return {"auroc": float(binary_auroc(values, truth)), "ap": float(binary_average_precision(values, truth))}


class Clock:
    """Sum of the time spent in its `with` blocks."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


CASES: dict[str, Callable[[list[Pair]], dict[str, float]]] = {
    "adctl, exact AUPRO": adctl_aupro,
    "anomalib, AUPRO": anomalib_aupro,
    "torchmetrics, pixel AUROC and AP": torchmetrics_ranking,
    "adctl, all pixel metrics, exact": adctl_exact,
    "adctl, all pixel metrics, streaming": adctl_streaming,
}


def run_case(name: str, number: int) -> dict[str, Any]:
    """Run one case in this process; return its values, seconds and peak memory."""
    images = list(pairs(number))
    CASES[name](images[:4])  # imports and first calls
    clocks = []
    for _ in range(REPEATS):
        clock = Clock()
        with clock:
            found = CASES[name](images)
        clocks.append(clock)
    best = {"seconds": min(clock.wall for clock in clocks), "cpu": min(clock.cpu for clock in clocks)}
    return {**found, **best, "peak_gib": _peak_gib()}


def stream(number: int) -> dict[str, Any]:
    """Compute all pixel metrics of many maps, with one map in memory at a time."""
    from adctl.metrics.streaming import HistogramMeter

    meter, clock = HistogramMeter(LOW, HIGH, 3.0), Clock()
    for anomaly_map, mask in pairs(number):
        with clock:
            meter.add(anomaly_map, mask, "circle" if mask.any() else "good")
    with clock:
        found = meter.result()
    values = {"aupro": found.aupro, "auroc": found.auroc, "ap": found.average_precision}
    return {**values, "seconds": clock.wall, "cpu": clock.cpu, "peak_gib": _peak_gib(), "errors": found.errors}


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_own_process(python: str, *arguments: str) -> dict[str, Any] | None:
    """Run this script in a new process, and return its result; None if a library is not installed."""
    done = subprocess.run(
        [python, str(Path(__file__)), *arguments], check=False, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(name: str, number: int, found: dict[str, Any]) -> str:
    """Format one line of the table."""
    values = (f"{found[key]:.6f}" if key in found else "" for key in ("aupro", "auroc", "ap"))
    costs = (f"{found[key]:.2f}" for key in ("seconds", "cpu", "peak_gib"))
    return f"| {name} | {number} | {' | '.join(values)} | {' | '.join(costs)} |"


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=200)
    parser.add_argument("--stream", type=int, default=10_000)
    parser.add_argument("--anomalib", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        number = options.stream if options.case == "stream" else options.maps
        print(json.dumps(stream(number) if options.case == "stream" else run_case(options.case, number)))
        return
    print("| case | maps | AUPRO | AUROC | AP | seconds | CPU seconds | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in CASES:
        python = options.anomalib if name.startswith("anomalib") else sys.executable
        found = in_own_process(python, "--case", name, "--maps", str(options.maps))
        print(f"| {name} | not installed |" if found is None else row(name, options.maps, found), flush=True)
    found = in_own_process(sys.executable, "--case", "stream", "--stream", str(options.stream))
    if found is not None:
        print(row("adctl, all pixel metrics, streaming", options.stream, found))
        errors = ", ".join(f"{name} {error:.1e}" for name, error in found["errors"].items())
        print(f"\nlargest errors caused by binning: {errors}")


if __name__ == "__main__":
    main()
