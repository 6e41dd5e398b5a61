"""Benchmark of the export formats and precisions against PyTorch: size, differences, speed, cold start.

    python examples/benchmarks/export.py [--data DIR] [--arch padim,patchcore] [--rounds N] [--images IMAGES]

Trains each detector on a category in MVTec AD layout (default: ../shared/data/magnetic_tile beside this checkout),
exports it in all formats and precisions, and prints a table. The differences are those of `adctl export`, on the test
images or on IMAGES. Images per second are medians over rounds in which all runtimes take turns with the same batch;
cold starts are medians of three processes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.benchmarking.memory_probe import probe
from adctl.config import ExportSettings, TrainSettings, load
from adctl.errors import AdctlError
from adctl.exporting.export import Exported, export
from adctl.runtimes.loading import open_runtime
from adctl.training.single_run import train_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.runtimes.base import Runtime

DATA = Path(__file__).parents[3] / "shared" / "data" / "magnetic_tile"
BATCH = 8
ALL = ("onnx", "openvino", "torchscript", "pt2")
PRECISIONS: tuple[tuple[dict[str, bool], Sequence[str]], ...] = (
    ({}, ALL),
    ({"half": True}, ALL[:2]),
    ({"int8": True}, ALL[:2]),
)


def exported(model: Path, images: tuple[str, ...]) -> list[Exported]:
    """Export to all formats and precisions; print those that fail their verification, and leave them out."""
    exports = []
    for flags, formats in PRECISIONS:
        for name in formats:
            given = {"model": model, "runs": model.parent.parent, "format": (name,), "images": images, **flags}
            try:
                exports += export(load(ExportSettings, given)).exports
            except AdctlError as error:
                print(f"{name} {flags}: {error.message}")
    return exports


def speeds(runtimes: Sequence[Runtime], rounds: int) -> list[float]:
    """Return the median images per second of each runtime, over rounds in which they take turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *runtimes[0].input.shape), np.uint8)
    seconds: list[list[float]] = [[] for _ in runtimes]
    for turn in range(rounds + 1):  # the first round is a warm-up
        for taken, runtime in zip(seconds, runtimes, strict=True):
            start = time.perf_counter()
            runtime.predict(pixels)
            if turn:
                taken.append(time.perf_counter() - start)
    return [BATCH / statistics.median(taken) for taken in seconds]


def cold_start(path: Path) -> float:
    """Return the seconds from the start of a process to its first verdict."""
    found = probe(path, "cpu", None, 1, 3)
    assert found is not None
    return found.seconds


def row(exported: Exported, speed: float) -> str:
    """Format one line of the table."""
    check = exported.check
    rank = "" if check.rank_correlation is None else f"{check.rank_correlation:.6f}"
    auroc = "" if check.auroc_change is None else f"{check.auroc_change:+.4f}"
    return (
        f"| {exported.format} {exported.precision} | {exported.bytes / 1e6:.1f} | {check.max_score_difference:.1e} "
        f"| {rank} | {auroc} | {check.changed_verdicts} of {check.images} | {speed:.1f} "
        f"| {cold_start(exported.file):.2f} |"
    )


def main() -> None:
    """Print one table for each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--arch", default="padim,patchcore")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", action="append", default=[])
    given = parser.parse_args()
    for arch in given.arch.split(","):
        with tempfile.TemporaryDirectory() as folder:
            trained = train_once(
                load(TrainSettings, {"data": given.data, "runs": folder, "arch": arch, "device": "cpu"})
            )
            assert trained is not None
            exports = exported(trained.model, tuple(given.images))
            paths = [trained.model, *(each.file for each in exports)]
            rates = speeds([open_runtime(path, "cpu") for path in paths], given.rounds)
            print(f"\n{arch} on {given.data.name}\n")
            print("| format | MB | max score difference | rank correlation | AUROC change | changed verdicts ", end="")
            print("| images/s | cold start, s |\n|---|---|---|---|---|---|---|---|")
            size = trained.model.stat().st_size / 1e6
            print(f"| torch | {size:.1f} | | | | | {rates[0]:.1f} | {cold_start(trained.model):.2f} |")
            for each, rate in zip(exports, rates[1:], strict=True):
                print(row(each, rate))


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    main()
