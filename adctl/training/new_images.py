"""New good images beside those that a model knows: learning from them, scores without them, and which are unlike all.

An image that was called good by mistake must not teach the model a defect. It is unlike the others if the present model
rejects it and a model that learned from the other new images does so too, or if it scores far above the other new
images. Images that the present model rejects are judged by a model without any of them, so that they cannot vouch for
each other. If they are many, they are a new kind of good part, such as another lot: each is then judged by a model
without it alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.loader import ImageSource
from adctl.data.split import Split, ranked_units
from adctl.engine.context import FitContext
from adctl.engine.trainer import FitJob, fit
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, collect
from adctl.thresholds.contaminated import FEWEST_PARTS, SHARE, by_trimmed_tail
from adctl.thresholds.smooth_tail import by_smooth_tail
from adctl.training.leave_out import are_small
from adctl.training.out_of_fold import HeldOutRuntime, scores_without_refitting, units_to_hold_out
from adctl.training.plan import fit_settings
from adctl.training.reviews import SetAside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.history import FitReport
    from adctl.metrics.labels import Floats
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Sample

RATE = 0.01
"""Share of good images that are about expected beyond the limit of likeness."""

_LOT_SHARE, _FEWEST_OF_LOT = 0.25, 5
"""Share and number of new images that the present model rejects from which they are a new kind of good part."""

_FEWEST_SCORES = 50
"""Fewest scores of the other new images for a limit of their own."""


@dataclass(frozen=True)
class Learner:
    """Detector that learns from new images without the old ones, on copies of it.

    Attributes:
        detector: The detector as it is.
        header: Its header, with a calibration.
        settings: Settings of the training.
        device: Device that computes.
        reporter: Receiver of progress.
    """

    detector: Detector
    header: ModelHeader
    settings: TrainSettings
    device: torch.device
    reporter: Reporter

    def can_hold_out(self, new: Split) -> bool:
        """Return whether new images that were learned from can be scored as if they had not been."""
        if self.detector.input.tiled or not self.detector.holds_out(self.detector.config):
            return False
        return are_small(ranked_units(new.train, new.digests), len(new.train) + self.header.training.images)

    def learn(self, samples: Sequence[Sample]) -> tuple[Detector, FitReport]:
        """Return a copy that learned from images, with the report of its fit."""
        detector = copy.deepcopy(self.detector)
        source = ImageSource(samples, detector.input, workers=self.settings.workers, reuse=False)
        job = FitJob(
            detector,
            source,
            None,
            fit_settings(self.settings, type(detector), detector.config),
            self.device,
            FitContext(self.reporter),
            learned=self.header.training.images,
        )
        return detector, fit(job)

    def units(self, detector: Detector, new: Split) -> list[list[Sample]]:
        """Return the new images that are left out together; empty if a detector cannot leave them out."""
        return units_to_hold_out(detector, new, self.header.training.images)

    def score(self, detector: Detector, samples: Sequence[Sample], title: str = "scoring") -> CollectedScores:
        """Score images; unreadable ones are logged and left out."""
        runtime = TorchRuntime.of(detector, self.header, self.device)
        with self.reporter.stage(title):
            return collect(runtime, samples, batch_size=self.settings.batch_size, workers=self.settings.workers)

    def score_by_key(self, detector: Detector, samples: Sequence[Sample]) -> dict[str, float]:
        """Score images; return the scores by key."""
        return self.score(detector, samples).by_key() if samples else {}

    def score_held_out(self, detector: Detector, new: Split, units: Sequence[Sequence[Sample]]) -> CollectedScores:
        """Score new images as the detector that learned from all others would."""
        runtime = HeldOutRuntime.of(detector, self.header, self.device)
        return scores_without_refitting(runtime, new, units, self.reporter, self.settings.workers)


@dataclass(frozen=True)
class Unlike:
    """New images that are unlike all others.

    Attributes:
        set_aside: The images, highest score first.
        learned: Detectors on the way, by the keys of the images that they learned from, one a line.
    """

    set_aside: tuple[SetAside, ...]
    learned: dict[str, tuple[Detector, FitReport]] = field(default_factory=dict)


def find_unlike(learner: Learner, new: Sequence[Sample], confirmed: Collection[str]) -> Unlike:
    """Find new good images that are unlike the old ones and the other new ones.

    Args:
        learner: Detector of the old images.
        new: The new images.
        confirmed: Keys of images that are good beyond doubt.
    """
    calibration = learner.header.calibration
    if calibration is None or {sample.key for sample in new} <= set(confirmed):
        return Unlike(())
    ordered = sorted(new, key=lambda sample: sample.key)
    present = learner.score_by_key(learner.detector, ordered)
    doubtful = {key for key, score in present.items() if score > calibration.threshold} - set(confirmed)
    rejected = [one for one in ordered if one.key in doubtful]
    is_lot = len(rejected) >= max(_FEWEST_OF_LOT, _LOT_SHARE * len(ordered))
    left_out = set() if is_lot else {sample.key for sample in rejected}
    basis = [sample for sample in ordered if sample.key not in left_out]
    learned: dict[str, tuple[Detector, FitReport]] = {}
    others: Mapping[str, float] = {}
    detector = learner.detector
    if basis:
        detector, report = learner.learn(basis)
        learned["\n".join(sample.key for sample in basis)] = detector, report
        others = _scores_without(learner, detector, basis)
    scores = {**others, **(learner.score_by_key(detector, rejected) if left_out else {})}
    limit = _limit(calibration.threshold, np.array(list(others.values())), is_lot=is_lot)
    far = {key for key, score in scores.items() if score > limit} - set(confirmed)
    unlike = [one for one in ordered if one.key in far]
    unlike.sort(key=lambda one: -scores[one.key])
    return Unlike(tuple(_set_aside(one, scores[one.key], limit) for one in unlike), learned)


def _limit(threshold: float, others: Floats, *, is_lot: bool) -> float:
    """Return the highest score of images that are not unlike the others.

    Args:
        threshold: Threshold of the present model.
        others: Scores [n] of the new images by detectors without them.
        is_lot: Whether they are a new kind of good part, which may score higher than the old one.
    """
    if is_lot and len(others) >= FEWEST_PARTS:
        return max(threshold, by_trimmed_tail(others, RATE, SHARE).value)
    if not is_lot and len(others) >= _FEWEST_SCORES:
        return min(threshold, by_smooth_tail(others, RATE).value)
    return threshold


def _set_aside(sample: Sample, score: float, limit: float) -> SetAside:
    detail = f"It scores {score:.4g} by a model without it; good images score up to {limit:.4g}. It may be a defect."
    return SetAside(str(sample.path), sample.key, "unlike the others", detail, score, limit)


def _scores_without(learner: Learner, detector: Detector, samples: Sequence[Sample]) -> dict[str, float]:
    """Score images as a detector without them would: out of fold, or by detectors that learned from the other half."""
    whole = Split(tuple(samples), (), (), {sample.key: sample.key for sample in samples}, 0, 0.0, 0.0)
    units = learner.units(detector, whole)
    if units:
        return learner.score_held_out(detector, whole, units).by_key()
    scores: dict[str, float] = {}
    for half, other in ((samples[::2], samples[1::2]), (samples[1::2], samples[::2])):
        if half:
            scores |= learner.score_by_key(learner.learn(other)[0] if other else learner.detector, half)
    return scores
