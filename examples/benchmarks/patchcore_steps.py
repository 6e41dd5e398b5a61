"""Benchmark of each step from plain PatchCore, as in anomalib, to adctl's, by generated defects on good images.

    python examples/benchmarks/patchcore_steps.py [--sets tiles,grid,zippers] [--images 200] [--defects 204]

For each set of `development.py`, half of the good images fill the bank (1 % of the patches) and the others are scored,
with and without generated defects. The backbone's features are computed once; each row of the table changes one thing
of the row above. Only good images are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import development
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.coreset import k_center_greedy
from adctl.detectors.components.feature_maps import local_average, stack_levels, to_rows
from adctl.detectors.components.feature_statistics import RIDGE, PlaceStatistics, principal_directions
from adctl.detectors.patchcore import PatchCore, PatchCoreConfig

_BATCH, _RATIO, _NEIGHBOURS = 8, 0.01, 9
_CELLS = (21, 21)
"""Rows and columns of cells of 12 pixels."""


def levels_of(detector: PatchCore, images: list[development.Image]) -> list[Tensor]:
    """Return the backbone's levels [n,C,h,w] of images."""
    batches = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    parts = [detector.backbone(development.network_inputs(detector.input, batch)) for batch in batches]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def search(features: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance [B,h,w] of each feature [B,C,h,w] to the bank [N,C], and the nearest row [B,h*w]."""
    maps, nearest = [], []
    for part in features.split(_BATCH):
        rows = to_rows(part)
        squares = rows.square().sum(1, keepdim=True) + bank.square().sum(1) - 2 * rows @ bank.t()
        lowest, place = squares.min(1)
        maps.append(lowest.clamp(min=0).sqrt().view(len(part), *part.shape[2:]))
        nearest.append(place.view(len(part), -1))
    return torch.cat(maps), torch.cat(nearest)


def reweighted(features: Tensor, maps: Tensor, nearest: Tensor, bank: Tensor) -> Tensor:
    """Return the re-weighted maxima [B] (Roth et al. 2022, equation 7)."""
    rows, highest = features.flatten(2).transpose(1, 2), maps.flatten(1).argmax(1)
    scores = []
    for image, cell in enumerate(highest.tolist()):
        own = bank[nearest[image, cell]]
        near = bank[(bank - own).square().sum(1).topk(min(_NEIGHBOURS, len(bank)), largest=False).indices]
        distances = (near - rows[image, cell]).square().sum(1).sqrt()
        scores.append((1 - torch.softmax(distances, 0)[0]) * maps[image].flatten()[cell])
    return torch.stack(scores)


def steps(fit: list[Tensor], test: list[Tensor]) -> dict[str, Tensor]:
    """Return the scores of the test images by the name of the step."""
    blur, found = GaussianBlur(0.5), {}

    def maps_of(good: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = to_rows(good)
        bank = rows[k_center_greedy(rows, max(1, round(_RATIO * len(rows))), seed=0)]
        return *search(new, bank), bank

    good, new = (stack_levels([F.avg_pool2d(level, 3, 1, 1) for level in levels]) for levels in (fit, test))
    maps, nearest, bank = maps_of(good, new)
    found["plain, as anomalib: maximum re-weighted by 9 neighbours"] = reweighted(new, maps, nearest, bank)
    found["the maximum"] = maps.flatten(1).amax(1)
    found["smoothed by 0.5 cells, highest 1 %"] = top_mean(blur(maps), 0.01)
    good, new = (stack_levels([local_average(level, 3) for level in levels]) for levels in (fit, test))
    found["averages without zeros beyond the border"] = top_mean(blur(maps_of(good, new)[0]), 0.01)
    good, new = (stack_levels([*levels, local_average(levels[0], 3)], _CELLS) for levels in (fit, test))
    found["cells of 12 pixels, finest level averaged beside it"] = top_mean(blur(maps_of(good, new)[0]), 0.01)
    mean, deviation = good.mean((0, 2, 3), keepdim=True), good.std((0, 2, 3), keepdim=True)
    everywhere = maps_of((good - mean) / deviation, (new - mean) / deviation)[0]
    found["standardised over all places"] = top_mean(blur(everywhere), 0.01)
    centre, spread = (one.float() for one in PlaceStatistics.of([good], torch.device("cpu")).around(1e-6))
    good, new = (good - centre) / spread, (new - centre) / spread
    found["standardised around each place"] = top_mean(blur(maps_of(good, new)[0]), 0.01)
    variances, directions = principal_directions(torch.cov(to_rows(good).t()).double())
    variances, kept = variances.float().clamp(min=0), directions[:, :80].float()
    floor = RIDGE * variances.mean()
    scales = (variances[:80] + floor).pow(-0.25).view(-1, 1, 1)
    along, other = (F.conv2d(features, kept.t()[:, :, None, None]) for features in (good, new))
    beyond = 0.25 * (variances[80:].mean() + floor).pow(-0.5) * (new.square().sum(1) - other.square().sum(1))
    reduced = (maps_of(along * scales, other * scales)[0].square() + beyond).clamp(min=0).sqrt()
    found["80 directions, half whitened, with remainder: adctl"] = top_mean(blur(reduced), 0.01)
    return found


@torch.inference_mode()
def measure(name: str, count: int, defects: int, data: Path) -> dict[str, float]:
    """Return the image AUROC of each step on a set."""
    detector = development.pretrained(PatchCore(PatchCoreConfig(image_size=256))).eval()
    learned, held, painted = development.halves(name, count, defects, data)
    fit = levels_of(detector, learned)
    test = levels_of(detector, [*held, *(one.image for one in painted)])
    truth = [0] * len(held) + [1] * len(painted)
    return {step: float(roc_auc_score(truth, scores)) for step, scores in steps(fit, test).items()}


def main() -> None:
    """Measure the sets, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="tiles,grid,zippers")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--defects", type=int, default=204)
    parser.add_argument("--data", type=Path, default=development.DATA)
    given = parser.parse_args()
    names = given.sets.split(",")
    found = {name: measure(name, given.images, given.defects, given.data) for name in names}
    print(f"| step | {' | '.join(names)} |", "|---|" + "---|" * len(names), sep="\n")
    for step in next(iter(found.values())):
        print(f"| {step} | {' | '.join(f'{values[step]:.3f}' for values in found.values())} |")


if __name__ == "__main__":
    main()
