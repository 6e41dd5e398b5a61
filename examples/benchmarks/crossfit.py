"""Benchmark of out-of-fold calibration: its cost, its scores, and the false alarms of the default threshold.

    python examples/benchmarks/crossfit.py cost FOLDER [ROUNDS] [50,200] ["padim; patchcore coreset_ratio=0.1"]
    python examples/benchmarks/crossfit.py rates FOLDER

FOLDER holds good images, such as `magnetic_tile/train/good`. `cost` trains detectors on 50 and 200 of them, in turns
alone (all images are learned from, none is scored) and with scores out of fold, by default 2 rounds; it prints median
seconds of the processor and the median ratio. `rates` draws 20 images 6 times, 50 images 4 times, 100 images 3 times
and 200 images twice from at most 400, trains on them, and prints the false alarms of several thresholds on 150 others.
Each takes 2 to 4 minutes of a core.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from adctl.config import LoadedSettings, TrainSettings, names_of, validated
from adctl.data.datasets.layouts import list_images
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.records import CalibrationScores
from adctl.runtimes.loading import open_runtime
from adctl.scoring.predict import collect
from adctl.thresholds import conformal, smooth_tail, unsupervised
from adctl.training import single_run
from adctl.training.single_run import train_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.metrics.labels import Floats
    from adctl.records import Sample

ARCHS = ("padim", "patchcore")
SHARES = {"held out": 0.2, "out of fold": None}
DRAWS = {20: 6, 50: 4, 100: 3, 200: 2}
_DEFAULTS = ("2", "50,200", "padim;patchcore;patchcore coreset_ratio=0.1;ensemble")
_OTHERS = 150
_MOST = 400
THRESHOLDS = {
    "99th percentile": lambda good: unsupervised.by_percentile(good, 99),
    "conformal 1 %": lambda good: conformal.by_false_alarm(good, 0.01),
    "smooth 1 %": lambda good: smooth_tail.by_smooth_tail(good, 0.01),
}


def train(
    options: dict[str, Any], images: list[Path], share: float | None = None, others: Sequence[Sample] = ()
) -> tuple[tuple[float, ...], Floats, float]:
    """Train on images; return the calibration scores, the scores of other images, and the seconds of the training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "good"
        folder.mkdir()
        for path in images:
            (folder / path.name).symlink_to(path)
        values = {"good": folder, "runs": Path(name), "image_size": 256, "device": "cpu", **options}
        values |= {"calibration_share": share, "tensorboard": False}
        loaded = LoadedSettings(validated(TrainSettings, values), dict.fromkeys(names_of(TrainSettings), "benchmark"))
        start = time.process_time()
        result = train_once(loaded)
        seconds = time.process_time() - start
        assert result is not None
        runtime = open_runtime(result.model, "cpu")
        scores = collect(runtime, others, batch_size="auto", workers=2).scores if others else np.empty(0)
        return result.calibration.evidence.good, scores, seconds


def train_alone(options: dict[str, Any], images: list[Path]) -> float:
    """Return the seconds of a training whose threshold costs nothing: it comes from given scores."""
    scores = CalibrationScores(good=tuple(float(number) for number in range(20)))
    with mock.patch.object(single_run, "train_into", partial(single_run.train_into, calibration_scores=scores)):
        return train(options, images)[2]


def options_of(text: str) -> dict[str, Any]:
    """Return settings of a training from a text such as `patchcore coreset_ratio=0.1`."""
    arch, *values = text.split()
    pairs = (value.split("=") for value in values)
    return {"arch": arch, "options": {key: json.loads(value) if value[0].isdigit() else value for key, value in pairs}}


def cost(images: list[Path], rounds: int, counts: Sequence[int], configurations: Sequence[str]) -> None:
    """Print the time of training alone and of training with scores out of fold."""
    for text in configurations:
        options = options_of(text)
        train(options, images[:10])
        for count in counts:
            pairs = [(train_alone(options, images[:count]), train(options, images[:count])[2]) for _ in range(rounds)]
            plain, crossed = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(crossed / plain for plain, crossed in pairs)
            print(
                f"{text:35} {count:4} images: {plain:6.1f} s alone, {crossed:6.1f} s with scores, ratio {ratio:.2f}",
                flush=True,
            )


def rates(images: list[Path]) -> None:
    """Print the false alarms of thresholds from held-out scores and from scores out of fold, on other good images."""
    samples = {Path(sample.path).name: sample for sample in list_images((str(images[0].parent),))[0]}
    for arch in ARCHS:
        for count, draws in DRAWS.items():
            found: dict[tuple[str, str], list[float]] = {}
            heights: dict[tuple[str, str], list[float]] = {}
            for seed in range(draws):
                order = np.random.default_rng(seed).permutation(len(images))
                used, others = ([images[place] for place in part] for part in (order[:count], order[count:]))
                for kind, share in SHARES.items():
                    good, new, _ = train({"arch": arch}, used, share, [samples[path.name] for path in others[:_OTHERS]])
                    for name, choose in THRESHOLDS.items():
                        threshold = choose(np.array(good)).value
                        found.setdefault((kind, name), []).append(float(np.mean(new > threshold)))
                        heights.setdefault((kind, name), []).append(threshold / float(np.quantile(new, 0.99)))
            for (kind, name), values in found.items():
                height = np.mean(heights[kind, name])
                print(
                    f"{arch:10} {count:4} images, {kind:11}, {name:16}: {100 * np.mean(values):5.2f} % false alarms, "
                    f"most {100 * max(values):5.2f} %, threshold {height:.3f} of the 99th percentile of new images",
                    flush=True,
                )


if __name__ == "__main__":
    given = sorted(path.resolve() for path in Path(sys.argv[2]).iterdir())
    given = given[:: -(-len(given) // _MOST)]
    if sys.argv[1] == "cost":
        rounds, counts, texts = (*sys.argv[3:], *_DEFAULTS[len(sys.argv) - 3 :])
        cost(given, int(rounds), [*map(int, counts.split(","))], texts.split(";"))
    else:
        with shared_features():
            rates(given)
