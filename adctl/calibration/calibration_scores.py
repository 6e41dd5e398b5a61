"""Where the scores come from that thresholds are chosen from: the model file, images, or a saved scored set.

Only scoring images imports torch, so that thresholds are chosen again within a second.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.data.datasets.layouts import list_images
from adctl.data.split import Split
from adctl.datasets import dataset_of_run
from adctl.errors import DataError, UsageError
from adctl.model_file import tensors_digest
from adctl.records import GOOD, CalibrationScores
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adctl.config import CalibrateSettings
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.scoring.predict import CollectedScores

log = logging.getLogger(__name__)

_NO_VIEWS = "none"


def gather(settings: CalibrateSettings, model: Path, header: ModelHeader, reporter: Reporter) -> CalibrationScores:
    """The scores the settings mean: saved ones, those of images named, or those kept in the model file.

    Args:
        settings: Of `adctl calibrate`.
        model: The model file.
        header: Its header.
        reporter: Told how far it is.

    Raises:
        UsageError: Something named does not exist.
        DataError: The images or scores cannot be used.
    """
    known = header.calibration.evidence if header.calibration else None
    if settings.scores is not None:
        return from_scores(settings.scores, model, header)
    if known is not None and settings.good is None and settings.defects is None and settings.tta is None:
        return known
    return _from_images(settings, model, header, known, reporter)


def _from_images(
    settings: CalibrateSettings, model: Path, header: ModelHeader, known: CalibrationScores | None, reporter: Reporter
) -> CalibrationScores:
    from adctl.runtimes.loading import open_runtime
    from adctl.scoring.predict import calibration_scores_of
    from adctl.scoring.tta import with_views

    views = wanted_views(settings, known)
    runtime = with_views(open_runtime(model, settings.device, settings.gpu), views)
    defects = list_images((str(settings.defects),))[0] if settings.defects else []
    defective = score_samples(runtime, defects, settings, reporter, "scoring defective images") if defects else None
    if known is not None and settings.good is None and views == known.views:
        found = () if defective is None else tuple(sorted(defective.scores.tolist()))
        return CalibrationScores(known.good, known.peaks, found or known.defective, known.folds, views)
    samples = held_out(model) if settings.good is None else unseen(settings.good, header)
    good = score_samples(runtime, samples, settings, reporter, "scoring good images")
    return calibration_scores_of(good, defective, views=views)


def wanted_views(settings: CalibrateSettings, known: CalibrationScores | None) -> tuple[str, ...]:
    """The views of test-time augmentation to score with: those named, or those of the scores known.

    Raises:
        UsageError: A view is unknown.
    """
    from adctl.scoring.tta import parse_views

    if settings.tta is None:
        return known.views if known else ()
    return () if settings.tta == _NO_VIEWS else parse_views(settings.tta)


def score_samples(
    runtime: Runtime, samples: Sequence[Sample], settings: CalibrateSettings, reporter: Reporter, title: str
) -> CollectedScores:
    """Score images; those that cannot be read are told of and left out."""
    from adctl.scoring.predict import collect

    with reporter.stage(title):
        found = collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)
    for message in found.skipped:
        log.warning("%s", message)
    return found


def unseen(folder: Path, header: ModelHeader) -> list[Sample]:
    """The good images of a folder that a model has not learned from.

    Raises:
        UsageError: There is no such folder.
        DataError: None is left.
    """
    samples, _ = list_images((str(folder),))
    fresh = [one for one in samples if one.label in (None, GOOD) and not header.training.was_trained_on(one.path)]
    _tell_left_out(len(samples), len(fresh), "images")
    if not fresh:
        raise DataError(
            f"All images in {folder} were used to train this model, so their scores say nothing.",
            "Give good images that it has not seen.",
        )
    return fresh


def held_out(model: Path) -> list[Sample]:
    """The good images set aside for calibration when a model was trained.

    Raises:
        UsageError: The model file lies outside its run.
        DataError: The run's record of them is damaged.
    """
    return list(split_of(model).calibration)


def learned_from(model: Path) -> list[Sample]:
    """The good images that a model learned from.

    Raises:
        UsageError: The model file lies outside its run.
        DataError: The run's record of them is damaged.
    """
    return list(split_of(model).train)


def split_of(model: Path) -> Split:
    """How the good images of a model's run were divided.

    Raises:
        UsageError: The model file lies outside its run.
        DataError: The run's record of them is damaged.
    """
    path = model.parent / run_folder.SPLIT
    dataset = dataset_of_run(model.parent)
    if dataset is None or not path.is_file():
        raise UsageError(
            f"{model} lies outside its run, so its held-out good images are not known.",
            "Name good images that it has not seen with --good DIR.",
        )
    try:
        return Split.from_dict(json.loads(path.read_text(encoding="utf-8")), dataset.train)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Name good images with --good DIR.") from error


def from_scores(path: Path, model: Path, header: ModelHeader) -> CalibrationScores:
    """The scores of labelled images in a folder that `adctl score` wrote, or in a file of it.

    Args:
        path: The folder, or `results.csv` or `results.jsonl` in it.
        model: The model file that gave the scores, whatever its calibration.
        header: Its header.

    Raises:
        UsageError: There are no scores.
        DataError: They are damaged, of another model, or none is of a good image.
    """
    scores = ScoreSet.load(path.parent if path.is_file() else path)
    made_by = scores.manifest.get("model", {})
    if made_by.get("tensors_sha256") != tensors_digest(model):
        raise DataError(
            f"The scores in {scores.folder} were not made by {model}, but by {made_by.get('path', 'another model')}.",
            f"Name that model with --model, or score again: adctl score --model {model}.",
        )
    good = [row for row in scores.rows if row.label == GOOD and row.score is not None]
    fresh = [row for row in good if not header.training.was_trained_on(Path(row.path))]
    _tell_left_out(len(good), len(fresh), "good images")
    if not fresh:
        raise DataError(
            f"The scores in {scores.folder} hold no good image that the model has not learned from.",
            "Score labelled images: one folder a label, good ones in a folder named 'good'.",
        )
    return CalibrationScores(
        good=_ascending(row.score for row in fresh),
        peaks=_ascending(row.peak for row in fresh),
        defective=_ascending(row.score for row in scores.rows if row.label not in (None, GOOD)),
        views=tuple(scores.manifest.get("views", ())),
    )


def _ascending(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(sorted(value for value in values if value is not None))


def _tell_left_out(total: int, left: int, what: str) -> None:
    if left < total:
        log.warning(
            "Left out %d of %d %s: the model learned from them, or they are not good.", total - left, total, what
        )
