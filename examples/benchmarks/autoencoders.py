"""The four autoencoders on equal terms, against an untrained network of the same shape and the mean image.

    python examples/benchmarks/autoencoders.py [OUT.json] [NAME=VALUE ...]

Trains each with its default settings and seed 0 on magnetic_tile, hazelnut_toy and the demo zippers by the real
command line, scores the test part and prints a Markdown table. Settings given as NAME=VALUE go to every training,
as `epochs=10`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from quality import DATA, adctl

from adctl.data.demo import generate
from adctl.data.images import read_image, resize
from adctl.data.layouts import open_mvtec
from adctl.metrics.image import image_metrics

ARCHS = ("cnn", "resnet", "vit", "diffusion")
HEADER = (
    "| data | detector | image AUROC | AP | F1 | pixel AUROC | AUPRO | untrained AUROC | train, s | score, images/s "
    "| parameters, M |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def data_sets(folder: Path) -> dict[str, Path]:
    """Names and folders in MVTec AD layout."""
    generate(folder, seed=0)
    return {
        "magnetic_tile": DATA,
        "hazelnut_toy": DATA.parent / "hazelnut_toy",
        "demo zipper": folder / "zipper",
    }


def measure(arch: str, data: Path, runs: Path, options: list[str]) -> dict[str, Any]:
    """Train, score and report."""
    trained, _ = adctl("train", "--data", str(data), "--arch", arch, *options, runs=runs)
    scored, _ = adctl("score", str(data), "--model", trained["model"], runs=runs)
    reported, _ = adctl("report", scored["folder"], runs=runs)
    image, pixel = reported["evaluation"]["image"], reported["evaluation"]["pixel"]
    return {
        "image_auroc": image["auroc"],
        "ap": image["average_precision"],
        "f1": image["f1"],
        "pixel_auroc": pixel["auroc"],
        "aupro": pixel["aupro"],
        "train_seconds": trained["seconds"],
        "images_per_second": sum(scored["counts"].values()) / scored["seconds"],
        "parameters": trained["summary"]["parameters"],
    }


def mean_image(data: Path, side: int = 128) -> dict[str, Any]:
    """The baseline that needs no network: squared distance to the mean good image, its mean over the highest 1 %."""
    dataset = open_mvtec(data)
    good = np.stack([resize(read_image(sample.path), side, side) for sample in dataset.train]).astype(np.float32)
    mean = good.mean(0)
    scores = []
    for sample in dataset.test:
        cells = np.square(resize(read_image(sample.path), side, side) - mean).mean(2) / 255**2
        scores.append(float(np.sort(cells, axis=None)[-(cells.size // 100) :].mean()))
    metrics = image_metrics(scores, [sample.label != "good" for sample in dataset.test])
    return {"image_auroc": metrics.auroc, "ap": metrics.average_precision}


def line(name: str, arch: str, row: dict[str, Any]) -> str:
    """One row of the table."""

    def shown(key: str, form: str) -> str:
        return format(row[key], form) if row.get(key) is not None else ""

    cells = [shown(key, ".3f") for key in ("image_auroc", "ap", "f1", "pixel_auroc", "aupro", "untrained_auroc")]
    cells += [shown("train_seconds", ".0f"), shown("images_per_second", ".1f")]
    cells.append(f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "")
    return f"| {name} | {arch} | {' | '.join(cells)} |"


def main(out: Path | None, options: list[str]) -> None:
    """Measure every case and print the table."""
    rows = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        for name, data in data_sets(Path(folder) / "data").items():
            baseline = mean_image(data)
            rows.append({"data": name, "detector": "mean image", **baseline})
            print(line(name, "mean image", baseline), flush=True)
            for arch in ARCHS:
                row = measure(arch, data, runs, options)
                # A learning rate this small leaves the network as it was drawn.
                untrained = measure(arch, data, runs, ["--epochs", "1", "--learning-rate", "1e-12"])
                row["untrained_auroc"] = untrained["image_auroc"]
                rows.append({"data": name, "detector": arch, **row})
                print(line(name, arch, row), flush=True)
    if out is not None:
        out.write_text(json.dumps({"settings": options, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = sys.argv[1:]
    settings = [
        f"--{name.replace('_', '-')}={value}" for name, _, value in (a.partition("=") for a in given if "=" in a)
    ]
    files = [Path(argument) for argument in given if "=" not in argument]
    main(files[0] if files else None, settings)
