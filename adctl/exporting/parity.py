"""Comparison of two runtimes on the same image files: differences of scores, maps, ranks and verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD
from adctl.scoring.classify import predict_rows
from adctl.scoring.predict import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.runtimes.classifier import ClassifierRuntime

_MIN_RANKED = 3
"""Minimum number of images for a rank correlation."""


@dataclass(frozen=True)
class ParityCheck:
    """Differences between two runtimes on the same image files.

    For a classifier, scores are the calibrated probabilities, maps the distances and verdicts the names, and the
    accuracy takes the place of the AUROC.

    Attributes:
        images: Number of images compared.
        max_score_difference: Largest absolute difference of a score, as a share of the largest score of the first.
        mean_score_difference: Mean absolute difference of the scores, as the same share.
        max_map_difference: Largest absolute difference of a map cell, as a share of the largest cell of the first.
        mean_map_difference: Mean absolute difference of the map cells, as the same share.
        rank_correlation: Spearman's rank correlation of the scores; None for fewer than three images.
        changed_verdicts: Number of images with different verdicts.
        auroc: Image AUROC of the first, on the labelled images; None without good or without defective ones.
        auroc_change: Image AUROC of the second minus that of the first; None if `auroc` is None.
    """

    images: int
    max_score_difference: float
    mean_score_difference: float
    max_map_difference: float
    mean_map_difference: float
    rank_correlation: float | None
    changed_verdicts: int
    auroc: float | None
    auroc_change: float | None


def check_parity(
    first: Runtime, second: Runtime, samples: Sequence[Sample], reporter: Reporter = SILENT
) -> ParityCheck:
    """Score the same image files with two runtimes, each reading the files itself.

    Raises:
        DataError: No image can be read, or a score or map is not finite.
    """
    scores: list[tuple[float, float]] = []
    cells: list[tuple[float, float, float]] = []
    labels: list[str | None] = []
    with reporter.stage("verifying", len(samples)) as update:
        pairs = zip(predict(first, samples), predict(second, samples), strict=True)
        for done, (left, right) in enumerate(pairs, 1):
            update(done, len(samples))
            if left.score is None or right.score is None or left.anomaly_map is None or right.anomaly_map is None:
                continue
            scores.append((left.score, right.score))
            gap = np.abs(left.anomaly_map - right.anomaly_map)
            cells.append((float(gap.max()), float(gap.mean()), float(np.abs(left.anomaly_map).max())))
            labels.append(left.item.sample.label)
    if not scores:
        raise DataError("None of the images for the verification can be read.", "Give readable images.")
    return _check(first, np.array(scores), np.array(cells), labels)


def check_kinds(
    first: ClassifierRuntime, second: ClassifierRuntime, samples: Sequence[Sample], reporter: Reporter = SILENT
) -> ParityCheck:
    """Name the same image files with two runtimes of a classifier, each reading the files itself.

    Raises:
        DataError: No image can be read, or an output is not finite.
    """
    pairs = zip(*(predict_rows(each, samples, "auto", 2, reporter) for each in (first, second)), strict=True)
    readable = [(one, other) for one, other in pairs if one.error is None and other.error is None]
    if not readable:
        raise DataError("None of the images for the verification can be read.", "Give readable images.")
    shares = np.array([(one.probabilities, other.probabilities) for one, other in readable])
    distances = np.array([(one.distance, other.distance) for one, other in readable], np.float64)
    if not (np.isfinite(shares).all() and np.isfinite(distances).all()):
        raise DataError("Probabilities or distances of the exported model are not finite.", "Use another precision.")
    gaps = np.abs(shares[:, 0] - shares[:, 1]).max(1) / shares[:, 0].max()
    far = np.abs(distances[:, 0] - distances[:, 1]) / distances[:, 0].max()
    labelled = [(one.kind == one.label, other.kind == one.label) for one, other in readable if one.label is not None]
    accuracy = np.mean(labelled, axis=0) if labelled else None
    return ParityCheck(
        images=len(readable),
        max_score_difference=float(gaps.max()),
        mean_score_difference=float(gaps.mean()),
        max_map_difference=float(far.max()),
        mean_map_difference=float(far.mean()),
        rank_correlation=_rank_correlation(distances),
        changed_verdicts=sum(one.name != other.name for one, other in readable),
        auroc=None if accuracy is None else float(accuracy[0]),
        auroc_change=None if accuracy is None else float(accuracy[1] - accuracy[0]),
    )


def _check(
    first: Runtime, scores: NDArray[np.float64], cells: NDArray[np.float64], labels: Sequence[str | None]
) -> ParityCheck:
    """Compute the differences.

    Args:
        first: The first runtime; its calibration gives the verdicts.
        scores: Scores [N,2] of both runtimes.
        cells: Array [N,3]: for each pair of maps the largest and the mean difference, and the largest cell.
        labels: Labels [N]; None if unknown.
    """
    if not (np.isfinite(scores).all() and np.isfinite(cells).all()):
        raise DataError("Scores or maps of the exported model are not finite.", "Use another precision.")
    gaps = np.abs(scores[:, 0] - scores[:, 1]) / np.abs(scores[:, 0]).max()
    calibration, changed = first.header.calibration, 0
    if calibration is not None:
        changed = sum(calibration.verdict(left) != calibration.verdict(right) for left, right in scores.tolist())
    aurocs = _aurocs(scores, labels)
    return ParityCheck(
        images=len(scores),
        max_score_difference=float(gaps.max()),
        mean_score_difference=float(gaps.mean()),
        max_map_difference=float(cells[:, 0].max() / cells[:, 2].max()),
        mean_map_difference=float(cells[:, 1].mean() / cells[:, 2].max()),
        rank_correlation=_rank_correlation(scores),
        changed_verdicts=changed,
        auroc=None if aurocs is None else aurocs[0],
        auroc_change=None if aurocs is None else aurocs[1] - aurocs[0],
    )


def _rank_correlation(scores: NDArray[np.float64]) -> float | None:
    from scipy.stats import rankdata

    if len(scores) < _MIN_RANKED:
        return None
    first, second = rankdata(scores, axis=0).T
    spreads = first.std() * second.std()
    if spreads == 0:  # all scores of one runtime are equal
        return float(np.array_equal(first, second))
    return float(np.mean((first - first.mean()) * (second - second.mean())) / spreads)


def _aurocs(scores: NDArray[np.float64], labels: Sequence[str | None]) -> tuple[float, float] | None:
    from sklearn.metrics import roc_auc_score

    known = np.array([label is not None for label in labels])
    defective = np.array([label not in (None, GOOD) for label in labels])[known]
    if not defective.any() or defective.all():
        return None
    first, second = (float(roc_auc_score(defective, column)) for column in scores[known].T)
    return first, second
