"""Scores of the first parts of a line, and the detector recentred to them if they are shifted.

A camera that moved, another lens or lamp shifts the features of all parts. PaDiM and PatchCore compare each place with
the features that were usual there in training. Recentring replaces these by the median over parts of the line, which a
minority of defective parts cannot shift far. A third of the parts gives the median, and the others the threshold, whose
promise needs scores of parts that the detector has not used.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adctl.calibration.calibration_scores import score_samples, unseen_images, wanted_views
from adctl.engine.device import choose_device
from adctl.model_file import load_model, read_header
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import calibration_scores_of
from adctl.scoring.tta import with_views
from adctl.thresholds import contaminated

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import CalibrateSettings
    from adctl.detectors.base import Detector, Prediction
    from adctl.metrics.labels import Floats
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import CalibrationScores, Sample
    from adctl.scoring.predict import CollectedScores

log = logging.getLogger(__name__)

_SHOWN_PARTS = 10
_EVERY = 3
"""One of so many parts gives the usual features."""

_FEWEST, _MOST = 20, 100
"""Numbers of parts that give the usual features."""

_QUANTILE = 0.75
"""Quantile of the calibration scores above which the median of the parts counts as shifted."""


class _RecordingRuntime(TorchRuntime):
    """Runtime that keeps the features of the images that it scores."""

    fixed_graph = False
    features: list[torch.Tensor]

    def attach(self, detector: Detector, header: ModelHeader, device: torch.device, **precision: Any) -> None:
        """Use a detector, and forget the features of another."""
        super().attach(detector, header, device, **precision)
        self.features = []

    def _forward(self, images: torch.Tensor) -> Prediction:
        self.features.append(self._detector.place_features(images))
        return super()._forward(images)


def score_line(
    settings: CalibrateSettings, model: Path, reporter: Reporter
) -> tuple[CalibrationScores, tuple[Detector, ModelHeader] | None]:
    """Score the first parts of a line, and recentre the detector if they are shifted and it helps.

    Args:
        settings: Settings of `adctl calibrate` with `line`.
        model: Model file.
        reporter: Receiver of progress reports.

    Returns:
        The scores, and the recentred detector with its header, or None if it was not recentred.

    Raises:
        UsageError: The folder does not exist.
        DataError: There are no parts that the model was not trained on.
    """
    assert settings.line is not None
    header = read_header(model)
    known = header.calibration.evidence if header.calibration else None
    device = choose_device(settings.device, settings.gpu).device
    parts = unseen_images(settings.line, header)
    recentred = None
    if settings.recentre and known is not None:
        sample = parts[::_EVERY][:_MOST]
        recentred = _recentred(model, sample, np.array(known.good), settings, device, reporter)
    if recentred is not None:
        used = {part.key for part in sample}
        parts = [part for part in parts if part.key not in used]
    views = wanted_views(settings, known)
    runtime = with_views(TorchRuntime.of(*(recentred or load_model(model)), device), views)
    scores = score_samples(runtime, parts, settings, reporter, "scoring parts")
    share = contaminated.SHARE if settings.contaminated is None else settings.contaminated
    _name_highest(scores, share)
    return replace(calibration_scores_of(scores, views=views), contaminated=share), recentred


def _recentred(
    model: Path,
    sample: list[Sample],
    usual: Floats,
    settings: CalibrateSettings,
    device: torch.device,
    reporter: Reporter,
) -> tuple[Detector, ModelHeader] | None:
    """Return the detector recentred to parts of the line, or None if they are not shifted or it does not help.

    Args:
        model: Model file.
        sample: Parts that give the usual features.
        usual: Calibration scores of the model [n].
        settings: Settings of `adctl calibrate`.
        device: Device that computes.
        reporter: Receiver of progress reports.
    """
    detector, header = load_model(model)
    if len(sample) < _FEWEST or detector.input.tiled or not detector.can_recentre:
        return None
    runtime = _RecordingRuntime.of(detector, header, device)
    assert isinstance(runtime, _RecordingRuntime)
    before = np.median(score_samples(runtime, sample, settings, reporter, "scoring parts").scores)
    if before <= np.quantile(usual, _QUANTILE):
        return None
    detector.recentre(torch.cat(runtime.features).median(0).values)
    after = np.median(
        score_samples(TorchRuntime.of(detector, header, device), sample, settings, reporter, "scoring parts").scores
    )
    if after >= before:
        return None
    log.info(
        "The parts are shifted: the model is recentred to the median features of %d parts, whose median score falls "
        "from %.4g to %.4g. The other parts set the threshold.",
        len(sample),
        before,
        after,
    )
    return detector, header


def _name_highest(parts: CollectedScores, share: float) -> None:
    """Name the parts that may be defective."""
    if highest := contaminated.defective_parts(len(parts.keys), share):
        ranked = [parts.keys[place] for place in parts.scores.argsort()[::-1][:highest]]
        more = f" and {highest - _SHOWN_PARTS} more" if highest > _SHOWN_PARTS else ""
        log.info("Parts with the highest scores, defective or not: %s%s.", ", ".join(ranked[:_SHOWN_PARTS]), more)
