"""Which detectors there are: name to "module:Class". Standard library only; nothing is imported until asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from adctl.errors import unknown_name

if TYPE_CHECKING:
    from adctl.detectors.base import Detector

DETECTORS = {
    "cnn": "adctl.detectors.cnn:ConvolutionalAutoencoder",
    "diffusion": "adctl.detectors.diffusion:Diffusion",
    "dinomaly": "adctl.detectors.dinomaly:Dinomaly",
    "efficientad": "adctl.detectors.efficientad:EfficientAD",
    "padim": "adctl.detectors.padim:PaDiM",
    "patchcore": "adctl.detectors.patchcore:PatchCore",
    "resnet": "adctl.detectors.resnet:ResNetAutoencoder",
    "simplenet": "adctl.detectors.simplenet:SimpleNet",
    "vit": "adctl.detectors.vit:VisionTransformerAutoencoder",
}


def detector_class(arch: str) -> type[Detector]:
    """The class behind a name.

    Raises:
        UsageError: There is no such detector; the message lists those there are.
    """
    if arch not in DETECTORS:
        raise unknown_name("arch", arch, DETECTORS)
    module, _, name = DETECTORS[arch].partition(":")
    return cast("type[Detector]", getattr(importlib.import_module(module), name))
