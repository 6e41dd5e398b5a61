"""Time and memory of pixel metrics, against torchmetrics and anomalib on the same maps.

    python examples/benchmarks/metrics.py [--maps 200] [--stream 10000] [--anomalib PYTHON]

PYTHON is an interpreter that has anomalib, if another than this one. Maps are made up: smooth noise of 256 x 256
pixels, every other one with defects; making them is not timed. Each case runs in a process of its own, the best of
three times counts. CPU seconds are those of all threads: on a busy machine they tell more. Prints a Markdown table.
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
"""No map leaves this range."""


def pairs(number: int) -> Iterator[Pair]:
    """Maps with their masks, the same ones every time."""
    generator = np.random.default_rng(0)
    for index in range(number):
        noise = cv2.GaussianBlur(generator.standard_normal((SIDE, SIDE), np.float32), (0, 0), 2)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(3 * (index % 2)):
            x, y, radius = (int(value) for value in generator.integers((20, 20, 3), (236, 236, 18)))
            cv2.circle(mask, (x, y), radius, 1, -1)
        yield noise * 7 + 1.5 * mask, mask.astype(bool)


def adctl_aupro(images: list[Pair]) -> dict[str, float]:
    """Exact AUPRO alone."""
    from adctl.metrics.exact import aupro_exact

    maps, masks = zip(*images, strict=True)
    return {"aupro": aupro_exact(maps, masks, FPR_LIMIT)}


def adctl_exact(images: list[Pair]) -> dict[str, float]:
    """Every pixel metric, by defect type and size, exact."""
    from adctl.metrics.exact import ExactMeter

    return _all_metrics(ExactMeter(3.0), images)


def adctl_streaming(images: list[Pair]) -> dict[str, float]:
    """Every pixel metric, by defect type and size, in histograms."""
    from adctl.metrics.streaming import HistogramMeter

    return _all_metrics(HistogramMeter(LOW, HIGH, 3.0), images)


def _all_metrics(meter: Any, images: list[Pair]) -> dict[str, float]:
    for anomaly_map, mask in images:
        meter.add(anomaly_map, mask, "circle" if mask.any() else "good")
    found = meter.result()
    return {"aupro": found.aupro, "auroc": found.auroc, "ap": found.average_precision}


def anomalib_aupro(images: list[Pair]) -> dict[str, float]:
    """The AUPRO of anomalib."""
    import torch
    from anomalib.metrics.aupro import _AUPRO

    torch.set_num_threads(2)
    metric = _AUPRO(fpr_limit=FPR_LIMIT)
    for anomaly_map, mask in images:
        metric.update(torch.from_numpy(anomaly_map)[None], torch.from_numpy(mask)[None].int())
    return {"aupro": float(metric.compute())}


def torchmetrics_ranking(images: list[Pair]) -> dict[str, float]:
    """AUROC and average precision of torchmetrics, exact, from one curve each."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    torch.set_num_threads(2)
    values = torch.from_numpy(np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images]))
    truth = torch.from_numpy(np.concatenate([mask.ravel() for _, mask in images])).int()
    # Shifted into 0-1, since it would squash anything else by a sigmoid.
    values = (values - LOW) / (HIGH - LOW)
    return {"auroc": float(binary_auroc(values, truth)), "ap": float(binary_average_precision(values, truth))}


class Clock:
    """Adds up the time spent inside its `with` blocks."""

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
    """Values, seconds and peak memory of one case, measured in this process."""
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
    """Every pixel metric of more maps than one would hold, one in memory at a time."""
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
    """The answer of this script called anew; None where a library is not installed."""
    done = subprocess.run(
        [python, str(Path(__file__)), *arguments], check=False, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(name: str, number: int, found: dict[str, Any]) -> str:
    """One line of the table."""
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
        print(
            "\nlargest errors by binning:", ", ".join(f"{name} {error:.1e}" for name, error in found["errors"].items())
        )


if __name__ == "__main__":
    main()
