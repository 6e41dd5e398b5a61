"""Decision of a classifier: probabilities, the name of the kind or `unknown`, and the set of possible kinds.

Everything is calibrated on images that the head has not learned from. Arrays only. N images, K kinds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

UNKNOWN = "unknown"
"""Name of images that resemble no kind of the training."""

_COLDEST, _HOTTEST = 0.02, 50.0
"""Range of temperatures."""

_ROUNDING = 1e-4
"""Largest difference of energies that single precision can make by itself."""


@dataclass(frozen=True)
class Decision:
    """Numbers that turn logits and distances into names.

    Attributes:
        temperature: Divisor of the logits (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
        distance_limit: Distance above which an image is unknown.
        energy_limit: Energy above which an image is unknown (Liu et al., "Energy-based Out-of-distribution Detection",
            NeurIPS 2020); None for an infinite limit of few images, and for logits that all have the same energy.
        set_limit: Kinds whose probability is at least this belong to the conformal set (Sadinle et al., "Least
            Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019).
        thresholds: For each kind, the probability from which calling it has the best F1 [K].
        known_share: Wanted share of images of known kinds that are not called unknown, 0 to 1.
        images: Number of calibration images.
    """

    temperature: float
    distance_limit: float | None
    energy_limit: float | None
    set_limit: float
    thresholds: tuple[float, ...]
    known_share: float
    images: int


@dataclass(frozen=True)
class Named:
    """Names of N images.

    Attributes:
        probabilities: Calibrated probabilities of the kinds [N,K].
        kinds: Number of the most probable kind [N].
        unknown: Whether an image resembles no kind [N].
        sets: Whether each kind belongs to the conformal set [N,K].
    """

    probabilities: Floats
    kinds: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    sets: NDArray[np.bool_]

    def names(self, classes: Sequence[str]) -> list[str]:
        """Return the name of each image's kind, or `unknown`."""
        return [UNKNOWN if no else classes[kind] for kind, no in zip(self.kinds, self.unknown, strict=True)]


def fit_decision(logits: Floats, distances: Floats, labels: NDArray[np.int64], known_share: float) -> Decision:
    """Calibrate on images that the head has not learned from.

    Either of two signs makes an image unknown, so each may claim half of the allowed share, or the distance all of it
    where the energy tells nothing; the quantiles are those of split conformal prediction, which hold for new images of
    known kinds.

    Args:
        logits: Logits [N,K].
        distances: Distances [N].
        labels: Number of the true kind [N].
        known_share: Wanted share of known images that are not called unknown.
    """
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, 1)
    true = probabilities[np.arange(len(labels)), labels]
    energies = energy(logits)
    # Logarithms of probabilities all have the same energy, so that only rounding would tell images apart.
    tells = bool(np.ptp(energies) > _ROUNDING)
    level = 1 - (1 - known_share) / 2 if tells else known_share
    set_limit = conformal_quantile(1 - true, known_share)
    return Decision(
        temperature=temperature,
        distance_limit=_finite(conformal_quantile(distances, level)),
        energy_limit=_finite(conformal_quantile(energies, level)) if tells else None,
        set_limit=0.0 if math.isinf(set_limit) else 1 - set_limit,
        thresholds=tuple(best_f1_threshold(probabilities[:, kind], labels == kind) for kind in range(logits.shape[1])),
        known_share=known_share,
        images=len(labels),
    )


def decide(decision: Decision, logits: Floats, distances: Floats) -> Named:
    """Name N images from logits [N,K] and distances [N]."""
    probabilities = softmax(logits / decision.temperature, 1)
    unknown = np.zeros(len(logits), np.bool_)
    for limit, values in ((decision.distance_limit, distances), (decision.energy_limit, energy(logits))):
        if limit is not None:
            unknown |= values > limit
    sets = (probabilities >= decision.set_limit) & ~unknown[:, None]
    return Named(probabilities, probabilities.argmax(1), unknown, sets)


def energy(logits: Floats) -> Floats:
    """Return the energy [N] of logits [N,K], low for images that resemble the training."""
    return np.asarray(-logsumexp(logits, 1), np.float64)


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature with the lowest cross-entropy."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        shares = log_softmax(logits / math.exp(log_temperature), 1)
        return float(-shares[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def conformal_quantile(scores: Floats, level: float) -> float:
    """Return the value that a new exchangeable score exceeds with probability at most 1 - level; may be infinite."""
    rank = math.ceil((len(scores) + 1) * level)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def best_f1_threshold(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Return the score from which calling a kind has the best F1; 1 if no image is of this kind."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    if not len(found) or found[-1] == 0:
        return 1.0
    f1 = 2 * found / (np.arange(1, len(found) + 1) + found[-1])
    last = np.r_[scores[order][:-1] != scores[order][1:], True]  # equal scores are called together
    return float(scores[order][np.argmax(np.where(last, f1, -1.0))])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
