"""Benchmark of the review loop: false alarms and recall before and after learning from reviewed parts.

    python examples/benchmarks/review_loop.py [DATA] [ARCH,ARCH] [SEED,SEED]

DATA is `../shared/data/magnetic_tile` by default. All pictures of a tile stay together: their numbers are neighbours.
A model learns from about 50 good images. Then about 300 more good parts arrive in three rounds, with the defects of the
same tiles, a third each round. A simulated operator answers with the true label: for every part, or only for rejects
and near misses, parts whose conformal p-value is at most 0.2. After each round `adctl train --update` makes a
candidate, which becomes the present model. The other good images and the defects of the other tiles only measure.
`poisoned` is one round with all good parts and three rejected defects that the operator called good.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from adctl.config import LoadedSettings, TrainSettings, names_of, validated
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import keep_images
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.evaluation.candidate import Share
from adctl.model_file import read_header
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.thresholds.conformal import p_values
from adctl.training.train import train

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adctl.training.single_run import TrainResult

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "magnetic_tile"
START, REVIEWED, ROUNDS = 50, 300, 3
SAME_TILE = 60
"""Largest difference of the numbers of pictures of one tile that follow each other."""

NEAR_MISS = 0.2
POISON = 3


@dataclass(frozen=True)
class Parts:
    """Images of one seed: good ones to start, for each round and to measure, defects for each round and to measure."""

    start: list[Path]
    rounds: list[list[Path]]
    measured: list[Path]
    reviewed_defects: list[list[Path]]
    measured_defects: list[Path]


def tiles(images: Iterable[Path]) -> list[list[Path]]:
    """Group pictures by tile."""
    ordered = sorted(images, key=number)
    found: list[list[Path]] = []
    for path in ordered:
        if found and number(path) - number(found[-1][-1]) <= SAME_TILE:
            found[-1].append(path)
        else:
            found.append([path])
    return found


def number(path: Path) -> int:
    """Return the number in a picture's name."""
    return int(path.stem.rpartition("_")[2])


def draw(data: Path, seed: int) -> Parts:
    """Divide the tiles at random."""
    groups = tiles(data.glob("t*/*/*.jpg"))
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = [groups[place] for place in order]
    good = [[path for path in group if path.parent.name == "good"] for group in shuffled]
    before = np.cumsum([0, *(len(group) for group in good)])
    stages = np.searchsorted([START, *(START + REVIEWED * (1 + np.arange(ROUNDS)) / ROUNDS)], before[:-1], side="right")
    by_stage = [[path for group, stage in zip(good, stages, strict=True) if stage == wanted for path in group]
                for wanted in range(ROUNDS + 2)]  # fmt: skip
    bad = [[path for path in group if path.parent.name != "good"] for group in shuffled]
    review = [path for group, stage in zip(bad, stages, strict=True) if 1 <= stage <= ROUNDS for path in group]
    measured = [path for group, stage in zip(bad, stages, strict=True) if stage > ROUNDS for path in group]
    return Parts(by_stage[0], by_stage[1:-1], by_stage[-1], [review[one::ROUNDS] for one in range(ROUNDS)], measured)


def folder_of(root: Path, images: Sequence[Path], *, by_tile: bool) -> Path:
    """Link images into one folder for each tile, or for each kind."""
    for group in tiles(images):
        for path in group:
            place = root / (f"tile{number(group[0])}" if by_tile else path.parent.name)
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path.resolve())
    return root


def run(**values: Any) -> TrainResult:
    """Train with these settings."""
    given = {"device": "cpu", "export": "none", "tensorboard": False, "group": "folder", **values}
    origins = {name: f"--{name}" if name in given else "default" for name in names_of(TrainSettings)}
    result: Any = train(LoadedSettings(validated(TrainSettings, given), origins))
    return result


class Loop:
    """Review loop of one detector and one seed, in a folder of its own."""

    def __init__(self, arch: str, parts: Parts, work: Path) -> None:
        self.arch, self.parts, self.work = arch, parts, work
        self._names = map(str, itertools.count())
        good = folder_of(self._new(), parts.start, by_tile=True)
        self.start = run(arch=arch, good=good, runs=work / "runs", image_size=256).model
        self.good, self.bad = folder_of(self._new(), parts.measured, by_tile=False), self._new()
        folder_of(self.bad, parts.measured_defects, by_tile=False)

    def _new(self) -> Path:
        return self.work / next(self._names)

    def measure(self, name: str, model: Path) -> str:
        """Return a row of the table: false alarms, recall and AUROC on the images that only measure."""
        header = read_header(model)
        assert header.calibration is not None
        found = [
            collect(TorchRuntime(model, "cpu"), list_images((folder,))[0], batch_size="auto", workers=2).scores
            for folder in (self.good, self.bad)
        ]
        alarms, recall = (Share.of((scores > header.calibration.threshold).tolist()) for scores in found)
        auroc = roc_auc_score(np.repeat([0, 1], [len(scores) for scores in found]), np.concatenate(found))
        return f"{name} | {header.training.images} | {alarms} | {recall} | {auroc:.3f}"

    def update(self, model: Path, good: Sequence[Path], defects: Sequence[Path]) -> TrainResult:
        """Make a candidate from reviewed parts."""
        bad = folder_of(self._new(), defects, by_tile=False) if defects else None
        return run(update=model, good=folder_of(self._new(), good, by_tile=True), defects=bad, runs=self.work / "runs")

    def doubtful(self, model: Path, images: Sequence[Path]) -> list[Path]:
        """Return rejects and near misses."""
        calibration = read_header(model).calibration
        assert calibration is not None
        samples = list_images((str(folder_of(self._new(), images, by_tile=False)),))[0]
        found = collect(TorchRuntime(model, "cpu"), samples, batch_size="auto", workers=2)
        shares = p_values(np.array(calibration.evidence.good), found.scores)
        path_of = {sample.key: sample.path.resolve() for sample in samples}
        chosen = (shares <= NEAR_MISS) | (found.scores > calibration.threshold)
        return [path_of[key] for key, wanted in zip(found.keys, chosen, strict=True) if wanted]

    def rounds(self, *, all_parts: bool) -> tuple[Path, str]:
        """Feed all rounds; return the last candidate, and what was set aside and recommended."""
        model, aside, advice = self.start, 0, []
        for good, defects in zip(self.parts.rounds, self.parts.reviewed_defects, strict=True):
            reviewed = [good, defects] if all_parts else [self.doubtful(model, part) for part in (good, defects)]
            if not reviewed[0]:  # nothing that was good looked doubtful
                continue
            result = self.update(model, *reviewed)
            assert result.update is not None
            model, aside = (
                result.model,
                aside + sum(one.reason == "unlike the others" for one in result.update.set_aside),
            )
            advice.append(result.update.comparison.recommendation)
        return model, f"{aside} good set aside; {', '.join(advice)}"

    def poisoned(self, seed: int) -> str:
        """Call three rejected defects good; return how many were found, and how many good ones were set aside."""
        calibration = read_header(self.start).calibration
        assert calibration is not None
        rejected = [path for part in self.parts.reviewed_defects for path in self.rejects(part, calibration.threshold)]
        wrong = [rejected[one] for one in np.random.default_rng(seed).permutation(len(rejected))[:POISON]]
        good = [path for part in self.parts.rounds for path in part]
        result = self.update(self.start, [*good, *wrong], [])
        assert result.update is not None
        names = [Path(one.path).name for one in result.update.set_aside if one.reason == "unlike the others"]
        found = sum(path.name in names for path in wrong)
        row = self.measure("poisoned, then", result.model)
        return f"{row} | {found} of {len(wrong)} defects found, {len(names) - found} of {len(good)} good set aside"

    def rejects(self, images: Sequence[Path], threshold: float) -> list[Path]:
        """Return the images that the first model rejects."""
        samples = list_images((str(folder_of(self._new(), images, by_tile=False)),))[0]
        found = collect(TorchRuntime(self.start, "cpu"), samples, batch_size="auto", workers=2)
        path_of = {sample.key: sample.path.resolve() for sample in samples}
        return [path_of[key] for key, score in zip(found.keys, found.scores, strict=True) if score > threshold]


def rows_of(loop: Loop, seed: int) -> Iterator[str]:
    """Yield the rows of one detector and one seed, as they come."""
    parts, alone = loop.parts, loop.arch in ("padim", "patchcore")
    yield loop.measure("before", loop.start)
    model, remark = loop.rounds(all_parts=True)
    yield f"{loop.measure('after, all reviewed', model)} | {remark}"
    if not alone:
        return
    model, remark = loop.rounds(all_parts=False)
    yield f"{loop.measure('after, doubtful reviewed', model)} | {remark}"
    everything = [*parts.start, *(path for part in parts.rounds for path in part)]
    good = folder_of(loop.work / "everything", everything, by_tile=True)
    whole = run(arch=loop.arch, good=good, runs=loop.work / "runs", image_size=256).model
    yield loop.measure("trained on all at once", whole)
    yield loop.poisoned(seed)


def main(data: Path, archs: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the rows of the table."""
    print("| detector, seed | model | images | false alarms | recall | AUROC | remarks |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with shared_features(), keep_images():
        for seed, arch in itertools.product(seeds, archs):
            with tempfile.TemporaryDirectory() as folder:
                for row in rows_of(Loop(arch, draw(data, seed), Path(folder)), seed):
                    print(f"| {arch}, {seed} | {row} |", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0]) if given else DATA,
        given[1].split(",") if len(given) > 1 else ["patchcore", "padim", "simplenet"],
        [int(one) for one in given[2].split(",")] if len(given) > 2 else [0, 1, 2],  # noqa: PLR2004
    )
