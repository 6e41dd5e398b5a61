"""The objective of tuning: defects are found, and good images that look a little different are not.

Good images are divided into folds. A trial is fitted on all folds but one and scores the held-out one: as it is; moved,
lighter, darker and noisy, which must not matter; and with a generated defect of each kind. With labelled defects of the
user (`--defects`), these take the place of the generated ones. The test images are never read.
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from adctl.config import names_of, validated
from adctl.data import generated_defects
from adctl.data.datasets.layouts import list_images
from adctl.data.folds import assign_folds
from adctl.data.images import as_grey_or_rgb, read_stored
from adctl.data.split import file_digest
from adctl.errors import DataError, UsageError
from adctl.progress import SILENT
from adctl.records import Sample
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.training.fitting import refit
from adctl.training.plan import plan_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adctl.config import TrainSettings
    from adctl.training.plan import TrainingPlan

log = logging.getLogger(__name__)

OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {
    "ap": "maximize",
    "auroc": "maximize",
    "latency_ms": "minimize",
}
"""Objectives, with the direction that is better."""

_DEFECTS = 3
"""Generated defects for each held-out image, at most; and at most this many images in all."""
_MAX_DEFECTS = 120
STEPS = 4
"""Steps of a fold: after each quarter of the epochs of a gradient training, of which the last is the end."""
_SHIFT = 2
_GAIN = 0.05
_NOISE = 0.012
_TIMED = 9


@dataclass(frozen=True)
class Fold:
    """One fold of the objective.

    Attributes:
        fit: Good images to fit on.
        good: Held-out good images, and copies of them that look a little different.
        defective: Images with defects.
    """

    fit: tuple[Sample, ...]
    good: tuple[Sample, ...]
    defective: tuple[Sample, ...]


@dataclass(frozen=True)
class Benchmark:
    """Images that trials are measured on.

    Attributes:
        plan: Plan of the training; of its images, only the good ones are used.
        folds: Folds, each with its defects.
    """

    plan: TrainingPlan
    folds: tuple[Fold, ...]


@contextmanager
def development_benchmark(
    settings: TrainSettings, *, folds: int, defects: Path | None, seed: int
) -> Iterator[Benchmark]:
    """Write the images of the benchmark to a temporary folder.

    Args:
        settings: Settings of the training.
        folds: Number of folds that are held out in turn.
        defects: Folder of labelled defects, or None for generated ones.
        seed: Seed of folds and defects.

    Raises:
        UsageError: The defects are test images.
        DataError: There are too few good images.
    """
    plan = plan_training(settings)
    if plan.config.channels not in (1, 3):
        raise DataError(
            f"Defects cannot be generated on images of {plan.config.channels} channels.",
            "Choose the settings by hand, or give labelled defects with --defects.",
        )
    pool = [*plan.split.train, *plan.split.validation, *plan.split.calibration]
    digests = {sample.key: file_digest(sample) for sample in pool}
    seeded = {key: f"{seed} {digest}" for key, digest in digests.items()}
    parts = assign_folds(pool, seeded, max(folds, 3))[:folds]
    given = None if defects is None else _labelled(defects, plan)
    with tempfile.TemporaryDirectory(prefix="adctl-tune-") as folder:
        made = []
        for number, held in enumerate(parts):
            keys = {sample.key for sample in held}
            fit = tuple(sample for sample in pool if sample.key not in keys)
            place = Path(folder) / str(number)
            found = given or tuple(_generated(held, place, settings, (seed, number)))
            made.append(Fold(fit, (*held, *_varied(held, place, settings, (seed, number))), found))
        yield Benchmark(plan, tuple(made))


def evaluate(
    benchmark: Benchmark,
    settings: TrainSettings,
    values: Mapping[str, Any],
    objectives: Sequence[str],
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Measure one set of values.

    Args:
        benchmark: Images.
        settings: Settings of the training.
        values: Settings that differ, with options of the detector under `options`.
        objectives: Names from `OBJECTIVES`.
        report: Function called with a step and the mean of the first objective so far, after each fold, and within a
            gradient training after each quarter of its epochs; a fold has `STEPS` steps. It may raise to stop.

    Returns:
        The value of each objective: the mean over folds; of `ap` and `auroc` less the deviation between folds.

    Raises:
        AdctlError: The values do not go together, or training failed.
    """
    changed = with_values(settings, values)
    plan = replace(plan_training(changed), split=benchmark.plan.split)
    measured: list[list[float]] = []
    for number, fold in enumerate(benchmark.folds):
        so_far = _Reports(report, number * STEPS, tuple(row[0] for row in measured))
        measured.append(_measure(fold, changed, plan, objectives, so_far))
        so_far.add(STEPS - 1, measured[-1][0])
    table = np.array(measured)
    spread = table.std(axis=0)
    stable = np.array([name != "latency_ms" for name in objectives])
    return [float(value) for value in table.mean(axis=0) - np.where(stable, spread, 0)]


@dataclass(frozen=True)
class _Reports:
    """Reports of one fold.

    Attributes:
        report: Receiver, or None.
        first_step: Step of its first report.
        values: Values of the first objective in the folds before.
    """

    report: Callable[[int, float], None] | None
    first_step: int
    values: tuple[float, ...]

    def add(self, step: int, value: float) -> None:
        """Report the mean over the folds so far."""
        if self.report is not None:
            self.report(self.first_step + step, float(np.mean([*self.values, value])))


def with_values(settings: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """Return settings with other values.

    Raises:
        UsageError: A value is out of bounds.
    """
    options = {**settings.options, **values.get("options", {})}
    shared = {name: getattr(settings, name) for name in names_of(type(settings))}
    return validated(type(settings), {**shared, **values, "options": options})


def _measure(
    fold: Fold, settings: TrainSettings, plan: TrainingPlan, objectives: Sequence[str], so_far: _Reports
) -> list[float]:
    """Fit on a fold and measure each objective; the first one also while it is fitted, if it is reported."""

    def after_epoch(runtime: TorchRuntime, epoch: int, epochs: int) -> None:
        quarter = STEPS * epoch // epochs
        if STEPS * (epoch - 1) // epochs < quarter < STEPS:
            so_far.add(quarter - 1, *_measures(runtime, fold, settings, objectives[:1]))

    validation = plan.split.validation
    keys = {sample.key for sample in fold.fit}
    part = replace(plan, split=replace(plan.split, validation=tuple(one for one in validation if one.key in keys)))
    detector, header = refit(settings, part, fold.fit, SILENT, after_epoch if so_far.report else None)
    return _measures(TorchRuntime.of(detector, header, plan.device.device), fold, settings, objectives)


def _measures(runtime: TorchRuntime, fold: Fold, settings: TrainSettings, objectives: Sequence[str]) -> list[float]:
    scores = [
        collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers).scores
        for samples in (fold.good, fold.defective)
    ]
    truth = np.repeat([0, 1], [len(one) for one in scores])
    joined = np.concatenate(scores)
    measures: dict[str, Callable[[], float]] = {
        "ap": lambda: float(average_precision_score(truth, joined)),
        "auroc": lambda: float(roc_auc_score(truth, joined)),
        "latency_ms": lambda: _latency(runtime),
    }
    return [measures[name]() for name in objectives]


def _latency(runtime: TorchRuntime) -> float:
    """Return the median time of one image, milliseconds; reading it is not included."""
    from adctl.detectors.components.shared_feature_cache import unshared

    pixels = np.zeros((1, *runtime.input.shape), np.uint8)
    seconds = []
    with unshared():
        for _ in range(_TIMED):
            start = time.perf_counter()
            runtime.predict(pixels)
            seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[1:]))


def _labelled(defects: Path, plan: TrainingPlan) -> tuple[Sample, ...]:
    """Return the defects of the user, which must not be test images."""
    samples = list_images((str(defects),))[0]
    tests = {file_digest(sample) for sample in plan.dataset.test}
    if any(file_digest(sample) in tests for sample in samples):
        raise UsageError(
            f"{defects} holds test images; settings chosen by them would make the test worthless.",
            "Give other labelled defects, or leave out --defects to use generated ones.",
        )
    return tuple(samples)


def _generated(
    held: Sequence[Sample], folder: Path, settings: TrainSettings, seed: tuple[int, int]
) -> Iterator[Sample]:
    kinds = tuple(generated_defects.KINDS)
    for number in range(min(_MAX_DEFECTS, _DEFECTS * len(held))):
        sample, kind = held[number % len(held)], kinds[number % len(kinds)]
        found = generated_defects.paint(_pixels(sample, settings), kind, (*seed, number))
        yield _write(folder / f"defect {number:04}.png", found.image, kind)


def _varied(held: Sequence[Sample], folder: Path, settings: TrainSettings, seed: tuple[int, int]) -> Iterator[Sample]:
    """Yield a copy of each good image that is moved, lighter or darker, and noisy, by as little as a camera varies."""
    rng = np.random.default_rng(seed)
    for number, sample in enumerate(held):
        image = _pixels(sample, settings).astype(np.float32)
        down, right = rng.integers(-_SHIFT, _SHIFT + 1, 2)
        moved = cv2.warpAffine(
            image, np.array([[1, 0, right], [0, 1, down]], np.float32), image.shape[1::-1],
            borderMode=cv2.BORDER_REPLICATE,
        ).reshape(image.shape)  # fmt: skip
        gained = moved * rng.uniform(1 - _GAIN, 1 + _GAIN)
        noisy = gained + rng.normal(0, 255 * _NOISE * rng.uniform(), image.shape)
        yield _write(folder / f"good {number:04}.png", np.clip(noisy, 0, 255).astype(np.uint8), "good")


def _pixels(sample: Sample, settings: TrainSettings) -> NDArray[np.uint8]:
    return as_grey_or_rgb(sample.path, read_stored(sample.path), bit_depth=settings.options.get("bit_depth", 16))


def _write(path: Path, image: NDArray[np.uint8], label: str) -> Sample:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = image if image.shape[2] == 1 else image[..., ::-1]
    cv2.imwrite(str(path), np.ascontiguousarray(plain), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return Sample(path, f"{path.parent.name}/{path.name}", label)
