"""How many good images are enough: a learning curve in numbers and in words.

At each size models are fitted on different parts of the good images and score the same held-out ones. Without defects
the measure is the median score of unseen good images: what a detector has seen enough of surprises it no more. With
labelled defects it is the image AUROC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adctl.thresholds.conformal import images_needed

_NEAR_SCORE = 0.05
"""Of the last score: what counts as no more improvement."""

_NEAR_AUROC = 0.01


@dataclass(frozen=True)
class LearningPoint:
    """What models fitted on so many images do.

    Attributes:
        images: Good images fitted on.
        scores: Median score of the held-out good images, for each model.
        aurocs: Image AUROC against the labelled defects, for each model; empty without them.
        seconds: To fit and to score, all models together.
    """

    images: int
    scores: tuple[float, ...]
    aurocs: tuple[float, ...]
    seconds: float

    @property
    def score(self) -> float:
        """Mean over the models."""
        return float(np.mean(self.scores))

    @property
    def auroc(self) -> float | None:
        """Mean over the models, or None."""
        return float(np.mean(self.aurocs)) if self.aurocs else None


@dataclass(frozen=True)
class SampleSizeEstimate:
    """How many are enough.

    Attributes:
        enough: The smallest size from which on nothing improves by more than the margin; None when the last step
            still did.
        text: The answer in words.
    """

    enough: int | None
    text: str


def training_sizes(available: int, smallest: int, steps: int = 6) -> tuple[int, ...]:
    """Sizes from `smallest` to all, each larger by about the same factor."""
    if available <= smallest:
        return (available,)
    grown = np.geomspace(smallest, available, steps).round().astype(int)
    return tuple(dict.fromkeys(grown.tolist()))


def estimate_sample_size(points: tuple[LearningPoint, ...], held_out: int, rate: float) -> SampleSizeEstimate:
    """Say how many images are enough to learn from, and to promise a false-alarm rate.

    Args:
        points: By size, ascending; at least one.
        held_out: Good images there are for the threshold.
        rate: False-alarm rate wanted.
    """
    near = [_is_near(point, points[-1]) for point in points]
    first = next(index for index in range(len(points)) if all(near[index:]))
    enough = points[first].images if first < len(points) - 1 else None
    return SampleSizeEstimate(enough, f"{_to_learn(points, enough)} {_to_promise(held_out, rate)}")


def _is_near(point: LearningPoint, last: LearningPoint) -> bool:
    if point.auroc is not None and last.auroc is not None:
        return abs(last.auroc - point.auroc) <= _NEAR_AUROC
    return abs(last.score - point.score) <= _NEAR_SCORE * abs(last.score)


def _to_learn(points: tuple[LearningPoint, ...], enough: int | None) -> str:
    last = points[-1]
    if len(points) == 1:
        return f"{last.images} good images to learn from are too few to draw a curve."
    measure = "the image AUROC" if last.auroc is not None else "the score of unseen good images"
    margin = f"{_NEAR_AUROC:g}" if last.auroc is not None else f"{_NEAR_SCORE:.0%}"
    if enough is None:
        return (
            f"{last.images} good images are not seen to be enough: from {points[-2].images} to {last.images} "
            f"{measure} still changed by more than {margin}. More will help."
        )
    settled = f"from there to {last.images}, {measure} changes by {margin} at most"
    return f"{enough} good images are enough to learn from: {settled}."


def _to_promise(held_out: int, rate: float) -> str:
    needed = images_needed(rate)
    wanted = f"A false-alarm rate of {rate:g} takes {needed} held-out good images"
    return f"{wanted}, and there are {held_out}." if held_out >= needed else f"{wanted}; there are only {held_out}."
