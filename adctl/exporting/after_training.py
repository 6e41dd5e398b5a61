"""Training that ends with an export, so that `adctl score` uses a verified faster runtime from the start.

The export is that of `adctl export`, verified on fewer images. By default it is made where it takes at most 20 seconds
or a fifth of the training; otherwise the result names the command and its probable gain.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adctl.config import ExportSettings, LoadedSettings, TrainSettings, names_of
from adctl.engine.model_summary import FlopCounter
from adctl.errors import AdctlError
from adctl.exporting.captured_output import captured_output
from adctl.model_file import load_model
from adctl.progress import SILENT, Reporter
from adctl.runtimes.auto_select import uses_gpu
from adctl.training.resource_estimate import estimate_with_trial
from adctl.training.single_run import TrainedExport, TrainResult
from adctl.training.train import train

if TYPE_CHECKING:
    from adctl.detectors.base import Detector
    from adctl.training.cross_validation import CrossValidationResult
    from adctl.training.grid import GridResult
    from adctl.training.plan import TrainingPlan
    from adctl.training.resource_estimate import ResourceEstimate

log = logging.getLogger(__name__)

_SECONDS, _SHARE = 20.0, 0.2
"""Longest export that is made by default: seconds, or a share of the training."""

_MAX_IMAGES = 32
"""Largest number of images of the verification."""

_NEEDED = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages of each format, the fastest first."""

_FIXED, _PER_OPERATION = 3.0, 0.03
"""Seconds to import the libraries, and seconds to convert one operation of PyTorch, on a slow processor."""

_MEASUREMENTS = 9
"""Measurements of the estimated gain; each takes some tenths of a second, and their median counts."""

_COMPARED = 64
"""Images that the measurement of the speed takes with each runtime, warm-up included."""


def train_and_export(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT
) -> TrainResult | CrossValidationResult | GridResult | None:
    """Train, and export the model of a single training as the setting `export` says.

    Raises:
        AdctlError: See `adctl.training.train`. A failed export is a warning, because the model is complete.
    """
    result = train(loaded, reporter)
    if not isinstance(result, TrainResult) or loaded.settings.export == "none":
        return result
    if uses_gpu(loaded.settings.device, loaded.settings.gpu):
        return result
    return replace(result, export=export_trained(result, loaded.settings, reporter))


def forecast(plan: TrainingPlan, settings: TrainSettings) -> ResourceEstimate:
    """Estimate the resources of a training with the export at its end."""
    needs, detector = estimate_with_trial(plan, settings)
    if settings.export == "none" or uses_gpu(settings.device, settings.gpu) or _format() is None:
        return needs
    try:
        detector.check_exportable()
    except AdctlError:
        return needs
    seconds = estimated_seconds(detector.eval())
    if settings.export == "auto" and seconds > max(_SECONDS, _SHARE * needs.seconds):
        return needs
    return replace(needs, seconds=needs.seconds + seconds)


def _format() -> str | None:
    """Return the fastest format whose packages are installed, or None."""
    return next((name for name, needed in _NEEDED.items() if all(map(importlib.util.find_spec, needed))), None)


def export_trained(result: TrainResult, settings: TrainSettings, reporter: Reporter = SILENT) -> TrainedExport:
    """Export a trained model where that is quick or wanted always; return the file, or the reason against it."""
    name = _format()
    if name is None:
        return TrainedExport(None, None, None, 0.0, "no other runtime is installed", "pip install 'adctl[openvino]'")
    command = f"adctl export --model {result.run} --format {name}"
    detector = load_model(result.model)[0].eval()
    try:
        detector.check_exportable()
        with reporter.stage(f"measuring for {name}"):
            seconds = estimated_seconds(detector)
            if settings.export == "auto" and seconds > max(_SECONDS, _SHARE * result.seconds):
                gain = estimated_speedup(detector) if name == "openvino" else None
                return TrainedExport(None, name, gain, seconds, "it takes long", command)
        return _exported(name, result, settings, reporter)
    except AdctlError as error:
        log.warning("The model is complete, but was not exported for a faster runtime: %s", error.message)
        return TrainedExport(None, name, None, 0.0, error.message, command)


def _exported(name: str, result: TrainResult, settings: TrainSettings, reporter: Reporter) -> TrainedExport:
    from adctl.exporting.export import export  # not before the training: it would start later

    start = time.perf_counter()
    given = ExportSettings(model=result.model, runs=settings.runs, format=(name,))
    loaded = LoadedSettings(given, dict.fromkeys(names_of(ExportSettings), "train"))
    file = export(loaded, reporter, max_images=_MAX_IMAGES).exports[0]
    gain = file.images_per_second / file.torch_images_per_second
    return TrainedExport(file.file, file.runtime, gain, time.perf_counter() - start, "", "")


def estimated_seconds(detector: Detector) -> float:
    """Estimate the seconds of an export from the number of operations and the time of one image."""
    size = detector.input
    image = torch.zeros(1, size.planes, size.height, size.width)
    counter = FlopCounter()
    with torch.no_grad():
        with counter:
            detector(image)
        start = time.perf_counter()
        detector(image)
    images = _COMPARED + _MAX_IMAGES
    return _FIXED + _PER_OPERATION * counter.operations + 1.5 * images * (time.perf_counter() - start)


def estimated_speedup(detector: Detector) -> float:
    """Estimate how many times as fast as PyTorch OpenVINO is here, from a small network of convolutions."""
    from adctl.exporting.export import seconds_per_batch
    from adctl.runtimes.openvino import import_openvino

    openvino = import_openvino()
    blocks = [
        layer
        for _ in range(4)
        for layer in (
            nn.Conv2d(32, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU6(),
            nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False), nn.BatchNorm2d(96), nn.ReLU6(),
            nn.Conv2d(96, 32, 1, bias=False), nn.BatchNorm2d(32),
        )
    ]  # fmt: skip
    network: Any = nn.Sequential(*blocks).eval().to(memory_format=torch.channels_last)
    side = max(8, detector.input.height // 8)
    images = torch.zeros(8, 32, side, side).to(memory_format=torch.channels_last)
    with captured_output():
        compiled = openvino.compile_model(openvino.convert_model(network, example_input=images), "CPU")
    calls = [partial(network, images), partial(compiled, images.numpy())]
    with torch.inference_mode():
        measured = [seconds_per_batch(calls) for _ in range(_MEASUREMENTS)]
    return statistics.median(torch_seconds / seconds for torch_seconds, seconds in measured)
