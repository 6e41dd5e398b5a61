"""Benchmark of logical defects on generated trays of counted parts: `composition` beside `patchcore`.

    python examples/benchmarks/composition.py --train 80 --good 40 --defects 20 --seed 1

Draws a training and a test part of each category in memory, fits both detectors with their default settings and the
packaged backbone, and prints a Markdown table: image AUROC of each defect type and of all together, and the area under
the sPRO curve up to a false-positive rate of 5 % (MVTec LOCO AD). Classes and settings were chosen on `tray` with seed
0 in experiments; `pills` has another layout, other parts and another floor, and took no part in any choice.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.backbones import DEFAULT, find_weights
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.fetching.demo_trays import DEFECTS, Region, render
from adctl.metrics.spro import area_under_spro

if TYPE_CHECKING:
    from adctl.detectors.base import Detector

BATCH = 8


def draw(
    category: str, key: tuple[int, int], defect: str | None, count: int
) -> tuple[torch.Tensor, list[list[Region]]]:
    """Draw images [N,3,256,256] in [0, 1], and their regions."""
    drawn = [render(category, (*key, number), defect) for number in range(count)]
    pixels = torch.from_numpy(np.stack([image for image, _ in drawn]))
    return pixels.permute(0, 3, 1, 2).float() / 255, [list(regions) for _, regions in drawn]


@torch.inference_mode()
def fit(arch: str, images: torch.Tensor) -> Detector:
    """Fit a detector with its default settings."""
    cls = detector_class(arch)
    detector = cls(cls.Config()).eval()
    weights = find_weights(DEFAULT, None)
    assert weights is not None
    detector.load_pretrained(weights.tensors)
    for phase in detector.phases():
        for batch in images.split(BATCH):
            phase.absorb(phase.embed(batch))
        phase.finish(lambda _done, _total: None)
    return detector


@torch.inference_mode()
def score(detector: Detector, images: torch.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the scores [N] and the maps [256,256]."""
    predictions = [detector(batch) for batch in images.split(BATCH)]
    maps = torch.cat([one.maps for one in predictions]).unsqueeze(1)
    full = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([one.scores for one in predictions]).numpy(), list(full.squeeze(1).numpy())


def auroc(good: np.ndarray, bad: np.ndarray) -> float:
    """Return the image AUROC of good and defective scores."""
    return float(roc_auc_score([0] * len(good) + [1] * len(bad), np.concatenate([good, bad])))


def measure(category: str, options: argparse.Namespace) -> None:
    """Measure both detectors on a category, and print their rows."""
    seed, kinds = options.seed, DEFECTS[category]
    train, _ = draw(category, (seed, 0), None, options.train)
    good, _ = draw(category, (seed, 1), None, options.good)
    bad = {kind: draw(category, (seed, 2 + number), kind, options.defects) for number, kind in enumerate(kinds)}
    for arch in ("patchcore", "composition"):
        start = time.process_time()
        detector = fit(arch, train)
        seconds = time.process_time() - start
        good_scores, good_maps = score(detector, good)
        found = {kind: score(detector, images) for kind, (images, _) in bad.items()}
        every = np.concatenate([scores for scores, _ in found.values()])
        maps = [*good_maps, *(one for _, own in found.values() for one in own)]
        regions = [[] for _ in good_maps] + [own for _, truth in bad.values() for own in truth]
        spro = area_under_spro(maps, [[(one.mask, one.saturation) for one in own] for own in regions])
        by_kind = {kind: f"{auroc(good_scores, scores):.3f}" for kind, (scores, _) in found.items()}
        columns = " | ".join(by_kind.get(kind, "") for kind in DEFECTS["tray"])
        print(
            f"| {category}, {seed} | `{arch}` | {auroc(good_scores, every):.3f} | {columns} "
            f"| {spro:.3f} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("train", 80), ("good", 30), ("defects", 15), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--categories", default="tray,pills")
    options = parser.parse_args()
    print(f"| set, seed | detector | image AUROC | {' | '.join(DEFECTS['tray'])} | AUsPRO 5 % | fit, s of CPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for category in options.categories.split(","):
        with shared_features():
            measure(category, options)


if __name__ == "__main__":
    main()
