"""Classifiers with any runtime: logits and distances of pixels."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.choices import RUNTIMES
from adctl.classification.header import ClassifierHeader, is_classifier
from adctl.data.preprocess import InputSpec
from adctl.errors import ModelFileError, UsageError, unknown_name
from adctl.runtimes.auto_select import find_export, verify_export
from adctl.runtimes.loading import open_runtime
from adctl.runtimes.metadata import classifier_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from adctl.classification.classifier import Classifier
    from adctl.runtimes.base import Runtime

    Floats = NDArray[np.float64]
    Classify = Callable[[NDArray[np.uint8]], tuple[Floats, Floats]]


@dataclass
class ClassifierRuntime:
    """Loaded classifier.

    Attributes:
        name: Name of the runtime in `adctl.choices.RUNTIMES`.
        header: Header of the model file.
        device: Device that computes, as `cpu` or `cuda:0`.
        predict: Function from pixels [B,H,W,C], uint8, already resized to `input`, to logits [B,K] and distances [B].
        callers: Number of threads that should call `predict` at once.
    """

    name: str
    header: ClassifierHeader
    device: str
    predict: Classify
    callers: int = 1

    @property
    def input(self) -> InputSpec:
        """Size and channels of the images it takes."""
        return InputSpec.from_config(self.header.config)


def open_classifier(
    path: Path, device: str = "auto", gpu: int | None = None, runtime: str = "auto"
) -> ClassifierRuntime:
    """Open a classifier: a `model.safetensors` with PyTorch, or an exported file with its runtime.

    Args:
        path: The file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
        runtime: `auto`, or the runtime of the file; for a `model.safetensors`, the file exported for another runtime
            is opened.

    Raises:
        UsageError: There is no such runtime or device, or no such exported file.
        ModelFileError: The file is missing or damaged, or holds no classifier.
        MissingExtraError: The runtime is not installed.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise unknown_name("runtime", runtime, ["auto", *RUNTIMES])
    own = next((name for name, spec in RUNTIMES.items() if spec.suffix == path.suffix), None)
    if own is None:
        raise UsageError(f"{path} does not have the suffix of a model file.", "Give a model.safetensors.")
    if own == "torch":
        if runtime in ("auto", "torch"):
            return _torch(path, device, gpu)
        if RUNTIMES[runtime].suffix == path.suffix:
            raise UsageError(f"A classifier has no runtime '{runtime}'.", "Use --runtime torch, or an exported file.")
        path, own = find_export(path, runtime), runtime
    elif runtime not in ("auto", own):
        raise UsageError(f"{path} is a file for the runtime '{own}', not for '{runtime}'.", "Omit --runtime.")
    verify_export(path)
    opened: Any = pkgutil.resolve_name(RUNTIMES[own].reader)(path, device, gpu)
    if not isinstance(opened.header, ClassifierHeader):
        raise ModelFileError(f"{path} is no classifier, but a detector.", "Give the model of a classifier.")

    def predict(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        output = opened.predict(pixels)
        return output.maps.astype(np.float64), output.scores

    return ClassifierRuntime(opened.name, opened.header, opened.device, predict, opened.callers)


def classifier_of(runtime: Runtime) -> ClassifierRuntime:
    """Return the classifier in the graph of an exported detector."""
    header = classifier_in(runtime)
    assert header is not None

    def predict(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        output = runtime.predict(pixels)
        assert output.logits is not None
        assert output.distances is not None
        return output.logits.astype(np.float64), output.distances.astype(np.float64)

    return ClassifierRuntime(runtime.name, header, runtime.device, predict, runtime.callers)


def open_any(
    path: Path, device: str = "auto", gpu: int | None = None, runtime: str | None = None, precision: str = "32"
) -> Runtime | ClassifierRuntime:
    """Open the model of a detector or a classifier; see `adctl.runtimes.loading.open_runtime` and `open_classifier`.

    Raises:
        AdctlError: As from these.
    """
    if is_classifier(path):
        return open_classifier(path, device, gpu, runtime or "auto")
    return open_runtime(path, device, gpu, runtime, precision)


def _torch(path: Path, device: str, gpu: int | None) -> ClassifierRuntime:
    from adctl.classification.model_file import load_classifier
    from adctl.engine.device import choose_device

    chosen = choose_device(device, gpu).device
    classifier, header = load_classifier(path)
    return runtime_of(classifier.to(chosen), header, chosen)


def runtime_of(classifier: Classifier, header: ClassifierHeader, device: torch.device) -> ClassifierRuntime:
    """Return the runtime of a loaded classifier on its device."""
    from adctl.classification.predict import classify_pixels

    return ClassifierRuntime("torch", header, str(device), lambda pixels: classify_pixels(classifier, pixels, device))
