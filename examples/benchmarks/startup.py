"""Benchmark of `adctl X --help` against `python -c "import typer, rich"`: median times and median ratios.

Run as: python examples/benchmarks/startup.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = ["", "fetch", "train", "calibrate", "score", "report", "export", "bench", "demo"]


def seconds(*arguments: str) -> float:
    """Return the elapsed seconds of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(rounds: int = 7) -> None:
    """Measure all commands in turn, and print the table."""
    cases = {"import typer, rich": ["-c", "import typer, rich"]}
    cases |= {f"adctl {name} --help".replace("  ", " "): ["-m", "adctl", *name.split(), "--help"] for name in COMMANDS}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, arguments in cases.items():
            taken = seconds(*arguments)
            if turn:  # the first round fills the file cache
                times[name].append(taken)
    base = times["import typer, rich"]
    for name, taken in times.items():
        ratio = statistics.median(one / reference for one, reference in zip(taken, base, strict=True))
        print(f"{name:24} {1000 * statistics.median(taken):6.0f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
