"""Benchmark of `adctl train --dry-run`: the time that it forecasts against the time that the training takes.

    python examples/benchmarks/forecast.py FOLDER [COUNTS] [CONFIGURATIONS]

FOLDER holds good images, such as `magnetic_tile/train/good`. For each configuration, options of `adctl train`,
and each number of images, a forecast and a training follow each other; the ratio is that of the training to the
forecast. Use a quiet machine: both are seconds of the clock.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGURATIONS = (
    "--arch padim",
    "--arch patchcore",
    "--arch patchcore --set coreset_ratio=0.1",
    "--arch padim --set tile=128",
    "--arch simplenet --epochs 3",
    "--arch resnet --epochs 2",
)


def run(*arguments: str | Path) -> tuple[str, float]:
    """Run adctl; return its output and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "adctl", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout, time.perf_counter() - start


def main() -> None:
    """Print forecast, truth and their ratio for each configuration."""
    images = sorted(path.resolve() for path in Path(sys.argv[1]).iterdir())
    counts, texts = (*sys.argv[2:], *("40,200", ";".join(CONFIGURATIONS))[len(sys.argv) - 2 :])
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as name:
            good = Path(name) / "good"
            good.mkdir()
            for path in images[:: max(1, len(images) // count)][:count]:
                (good / path.name).symlink_to(path)
            for text in texts.split(";"):
                train = ("train", "--good", good, "--runs", Path(name) / "runs", *shlex.split(text))
                forecast = json.loads(run(*train, "--dry-run", "--json")[0])["result"]["forecast"]["seconds"]
                seconds = run(*train)[1]
                print(f"{text:45} {count:4}: {forecast:6.1f} s forecast, {seconds:6.1f} s, {seconds / forecast:.2f}")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
