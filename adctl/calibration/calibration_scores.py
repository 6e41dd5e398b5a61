"""Collection of calibration scores: from the model file, from images, or from a saved scored set.

PyTorch is imported only to score images, so that a calibration with stored scores takes less than a second.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.data.datasets.layouts import list_images
from adctl.data.groups import assign_groups
from adctl.data.split import Split
from adctl.datasets import dataset_of_run
from adctl.errors import DataError, UsageError
from adctl.model_file import run_of, tensors_digest
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

_NAME_GOOD = "Name good images that the model was not trained on with --good DIR."


def collect_scores(
    settings: CalibrateSettings, model: Path, header: ModelHeader, reporter: Reporter
) -> CalibrationScores:
    """Collect calibration scores from a saved scored set, the named images, or the model file.

    Args:
        settings: Settings of `adctl calibrate`.
        model: Model file.
        header: Header of the model file.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A named file or folder does not exist.
        DataError: The images or scores cannot be used.
    """
    known = header.calibration.evidence if header.calibration else None
    if settings.scores is not None:
        return read_scored_set(settings.scores, model, header)
    if known is not None and settings.good is None and settings.defects is None and settings.tta is None:
        return known
    return _score_images(settings, model, header, known, reporter)


def _score_images(
    settings: CalibrateSettings, model: Path, header: ModelHeader, known: CalibrationScores | None, reporter: Reporter
) -> CalibrationScores:
    from adctl.runtimes.loading import open_runtime
    from adctl.scoring.predict import calibration_scores_of
    from adctl.scoring.tta import with_views

    views = wanted_views(settings, known)
    rescored = settings.good is None and (known is None or views != known.views)
    if rescored and not held_out_images(model, settings.runs):
        raise UsageError(
            f"{model} learned from all good images, so none is left to score with other views.",
            "Score each by a model without it with --folds 5, or name other good images with --good DIR.",
        )
    runtime = with_views(open_runtime(model, settings.device, settings.gpu, precision=settings.precision), views)
    defects = list_images((str(settings.defects),))[0] if settings.defects else []
    defective = score_samples(runtime, defects, settings, reporter, "scoring defective images") if defects else None
    if known is not None and settings.good is None and views == known.views:
        new = () if defective is None else tuple(sorted(defective.scores.tolist()))
        return replace(known, defective=new or known.defective)
    if settings.good is None:
        samples = held_out_images(model, settings.runs)
    else:
        samples = unseen_images(settings.good, header, settings.group)
    good = score_samples(runtime, samples, settings, reporter, "scoring good images")
    return calibration_scores_of(good, defective, views=views)


def wanted_views(settings: CalibrateSettings, known: CalibrationScores | None) -> tuple[str, ...]:
    """Return the views of test-time augmentation: those in the settings, or else those of the known scores.

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
    """Score images; unreadable images are logged and left out."""
    from adctl.scoring.predict import collect

    with reporter.stage(title):
        return collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)


def unseen_images(folder: Path, header: ModelHeader, group: str | None = None) -> list[Sample]:
    """Return the good images of a folder that the model was not trained on.

    Args:
        folder: Folder of images, or a manifest.
        header: Header of the model file.
        group: Groups of the images; see `adctl.data.groups`.

    Raises:
        UsageError: The folder does not exist, or `group` does not fit its images.
        DataError: There are no such images.
    """
    samples, _ = list_images((str(folder),))
    good = [sample for sample in samples if sample.label in (None, GOOD)]
    unseen = [sample for sample in good if not header.training.was_trained_on(sample.path)]
    _warn_of_left_out(len(samples), len(unseen), "images")
    if not unseen:
        raise DataError(
            f"{folder} has no good images that the model was not trained on.",
            "Give good images that were not used to train this model.",
        )
    return unseen if group is None else list(assign_groups(unseen, group))


def held_out_images(model: Path, runs: Path) -> list[Sample]:
    """Return the good images that were held out for calibration when the model was trained; none if it used them all.

    Raises:
        UsageError: The run of the model is not known.
        DataError: The file of the split is damaged.
    """
    return list(read_split(model, runs).calibration)


def read_split(model: Path, runs: Path, remedy: str = _NAME_GOOD) -> Split:
    """Read how the good images of a model's run were split.

    Args:
        model: Model file.
        runs: Folder of runs.
        remedy: Advice for a model outside its run.

    Raises:
        UsageError: The run of the model is not known.
        DataError: The file of the split is damaged.
    """
    run = run_of(model, runs)
    path = run / run_folder.SPLIT
    dataset = dataset_of_run(run)
    if dataset is None or not path.is_file():
        raise UsageError(
            f"{model} is not in the folder of its training run, so its held-out good images are unknown.",
            remedy,
        )
    return Split.read(path, dataset.train, remedy)


def read_scored_set(path: Path, model: Path, header: ModelHeader) -> CalibrationScores:
    """Read calibration scores of labelled images from a folder that `adctl score` wrote.

    Args:
        path: The folder, or `results.csv` or `results.jsonl` in it.
        model: Model file that gave the scores; its calibration may differ.
        header: Header of the model file.

    Raises:
        UsageError: There are no scores.
        DataError: The scores are damaged or of another model, or there are none of unseen good images.
    """
    scores = ScoreSet.load(path.parent if path.is_file() else path)
    source = scores.manifest.get("model") or {}
    if source.get("tensors_sha256") != tensors_digest(model):
        raise DataError(
            f"The scores in {scores.folder} were not made by {model}, but by {source.get('path', 'another model')}.",
            f"Name that model with --model, or score the images again: adctl score --model {model}.",
        )
    good = [row for row in scores.rows if row.label == GOOD and row.score is not None]
    unseen = [row for row in good if not header.training.was_trained_on(Path(row.path))]
    _warn_of_left_out(len(good), len(unseen), "good images")
    if not unseen:
        raise DataError(
            f"The scores in {scores.folder} include no good image that the model was not trained on.",
            "Score labelled images: one folder for each label, with good images in a folder named 'good'.",
        )
    return CalibrationScores(
        good=_ascending(row.score for row in unseen),
        peaks=_ascending(row.peak for row in unseen),
        defective=_ascending(row.score for row in scores.rows if row.label not in (None, GOOD)),
        views=tuple(scores.manifest.get("views", ())),
    )


def _ascending(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(sorted(value for value in values if value is not None))


def _warn_of_left_out(total: int, used: int, noun: str) -> None:
    if used < total:
        log.warning(
            "%d of %d %s are left out: the model was trained on them, or they are not good.", total - used, total, noun
        )
