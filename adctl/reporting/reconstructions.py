"""Reconstructions of images by an autoencoder, computed again with the model file that scored them.

They are only pictures and do not change scores. The network must process the whole image (no tiles, no region of
interest, no padding), because otherwise its output does not have the same area as the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from adctl.data.preprocess import InputSpec
    from adctl.reporting.pictures import Reconstructor, Rgb
    from adctl.scoring.score_set import ScoreSet


def reconstructor(scores: ScoreSet) -> tuple[Reconstructor | None, tuple[str, ...]]:
    """Return a function from an image [H,W,3] to its reconstruction [h,w,3], or None with the reason as a note."""
    path = Path(str((scores.manifest.get("model") or {}).get("path", "")))
    reason = _model_file_problem(path, str((scores.manifest.get("model") or {}).get("sha256", "")))
    if reason:
        return None, (f"No reconstructions: {reason}.",)
    from adctl.model_file import load_model

    try:
        detector, _ = load_model(path)
    except ModelFileError as error:
        return None, (f"No reconstructions: {error.message.rstrip('.')}.",)
    if not hasattr(detector, "reconstruct"):
        return None, ("No reconstructions: the detector is not an autoencoder.",)
    if not _covers_whole_image(detector.input):
        return None, ("No reconstructions: the network does not process whole images (tiles, region or padding).",)

    return lambda image: _reconstruct(detector, image), ()


def _model_file_problem(path: Path, digest: str) -> str:
    from adctl.files import sha256_file

    if path.suffix != ".safetensors" or not path.is_file():
        return "the model file no longer exists"
    if digest and sha256_file(path) != digest:
        return "the model file is not the one that scored these images"
    return ""


def _covers_whole_image(spec: InputSpec) -> bool:
    return spec.resize == "squash" and spec.tile is None and spec.roi is None and tuple(spec.scales) in ((), (1.0,))


def _reconstruct(detector: Any, image: Rgb) -> Rgb:
    import torch

    from adctl.data.preprocess import to_network_input

    pixels = torch.from_numpy(to_network_input(image, detector.input)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        reconstruction = detector.reconstruct(pixels)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
    array = reconstruction.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
