"""What an autoencoder makes of an image, computed again from the model file that scored it.

Scores are not touched: the picture shows where reconstruction and image differ, and nothing else. Only where a
network takes the image as a whole (no tiles, no region, no padding) does its output lie over the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from adctl.data.preprocess import InputSpec
    from adctl.reporting.pictures import Rebuilder, Rgb
    from adctl.scoring.score_set import ScoreSet


def rebuilder(scores: ScoreSet) -> tuple[Rebuilder | None, tuple[str, ...]]:
    """From an image [H,W,3] to its reconstruction [h,w,3]; or None, with the reason as a note."""
    path = Path(str((scores.manifest.get("model") or {}).get("path", "")))
    reason = _why_not(path, str((scores.manifest.get("model") or {}).get("sha256", "")))
    if reason:
        return None, (f"No reconstructions: {reason}.",)
    from adctl.model_file import load_model

    try:
        detector, _ = load_model(path)
    except ModelFileError as error:
        return None, (f"No reconstructions: {error.message.rstrip('.')}.",)
    if not hasattr(detector, "reconstruct"):
        return None, ("No reconstructions: the detector does not rebuild images.",)
    if not _lies_over(detector.input):
        return None, ("No reconstructions: the network does not look at whole images as they are.",)

    return lambda image: _rebuild(detector, image), ()


def _why_not(path: Path, digest: str) -> str:
    from adctl.files import sha256_file

    if path.suffix != ".safetensors" or not path.is_file():
        return "the model file is not where it was"
    if digest and sha256_file(path) != digest:
        return "the model file is not the one that scored these images"
    return ""


def _lies_over(spec: InputSpec) -> bool:
    return spec.resize == "squash" and spec.tile is None and spec.roi is None and tuple(spec.scales) in ((), (1.0,))


def _rebuild(detector: Any, image: Rgb) -> Rgb:
    import torch

    from adctl.data.preprocess import to_network_input

    pixels = torch.from_numpy(to_network_input(image, detector.input)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        rebuilt = detector.reconstruct(pixels)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
    array = rebuilt.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
