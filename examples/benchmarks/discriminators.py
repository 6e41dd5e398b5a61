"""Benchmark of discriminators on whitened features: SimpleNet, SuperSimpleNet and GLASS, by generated defects.

    python examples/benchmarks/discriminators.py [--sets tiles,grid,zippers,wood] [--images 200] [--defects 204]

For each set of `development.py`, half of the good images train PaDiM and each discriminator; the others are scored,
with and without generated defects. Discriminators learn from synthetic defects of `adctl.data.synthetic`, which are
other ones. Features are computed once, whitened by each covariance of PaDiM. Each discriminator is scored alone and
with its map added to that of the distance, both standardised over the cells of good images left out of the training.
Only good images are read.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import development
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from adctl.detectors.components.anomaly_maps import GaussianBlur, top_mean
from adctl.detectors.components.synthetic_anomalies import paint_anomaly
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.engine.phases import Observe
from adctl.metrics.exact import ExactMeter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BATCH = 16
_COVERED = 0.3
"""Fraction of a cell that a synthetic defect must cover for the cell to count as defective."""
_VERDICTS = (0.25, 0.5, 1.0)
"""Weights of a discriminator's map beside that of the distance."""


@dataclass
class Features:
    """Whitened features of a set.

    Attributes:
        good: Tensor [n,P,D] of the images to fit.
        scale: Tensor [k,P,D] of good images that only the scales of the maps come from.
        painted: Tensor [views,n,P,D] of the same images with synthetic defects.
        covered: Tensor [views,n,P], the fraction of each cell that a synthetic defect covers.
        test: Tensor [m,P,D] of good images, then of images with generated defects.
        masks: Masks [H,W] of the generated defects, of the test images; without a defect, all false.
        grid: Rows and columns of cells.
    """

    good: Tensor
    scale: Tensor
    painted: Tensor
    covered: Tensor
    test: Tensor
    masks: list[np.ndarray]
    grid: tuple[int, int]

    @property
    def truth(self) -> list[int]:
        """Return 1 for each test image with a defect, 0 for the others."""
        return [int(mask.any()) for mask in self.masks]


def fitted(images: Tensor, covariance: str) -> PaDiM:
    """Return a PaDiM of the images [n,C,H,W]."""
    config = PaDiMConfig(image_size=256, covariance=covariance)
    detector = development.pretrained(PaDiM(config)).eval()
    for phase in detector.phases():
        assert isinstance(phase, Observe)
        for batch in images.split(_BATCH):
            phase.absorb(phase.embed(batch))
        phase.finish(lambda _done, _all: None)
    return detector


def features_of(name: str, count: int, defects: int, views: int, data: Path) -> dict[str, Features]:
    """Return the features of a set, whitened by each covariance of PaDiM."""
    learned, held, changed = development.halves(name, count, defects, data)
    spec = PaDiM(PaDiMConfig(image_size=256)).input
    fit = development.network_inputs(spec, learned)
    fit, scale = fit[: -len(fit) // 10], fit[-len(fit) // 10 :]
    drawn = [
        paint_anomaly(part, [f"{name} {view} {start} {n}" for n in range(len(part))])
        for view in range(views)
        for start, part in enumerate(fit.split(_BATCH))
    ]
    painted = torch.cat([part for part, _ in drawn])
    test = development.network_inputs(spec, [*held, *(one.image for one in changed)])
    masks = [np.zeros(image.shape[:2], bool) for image in held] + [one.mask for one in changed]
    found = {}
    for covariance in ("full", "shared"):
        detector = fitted(fit, covariance)

        def whitened(part: Tensor, detector: PaDiM = detector) -> Tensor:
            return torch.cat([detector.whitened(batch).transpose(0, 1).half() for batch in part.split(_BATCH)])

        covered = F.interpolate(
            torch.cat([mask for _, mask in drawn]).unsqueeze(1).float(), size=detector.grid, mode="area"
        ).flatten(1)
        found[covariance] = Features(
            whitened(fit),
            whitened(scale),
            whitened(painted).unflatten(0, (views, len(fit))),
            covered.unflatten(0, (views, len(fit))),
            whitened(test),
            masks,
            detector.grid,
        )
    return found


# ---- discriminators


@dataclass(frozen=True)
class Recipe:
    """Training of a discriminator.

    Attributes:
        noise: Deviation of the noise on good features, in deviations of the features; 0 for none.
        spots: Whether the noise covers spots of the image instead of all cells (SuperSimpleNet, section 3.2).
        ascent: Steps of gradient ascent that move noisy features to where they look good (GLASS, section 3.3).
        painted: Whether features of images with synthetic defects are learned from too.
        views: Number of different synthetic defects for each image.
        kernel: Side of the window of cells that the discriminator sees.
        focal: Whether the loss is focal loss with a truncated L1 loss (SuperSimpleNet, section 3.3).
        image: Whether a second head scores whole images (SuperSimpleNet, section 3.1); its score counts alone.
        epochs: Passes over the images.
        hidden: Width.
    """

    noise: float = 0.4
    spots: bool = False
    ascent: int = 0
    painted: bool = True
    views: int = 1
    kernel: int = 1
    focal: bool = False
    image: bool = False
    epochs: int = 20
    hidden: int = 128


RECIPES = {
    "noise alone": Recipe(painted=False),
    "painted alone": Recipe(noise=0),
    "noise and painted: simplenet": Recipe(),
    "the same, 4 views": Recipe(views=4),
    "gradient ascent, 3 steps": Recipe(ascent=3, painted=False),
    "gradient ascent and painted: GLASS": Recipe(ascent=3),
    "noise in spots, focal and L1: SuperSimpleNet without image head": Recipe(spots=True, focal=True, painted=False),
    "SuperSimpleNet": Recipe(spots=True, focal=True, painted=False, image=True),
    "SuperSimpleNet and painted, 4 views": Recipe(spots=True, focal=True, image=True, views=4),
    "noise in spots and painted, windows of 3 cells, 4 views": Recipe(spots=True, kernel=3, views=4),
    "painted alone, windows of 3 cells, 4 views": Recipe(noise=0, kernel=3, views=4),
    "painted alone, windows of 5 cells, 4 views": Recipe(noise=0, kernel=5, views=4),
}


class Discriminator(nn.Module):
    """Adaptor, logits of cells, and a logit of the image from features and cells."""

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.adaptor = nn.Conv2d(channels, channels, 1)
        nn.init.dirac_(self.adaptor.weight)
        nn.init.zeros_(self.adaptor.bias)
        side = recipe.kernel
        self.cells = nn.Sequential(
            nn.Conv2d(channels, recipe.hidden, side, padding=side // 2, padding_mode="replicate"),
            nn.BatchNorm2d(recipe.hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(recipe.hidden, 1, 1),
        )
        self.inner = nn.Sequential(nn.Conv2d(channels + 1, 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU())
        self.image = nn.Linear(2 * 64 + 2, 1)

    def whole(self, features: Tensor, cells: Tensor) -> Tensor:
        """Return logits [B] of images from adapted features [B,D,h,w] and logits [B,1,h,w]."""
        inner = self.inner(torch.cat([features, cells], 1))
        pooled = [one for part in (inner, cells) for one in (part.mean((2, 3)), part.amax((2, 3)))]
        logits: Tensor = self.image(torch.cat(pooled, 1)).squeeze(1)
        return logits


def trained(features: Features, recipe: Recipe, seed: int) -> Discriminator:
    """Return a discriminator trained by a recipe."""
    torch.manual_seed(seed)
    count, _, channels = features.good.shape
    net = Discriminator(channels, recipe)
    steps = recipe.epochs * -(-count // _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)

    def grids(rows: Tensor) -> Tensor:
        return rows.float().transpose(1, 2).unflatten(2, features.grid)

    for _ in range(recipe.epochs):
        for chosen in torch.randperm(count).split(_BATCH):
            view = int(torch.randint(min(recipe.views, len(features.painted)), ()))
            spots = features.covered[view, chosen[torch.randperm(len(chosen))]] if recipe.spots else None
            covered = features.covered[view, chosen].unflatten(1, features.grid) > _COVERED
            loss = loss_of(
                net,
                recipe,
                grids(features.good[chosen]),
                grids(features.painted[view, chosen]),
                covered,
                None if spots is None else spots.unflatten(1, features.grid) > _COVERED,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def loss_of(
    net: Discriminator, recipe: Recipe, good: Tensor, painted: Tensor, covered: Tensor, spots: Tensor | None
) -> Tensor:
    """Return the loss of a batch: grids [B,D,h,w] of good and painted images, and masks [B,h,w] of defective cells."""
    clean = net.adaptor(good)
    parts, targets = [clean], [torch.zeros_like(covered)]
    if recipe.noise:
        where = torch.ones_like(covered) if spots is None else spots
        parts.append(corrupted(net, recipe, clean, where))
        targets.append(where)
    if recipe.painted:
        parts.append(net.adaptor(painted))
        targets.append(covered)
    rows, target = torch.cat(parts), torch.cat(targets)
    logits = net.cells(rows)
    loss = cell_loss(logits.squeeze(1), target, focal=recipe.focal)
    if recipe.image:
        loss = loss + F.binary_cross_entropy_with_logits(net.whole(rows, logits), target.flatten(1).any(1).float())
    return loss


def corrupted(net: Discriminator, recipe: Recipe, clean: Tensor, where: Tensor) -> Tensor:
    """Return features [B,D,h,w] with noise in the cells of a mask [B,h,w]."""
    strength = recipe.noise * 2 ** (2 * torch.rand(len(clean), 1, *clean.shape[2:]) - 1)
    offset = strength * torch.randn_like(clean)
    radius = strength * clean.shape[1] ** 0.5
    for _ in range(recipe.ascent):
        moved = (clean + offset).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.softplus(-net.cells(moved)).sum(), moved)
        offset = offset + 0.3 * radius * F.normalize(gradient, dim=1)
        length = offset.norm(dim=1, keepdim=True)
        offset = offset * (length.clamp(min=radius / 2).minimum(2 * radius) / length.clamp(min=1e-6))
    return clean + offset * where.unsqueeze(1)


def cell_loss(logits: Tensor, target: Tensor, *, focal: bool) -> Tensor:
    """Return the loss of logits [n], good and defective cells weighted alike."""
    signed = torch.where(target, logits, -logits)
    losses = F.softplus(-signed)
    if focal:
        losses = losses * torch.sigmoid(-signed).square() * 4 + (0.5 - signed).clamp(min=0)
    good, bad = losses[~target], losses[target]
    return good.sum() / max(1, len(good)) + bad.sum() / max(1, len(bad))


# ---- measures


def maps_of(net: Discriminator, rows: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return logits [n,h,w] of the cells and logits [n] of the images."""
    cells, images = [], []
    for part in rows.split(_BATCH):
        adapted = net.adaptor(part.float().transpose(1, 2).unflatten(2, grid))
        logits = net.cells(adapted)
        cells.append(logits.squeeze(1))
        images.append(net.whole(adapted, logits))
    return torch.cat(cells), torch.cat(images)


def quality(maps: Tensor, features: Features, scores: Tensor | None = None) -> tuple[float, float]:
    """Return image AUROC and AUPRO of maps [n,h,w]."""
    maps = GaussianBlur(0.7)(maps)
    scores = top_mean(maps, 0.01) if scores is None else scores
    meter = ExactMeter()
    for values, mask in zip(maps, features.masks, strict=True):
        small = F.interpolate(torch.from_numpy(mask)[None, None].float(), (128, 128), mode="nearest")[0, 0].bool()
        large = F.interpolate(values[None, None], (128, 128), mode="bilinear")[0, 0]
        bad = bool(mask.any()) and bool(small.any())
        if bad or not mask.any():
            meter.add(large.numpy(), small.numpy() if bad else None, "defect" if bad else None)
    pro = meter.result().aupro
    return float(roc_auc_score(features.truth, scores.numpy())), float("nan") if pro is None else pro


def standardised(good: Tensor, test: Tensor) -> Tensor:
    """Return test values in deviations of the good ones."""
    return (test - good.mean()) / good.std()


def rows_of(spaces: dict[str, Features], seeds: Sequence[int]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the name and the quality of the distance, of each discriminator, and of both together."""
    full = spaces["full"]
    with torch.inference_mode():

        def distance(rows: Tensor) -> Tensor:
            return rows.float().square().mean(2).clamp(min=1e-12).log().unflatten(1, full.grid) / 2

        base = standardised(distance(full.scale), distance(full.test))
        yield "distance: padim", quality(base, full)
    for (name, recipe), (space, features) in itertools.product(RECIPES.items(), spaces.items()):
        found: dict[str, list[tuple[float, float]]] = {}
        title = f"{name}; {space}"
        for seed in seeds:
            net = trained(features, recipe, seed)
            with torch.inference_mode():
                good, test = maps_of(net, features.scale, features.grid), maps_of(net, features.test, features.grid)
                logits = standardised(good[0], test[0])
                found.setdefault(title, []).append(quality(logits, features))
                if recipe.image:
                    found.setdefault(f"{title}, image head", []).append(quality(logits, features, test[1]))
                for weight in _VERDICTS:
                    found.setdefault(f"{title}, {weight} beside the distance", []).append(
                        quality(base + weight * logits, features)
                    )
        for row, values in found.items():
            yield row, (float(np.mean([one for one, _ in values])), float(np.mean([one for _, one in values])))


def main() -> None:
    """Measure the sets, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="tiles,grid,zippers,wood")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--defects", type=int, default=204)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--data", type=Path, default=development.DATA)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found: dict[str, list[str]] = {}
    for name in given.sets.split(","):
        with torch.inference_mode():
            spaces = features_of(name, given.images, given.defects, 4, given.data)
        for row, (auroc, pro) in rows_of(spaces, seeds):
            found.setdefault(row, []).append(f"{auroc:.3f} / {pro:.3f}")
            print(name, row, found[row][-1], flush=True)
    print(f"\n| map | {' | '.join(given.sets.split(','))} |", "|---|" + "---|" * len(given.sets.split(",")), sep="\n")
    for row, values in found.items():
        print(f"| {row} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
