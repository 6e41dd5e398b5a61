"""Number of good images needed, from a learning curve.

At each size, models are fitted on different subsets of the good images and score the same held-out good images. The
measure is the image AUROC if there are labelled defects. Without them it is the median score of the held-out good
images: it stops falling when more training images no longer help.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adctl.thresholds.conformal import images_needed

_SCORE_MARGIN = 0.05
"""Largest change that counts as no improvement, as a share of the last score."""

_AUROC_MARGIN = 0.01


@dataclass(frozen=True)
class LearningPoint:
    """Results of the models fitted on one number of images.

    Attributes:
        images: Number of good training images.
        scores: Median score of the held-out good images, one per model.
        aurocs: Image AUROC against the labelled defects, one per model; empty without them.
        seconds: Time to fit and to score, all models together.
    """

    images: int
    scores: tuple[float, ...]
    aurocs: tuple[float, ...]
    seconds: float

    @property
    def score(self) -> float:
        """Mean median score over the models."""
        return float(np.mean(self.scores))

    @property
    def auroc(self) -> float | None:
        """Mean AUROC over the models, or None without labelled defects."""
        return float(np.mean(self.aurocs)) if self.aurocs else None


@dataclass(frozen=True)
class SampleSizeEstimate:
    """Number of good images needed.

    Attributes:
        enough: Smallest size from which nothing changes by more than the margin; None if the last step still changed.
        text: The answer in words.
    """

    enough: int | None
    text: str


def training_sizes(available: int, smallest: int, steps: int = 6) -> tuple[int, ...]:
    """Return sizes from `smallest` to `available`, each larger than the one before by about the same factor."""
    if available <= smallest:
        return (available,)
    grown = np.geomspace(smallest, available, steps).round().astype(int)
    return tuple(dict.fromkeys(grown.tolist()))


def estimate_sample_size(points: tuple[LearningPoint, ...], held_out: int, rate: float) -> SampleSizeEstimate:
    """Estimate how many images training needs and how many a guaranteed false-alarm rate needs.

    Args:
        points: Learning curve in ascending order of size; at least one point.
        held_out: Number of good images available for the threshold.
        rate: False-alarm rate to guarantee.
    """
    close = [_is_close(point, points[-1]) for point in points]
    first = next(index for index in range(len(points)) if all(close[index:]))
    enough = points[first].images if first < len(points) - 1 else None
    return SampleSizeEstimate(enough, f"{_training_text(points, enough)} {_guarantee_text(held_out, rate)}")


def _is_close(point: LearningPoint, last: LearningPoint) -> bool:
    if point.auroc is not None and last.auroc is not None:
        return abs(last.auroc - point.auroc) <= _AUROC_MARGIN
    return abs(last.score - point.score) <= _SCORE_MARGIN * abs(last.score)


def _training_text(points: tuple[LearningPoint, ...], enough: int | None) -> str:
    last = points[-1]
    if len(points) == 1:
        return f"{last.images} good training images are too few for a learning curve."
    measure = "the image AUROC" if last.auroc is not None else "the score of held-out good images"
    margin = f"{_AUROC_MARGIN:g}" if last.auroc is not None else f"{_SCORE_MARGIN:.0%}"
    if enough is None:
        return (
            f"{last.images} good images may not be enough: from {points[-2].images} to {last.images} images "
            f"{measure} still changed by more than {margin}. More images will help."
        )
    return (
        f"{enough} good images are enough for training: from {enough} to {last.images} images {measure} changes by at "
        f"most {margin}."
    )


def _guarantee_text(held_out: int, rate: float) -> str:
    needed = images_needed(rate)
    only = "" if held_out >= needed else "only "
    return f"A guaranteed false-alarm rate of {rate:g} needs {needed} held-out good images; there are {only}{held_out}."
