"""Two runtimes on the same image files: how far scores, maps, ranks and verdicts differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD
from adctl.scoring.predict import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample
    from adctl.runtimes.base import Runtime

_FEW = 3
"""Images that a rank correlation needs at least."""


@dataclass(frozen=True)
class ParityCheck:
    """How two runtimes differ on the same image files.

    Attributes:
        images: How many were compared.
        max_score_difference: Largest difference of scores, as a share of the largest score.
        mean_score_difference: Mean of it.
        max_map_difference: Largest difference of map cells, as a share of the largest cell.
        mean_map_difference: Mean of it.
        rank_correlation: Spearman's, of the scores; None of fewer than three images.
        changed_verdicts: Images judged differently.
        auroc: Of the first, from images whose labels are known; None where good or defective ones are missing.
        auroc_change: What the second's is more; None likewise.
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
    """Predict the same image files with two runtimes, each reading them for itself.

    Raises:
        DataError: None of the images can be read, or scores are no finite numbers.
    """
    scores: list[tuple[float, float]] = []
    cells: list[tuple[float, float, float]] = []
    labels: list[str | None] = []
    with reporter.stage("verifying", len(samples)) as update:
        for done, (one, other) in enumerate(zip(predict(first, samples), predict(second, samples), strict=True), 1):
            update(done, len(samples))
            if one.score is None or other.score is None or one.anomaly_map is None or other.anomaly_map is None:
                continue
            scores.append((one.score, other.score))
            gap = np.abs(one.anomaly_map - other.anomaly_map)
            cells.append((float(gap.max()), float(gap.mean()), float(np.abs(one.anomaly_map).max())))
            labels.append(one.item.sample.label)
    if not scores:
        raise DataError("None of the images to verify on can be read.", "Name readable ones.")
    return _check(first, np.array(scores), np.array(cells), labels)


def _check(
    first: Runtime, scores: NDArray[np.float64], cells: NDArray[np.float64], labels: Sequence[str | None]
) -> ParityCheck:
    """Scores [n,2] of both; of the maps' differences the largest, the mean, and the largest cell [n,3]."""
    if not (np.isfinite(scores).all() and np.isfinite(cells).all()):
        raise DataError("Scores or maps of the exported model are no finite numbers.", "Take another precision.")
    gaps = np.abs(scores[:, 0] - scores[:, 1]) / np.abs(scores[:, 0]).max()
    calibration, changed = first.header.calibration, 0
    if calibration is not None:
        changed = sum(calibration.verdict(one) != calibration.verdict(other) for one, other in scores.tolist())
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

    if len(scores) < _FEW:
        return None
    first, second = rankdata(scores, axis=0).T
    spreads = first.std() * second.std()
    if spreads == 0:  # all alike in one of them
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
