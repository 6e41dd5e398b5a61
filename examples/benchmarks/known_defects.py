"""Known defects beside good images: AUROC on seen and unseen kinds of magnetic_tile, kinds left out in turn.

    python examples/benchmarks/known_defects.py --data DIR --arch patchcore padim --test 60 --out known_defects.json

Each kind of defect is left out in turn. Of every other kind, 0, 1, 5 or 20 images are learned from; the rest of them
tests the seen kinds, the kind left out tests the unseen one, against the good test images. Pictures of a tile that was
learned from test nothing; their numbers are neighbours. Each model is compared on the same images as the model without
defects. Backbone features are computed once. The file keeps each line as soon as it is measured, and a repeated call
measures only what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from adctl.config import TrainSettings, validated
from adctl.data.loader import ImageSource, keep_images
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.engine.batching import to_input
from adctl.engine.context import FitContext
from adctl.progress import SILENT
from adctl.records import GOOD
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.training.fitting import fit_new, image_sources
from adctl.training.known_defects import load_known_defects
from adctl.training.plan import plan_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from adctl.records import Sample

COUNTS = (1, 5, 20)
IDENTITY = ("arch", "seed", "left_out", "count")
SAME_TILE = 60
"""Largest difference of the numbers of pictures of one tile that follow each other."""
ROOM = 4 << 30
"""Bytes of cached features."""


class Trainer:
    """Trainings of one detector with one seed, with and without known defects.

    Args:
        data: Folder in MVTec AD layout.
        arch: Name of the detector.
        seed: Seed of the training.
        train: Largest number of good images to train on.
        test: Largest number of test images of a kind; of good ones, twice as many.
    """

    def __init__(self, data: Path, arch: str, seed: int, train: int, test: int) -> None:
        values = {"data": data, "arch": arch, "seed": seed, "image_size": 256, "device": "cpu", "export": "none"}
        self.settings = validated(TrainSettings, values)
        plan = plan_training(self.settings)
        self.plan = replace(plan, split=replace(plan.split, train=evenly(plan.split.train, train)))
        by_kind: dict[str, list[Sample]] = defaultdict(list)
        for sample in plan.dataset.test:
            by_kind[str(sample.label)].append(sample)
        self.by_kind = {kind: evenly(own, test * (1 + (kind == GOOD))) for kind, own in by_kind.items()}
        self.test = [sample for own in self.by_kind.values() for sample in own]
        self._fitted: Any = None
        self._patches: Tensor | None = None
        self._without: dict[str, float] | None = None

    def without(self) -> dict[str, float]:
        """Return the scores without known defects."""
        if self._without is None:
            self._without = self.scores([])
        return self._without

    def _good_patches(self, detector: Any) -> tuple[Tensor, list[int]]:
        """Return the features of some training images, as a fit of PatchCore buffers them, and their positions."""
        train = self.plan.split.train
        numbers = [train.index(sample) for sample in evenly(train, 60)]
        if self._patches is None:
            source = ImageSource([train[number] for number in numbers], detector.input, workers=1, reuse=False)
            with torch.inference_mode():
                found = [detector.patches(to_input(pixels, torch.device("cpu"))) for pixels in source.batches(8)]
            self._patches = torch.cat(found).half()
        return self._patches, numbers

    def scores(self, defects: list[Sample]) -> dict[str, float]:
        """Return the score of each test image by its key."""
        if self.settings.arch == "padim" and self._fitted is not None:
            detector, header = self._fitted  # the weights are all that known defects change
            detector.known_defects = load_known_defects(defects, self.plan.config, self.settings.workers)
            detector._learn_weights()  # noqa: SLF001 - saves 15 equal fits
        elif self.settings.arch == "patchcore" and self._fitted is not None:
            detector, header = self._fitted  # the memory of defects is all that changes
            detector.known_defects = load_known_defects(defects, self.plan.config, self.settings.workers)
            detector._learn_defects(*self._good_patches(detector))  # noqa: SLF001 - as above
        else:
            plan = replace(self.plan, defects=tuple(defects))
            images = image_sources(self.settings, plan)
            detector, header, _ = fit_new(self.settings, plan, FitContext(SILENT), images)
            self._fitted = detector, header
        runtime = TorchRuntime.of(detector.eval(), header, self.plan.device.device)
        return collect(runtime, self.test, batch_size=8, workers=1).by_key()


def evenly(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """Return at most so many samples, evenly spaced."""
    places = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int))
    return tuple(samples[place] for place in places)


def tiles_of(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the tile of each image by its key."""
    found, tile, last = {}, 0, None
    for number, key in sorted((int(sample.path.stem.rpartition("_")[2]), sample.key) for sample in samples):
        tile += last is not None and number - last > SAME_TILE
        found[key], last = tile, number
    return found


def auroc(scores: dict[str, float], good: Sequence[Sample], bad: Sequence[Sample]) -> float:
    """Return the area under the ROC curve of good against bad images."""
    values = [scores[sample.key] for sample in (*good, *bad)]
    return float(roc_auc_score([0] * len(good) + [1] * len(bad), values))


def measure(trainer: Trainer, seed: int, left_out: str, count: int) -> dict[str, Any]:
    """Return the line of a kind that is left out and a number of images, with the AUROC without defects too."""
    by_kind = dict(trainer.by_kind)
    good, without = by_kind.pop(GOOD), trainer.without()
    tile = tiles_of(trainer.test)
    random = np.random.default_rng([seed, count])
    known, seen = [], []
    for kind, samples in sorted(by_kind.items()):
        if kind != left_out:
            order = random.permutation(len(samples))
            known += [samples[place] for place in order[:count]]
            seen += [samples[place] for place in order[count:]]
    learned = {tile[sample.key] for sample in known}
    seen, unseen = ([one for one in part if tile[one.key] not in learned] for part in (seen, by_kind[left_out]))
    scores = trainer.scores(known)
    return {
        "arch": trainer.settings.arch,
        "seed": seed,
        "left_out": left_out,
        "count": count,
        "seen": auroc(scores, good, seen),
        "seen_without": auroc(without, good, seen),
        "unseen": auroc(scores, good, unseen),
        "unseen_without": auroc(without, good, unseen),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown table: means over kinds and seeds, and the largest loss of an unseen kind over seeds."""
    rows = [
        "| detector | images per known kind | seen kinds | change | unseen kinds | change | worst kind |",
        "|---|---|---|---|---|---|---|",
    ]
    for arch in dict.fromkeys(line["arch"] for line in lines):
        for count in sorted({line["count"] for line in lines}):
            own = [line for line in lines if line["arch"] == arch and line["count"] == count]
            if not own:
                continue
            mean = {name: statistics.mean(line[name] for line in own) for name in own[0] if "seen" in name}
            changes = defaultdict(list)
            for line in own:
                changes[line["left_out"]].append(line["unseen"] - line["unseen_without"])
            worst = min((statistics.mean(values), kind) for kind, values in changes.items())
            rows.append(
                f"| {arch} | {count} | {mean['seen']:.3f} | {mean['seen'] - mean['seen_without']:+.3f} "
                f"| {mean['unseen']:.3f} | {mean['unseen'] - mean['unseen_without']:+.3f} "
                f"| {worst[0]:+.3f} ({worst[1]}) |"
            )
    return "\n".join(rows)


def main() -> None:
    """Run the measurement and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", nargs="+", default=["padim", "patchcore", "simplenet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("known_defects.json"))
    chosen = parser.parse_args()
    lines = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else []
    done = {tuple(line[name] for name in IDENTITY) for line in lines}
    with shared_features(ROOM), keep_images():
        for seed in chosen.seeds:
            for arch in chosen.arch:
                trainer = Trainer(chosen.data, arch, seed, chosen.train, chosen.test)
                for count in chosen.counts:
                    for kind in sorted(set(trainer.by_kind) - {GOOD}):
                        if (arch, seed, kind, count) not in done:
                            lines.append(measure(trainer, seed, kind, count))
                            print(json.dumps(lines[-1]), flush=True)
                            chosen.out.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    main()
