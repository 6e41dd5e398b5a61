"""Benchmark of classifiers on magnetic_tile: balance strategies, frozen and tuned, and kinds that training lacks.

    python examples/benchmarks/classifier.py frozen FOLDER [--size 256] [--seeds 0,1,2]
    python examples/benchmarks/classifier.py unknown FOLDER [--size 256] [--seeds 0,1,2]
    python examples/benchmarks/classifier.py tuned FOLDER --size 128 --epochs 3 [--seeds 0]
    python examples/benchmarks/classifier.py tables FOLDER

FOLDER keeps features and results, and `tables` prints Markdown tables of them. Data: `../shared/data/magnetic_tile`,
five kinds of defects and good tiles. All pictures of a tile stay together: their numbers are neighbours. A quarter of
the tiles tests. `frozen` fits softmax regression to the features of the frozen backbone, which are computed once. The
best strategy is chosen by out-of-fold balanced accuracy on the training images, and compared with `none` on the test
images by a permutation test that swaps the two names of all pictures of a tile.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adctl.classification.classifier import Classifier
from adctl.classification.config import ClassifierConfig
from adctl.classification.dataset import digests_of, label_of, open_labelled
from adctl.classification.decision import decide, fit_decision
from adctl.classification.predict import predict_images
from adctl.classification.split import LabelledSplit, hold_out
from adctl.classification.training.fitting import (
    ClassifierPlan,
    classify_features,
    fit_classifier,
    fit_on,
    out_of_fold,
)
from adctl.config import TrainSettings, validated
from adctl.data.loader import ImageSource
from adctl.detectors.components import backbones
from adctl.engine.batching import to_input
from adctl.engine.context import FitContext
from adctl.metrics.bootstrap import exact_interval
from adctl.metrics.classification import confusion_matrix
from adctl.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "magnetic_tile"
STRATEGIES = ("none", "weights", "class-balanced", "focal", "oversample", "undersample", "logit adjustment")
SAME_TILE = 60
"""Largest difference of the numbers of pictures of one tile that follow each other."""

CPU = torch.device("cpu")
PERMUTATIONS = 10_000


def images() -> tuple[Sample, ...]:
    """Return all labelled images, each with its tile as its group."""
    found = open_labelled(settings()).train
    ordered = sorted(found, key=number)
    group_of, group, last = {}, 0, None
    for sample in ordered:
        group += last is not None and number(sample) - last > SAME_TILE
        last = number(sample)
        group_of[sample.key] = f"tile{group}"
    return tuple(replace(sample, group=group_of[sample.key]) for sample in found)


def number(sample: Sample) -> int:
    """Return the number in a picture's name."""
    return int(sample.path.stem.rpartition("_")[2])


def settings(strategy: str = "none", seed: int = 0, **more: Any) -> TrainSettings:
    """Return the settings of one training."""
    balance = "none" if strategy == "logit adjustment" else strategy
    given = {"task": "classify", "data": str(DATA), "device": "cpu", "tensorboard": False, "balance": balance}
    return validated(TrainSettings, {**given, "seed": seed, **more})


def config(strategy: str, seed: int, **more: Any) -> ClassifierConfig:
    """Return the settings of one classifier."""
    adjustment = 1.0 if strategy == "logit adjustment" else 0.0
    return ClassifierConfig(head="linear", seed=seed, logit_adjustment=adjustment, **more)


def plan_of(samples: Sequence[Sample], digests: dict[str, str], seed: int, own: ClassifierConfig) -> ClassifierPlan:
    """Divide the images, a quarter of the tiles to test; a tuned backbone has a part to calibrate on too."""
    train, test = hold_out(samples, digests, 0.25, seed)
    calibration: tuple[Sample, ...] = ()
    if own.fine_tune != "none":
        train, calibration = hold_out(train, digests, 0.2, seed + 1)
    classes = tuple(sorted({label_of(sample) for sample in train}))
    split = LabelledSplit(train, (), calibration, test, digests, seed)
    return ClassifierPlan(own, classes, split, CPU, "magnetic_tile")


def features(folder: Path, samples: Sequence[Sample], size: int) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Return the features of each image by its key, and the processor seconds for an image; kept in the folder."""
    file = folder / f"features-{size}.npz"
    if not file.exists():
        classifier = Classifier(config("none", 0, image_size=size), 2)
        weights = backbones.find_weights(classifier.config.backbone, None)
        if weights is not None:
            classifier.load_pretrained(weights.tensors)
        start = time.process_time()
        source = ImageSource(tuple(samples), classifier.input, workers=1, reuse=False)
        with torch.inference_mode():
            found = [classifier.eval().features(to_input(pixels, CPU)).numpy() for pixels in source.batches(8)]
        seconds = (time.process_time() - start) / len(samples)
        np.savez(file, features=np.concatenate(found), seconds=seconds)
    stored = np.load(file)
    return dict(zip((one.key for one in samples), stored["features"], strict=True)), float(stored["seconds"])


def rows_of(samples: Sequence[Sample], by_key: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the features [N,D] of some images."""
    return np.stack([by_key[sample.key] for sample in samples])


def frozen(folder: Path, size: int, seeds: Sequence[int]) -> None:
    """Measure each strategy with a frozen backbone."""
    samples = images()
    digests = digests_of(samples)
    by_key, seconds = features(folder, samples, size)
    for seed in seeds:
        for strategy in STRATEGIES:
            own, given = config(strategy, seed, image_size=size), settings(strategy, seed)
            plan = plan_of(samples, digests, seed, own)
            classifier = Classifier(own, len(plan.classes))
            train, labels = rows_of(plan.split.train, by_key), plan.numbers(plan.split.train)
            start = time.process_time()
            held = out_of_fold(given, plan, classifier, train)
            fit_on(given, classifier, train, labels)
            head = time.process_time() - start
            logits, distances = classify_features(classifier, rows_of(plan.split.test, by_key))
            decision = fit_decision(held.logits, held.distances, held.labels, 0.95)
            save(
                folder / f"frozen-{size}-{seed}-{strategy.replace(' ', '-')}.json",
                plan,
                strategy=strategy,
                inside=balanced(labels, held.logits.argmax(1), len(plan.classes)),
                called=logits.argmax(1),
                unknown=decide(decision, logits, distances).unknown,
                seconds=head + seconds * len(labels),
                head_seconds=head,
            )


def unknown(folder: Path, size: int, seeds: Sequence[int]) -> None:
    """Leave each kind out in turn, and measure how often it is called unknown."""
    samples = images()
    digests = digests_of(samples)
    by_key, _ = features(folder, samples, size)
    for seed in seeds:
        for kind in sorted({label_of(sample) for sample in samples}):
            own = config("none", seed, image_size=size)
            kept = tuple(sample for sample in samples if sample.label != kind)
            left = [sample for sample in samples if sample.label == kind]
            plan = plan_of(kept, digests, seed, own)
            classifier = Classifier(own, len(plan.classes))
            train = rows_of(plan.split.train, by_key)
            held = out_of_fold(settings(), plan, classifier, train)
            fit_on(settings(), classifier, train, plan.numbers(plan.split.train))
            decision = fit_decision(held.logits, held.distances, held.labels, 0.95)
            known, new = (
                decide(decision, *classify_features(classifier, rows_of(part, by_key))).unknown
                for part in (plan.split.test, left)
            )
            report = {"kind": kind, "seed": seed, "known": known.tolist(), "unseen": new.tolist()}
            (folder / f"unknown-{size}-{seed}-{kind}.json").write_text(json.dumps(report), encoding="utf-8")
            print(f"{kind} seed {seed}: known kept {1 - known.mean():.3f}, unseen called unknown {new.mean():.3f}")


def tuned(folder: Path, size: int, seeds: Sequence[int], epochs: int) -> None:
    """Measure each strategy with the last stage of the backbone trained too."""
    samples = images()
    digests = digests_of(samples)
    for seed in seeds:
        for strategy in STRATEGIES:
            file = folder / f"tuned-{size}-{seed}-{strategy.replace(' ', '-')}.json"
            if file.exists():
                continue
            own = config(strategy, seed, image_size=size, fine_tune="last")
            given = settings(strategy, seed, epochs=epochs, batch_size=16)
            plan = plan_of(samples, digests, seed, own)
            start = time.process_time()
            fitted = fit_classifier(given, plan, FitContext(SILENT))
            seconds = time.process_time() - start
            logits, distances = predict_images(fitted.classifier, plan.split.test, CPU, SILENT)
            named = decide(fitted.header.decision, logits, distances)
            save(
                file,
                plan,
                strategy=strategy,
                inside=balanced(fitted.calibration.labels, fitted.calibration.logits.argmax(1), len(plan.classes)),
                called=logits.argmax(1),
                unknown=named.unknown,
                seconds=seconds,
                head_seconds=0.0,
            )


def save(
    file: Path, plan: ClassifierPlan, *, strategy: str, inside: float, called: Any, unknown: Any, **more: Any
) -> None:
    """Write the names of the test images."""
    test = plan.split.test
    labels = plan.numbers(test)
    found = {
        "strategy": strategy,
        "classes": plan.classes,
        "inside": inside,
        **more,
        "keys": [one.key for one in test],
        "groups": [one.group for one in test],
        "labels": labels.tolist(),
        "called": called.tolist(),
        "unknown": unknown.tolist(),
    }
    file.write_text(json.dumps(found), encoding="utf-8")
    print(f"{file.stem}: balanced accuracy {balanced(labels, called, len(plan.classes)):.3f}", flush=True)


def balanced(labels: NDArray[np.int64], called: NDArray[np.int64], kinds: int) -> float:
    """Return the mean recall of the kinds that have images."""
    confusion = confusion_matrix(labels, called, kinds)
    support = confusion.sum(1)
    return float((np.diag(confusion)[support > 0] / support[support > 0]).mean())


def tables(folder: Path) -> None:
    """Print the tables."""
    for prefix in sorted({"-".join(file.stem.split("-")[:2]) for file in folder.glob("*-*-*-*.json")}):
        if prefix.startswith("unknown"):
            unknown_table(folder, prefix)
        else:
            strategy_table(folder, prefix)


def strategy_table(folder: Path, prefix: str) -> None:
    """Print the table of the strategies, and compare the best with none."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob(f"{prefix}-*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(one["strategy"], []).append(one)
    seeds = min(len(runs) for runs in found.values())
    classes = found["none"][0]["classes"]
    print(f"\n{prefix}, {seeds} seeds\n")
    print("| balance | macro F1 | balanced accuracy |", *(f"{name} |" for name in classes), "seconds |")
    print("|---|---|---|", *("---|" for _ in classes), "---|")
    for strategy in [one for one in STRATEGIES if one in found]:
        runs = found[strategy]
        confusions = [confusion_matrix(np.array(one["labels"]), np.array(one["called"]), len(classes)) for one in runs]
        f1 = [np.mean(2 * np.diag(one) / np.maximum(one.sum(0) + one.sum(1), 1)) for one in confusions]
        accuracy = [balanced(np.array(one["labels"]), np.array(one["called"]), len(classes)) for one in runs]
        total = np.sum(confusions, axis=0)
        recalls = []
        for kind in range(len(classes)):
            right, support = int(total[kind, kind]), int(total[kind].sum())
            interval = exact_interval(right, support, 0.95)
            recalls.append(f"{right / support:.2f} ({interval.low:.2f} to {interval.high:.2f}) |")
        spread = [
            f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, seeds - 1)):.3f} |" for values in (f1, accuracy)
        ]
        print(f"| {strategy} |", *spread, *recalls, f"{np.median([one['seconds'] for one in runs]):.0f} |")
    best = max((one for one in found if one != "none"), key=lambda one: np.mean([run["inside"] for run in found[one]]))
    difference, p_value = permutation_test(found["none"], found[best], len(classes))
    print(f"\nBest out of fold: {best}. Balanced accuracy against none {difference:+.3f}, p = {p_value:.4f}")


def permutation_test(first: list[dict[str, Any]], second: list[dict[str, Any]], kinds: int) -> tuple[float, float]:
    """Return the mean difference of balanced accuracy, and the p-value if the names of whole tiles are swapped."""
    tiles = sorted({group for run in first for group in run["groups"]})
    effects = np.zeros(len(tiles))
    for one, other in zip(first, second, strict=False):
        labels = np.array(one["labels"])
        support = np.bincount(labels, minlength=kinds)
        present = (support > 0).sum() * len(first)
        gains = (np.array(other["called"]) == labels).astype(float) - (np.array(one["called"]) == labels)
        place = [tiles.index(group) for group in one["groups"]]
        np.add.at(effects, place, gains / support[labels] / present)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (PERMUTATIONS, len(tiles)))
    reached = (np.abs(signs @ effects) >= abs(effects.sum()) - 1e-12).sum()
    return float(effects.sum()), float((1 + reached) / (1 + PERMUTATIONS))


def unknown_table(folder: Path, prefix: str) -> None:
    """Print the shares called unknown."""
    print(f"\n{prefix}\n\n| left out | known kept | called unknown |\n|---|---|---|")
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob(f"{prefix}-*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(one["kind"], []).append(one)
    for kind, runs in found.items():
        known = 1 - np.concatenate([run["known"] for run in runs]).mean()
        shares = [np.mean(run["unseen"]) for run in runs]
        print(f"| {kind} | {known:.3f} | {np.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}) |")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("frozen", "unknown", "tuned", "tables"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(one) for one in given.seeds.split(",")]
    if given.part == "tables":
        tables(given.folder)
    elif given.part == "tuned":
        tuned(given.folder, given.size, seeds, given.epochs)
    else:
        {"frozen": frozen, "unknown": unknown}[given.part](given.folder, given.size, seeds)


if __name__ == "__main__":
    main()
