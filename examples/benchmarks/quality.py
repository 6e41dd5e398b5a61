"""Benchmark of the quality and speed of the detectors on a dataset in MVTec AD layout.

    python examples/benchmarks/quality.py [DATA] [OUT.json]

Trains each detector on the command line with its default settings and seed 0, scores the test images, and prints a
Markdown table: image AUROC and AP, pixel AUROC and AUPRO, training time, images scored per second (files read and
results written), and peak memory of training. DATA is `../shared/data/magnetic_tile` by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "magnetic_tile"
CASES = {
    "padim": ["--arch", "padim"],
    "patchcore": ["--arch", "patchcore"],
    "patchcore, 10 % coreset": ["--arch", "patchcore", "--set", "coreset_ratio=0.1"],
    "simplenet": ["--arch", "simplenet"],
    "efficientad": ["--arch", "efficientad"],
    "dinomaly": ["--arch", "dinomaly"],
    "resnet": ["--arch", "resnet"],
}


def adctl(*arguments: str, runs: Path) -> tuple[dict[str, Any], float]:
    """Run one command; return its JSON result and the peak memory of its process in GiB."""
    command = [sys.executable, "-m", "adctl", *arguments, "--runs", str(runs), "--json", "--quiet"]
    program = (
        "import json, resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE);"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20;"
        "print(json.dumps({'peak': peak, 'document': json.loads(done.stdout)}))"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], check=True, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout)
    if not answer["document"]["ok"]:
        raise SystemExit(json.dumps(answer["document"], indent=2))
    return answer["document"]["result"], answer["peak"]


def measure(name: str, options: list[str], data: Path, runs: Path) -> dict[str, Any]:
    """Train, score and evaluate one case."""
    trained, peak = adctl("train", "--data", str(data), "--name", name.replace(" ", "_"), *options, runs=runs)
    scored, _ = adctl("score", str(data), "--model", trained["model"], runs=runs)
    reported, _ = adctl("report", scored["folder"], runs=runs)
    image, pixel = reported["evaluation"]["image"], reported["evaluation"]["pixel"]
    images = sum(scored["counts"].values())
    return {
        "detector": name,
        "image_auroc": image["auroc"],
        "image_ap": image["average_precision"],
        "pixel_auroc": pixel["auroc"],
        "aupro": pixel["aupro"],
        "train_seconds": trained["seconds"],
        "score_images_per_second": images / scored["seconds"],
        "train_peak_gib": peak,
        "model_sha256": trained["sha256"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| detector | image AUROC | image AP | pixel AUROC | AUPRO | train, s | score, images/s | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['detector']} | {row['image_auroc']:.3f} | {row['image_ap']:.3f} | {row['pixel_auroc']:.3f} "
        f"| {row['aupro']:.3f} | {row['train_seconds']:.0f} | {row['score_images_per_second']:.1f} "
        f"| {row['train_peak_gib']:.1f} |"
        for row in rows
    )
    return "\n".join(lines)


def main(data: Path = DATA, out: Path | None = None) -> None:
    """Measure all cases, and print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in CASES.items():
            rows.append(measure(name, options, data, Path(folder)))
            print(f"{name} done", file=sys.stderr, flush=True)
    print(table(rows))
    if out is not None:
        out.write_text(json.dumps({"data": data.name, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
