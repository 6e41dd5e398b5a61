"""Benchmark of the teacher of EfficientAD: distilled as adctl does, or the backbone itself, by generated defects.

    python examples/benchmarks/efficientad_steps.py [--sets tiles] [--images 240] [--defects 204] [--steps 600]

For each set of `development.py`, half of the good images train the networks; the others are scored, with and without
generated defects. `distilled` is EfficientAD as it is. `backbone` has the target of the distillation as its teacher, so
nothing is lost by the distillation. Both train their student for as many steps. Only good images are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import development
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from adctl.detectors.efficientad import EfficientAD, EfficientADConfig
from adctl.engine.phases import Batch, Observe, Optimize, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.engine.phases import Phase

_BATCH = 4
_SIDE = 128


class BackboneAsTeacher(EfficientAD):
    """EfficientAD whose teacher is the target of the distillation."""

    def phases(self) -> Sequence[Phase]:
        """Return the phases without the training of the teacher."""
        whitening, distillation, *rest = super().phases()
        assert isinstance(distillation, Optimize)
        target = distillation.objective
        assert target is not None
        self.teacher = Target(target, self.normalise)
        return (whitening, *rest)


class Target(nn.Module):
    """Whitened features of the backbone, from normalised images."""

    def __init__(self, target: nn.Module, normalise: nn.Module) -> None:
        super().__init__()
        self.target, self.mean, self.std = target, normalise.mean, normalise.std

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features [B,D,h,w]."""
        return self.target._whitened(images * self.std + self.mean)  # noqa: SLF001 - what the teacher learns


def fitted(kind: type[EfficientAD], images: Tensor, steps: int, seed: int) -> EfficientAD:
    """Return a detector that was trained with so many steps for each phase."""
    torch.manual_seed(seed)
    config = EfficientADConfig(image_size=_SIDE)
    detector = development.pretrained(kind(config))
    keys = [str(number) for number in range(len(images))]
    for phase in detector.phases():
        if isinstance(phase, Observe):
            with torch.inference_mode():
                for part in images.split(_BATCH):
                    phase.absorb(phase.embed(part))
                phase.finish(lambda _done, _all: None)
            continue
        detector.train()
        train(phase, images, keys, steps)
        detector.eval()
    return detector


def train(phase: Optimize, images: Tensor, keys: list[str], steps: int) -> None:
    """Run the gradient steps of a phase."""
    optimizer = torch.optim.AdamW(phase.parameters, 2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(images), (_BATCH,))
        clean = images[chosen]
        loss = total(phase.loss(Batch(clean, clean, keys=tuple(keys[place] for place in chosen))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the image AUROC of EfficientAD with each teacher on a set."""
    learned, held, painted = development.halves(name, arguments.images, arguments.defects, arguments.data)
    spec = EfficientAD(EfficientADConfig(image_size=_SIDE)).input
    fit = development.network_inputs(spec, learned)
    test = development.network_inputs(spec, [*held, *(one.image for one in painted)])
    truth = [0] * len(held) + [1] * len(painted)
    found = {}
    for title, kind in (("distilled", EfficientAD), ("backbone", BackboneAsTeacher)):
        detector = fitted(kind, fit, arguments.steps, 0)
        with torch.inference_mode():
            scores = torch.cat([detector(part).scores for part in test.split(_BATCH)])
        found[title] = float(roc_auc_score(truth, scores.numpy()))
        print(name, title, f"{found[title]:.3f}", flush=True)
    return found


def main() -> None:
    """Measure the sets, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="tiles")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--defects", type=int, default=204)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--data", type=Path, default=development.DATA)
    arguments = parser.parse_args()
    found = {name: measure(name, arguments) for name in arguments.sets.split(",")}
    print(f"| teacher | {' | '.join(found)} |", "|---|" + "---|" * len(found), sep="\n")
    for title in next(iter(found.values())):
        print(f"| {title} | {' | '.join(f'{values[title]:.3f}' for values in found.values())} |")


if __name__ == "__main__":
    main()
