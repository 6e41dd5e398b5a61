"""Learning curve (`adctl calibrate --learning-curve`): fit on more and more good images to see how many are enough."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl import files
from adctl.calibration.calibration_scores import wanted_views
from adctl.calibration.refit import Refitter
from adctl.data.datasets.layouts import list_images
from adctl.data.split import split_good
from adctl.errors import UsageError
from adctl.model_file import SUFFIX
from adctl.progress import SILENT, Reporter
from adctl.thresholds.sample_size import LearningPoint, SampleSizeEstimate, estimate_sample_size, training_sizes
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from adctl.config import CalibrateSettings, LoadedSettings
    from adctl.data.split import Split
    from adctl.records import Sample

log = logging.getLogger(__name__)

FOLDER = "learning-curve"
JSON = "learning_curve.json"
PICTURE = "learning_curve.png"
_SCHEMA = "adctl.learning-curve/1"
_SMALLEST = 5
_REPEATS = 3
"""Number of random subsets of each size, for detectors that are fitted in one pass."""

_RATE = 0.01
_BLUE, _GREY = "#0072b2", "#777777"


@dataclass(frozen=True)
class LearningCurve:
    """Results of a detector trained on increasing numbers of good images.

    Attributes:
        model: Model file whose run was fitted again.
        folder: Folder of the JSON file and the chart.
        points: Results for each number of images, in ascending order.
        held_out: Number of held-out good images that were scored with each fit.
        defects: Number of labelled defective images; 0 if none were given.
        answer: Estimate of how many images are enough.
    """

    model: Path
    folder: Path
    points: tuple[LearningPoint, ...]
    held_out: int
    defects: int
    answer: SampleSizeEstimate


def learning_curve(loaded: LoadedSettings[CalibrateSettings], reporter: Reporter = SILENT) -> LearningCurve:
    """Fit a run's detector on subsets of increasing size of its good images, and score the held-out images with each.

    Args:
        loaded: Settings.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: The model does not exist or is not in the folder of its run, or a flag cannot be used here.
        DataError: The images of the run have changed.
        OutputError: The results cannot be written.
    """
    settings = loaded.settings
    for name in ("scores", "folds", "good", "method"):
        if getattr(settings, name) is not None:
            raise UsageError(f"--{name} cannot be used with --learning-curve.", "Leave out one of them.")
    model = find_model(settings.runs, settings.model)
    if model.suffix != SUFFIX:
        raise UsageError(f"{model} is an exported model.", "Name the model.safetensors of its run.")
    folder = settings.out or model.parent / FOLDER
    files.require_replaceable((folder / JSON, folder / PICTURE), overwrite=settings.overwrite)
    refitter = Refitter(model, loaded, reporter)
    defects = list_images((str(settings.defects),))[0] if settings.defects else []
    split = _with_held_out(refitter.split)
    counts = training_sizes(len(split.train), _SMALLEST)
    repeats = 1 if refitter.gradient_trained else _REPEATS
    if refitter.gradient_trained:
        log.warning("This detector needs gradient training, and it will be trained %d times.", len(counts))
    points = []
    with reporter.stage("learning curve", len(counts)) as update:
        for count in counts:
            once = count == len(split.train)  # there is only one subset with all images
            points.append(_point(refitter, split, count, 1 if once else repeats, defects, settings))
            update(len(points), len(counts))
    held_out = len(split.calibration)
    answer = estimate_sample_size(tuple(points), held_out, settings.max_false_alarm or _RATE)
    curve = LearningCurve(model, folder, tuple(points), held_out, len(defects), answer)
    _write(curve)
    return curve


def _with_held_out(split: Split) -> Split:
    """Return the split of the run, or one that holds out a fifth if the run learned from all good images."""
    return split if split.calibration else split_good(split.train, calibration=0.2, validation=0.0, seed=split.seed)


def _point(
    refitter: Refitter, split: Split, count: int, repeats: int, defects: Sequence[Sample], settings: CalibrateSettings
) -> LearningPoint:
    start = time.perf_counter()
    views = wanted_views(settings, None)
    medians, aurocs = [], []
    for repeat in range(repeats):
        detector, header = refitter.fit(_subset(split.train, split.digests, count, repeat))
        good = refitter.score(detector, header, split.calibration, views).scores
        medians.append(float(np.median(good)))
        if defects:
            aurocs.append(_auroc(good, refitter.score(detector, header, defects, views).scores))
    return LearningPoint(count, tuple(medians), tuple(aurocs), round(time.perf_counter() - start, 3))


def _subset(samples: Sequence[Sample], digests: Mapping[str, str], count: int, repeat: int) -> list[Sample]:
    """Return a random subset of `count` images; within a repeat, larger subsets contain the smaller ones."""

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{repeat}:{digests[sample.key]}".encode(errors="surrogatepass")).digest()

    return sorted(sorted(samples, key=rank)[:count], key=lambda sample: sample.key)


def _auroc(good: np.ndarray, defective: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(good), len(defective)])
    return float(roc_auc_score(labels, np.concatenate([good, defective])))


def _write(curve: LearningCurve) -> None:
    table = {"schema": _SCHEMA, **asdict(curve), "model": str(curve.model), "folder": str(curve.folder)}
    files.make_folder(curve.folder)
    files.write_json(curve.folder / JSON, table)
    with files.atomic_path(curve.folder / PICTURE) as temporary:
        _draw(curve, temporary)


def _draw(curve: LearningCurve, target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    values = [point.aurocs or point.scores for point in curve.points]
    counts = [point.images for point in curve.points]
    for count, repeats in zip(counts, values, strict=True):
        axes.plot([count] * len(repeats), repeats, "o", color=_GREY, markersize=4)
    axes.plot(counts, [float(np.mean(repeats)) for repeats in values], color=_BLUE, marker="o")
    if curve.answer.enough is not None:
        axes.axvline(curve.answer.enough, color=_BLUE, linestyle=":")
    _label(axes, curve, counts)
    figure.savefig(target, format="png", dpi=110, metadata={"Software": "adctl"})


def _label(axes: Axes, curve: LearningCurve, counts: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("good training images")
    axes.set_ylabel("image AUROC" if curve.defects else f"median score of {curve.held_out} unseen good images")
    enough = curve.answer.enough
    title = f"More than {counts[-1]} may be needed" if enough is None else f"{enough} training images are enough"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.25)
