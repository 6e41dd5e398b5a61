"""Metrics of classifiers: confusion, per-kind and overall metrics, calibration error. Arrays only.

N images, K kinds; kinds are numbers from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adctl.metrics.bootstrap import exact_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.metrics.bootstrap import Interval

Floats = NDArray[np.float64]
Kinds = NDArray[np.int64]

_LEVEL = 0.95
_BINS = 10


@dataclass(frozen=True)
class KindMetrics:
    """Metrics of one kind; None where its images, or images called so, are missing.

    Attributes:
        name: Name of the kind.
        support: Number of images of the kind.
        precision: Share of images called so that are of the kind.
        recall: Share of images of the kind that are called so.
        f1: Harmonic mean of both.
        precision_interval: Exact interval of the precision, 95 %.
        recall_interval: Exact interval of the recall, 95 %.
        auroc: Area under the ROC curve of the kind against all others.
        ap: Average precision of the kind against all others.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None
    precision_interval: Interval | None
    recall_interval: Interval | None
    auroc: float | None
    ap: float | None


@dataclass(frozen=True)
class ReliabilityBin:
    """Images with similar confidence.

    Attributes:
        images: Number of images.
        confidence: Mean probability of the kind that was called.
        accuracy: Share of right calls.
    """

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of a classifier on labelled images.

    Attributes:
        images: N.
        confusion: Number of images by true kind and by called kind.
        kinds: Metrics of each kind.
        overall: Metrics over all kinds by name; None where they are not defined.
        reliability: Non-empty bins of confidence, lowest first.
    """

    images: int
    confusion: tuple[tuple[int, ...], ...]
    kinds: tuple[KindMetrics, ...]
    overall: dict[str, float | None]
    reliability: tuple[ReliabilityBin, ...]


def classification_metrics(truth: Kinds, probabilities: Floats, names: Sequence[str]) -> ClassificationMetrics:
    """Compute all metrics.

    Args:
        truth: Number of the true kind [N].
        probabilities: Probabilities of the kinds [N,K].
        names: Names of the kinds [K].
    """
    called = probabilities.argmax(1)
    confusion = confusion_matrix(truth, called, len(names))
    areas = [_areas(truth == kind, probabilities[:, kind]) for kind in range(len(names))]
    kinds = tuple(_kind(confusion, kind, name, *areas[kind]) for kind, name in enumerate(names))
    bins = reliability_bins(truth, probabilities)
    return ClassificationMetrics(
        images=len(truth),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        kinds=kinds,
        overall={
            **_overall(confusion),
            **_averages(kinds, truth, probabilities),
            "top_3_accuracy": top_k_accuracy(truth, probabilities, 3),
            "ece": expected_calibration_error(bins),
            "log_loss": float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, 1)).mean()),
        },
        reliability=bins,
    )


def confusion_matrix(truth: Kinds, called: Kinds, kinds: int) -> NDArray[np.int64]:
    """Return the number of images [K,K] by true kind (rows) and called kind (columns)."""
    return np.bincount(truth * kinds + called, minlength=kinds * kinds).reshape(kinds, kinds)


def top_k_accuracy(truth: Kinds, probabilities: Floats, count: int) -> float:
    """Return the share of images whose true kind is among the `count` most probable ones."""
    count = min(count, probabilities.shape[1])
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return float((best == truth[:, None]).any(1).mean())


def reliability_bins(truth: Kinds, probabilities: Floats, bins: int = _BINS) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of equal width of the confidence, lowest first."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    # Bins are open below and closed above, as in the paper of Guo et al.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return tuple(
        ReliabilityBin(int(own.sum()), float(confidence[own].mean()), float(right[own].mean()))
        for own in (place == number for number in range(bins))
        if own.any()
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean difference of confidence and accuracy over images (Guo et al., ICML 2017, equation 3)."""
    images = sum(one.images for one in bins)
    return sum(one.images * abs(one.confidence - one.accuracy) for one in bins) / images


def exact_mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p-value that two classifiers err equally often on the same images (McNemar 1947)."""
    from scipy.stats import binomtest

    first, second = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    return 1.0 if first + second == 0 else float(binomtest(first, first + second).pvalue)


def _kind(confusion: NDArray[np.int64], kind: int, name: str, auroc: float | None, ap: float | None) -> KindMetrics:
    right, support, called = (int(x) for x in (confusion[kind, kind], confusion[kind].sum(), confusion[:, kind].sum()))
    return KindMetrics(
        name=name,
        support=support,
        precision=right / called if called else None,
        recall=right / support if support else None,
        f1=2 * right / (support + called) if support else None,
        precision_interval=exact_interval(right, called, _LEVEL) if called else None,
        recall_interval=exact_interval(right, support, _LEVEL) if support else None,
        auroc=auroc,
        ap=ap,
    )


def _areas(truth: NDArray[np.bool_], scores: Floats) -> tuple[float | None, float | None]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if truth.all() or not truth.any():
        return None, None
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


def _overall(confusion: NDArray[np.int64]) -> dict[str, float | None]:
    """Return accuracy, balanced accuracy, Cohen's kappa and Matthews' coefficient (Gorodkin 2004)."""
    total, right = float(confusion.sum()), float(np.trace(confusion))
    true, called = confusion.sum(1).astype(float), confusion.sum(0).astype(float)
    by_chance = float(true @ called)
    kappa_rest = total * total - by_chance
    spread = math.sqrt(total * total - float(called @ called)) * math.sqrt(total * total - float(true @ true))
    recalls = np.diag(confusion)[true > 0] / true[true > 0]
    return {
        "accuracy": right / total,
        "balanced_accuracy": float(recalls.mean()),
        "mcc": (right * total - by_chance) / spread if spread else None,
        "kappa": (right * total - by_chance) / kappa_rest if kappa_rest else None,
    }


def _averages(kinds: Sequence[KindMetrics], truth: Kinds, probabilities: Floats) -> dict[str, float | None]:
    """Return macro and weighted averages over kinds, and areas of all pairs of image and kind together (micro)."""
    found: dict[str, float | None] = {}
    for name in ("precision", "recall", "f1", "auroc", "ap"):
        values = [(getattr(kind, name), kind.support) for kind in kinds if kind.support]
        # Precision of a kind that was never called counts as 0, as in scikit-learn.
        numbers = [(0.0 if value is None and name == "precision" else value, support) for value, support in values]
        known = [(value, support) for value, support in numbers if value is not None]
        found[f"macro_{name}"] = sum(value for value, _ in known) / len(known) if known else None
        weight = sum(support for _, support in known)
        found[f"weighted_{name}"] = sum(value * support for value, support in known) / weight if weight else None
    one_hot = np.eye(probabilities.shape[1], dtype=np.bool_)[truth]
    found["micro_auroc"], found["micro_ap"] = _areas(one_hot.ravel(), probabilities.ravel())
    return found
