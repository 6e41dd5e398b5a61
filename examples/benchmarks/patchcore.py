"""Benchmark of PatchCore by coreset size and search, with PaDiM for comparison, and of picking the coreset.

    python examples/benchmarks/patchcore.py [DATA] [OUT.json]

Trains, scores and reports each case on the command line, and prints a Markdown table. Then compares two algorithms
that pick 10 % of the patches of the same data: lazy greedy, as adctl does, and plain greedy, which computes all
distances for every pick. It prints whether they pick the same patches and how long they take; the time of plain greedy
is extrapolated from its first 20 seconds. DATA is in MVTec AD layout (default: the demo dataset, newly generated).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from quality import adctl

from adctl.data.images import read_image
from adctl.data.preprocess import to_network_input
from adctl.detectors.components.coreset import k_center_greedy
from adctl.detectors.components.feature_maps import to_rows
from adctl.detectors.patchcore import PatchCore
from adctl.fetching.demo_dataset import generate
from adctl.model_file import load_model

if TYPE_CHECKING:
    from torch import Tensor

CASES = {
    "patchcore 0.1 %": ["--arch", "patchcore", "--set", "coreset_ratio=0.001"],
    "patchcore 1 %": ["--arch", "patchcore", "--set", "coreset_ratio=0.01"],
    "patchcore 1 %, ivf": ["--arch", "patchcore", "--set", "coreset_ratio=0.01", "--set", "search=ivf"],
    "patchcore 10 %": ["--arch", "patchcore", "--set", "coreset_ratio=0.1"],
    "patchcore 10 %, ivf": ["--arch", "patchcore", "--set", "coreset_ratio=0.1", "--set", "search=ivf"],
    "padim": ["--arch", "padim"],
    "padim, shared": ["--arch", "padim", "--set", "covariance=shared"],
}
PLAIN_SECONDS = 20.0


def measure(name: str, options: list[str], data: Path, runs: Path) -> dict[str, Any]:
    """Train, score and evaluate one case."""
    trained, peak = adctl("train", "--data", str(data), "--name", name.replace(" ", ""), *options, runs=runs)
    scored, _ = adctl("score", str(data), "--model", trained["model"], runs=runs)
    reported, _ = adctl("report", scored["folder"], runs=runs)
    image, pixel = reported["evaluation"]["image"], reported["evaluation"]["pixel"]
    return {
        "detector": name,
        "image_auroc": image["auroc"],
        "pixel_auroc": pixel["auroc"],
        "aupro": pixel["aupro"],
        "train_seconds": trained["seconds"],
        "train_peak_gib": peak,
        "score_images_per_second": sum(scored["counts"].values()) / scored["seconds"],
        "file_mb": Path(trained["model"]).stat().st_size / 1e6,
        "model": trained["model"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| detector | image AUROC | pixel AUROC | AUPRO | train, s | peak memory, GiB | score, images/s | file, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['detector']} | {row['image_auroc']:.3f} | {row['pixel_auroc']:.3f} | {row['aupro']:.3f} "
        f"| {row['train_seconds']:.0f} | {row['train_peak_gib']:.2f} | {row['score_images_per_second']:.1f} "
        f"| {row['file_mb']:.1f} |"
        for row in rows
    )
    return "\n".join(lines)


@torch.inference_mode()
def patches_of(model: Path, data: Path) -> Tensor:
    """Compute the patch features [N,D] from which the coreset was picked."""
    detector, _ = load_model(model)
    assert isinstance(detector, PatchCore)
    learned = json.loads((model.parent / "split.json").read_text(encoding="utf-8"))["train"]
    rows = []
    for key in learned:
        pixels = torch.from_numpy(to_network_input(read_image(data / key), detector.input))
        rows.append(to_rows(detector.reduced(detector.patches(pixels.permute(2, 0, 1)[None] / 255))))
    return torch.cat(rows)


def plain_greedy(vectors: Tensor, count: int, seed: int, seconds: float) -> list[int]:
    """Pick vectors with plain k-center greedy, one pass over all vectors for each pick, until a time limit."""
    start = time.perf_counter()
    picks = [int(torch.randint(len(vectors), (1,), generator=torch.Generator().manual_seed(seed)))]
    squares = vectors.square().sum(1)
    distance = torch.full((len(vectors),), torch.inf)
    while len(picks) < count and time.perf_counter() - start < seconds:
        last = vectors[picks[-1]]
        gap = torch.addmv(squares, vectors, last, alpha=-2).add_(last @ last).clamp_(min=0)
        torch.minimum(distance, gap, out=distance)
        distance[picks[-1]] = -1.0
        picks.append(int(distance.argmax()))
    return picks


def compare_picking(vectors: Tensor) -> dict[str, Any]:
    """Compare lazy and plain greedy for 10 % of the vectors."""
    count = max(1, round(0.1 * len(vectors)))
    start = time.perf_counter()
    lazy = k_center_greedy(vectors, count, seed=0).tolist()
    lazy_seconds = time.perf_counter() - start
    start = time.perf_counter()
    plain = plain_greedy(vectors, count, 0, PLAIN_SECONDS)
    plain_seconds = (time.perf_counter() - start) / len(plain) * count
    same = next((place for place, pair in enumerate(zip(lazy, plain, strict=False)) if pair[0] != pair[1]), len(plain))
    return {
        "patches": len(vectors),
        "picked": count,
        "lazy_seconds": lazy_seconds,
        "plain_seconds": plain_seconds,
        "plain_picked": len(plain),
        "same_until": same,
        "shared": len(set(lazy[: len(plain)]) & set(plain)) / len(plain),
    }


def summary(picking: dict[str, Any]) -> str:
    """Describe the comparison of the two algorithms in a sentence."""
    extrapolated = " (extrapolated)" if picking["plain_picked"] < picking["picked"] else ""
    return (
        f"{picking['picked']} of {picking['patches']} patches: lazy {picking['lazy_seconds']:.1f} s, "
        f"plain {picking['plain_seconds']:.0f} s{extrapolated}; of the {picking['plain_picked']} picks of plain, the "
        f"first {picking['same_until']} are the same in the same order, and {picking['shared']:.2%} in any order."
    )


def main(data: Path | None = None, out: Path | None = None) -> None:
    """Measure all cases, compare the algorithms, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = generate(Path(folder) / "data")
        rows = []
        for name, options in CASES.items():
            rows.append(measure(name, options, data, Path(folder)))
            print(f"{name} done", file=sys.stderr, flush=True)
        picking = compare_picking(patches_of(Path(rows[1]["model"]), data))
    print(table(rows))
    print("", summary(picking), sep="\n")
    if out is not None:
        out.write_text(json.dumps({"data": data.name, "rows": rows, "picking": picking}, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
