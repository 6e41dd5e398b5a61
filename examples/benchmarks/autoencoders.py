"""Benchmark of the autoencoders against untrained networks of the same shape and against the mean image.

    python examples/benchmarks/autoencoders.py FOLDER [NAME=VALUE ...]

Trains each autoencoder on the command line with its default settings and seed 0, on magnetic_tile, hazelnut_toy and
the demo zippers, and scores the test images. Prints two Markdown tables: the metrics of each detector, and its image
AUROC for each error space, trained and untrained. Runs are stored in FOLDER: a second call continues where the first
one stopped. NAME=VALUE changes a setting of all trainings, as `epochs=10`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from quality import DATA, adctl

from adctl.calibration.calibration_scores import read_split
from adctl.data.datasets.layouts import Dataset, open_mvtec
from adctl.data.images import read_image, resize
from adctl.detectors.components import backbones
from adctl.detectors.components.anomaly_maps import top_mean
from adctl.detectors.components.backbones import DEFAULT, Backbone
from adctl.detectors.components.feature_statistics import VarianceSums
from adctl.detectors.components.reconstruction_error import SPACES, STRIDES, ErrorMap, normal_error_stats
from adctl.detectors.reconstruction_detector import ReconstructionDetector
from adctl.fetching.demo_dataset import generate
from adctl.metrics.image import image_metrics
from adctl.model_file import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = {
    "cnn": ["--arch", "cnn"],
    "cnn, plain": ["--arch", "cnn", "--set", "preset=plain"],
    "resnet": ["--arch", "resnet"],
    "vit": ["--arch", "vit"],
    "diffusion": ["--arch", "diffusion"],
}
UNTRAINED = ["--epochs", "1", "--learning-rate", "1e-12"]
"""Options with which batch statistics are computed but the random weights stay unchanged."""

COLUMNS = {
    "image_auroc": ("image AUROC", ".3f"),
    "untrained": ("untrained", ".3f"),
    "ap": ("AP", ".3f"),
    "f1": ("F1", ".3f"),
    "pixel_auroc": ("pixel AUROC", ".3f"),
    "aupro": ("AUPRO", ".3f"),
    "untrained_aupro": ("untrained", ".3f"),
    "train_seconds": ("train, s", ".0f"),
    "images_per_second": ("score, images/s", ".1f"),
    "parameters": ("parameters, M", ".1f"),
}
MEAN = "mean image"
SIDE, BATCH, BLUR, AROUND, SHARE = 128, 8, 2.0, 0.25, 0.01
Aurocs = dict[str, float | None]
Rebuild: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def data_sets(folder: Path) -> dict[str, Path]:
    """Return the folders of the datasets, in MVTec AD layout, by name."""
    if not (folder / "zipper").exists():
        generate(folder, seed=0)
    return {"magnetic_tile": DATA, "hazelnut_toy": DATA.parent / "hazelnut_toy", "zipper": folder / "zipper"}


def train(name: str, data: Path, options: list[str], runs: Path) -> Path:
    """Train, or resume an interrupted training, unless the model exists; return the folder of the run."""
    run = runs / name
    if not (run / "model.safetensors").exists():
        started = (run / "settings.json").exists()
        arguments = ["--resume", str(run)] if started else ["--data", str(data), "--name", name, *options]
        adctl("train", *arguments, runs=runs)
    return run


def measure(run: Path, data: Path, runs: Path) -> dict[str, Any]:
    """Score the test images; return metrics, times and the number of parameters."""
    scored, _ = adctl("score", str(data), "--model", str(run), runs=runs)
    reported, _ = adctl("report", scored["folder"], runs=runs)
    image, pixel = reported["evaluation"]["image"], reported["evaluation"]["pixel"]
    record = json.loads((run / "run.json").read_text())
    return {
        "image_auroc": image["auroc"],
        "ap": image["average_precision"],
        "f1": image["f1"],
        "pixel_auroc": pixel["auroc"],
        "aupro": pixel["aupro"],
        "train_seconds": sum(record["fit"]["seconds"].values()),
        "images_per_second": sum(scored["counts"].values()) / scored["seconds"],
        "parameters": record["summary"]["parameters"] / 1e6,
    }


def pixels(samples: tuple[Any, ...], side: int) -> torch.Tensor:
    """Load images as a tensor [N,3,H,W] in [0, 1]."""
    return torch.stack(
        [torch.from_numpy(resize(read_image(s.path), side, side)).permute(2, 0, 1).float() / 255 for s in samples]
    )


def by_space(dataset: Dataset, held_out: tuple[Any, ...], side: int, rebuild: Rebuild) -> Aurocs:
    """Compute the image AUROC of a network for each error space, with error statistics of held-out good images."""
    images, good = pixels(dataset.test, side), pixels(held_out, side)
    defective = [sample.label != "good" for sample in dataset.test]
    with torch.inference_mode():
        rebuilt, rebuilt_good = (
            torch.cat([rebuild(batch) for batch in group.split(BATCH)]) for group in (images, good)
        )
    backbone = Backbone(DEFAULT, None, side, STRIDES).eval()
    weights = backbones.find_weights(DEFAULT, None)
    assert weights is not None
    backbone.load_pretrained(weights.tensors)
    found = {}
    for space in SPACES:
        error = ErrorMap({space: 1.0}, (BLUR,), backbone if space == "features" else None).eval()
        with torch.inference_mode():
            sums = VarianceSums.of(error.logarithms(measured(error, good, rebuilt_good)))
            expected = normal_error_stats(sums, AROUND)
            scores = top_mean(error.combine(measured(error, images, rebuilt), expected), SHARE)
        found[space] = image_metrics(scores.double().tolist(), defective).auroc
    return found


def measured(error: ErrorMap, images: torch.Tensor, rebuilt: torch.Tensor) -> torch.Tensor:
    """Compute error maps [N,1,H,W], batch by batch."""
    pairs = zip(images.split(BATCH), rebuilt.split(BATCH), strict=True)
    return torch.cat([error(batch, reconstruction) for batch, reconstruction in pairs])


def spaces(run: Path, dataset: Dataset) -> Aurocs:
    """Compute the image AUROC of a trained model for each error space."""
    model = run / "model.safetensors"
    detector, _ = load_model(model)
    assert isinstance(detector, ReconstructionDetector)
    return by_space(dataset, read_split(model).validation, detector.input.height, detector.reconstruct)


def mean_image(run: Path, dataset: Dataset) -> Aurocs:
    """Compute the image AUROC of a baseline without a network: the mean training image as every reconstruction."""
    split = read_split(run / "model.safetensors")
    mean = pixels(split.train, SIDE).mean(0, keepdim=True)
    return by_space(dataset, split.validation, SIDE, mean.expand_as)


def study(name: str, data: Path, runs: Path, options: list[str]) -> list[dict[str, Any]]:
    """Measure all cases on one dataset."""
    dataset = open_mvtec(data)
    rows: list[dict[str, Any]] = []
    for case, selected in CASES.items():
        label = f"{name}-{case.replace(', ', '-')}"
        run = train(label, data, [*selected, *options], runs)
        untrained = train(f"{label}-untrained", data, [*selected, *UNTRAINED], runs)
        baseline = measure(untrained, data, runs)
        row = measure(run, data, runs) | {"untrained": baseline["image_auroc"], "untrained_aupro": baseline["aupro"]}
        row |= {"spaces": spaces(run, dataset), "untrained_spaces": spaces(untrained, dataset)}
        rows.append({"data": name, "detector": case, **row})
        print(f"{label} done", file=sys.stderr, flush=True)
    first = runs / f"{name}-{next(iter(CASES))}"
    return [{"data": name, "detector": MEAN, "spaces": mean_image(first, dataset)}, *rows]


def results_table(rows: list[dict[str, Any]]) -> str:
    """Format the metrics of each detector as a Markdown table."""
    lines = [
        f"| data | detector | {' | '.join(title for title, _ in COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for row in rows:
        values = row if row["detector"] != MEAN else {"image_auroc": row["spaces"]["l2"]}
        cells = [format(values[key], form) if key in values else "" for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {row['data']} | {row['detector']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spaces_table(rows: list[dict[str, Any]]) -> str:
    """Format the image AUROC by error space, trained / untrained, as a Markdown table."""
    lines = [f"| data | detector | {' | '.join(SPACES)} |", "|---" * (len(SPACES) + 2) + "|"]
    for row in rows:
        cells = []
        for space in SPACES:
            other = row.get("untrained_spaces", {}).get(space)
            cells.append(f"{row['spaces'][space]:.3f}" + ("" if other is None else f" / {other:.3f}"))
        lines.append(f"| {row['data']} | {row['detector']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folder: Path, options: list[str]) -> None:
    """Measure every case and print the tables."""
    rows: list[dict[str, Any]] = []
    for name, data in data_sets(folder / "data").items():
        rows += study(name, data, folder / "runs", options)
        (folder / "autoencoders.json").write_text(json.dumps({"settings": options, "rows": rows}, indent=2) + "\n")
    print(results_table(rows), spaces_table(rows), sep="\n\n")


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given or "=" in given[0]:
        raise SystemExit(__doc__)
    pairs = (argument.partition("=") for argument in given[1:])
    main(Path(given[0]), [f"--{name.replace('_', '-')}={value}" for name, _, value in pairs])
