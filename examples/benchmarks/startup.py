"""Benchmark of the start of commands: median times, and median ratios to a base that takes turns with them.

    python examples/benchmarks/startup.py help [ROUNDS]     adctl X --help against `import typer, rich`
    python examples/benchmarks/startup.py train [ROUNDS]    adctl train up to its first image, against `import torch`
    python examples/benchmarks/startup.py score [ROUNDS]    adctl score of one image, with a run just trained and with
                                                            its PyTorch model, against its exported file

Each line gives elapsed time and processor time; the latter depends less on what else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = ["", "fetch", "train", "calibrate", "score", "report", "export", "bench", "demo"]

UNTIL_FIRST_IMAGE = """
import os, sys
from adctl.data import loader
loader.load_image = lambda *_: os._exit(0)
from adctl.cli.app import run
run(sys.argv[1:])
"""


def seconds(*arguments: str, folder: Path | None = None) -> tuple[float, float]:
    """Return the elapsed seconds and the processor seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(cases: dict[str, list[str]], rounds: int, folder: Path | None = None) -> None:
    """Measure all cases in turn, and print a table; the first case is the base of the ratios."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, arguments in cases.items():
            measured = seconds(*arguments, folder=folder)
            if turn:  # the first round fills the file cache
                taken[name].append(measured)
    base = next(iter(taken.values()))
    print(f"{'':34} elapsed  ratio   processor  ratio")
    for name, measured in taken.items():
        columns = []
        for kind in range(2):
            ratios = [one[kind] / reference[kind] for one, reference in zip(measured, base, strict=True)]
            middle = statistics.median(one[kind] for one in measured)
            columns.append(f"{1000 * middle:6.0f} ms {statistics.median(ratios):5.2f} x")
        print(f"{name:32} {'  '.join(columns)}")


def helps(rounds: int) -> None:
    """Compare the help of all commands with importing Typer and rich."""
    cases = {"import typer, rich": ["-c", "import typer, rich"]}
    cases |= {f"adctl {name} --help".replace("  ", " "): ["-m", "adctl", *name.split(), "--help"] for name in COMMANDS}
    compare(cases, rounds)


def zippers(folder: Path) -> str:
    """Generate the demo images, and return their folder."""
    from adctl.fetching.demo_dataset import generate

    generate(folder)
    return str(folder / "zipper")


def trainings(rounds: int) -> None:
    """Compare the start of trainings with importing PyTorch."""
    with tempfile.TemporaryDirectory() as name:
        data = zippers(Path(name))
        cases = {"import torch": ["-c", "import os, torch; os._exit(0)"]}
        for arch in ("padim", "patchcore", "cnn"):
            cases[f"train --arch {arch}, to 1st image"] = [
                "-c", UNTIL_FIRST_IMAGE, "train", "--data", data, "--arch", arch, "--runs", f"{name}/runs",
            ]  # fmt: skip
        compare(cases, rounds)


def scorings(rounds: int) -> None:
    """Compare scoring one image with a run, as `train` left it, with scoring by its exported file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = zippers(folder)
        train = ["-m", "adctl", "train", "--data", data, "--arch", "padim", "--name", "run", "--export", "always"]
        elapsed, _ = seconds(*train, "--device", "cpu", folder=folder)
        record = json.loads((folder / "runs/run/exports.json").read_text())["exports"][0]
        speed = record["images_per_second"] / record["torch_images_per_second"]
        print(f"train with export {elapsed:.1f} s; {record['file']}: {speed:.1f} times as many images/s as PyTorch")
        image = str(next(Path(data).glob("test/*/*.png")))
        score = ["-m", "adctl", "score", image, "--model"]
        cases = {
            "score model.xml": [*score, f"runs/run/{record['file']}"],
            "score RUN": [*score, "run"],
            "score RUN --runtime torch": [*score, "run", "--runtime", "torch"],
        }
        compare(cases, rounds, folder)


def main(what: str = "help", rounds: str = "7") -> None:
    """Run one of the benchmarks."""
    os.environ.pop("ADCTL_EXPORT", None)
    {"help": helps, "train": trainings, "score": scorings}[what](int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
