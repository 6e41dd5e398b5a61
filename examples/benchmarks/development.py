"""Development benchmark: choose settings by generated defects on held-out good images, without any real defect.

    python examples/benchmarks/development.py --sets tiles,zippers --configs "--arch padim; --arch padim --set blur=2"

For each set, good training images are split into images to fit and held-out images. Defects of each kind of
`adctl.data.generated_defects` are painted on held-out images. Each configuration, a text of options of `adctl train`,
is trained and scores all of them. The table gives the mean rank over the sets, the worst loss against the best
configuration of a set, and the metric of each set. `border` is the image AUROC of the defects that reach within 8
pixels of the border, `faint` that of the weaker half of the defects. Results are written after each training, and a
repeated call continues. `--show FOLDER` writes a picture of each set's defects and trains nothing.

`--check-real` also scores real defects (those of the generated zippers are drawn), and prints the rank correlation
between development and real metrics. Settings that are chosen by it are chosen on test data.

Real images are read from `--data`, `../shared/data` by default, and only from the folders of good training images
unless `--check-real` is given.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import sys
import tempfile
import zlib
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from adctl.cli.app import run
from adctl.data.generated_defects import KINDS, STRENGTHS, paint
from adctl.data.preprocess import to_network_input
from adctl.detectors.base import Detector
from adctl.detectors.components.backbones import find_weights
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.fetching.demo_dataset import DEFECTS, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from adctl.data.generated_defects import GeneratedDefect
    from adctl.data.preprocess import InputSpec

D = TypeVar("D", bound=Detector)
Image = NDArray[np.uint8]
Row = dict[str, Any]

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CONFIGS = ("--arch padim", "--arch patchcore", "--arch simplenet --epochs 2")
CHECKED_CONFIGS = (
    *(f"--arch padim --image-size {size}" for size in (128, 192, 256, 320)),
    *(f"--arch patchcore --image-size {size}" for size in (128, 192, 256, 320)),
    "--arch padim --set resize=pad",
    "--arch patchcore --set resize=pad",
    "--arch padim --set layers=[1]",
    "--arch padim --set layers=[3]",
    "--arch patchcore --set layers=[1]",
    "--arch patchcore --set layers=[3]",
    "--arch padim --set blur=0",
    "--arch padim --set blur=2",
    "--arch patchcore --set blur=2",
    "--arch padim --set dimensions=20",
    "--arch padim --set covariance=shared",
    "--arch patchcore --set coreset_ratio=0.001",
    "--arch patchcore --set coreset_ratio=0.1",
    "--arch patchcore --set whitening=0",
    "--arch padim --set score_share=0.2",
    "--arch padim --set score_share=0.0005",
    "--arch simplenet --epochs 2",
    "--arch simplenet --epochs 2 --set verdict=2",
)
METRICS = ("image_auroc", "image_ap", "aupro")
_SCENE = 320
_BORDER = "border"


# ---- sets of good images


def tiles(count: int, data: Path) -> list[Image]:
    """Return good magnetic tiles of many shapes, evenly from all of them."""
    return read(data / "magnetic_tile" / "train" / "good", count)


def long_tiles(count: int, data: Path) -> list[Image]:
    """Return the left side of good magnetic tiles, 2.5 times as high as wide."""
    return [upright(image) for image in tiles(count, data)]


def upright(image: Image) -> Image:
    """Return the left and upper part of an image, 2.5 times as high as wide."""
    height, width = image.shape[:2]
    wide = min(width, round(height / 2.5))
    return image[: round(2.5 * wide), :wide]


def hazelnuts(count: int, data: Path) -> list[Image]:
    """Return good hazelnuts."""
    return read(data / "hazelnut_toy" / "train" / "good", count)


def zippers(count: int, data: Path) -> list[Image]:
    """Return square generated zippers."""
    del data
    return [render((7, number))[0] for number in range(count)]


def long_zippers(count: int, data: Path) -> list[Image]:
    """Return generated zippers, 2.5 times as high as wide."""
    del data
    return [chain(render((8, number), size=_SCENE)[0]) for number in range(count)]


def chain(image: NDArray[Any]) -> NDArray[Any]:
    """Return the middle of a zipper, 2.5 times as high as wide."""
    side = image.shape[0]
    start = round(side * 0.3)
    return image[:, start : start + round(side * 0.4)]


def weave(count: int, data: Path) -> list[Image]:
    """Return drawn cloth: threads that cross over and under each other."""
    del data
    return [drawn(_weave, (11, number), (256, 256), (0.55, 0.62, 0.70)) for number in range(count)]


def brushed(count: int, data: Path) -> list[Image]:
    """Return drawn brushed metal, 2.5 times as wide as high, grey."""
    del data
    return [drawn(_brushed, (12, number), (200, 500), (0.9,))[..., 0] for number in range(count)]


def wood(count: int, data: Path) -> list[Image]:
    """Return drawn wood with year rings."""
    del data
    return [drawn(_wood, (13, number), (240, 320), (0.72, 0.52, 0.33)) for number in range(count)]


def grid(count: int, data: Path) -> list[Image]:
    """Return a drawn metal grid with holes in rows."""
    del data
    return [drawn(_grid, (14, number), (256, 256), (0.8, 0.82, 0.85)) for number in range(count)]


def long_parts(count: int, data: Path) -> list[Image]:
    """Return drawn grey parts of about 1250 x 500 pixels: a mottled face between two machined rims, darker ends."""
    del data
    return [_part((15, number), 1250, 500) for number in range(count)]


SETS: dict[str, Callable[[int, Path], list[Image]]] = {
    "tiles": tiles,
    "long_tiles": long_tiles,
    "hazelnuts": hazelnuts,
    "zippers": zippers,
    "long_zippers": long_zippers,
    "weave": weave,
    "brushed": brushed,
    "wood": wood,
    "grid": grid,
    "long_parts": long_parts,
}
"""Functions of good images, by the name of the set."""


def read(folder: Path, count: int) -> list[Image]:
    """Return at most `count` images of a folder, evenly from all of them; RGB, or grey as they are."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    if not files:
        raise SystemExit(f"There are no images in {folder}: give the folder of the data with --data.")
    chosen = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int))
    return [read_image(files[place]) for place in chosen]


def read_image(path: Path) -> Image:
    """Return an image, [H,W] or [H,W,3] in RGB order."""
    image: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return np.asarray(image if image.ndim == 2 else image[..., ::-1], np.uint8)  # noqa: PLR2004


def drawn(
    pattern: Callable[[np.random.Generator, int, int], NDArray[Any]],
    seed: tuple[int, int],
    size: tuple[int, int],
    colour: tuple[float, ...],
) -> Image:
    """Return a drawn surface [H,W,C] with its own light and grain."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    direction = rng.uniform(0, 2 * math.pi)
    light = 1 + rng.uniform(0, 0.15) * (
        math.cos(direction) * (x / width - 0.5) + math.sin(direction) * (y / height - 0.5)
    )
    surface = pattern(rng, height, width) * light * rng.uniform(0.9, 1.1)
    sensed = surface[..., None] * np.array(colour) + rng.normal(0, 0.012, (height, width, 1))
    return np.clip(sensed * 255, 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, height: int, width: int, tall: float, wide: float) -> NDArray[Any]:
    knots = rng.normal(0, 1, (max(2, round(height / tall)), max(2, round(width / wide)))).astype(np.float32)
    return cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)


def _weave(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    y, x = np.mgrid[0:height, 0:width] + rng.uniform(0, 20, (2, 1, 1))
    wobble = 0.8 * _smooth(rng, height, width, 40, 40)
    along, across = (x + wobble) * math.pi / 9, (y + wobble) * math.pi / 9
    over = np.sin(along) * np.sin(across) > 0
    thread = np.where(over, np.abs(np.sin(along)), np.abs(np.sin(across)))
    return 0.35 + 0.45 * np.sqrt(thread) + 0.05 * _smooth(rng, height, width, 3, 3)


def _brushed(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    streaks = sum(_smooth(rng, height, width, tall, wide) for tall, wide in ((1, 60), (2, 150), (5, 400)))
    return 0.55 + 0.05 * streaks + 0.04 * _smooth(rng, height, width, 60, 60)


def _wood(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    y = np.mgrid[0:height, 0:width][0] + 9 * _smooth(rng, height, width, 60, 160) + rng.uniform(0, 60)
    rings = np.sin(y * 2 * math.pi / 17) * 0.10 + np.sin(y * 2 * math.pi / 41) * 0.08
    return 0.8 + rings + 0.05 * _smooth(rng, height, width, 1.5, 30)


def _grid(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    y, x = np.mgrid[0:height, 0:width] - np.reshape(rng.normal(0, 2, 2), (2, 1, 1))
    radius = np.hypot((x % 32) - 16, (y % 32) - 16) + 0.4 * _smooth(rng, height, width, 8, 8)
    hole = np.clip(10 - radius, 0, 1)
    rim = np.exp(-(((radius - 11) / 1.5) ** 2)) * 0.2
    return (0.62 + rim + 0.03 * _smooth(rng, height, width, 2, 20)) * (1 - 0.85 * hole)


def _part(seed: tuple[int, int], height: int, width: int) -> Image:
    """Return a drawn part; its length, place, light and blemishes differ from part to part, its shades do not."""
    rng, shades = np.random.default_rng(seed), np.random.default_rng(seed[0])
    height += int(rng.integers(-15, 16))
    down, right = np.clip(rng.normal(0, 3, 2), -9, 9)
    y, x = np.mgrid[0:height, 0:width] - np.reshape((down, right), (2, 1, 1))
    fixed = cv2.resize(shades.normal(0, 1, (9, 5)).astype(np.float32), (width + 20, height + 20))
    top, left = round(10 - down), round(10 - right)
    face = 0.5 + 0.03 * fixed[top : top + height, left : left + width]
    for depth, cell in ((0.008 + abs(rng.normal(0.02, 0.012)), 60), (0.018, 12), (0.02, 3)):
        face += depth * _smooth(rng, height, width, cell, cell)
    for _ in range(rng.poisson(1.2)):  # harmless blemishes
        row, column, reach = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(4, 25)
        face += rng.normal(0, 0.035) * np.exp(-(((y - row) / reach) ** 2) - ((x - column) / reach) ** 2)
    side = np.minimum(x, width - 1 - x)
    rim = np.clip((30 - side) / 6, 0, 1)
    grooves = 0.06 * _smooth(rng, height, width, 60, 2.5) + 0.03 * _smooth(rng, height, width, 2, 6)
    surface = face * (1 - rim) + rim * (0.42 + grooves) + 0.12 * np.exp(-(((side - 31) / 2.5) ** 2))
    ends = np.clip(np.minimum(y, height - 1 - y), 0, None)
    light = 1 - 0.25 * np.exp(-ends / (60 * math.exp(rng.normal(0, 0.15))))
    light += rng.normal(0, 0.04) * (y / height - 0.5) + rng.normal(0, 0.03) * (x / width - 0.5)
    sensed = surface * light * rng.uniform(0.9, 1.1) + rng.normal(0, 0.018, (height, width))
    return np.clip(sensed * 255, 0, 255).astype(np.uint8)


# ---- real defects of the sets that have them


def real_tiles(count: int, data: Path) -> list[tuple[str, Image, Image | None]]:
    """Return good and defective tiles of the test part: two fifths good, the defects evenly by type."""
    return read_test(data / "magnetic_tile", count)


def real_hazelnuts(count: int, data: Path) -> list[tuple[str, Image, Image | None]]:
    """Return the test part of the hazelnuts."""
    return read_test(data / "hazelnut_toy", count)


def read_test(folder: Path, count: int) -> list[tuple[str, Image, Image | None]]:
    """Return label, image and mask of at most `count` images of a test part."""
    labels = sorted(path.name for path in (folder / "test").iterdir())
    shares = {label: count * 2 // 5 if label == "good" else -(-count * 3 // 5 // (len(labels) - 1)) for label in labels}
    found: list[tuple[str, Image, Image | None]] = []
    for label in labels:
        files = sorted((folder / "test" / label).iterdir())
        for place in np.unique(np.linspace(0, len(files) - 1, min(shares[label], len(files))).round().astype(int)):
            path = files[place]
            masks = list((folder / "ground_truth" / label).glob(f"{path.stem}*")) if label != "good" else []
            mask = cv2.imread(str(masks[0]), cv2.IMREAD_GRAYSCALE) if masks else None
            found.append((label, read_image(path), None if mask is None else np.asarray(mask, np.uint8)))
    return found


def real_zippers(count: int, data: Path) -> list[tuple[str, Image, Image | None]]:
    """Return generated zippers with the defects that are drawn with them."""
    del data
    return drawn_zippers(count, 256)


def real_long_zippers(count: int, data: Path) -> list[tuple[str, Image, Image | None]]:
    """Return long generated zippers with those drawn defects that lie in their part of the image."""
    del data
    parts = [
        (label, chain(image), None if mask is None else chain(mask))
        for label, image, mask in drawn_zippers(2 * count, _SCENE)
    ]
    seen = [part for part in parts if part[2] is None or np.count_nonzero(part[2]) >= 40]  # noqa: PLR2004
    return seen[: count * 2 // 5] + [part for part in seen if part[0] != "good"][: count * 3 // 5]


def drawn_zippers(count: int, size: int) -> list[tuple[str, Image, Image | None]]:
    """Return good zippers, then defective ones of each type in turn."""
    good = count * 2 // 5
    found: list[tuple[str, Image, Image | None]] = [
        ("good", render((9, number), size=size)[0], None) for number in range(good)
    ]
    for number in range(good, count):
        defect = DEFECTS[number % len(DEFECTS)]
        image, mask = render((9, number), defect, size)
        found.append((defect, image, mask.astype(np.uint8) * 255))
    return found


REAL: dict[str, Callable[[int, Path], list[tuple[str, Image, Image | None]]]] = {
    "tiles": real_tiles,
    "hazelnuts": real_hazelnuts,
    "zippers": real_zippers,
    "long_zippers": real_long_zippers,
}
"""Functions of test images with real defects, by the name of the set."""


# ---- the folders of a set


@dataclass(frozen=True)
class Prepared:
    """Folders of one set and seed.

    Attributes:
        fit: Folder of good images to train on.
        painted: Folder of held-out images with generated defects, in MVTec AD layout.
        real: Folder of images with real defects, or None.
    """

    fit: Path
    painted: Path
    real: Path | None


def prepare(name: str, seed: int, folder: Path, arguments: argparse.Namespace) -> Prepared:
    """Write the images of one set."""
    images = SETS[name](arguments.images, arguments.data)
    order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(len(images))
    held = max(2, len(images) // 3)
    fit, painted = folder / "fit" / "good", folder / "painted"
    for number, place in enumerate(order[held:]):
        write(fit / f"{number:03}.png", images[place])
    for number, place in enumerate(order[:held]):
        write(painted / "test" / "good" / f"{number:03}.png", images[place])
    for number in range(arguments.defects):
        kind = arguments.kinds[number % len(arguments.kinds)]
        found = paint(images[order[number % held]], kind, (seed, number))
        border = f"_{_BORDER}" if found.at_border else ""
        stem = f"{number:03}_{round(1000 * found.strength):04}{border}"
        write_pair(painted, kind, stem, found.image, found.mask.astype(np.uint8) * 255)
    real = folder / "real" if arguments.check_real and name in REAL else None
    if real is not None:
        for number, (label, image, mask) in enumerate(REAL[name](arguments.check_real, arguments.data)):
            write_pair(real, label, f"{number:03}", image, mask)
    return Prepared(fit, painted, real)


def write_pair(folder: Path, label: str, stem: str, image: Image, mask: Image | None) -> None:
    """Write a test image and its mask."""
    write(folder / "test" / label / f"{stem}.png", image)
    if mask is not None:
        write(folder / "ground_truth" / label / f"{stem}_mask.png", mask)


def write(path: Path, image: Image) -> None:
    """Write an image in RGB order or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])  # noqa: PLR2004
    cv2.imwrite(str(path), bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def picture(painted: Path, side: int = 160, columns: int = 12) -> Image:
    """Return a picture of the defective images of a set, each with its mask's outline beside it."""
    cells = []
    for path in sorted(painted.glob("test/*/*.png")):
        if path.parent.name == "good":
            continue
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        mask = cv2.imread(
            str(painted / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"), cv2.IMREAD_GRAYSCALE
        )
        assert image is not None
        assert mask is not None
        outlined = image.copy()
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(outlined, contours, -1, (0, 0, 255), 1)
        scale = side / max(image.shape[:2])
        cell = np.full((side + 14, 2 * side, 3), 60, np.uint8)
        for start, view in ((0, image), (side, outlined)):
            small = cv2.resize(view, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:side, :side]
            cell[: small.shape[0], start : start + small.shape[1]] = small
        text = f"{path.parent.name} {path.stem[4:]}"
        cells.append(cv2.putText(cell, text, (2, side + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 255, 255), 1))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % (columns // 2))
    lines = [np.hstack(cells[start : start + columns // 2]) for start in range(0, len(cells), columns // 2)]
    return np.asarray(np.vstack(lines)[..., ::-1], np.uint8)


# ---- detectors without a training command


def halves(name: str, count: int, defects: int, data: Path) -> tuple[list[Image], list[Image], list[GeneratedDefect]]:
    """Return one half of the good images of a set, the other half, and generated defects of each kind on the latter."""
    images = SETS[name](count, data)
    held, kinds = images[1::2], list(KINDS)
    painted = [paint(held[number % len(held)], kinds[number % len(kinds)], (0, number)) for number in range(defects)]
    return images[::2], held, painted


def network_inputs(spec: InputSpec, images: Sequence[Image]) -> Tensor:
    """Return images as the input of a network, [n,3,H,W] in [0, 1]."""
    found = []
    for image in images:
        colour = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image  # noqa: PLR2004
        found.append(torch.from_numpy(to_network_input(colour, spec)).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def pretrained(detector: D) -> D:
    """Return a detector with the packaged weights of its backbone."""
    assert detector.backbone_name is not None
    weights = find_weights(detector.backbone_name, None)
    assert weights is not None
    detector.load_pretrained(weights.tensors)
    return detector


# ---- one configuration


def adctl(*arguments: str | Path) -> Row:
    """Run one command in this process, so that features are shared, and return its result."""
    with redirect_stdout(io.StringIO()) as output:
        run([*map(str, arguments), "--json", "--quiet"])
    document = json.loads(output.getvalue())
    if not document["ok"]:
        raise ValueError(document["error"]["message"])
    return dict(document["result"])


def measure(config: str, prepared: Prepared, runs: Path) -> Row:
    """Train one configuration; score the generated defects, and the real ones if wanted."""
    trained = adctl("train", "--good", prepared.fit, "--runs", runs, "--no-tensorboard", *shlex.split(config))
    rows, metrics, seconds = scored(trained["model"], prepared.painted, runs)
    result = {**metrics, "train_seconds": trained["seconds"], "score_seconds": seconds}
    good = [score for label, _, score in rows if label == "good"]
    bad = [(label, stem, score) for label, stem, score in rows if label != "good"]
    middle = math.sqrt(math.prod(STRENGTHS))
    result["border"] = auroc(good, [score for _, stem, score in bad if stem.endswith(_BORDER)])
    result["faint"] = auroc(good, [score for _, stem, score in bad if int(stem.split("_")[1]) < 1000 * middle])
    result["recall_at_5"] = float(np.mean([score > np.quantile(good, 0.95) for _, _, score in bad]))
    result["kinds"] = {kind: auroc(good, [score for label, _, score in bad if label == kind]) for kind in KINDS}
    if prepared.real is not None:
        result["real"] = scored(trained["model"], prepared.real, runs)[1]
    return result


def scored(model: str, folder: Path, runs: Path) -> tuple[list[tuple[str, str, float]], Row, float]:
    """Score a folder; return label, stem and score of each image, the metrics, and the seconds."""
    out = runs / "scored"
    command = ("--model", model, "--out", out, "--runs", runs, "--overwrite", "--no-heatmaps", "--runtime", "torch")
    done = adctl("score", folder, *command)
    evaluation = adctl("report", out, "--format", "json", "--overwrite", "--runs", runs)["evaluation"]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    image, pixel = evaluation["image"], evaluation["pixel"] or {}
    metrics = {"image_auroc": image["auroc"], "image_ap": image["average_precision"], "aupro": pixel.get("aupro")}
    return (
        [(line["label"], Path(line["path"]).stem, line["score"]) for line in lines],
        metrics,
        done["seconds"] or math.nan,
    )


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return the AUROC of bad against good scores; NaN if a class is empty."""
    if not len(good) or not len(bad):
        return math.nan
    return float(roc_auc_score([0] * len(good) + [1] * len(bad), [*good, *bad]))


# ---- summaries


def means(rows: Sequence[Row], metric: str, *, real: bool = False) -> dict[str, dict[str, float]]:
    """Return the mean of a metric over the seeds, by set and configuration."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values = row.get("real", {}) if real else row
        if values.get(metric) is not None:
            found.setdefault(row["set"], {}).setdefault(row["config"], []).append(values[metric])
    return {name: {config: float(np.mean(values)) for config, values in group.items()} for name, group in found.items()}


def summary(rows: Sequence[Row], configs: Sequence[str], metric: str) -> list[Row]:
    """Return mean rank, mean, worst loss and values by set of each configuration that was measured on all sets."""
    by_set = means(rows, metric)
    complete = [config for config in configs if all(config in group for group in by_set.values())]
    if not complete:
        return []
    values = np.array([[group[config] for config in complete] for group in by_set.values()])
    ranks = np.stack([rankdata(-line, method="average") for line in values])
    losses = values.max(axis=1, keepdims=True) - values
    border, faint, recall = (means(rows, name) for name in ("border", "faint", "recall_at_5"))
    lines = []
    for place, config in enumerate(complete):
        worst = int(losses[:, place].argmax())
        lines.append(
            {
                "config": config,
                "mean_rank": float(ranks[:, place].mean()),
                "mean": float(values[:, place].mean()),
                "worst_loss": float(losses[worst, place]),
                "worst_set": list(by_set)[worst],
                "border": float(np.mean([group[config] for group in border.values() if config in group])),
                "faint": float(np.mean([group[config] for group in faint.values() if config in group])),
                "recall_at_5": float(np.mean([group[config] for group in recall.values() if config in group])),
                "sets": {name: float(values[number, place]) for number, name in enumerate(by_set)},
            }
        )
    return sorted(lines, key=lambda line: line["mean_rank"])


def table(lines: Sequence[Row], metric: str) -> str:
    """Format the summary as a Markdown table."""
    sets = list(lines[0]["sets"]) if lines else []
    headers = ["configuration", "mean rank", f"mean {metric}", "worst loss", "border", "faint", "recall at 5 %", *sets]
    texts = [f"| {' | '.join(headers)} |", "|" + "---|" * len(headers)]
    for line in lines:
        values = [
            line["mean"],
            line["worst_loss"],
            line["border"],
            line["faint"],
            line["recall_at_5"],
            *line["sets"].values(),
        ]
        numbers = [f"{value:.3f}" for value in values]
        numbers[1] += f" ({line['worst_set']})"
        texts.append(f"| `{line['config']}` | {line['mean_rank']:.1f} | {' | '.join(numbers)} |")
    return "\n".join(texts)


def correlations(rows: Sequence[Row]) -> list[Row]:
    """Return the Spearman correlation over the configurations between development and real metrics, by set."""
    lines = []
    for metric in METRICS:
        development, real = means(rows, metric), means(rows, metric, real=True)
        for name, group in real.items():
            configs = [config for config in group if config in development.get(name, {})]
            ours, theirs = [development[name][config] for config in configs], [group[config] for config in configs]
            if len(configs) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:  # noqa: PLR2004
                continue
            chosen = configs[int(np.argmax(ours))]
            lines.append(
                {
                    "set": name,
                    "metric": metric,
                    "configurations": len(configs),
                    "spearman": float(spearmanr(ours, theirs).statistic),
                    "chosen": chosen,
                    "real_of_chosen": group[chosen],
                    "real_best": max(theirs),
                    "real_median": float(np.median(theirs)),
                }
            )
    return lines


def correlation_table(lines: Sequence[Row]) -> str:
    """Format the correlations as a Markdown table."""
    texts = [
        "| set | metric | configurations | Spearman | chosen | real value of chosen | best | median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    texts.extend(
        f"| {line['set']} | {line['metric']} | {line['configurations']} | {line['spearman']:.2f} | `{line['chosen']}` "
        f"| {line['real_of_chosen']:.3f} | {line['real_best']:.3f} | {line['real_median']:.3f} |"
        for line in lines
    )
    return "\n".join(texts)


# ---- the command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", help="options of adctl train, separated by semicolons; or a file, one in a line")
    parser.add_argument("--sets", default=",".join(SETS), help="sets, separated by commas")
    parser.add_argument("--images", type=int, default=90, help="good images of each set; a third is held out")
    parser.add_argument("--defects", type=int, default=6 * len(KINDS), help="generated defects of each set")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of defects, separated by commas")
    parser.add_argument("--seeds", default="0", help="seeds of split, defects and training, separated by commas")
    parser.add_argument("--metric", choices=METRICS, default="image_auroc", help="metric of the ranks")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of magnetic_tile and hazelnut_toy")
    parser.add_argument("--out", type=Path, help="JSON file of the results; a repeated call continues it")
    parser.add_argument("--show", type=Path, help="write pictures of the defects to this folder, and stop")
    parser.add_argument(
        "--check-real", type=int, nargs="?", const=120, default=0, help="also score so many real images"
    )
    given = parser.parse_args(arguments)
    given.kinds = given.kinds.split(",")
    for what, names, known in (("sets", given.sets.split(","), SETS), ("kinds", given.kinds, KINDS)):
        if unknown := set(names) - set(known):
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return given


def configurations(arguments: argparse.Namespace) -> list[str]:
    """Return the configurations of the command line, or else the built-in ones."""
    text = arguments.configs
    if text is None:
        return list(CHECKED_CONFIGS if arguments.check_real else CONFIGS)
    if Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8").replace("\n", ";")
    return [" ".join(config.split()) for config in text.split(";") if config.strip()]


def main(given: Sequence[str] | None = None) -> None:
    """Measure all configurations on all sets, and print the tables."""
    arguments = parse(given)
    names = arguments.sets.split(",")
    configs = configurations(arguments)
    settings = {"images": arguments.images, "defects": arguments.defects, "check_real": arguments.check_real}
    if arguments.kinds != list(KINDS):
        settings["kinds"] = arguments.kinds
    rows = earlier(arguments.out, settings)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            done = {row["config"] for row in rows if (row["set"], row["seed"]) == (name, seed)}
            missing = [config for config in configs if config not in done]
            if arguments.show is None and not missing:
                continue
            with tempfile.TemporaryDirectory() as folder, shared_features():
                prepared = prepare(name, seed, Path(folder), arguments)
                if arguments.show is not None:
                    write(arguments.show / f"{name}_{seed}.png", picture(prepared.painted))
                    continue
                for config in missing:
                    rows.append(attempt(config, name, seed, prepared, Path(folder) / "runs"))
                    if arguments.out is not None:
                        save(arguments.out, settings, rows, configs, arguments.metric)
    if arguments.show is None:
        print(table(summary(rows, configs, arguments.metric), arguments.metric))
    if arguments.check_real:
        print("\n" + correlation_table(correlations(rows)))


def attempt(config: str, name: str, seed: int, prepared: Prepared, runs: Path) -> Row:
    """Return the results of a configuration; a configuration that cannot be trained has an error instead."""
    row: Row = {"set": name, "seed": seed, "config": config}
    try:
        row |= measure(config, prepared, runs)
        text = f"AUROC {row['image_auroc']:.3f}, {row['train_seconds']:.0f} s"
    except ValueError as error:
        row["error"] = text = str(error)
    print(f"{name} {seed} {config}: {text}", file=sys.stderr, flush=True)
    return row


def earlier(out: Path | None, settings: Row) -> list[Row]:
    """Return the rows of an earlier call with the same settings."""
    if out is None or not out.is_file():
        return []
    document = json.loads(out.read_text(encoding="utf-8"))
    if document["settings"] != settings:
        raise SystemExit(f"{out} holds results of other settings: {document['settings']}. Choose another --out.")
    return [row for row in document["rows"] if "error" not in row]


def save(out: Path, settings: Row, rows: Sequence[Row], configs: Sequence[str], metric: str) -> None:
    """Write all results."""
    document = {
        "settings": settings,
        "summary": summary(rows, configs, metric),
        "correlations": correlations(rows),
        "rows": rows,
    }
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
