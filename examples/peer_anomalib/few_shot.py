"""Anomalib's PatchCore with few good images, on the draws that `examples/benchmarks/few_shot.py --list DIR` wrote.

    python few_shot.py DIR [--shares 0.1,1]

Runs in the environment that `compare.py` creates. Each draw learns from its first 1, 2, 4 and 8 images and scores all
images of DIR/DATA/test, with the network, weights, layers and input size of `peer.py`. `--shares` are the fractions of
the patches that the coreset keeps; anomalib's default is 0.1. Prints a row of the table for each dataset and share:
image AUROC, mean and standard deviation over the draws. Features of an image are computed once.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from anomalib.data.utils import read_image
from peer import build
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

SHOTS = (1, 2, 4, 8)
_BATCH = 16


class KnownFeatures(nn.Module):
    """Feature extractor whose inputs [B,1,1,1] are positions among images whose features are known."""

    def __init__(self, extractor: nn.Module, images: Tensor) -> None:
        super().__init__()
        parts = [extractor(part) for part in images.split(_BATCH)]
        self.known = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def forward(self, places: Tensor) -> dict[str, Tensor]:
        """Return the features of the images by the name of the layer."""
        chosen = places.flatten().long()
        return {name: features[chosen] for name, features in self.known.items()}


class NoMaps(nn.Module):
    """Map generator that generates none: maps are not evaluated."""

    def forward(self, scores: Tensor, size: object) -> Tensor:
        """Return the scores of the patches."""
        del size
        return scores


@torch.inference_mode()
def measure(folder: Path, share: float) -> dict[int, list[float]]:
    """Return the image AUROC of each draw by the number of images."""
    tests = sorted((folder / "test").glob("*/*"))
    truth = [path.parent.name != "good" for path in tests]
    draws = sorted(path for path in folder.iterdir() if path.name.isdigit())
    shown = [path for draw in draws for path in sorted(draw.iterdir())]
    found: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    known: KnownFeatures | None = None
    for number, draw in enumerate(draws):
        for shots in SHOTS:
            lightning = build("patchcore 10 %")
            model = lightning.model.eval()
            if known is None:
                transform = lightning.pre_processor.transform
                images = [transform(read_image(path, as_tensor=True)) for path in (*tests, *shown)]
                known = KnownFeatures(model.feature_extractor, torch.stack(images))
            model.feature_extractor = known
            model.anomaly_map_generator = NoMaps()
            first = len(tests) + sum(len(list(other.iterdir())) for other in draws[:number])
            model.train()
            model(torch.arange(first, first + shots).view(-1, 1, 1, 1).float())
            if share < 1:
                model.subsample_embedding(share)
            else:  # the coreset is the whole; selecting it row by row takes minutes
                model.memory_bank = torch.vstack(model.embedding_store)
            model.eval()
            places = torch.arange(len(tests)).view(-1, 1, 1, 1).float()
            scores = torch.cat([model(part).pred_score for part in places.split(_BATCH)])
            found[shots].append(float(roc_auc_score(truth, scores.flatten())))
        print(draw, {shots: round(values[-1], 3) for shots, values in found.items()}, flush=True)
    return found


def main() -> None:
    """Measure all datasets, and print a row of the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listed", type=Path)
    parser.add_argument("--shares", default="0.1")
    given = parser.parse_args()
    for folder in sorted(path for path in given.listed.iterdir() if path.is_dir()):
        for share in map(float, given.shares.split(",")):
            cells = [
                f"{statistics.mean(one):.3f} ± {statistics.pstdev(one):.3f}" for one in measure(folder, share).values()
            ]
            print(f"| {folder.name} | anomalib, {share:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
