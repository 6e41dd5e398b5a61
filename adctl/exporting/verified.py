"""Exporting and proving it: the same image files through both runtimes, compared end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl import runs
from adctl.calibrating import held_out
from adctl.data.layouts import list_images
from adctl.errors import AdctlError, DataError, UsageError
from adctl.exporting.onnx import write_onnx
from adctl.predicting import predict
from adctl.progress import SILENT, Reporter
from adctl.runtimes.contract import open_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import ExportSettings, Loaded
    from adctl.records import Sample
    from adctl.runtimes.contract import Runtime

_WRITERS = {"onnx": write_onnx}
_ENOUGH = 64


@dataclass(frozen=True)
class Check:
    """How two runtimes differ on the same image files.

    Attributes:
        images: How many were compared.
        max_score_difference: Largest difference of scores, as a share of the largest score.
        mean_score_difference: Mean of it.
        max_map_difference: Largest difference of map cells, as a share of the largest cell.
        changed_verdicts: Images judged differently.
    """

    images: int
    max_score_difference: float
    mean_score_difference: float
    max_map_difference: float
    changed_verdicts: int


@dataclass(frozen=True)
class ExportResult:
    """What exporting made.

    Attributes:
        model: The model file it came from.
        exported: The file for the other runtime.
        check: How it differs.
    """

    model: Path
    exported: Path
    check: Check


def export(loaded: Loaded[ExportSettings], reporter: Reporter = SILENT) -> ExportResult:
    """Write a model for another runtime and compare the two on image files.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model, or no images to verify on.
        MissingExtraError: The packages for it are not installed.
        AdctlError: The exported file scores differently past the tolerance; it is removed.
    """
    settings = loaded.settings
    model = runs.find_model(settings.runs, settings.model)
    if model.suffix != ".safetensors":
        raise UsageError(f"{model} is exported already.", "Give the model.safetensors it came from.")
    samples = list_images(settings.images)[0] if settings.images else held_out(model)
    target = settings.out or model.with_suffix(f".{settings.format}")
    with reporter.stage(f"exporting to {settings.format}"):
        _WRITERS[settings.format](model, target)
    try:
        check = compare(open_runtime(model, "cpu"), open_runtime(target, "cpu"), samples[:_ENOUGH], reporter)
        _require(check, settings.tolerance)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return ExportResult(model, target, check)


def _require(check: Check, tolerance: float) -> None:
    if check.max_score_difference > tolerance:
        raise AdctlError(
            f"The exported file scores differently: by {check.max_score_difference:.2e} of the largest score, "
            f"where {tolerance:g} is allowed.",
            "Report this; or allow more with --tolerance, knowing what it means.",
        )


def compare(first: Runtime, second: Runtime, samples: list[Sample], reporter: Reporter = SILENT) -> Check:
    """Predict the same image files with two runtimes, each reading them for itself.

    Raises:
        DataError: None of the images can be read.
    """
    scores, maps = [], []
    with reporter.stage("verifying", 2 * len(samples)) as update:
        for turn, runtime in enumerate((first, second)):
            found = [p for p in predict(runtime, samples) if p.score is not None and p.anomaly_map is not None]
            update((turn + 1) * len(samples), 2 * len(samples))
            if not found:
                raise DataError("None of the images to verify on can be read.", "Name readable ones.")
            scores.append(np.array([p.score for p in found], dtype=np.float64))
            maps.append([p.anomaly_map for p in found if p.anomaly_map is not None])
    score_gap = np.abs(scores[0] - scores[1]) / np.abs(scores[0]).max()
    calibration = first.header.calibration
    changed = 0
    if calibration is not None:
        changed = int(np.sum((scores[0] > calibration.threshold) != (scores[1] > calibration.threshold)))
    return Check(
        images=len(scores[0]),
        max_score_difference=float(score_gap.max()),
        mean_score_difference=float(score_gap.mean()),
        max_map_difference=float(
            max(np.abs(one - other).max() for one, other in zip(*maps, strict=True))
            / max(np.abs(one).max() for one in maps[0])
        ),
        changed_verdicts=changed,
    )
