"""`calibrate --learning-curve`: fit on growing parts of the good images, and say how many are enough."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl import files, run_folder
from adctl.calibration.calibration_scores import wanted_views
from adctl.calibration.refit import Refitter
from adctl.data.datasets.layouts import list_images
from adctl.errors import UsageError
from adctl.model_file import SUFFIX
from adctl.progress import SILENT, Reporter
from adctl.thresholds.sample_size import LearningPoint, SampleSizeEstimate, estimate_sample_size, training_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from adctl.config import CalibrateSettings, LoadedSettings
    from adctl.records import Sample

log = logging.getLogger(__name__)

FOLDER = "learning-curve"
JSON = "learning_curve.json"
PICTURE = "learning_curve.png"
_SCHEMA = "adctl.learning-curve/1"
_SMALLEST = 5
_REPEATS = 3
"""Different parts of each size, for detectors that are fitted in one pass."""

_RATE = 0.01
_BLUE, _GREY = "#0072b2", "#777777"


@dataclass(frozen=True)
class LearningCurve:
    """How a detector does with more and more good images.

    Attributes:
        model: The model file whose run was fitted again.
        folder: Where the JSON and the picture lie.
        points: By number of images, ascending.
        held_out: Good images that scored all of them.
        defects: Labelled defective images, 0 without.
        answer: How many are enough.
    """

    model: Path
    folder: Path
    points: tuple[LearningPoint, ...]
    held_out: int
    defects: int
    answer: SampleSizeEstimate


def learning_curve(loaded: LoadedSettings[CalibrateSettings], reporter: Reporter = SILENT) -> LearningCurve:
    """Fit a run's detector on growing parts of its good images and score the held-out ones with each.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model, it lies outside its run, or a flag does not go with this.
        DataError: The run's images have changed.
        OutputError: The results cannot be written.
    """
    settings = loaded.settings
    for name in ("scores", "folds", "good", "method"):
        if getattr(settings, name) is not None:
            raise UsageError(f"--{name} does not go with --learning-curve.", "Leave one of them out.")
    model = run_folder.find_model(settings.runs, settings.model)
    if model.suffix != SUFFIX:
        raise UsageError(f"{model} is an exported model.", "Name the model.safetensors of its run.")
    refitter = Refitter(model, loaded, reporter)
    defects = list_images((str(settings.defects),))[0] if settings.defects else []
    wanted = training_sizes(len(refitter.split.train), _SMALLEST)
    repeats = 1 if refitter.gradient_trained else _REPEATS
    if refitter.gradient_trained:
        log.warning("This detector is trained by gradients: it will be trained %d times.", len(wanted))
    points = []
    with reporter.stage("learning curve", len(wanted)) as update:
        for count in wanted:
            once = count == len(refitter.split.train)  # there is but one part with all images
            points.append(_point(refitter, count, 1 if once else repeats, defects, settings))
            update(len(points), len(wanted))
    held_out = len(refitter.split.calibration)
    found = estimate_sample_size(tuple(points), held_out, settings.max_false_alarm or _RATE)
    curve = LearningCurve(model, settings.out or model.parent / FOLDER, tuple(points), held_out, len(defects), found)
    _write(curve)
    return curve


def _point(
    refitter: Refitter, count: int, repeats: int, defects: Sequence[Sample], settings: CalibrateSettings
) -> LearningPoint:
    start = time.perf_counter()
    views = wanted_views(settings, None)
    medians, aurocs = [], []
    for repeat in range(repeats):
        detector, header = refitter.fit(_part(refitter.split.train, refitter.split.digests, count, repeat))
        good = refitter.score(detector, header, refitter.split.calibration, views).scores
        medians.append(float(np.median(good)))
        if defects:
            aurocs.append(_auroc(good, refitter.score(detector, header, defects, views).scores))
    return LearningPoint(count, tuple(medians), tuple(aurocs), round(time.perf_counter() - start, 3))


def _part(samples: Sequence[Sample], digests: Mapping[str, str], count: int, repeat: int) -> list[Sample]:
    """So many images; the smaller parts of the same repeat lie within the larger ones."""

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{repeat}:{digests[sample.key]}".encode()).digest()

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
    figure.savefig(target, format="png", dpi=110)


def _label(axes: Axes, curve: LearningCurve, counts: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("good images learned from")
    axes.set_ylabel("image AUROC" if curve.defects else f"median score of {curve.held_out} unseen good images")
    enough = curve.answer.enough
    title = f"{counts[-1]} are not seen to be enough" if enough is None else f"{enough} are enough to learn from"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.25)
