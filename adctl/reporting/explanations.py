"""Reconstructions and attention maps of images, computed again with the model file that scored them.

They are only pictures and do not change scores. The network must process the whole image (no tiles, no region of
interest, no padding), because otherwise its output does not have the same area as the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.errors import AdctlError
from adctl.reporting.content import ABSENT, Table

if TYPE_CHECKING:
    from torch import Tensor

    from adctl.data.preprocess import InputSpec
    from adctl.engine.phases import Explanation
    from adctl.reporting.pictures import Rgb
    from adctl.scoring.score_set import ScoreSet


def explainer(scores: ScoreSet) -> tuple[Explainer | None, tuple[str, ...]]:
    """Return a function that explains images with the model of a scored set, or None with the reason as a note."""
    path = Path(str((scores.manifest.get("model") or {}).get("path", "")))
    reason = _model_file_problem(path, str((scores.manifest.get("model") or {}).get("sha256", "")))
    if reason:
        return None, (f"No reconstructions: {reason}.",)
    from adctl.model_file import load_model

    try:
        detector, _ = load_model(path)
    except AdctlError as error:  # a base model may be missing too
        return None, (f"No reconstructions: {error.message.rstrip('.')}.",)
    if not hasattr(detector, "reconstruct") and not hasattr(detector, "explain"):
        return None, ("No reconstructions: the detector is not an autoencoder, and has no attention to prompts.",)
    if not _covers_whole_image(detector.input):
        return None, ("No reconstructions: the network does not process whole images (tiles, region or padding).",)
    return Explainer(detector.eval()), ()


class Explainer:
    """Pictures of images by a detector that reconstructs them or attends to prompts, with statistics of all of them.

    Attributes:
        titles: Titles of the pictures; empty before the first image.
    """

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self._values: dict[str, list[dict[str, float]]] = {}
        self._words: tuple[tuple[str, str], ...] = ()
        self.titles: tuple[str, ...] = ()

    def __call__(self, image: Rgb, label: str | None = None) -> list[Rgb]:
        """Return the pictures [h,w,3] of an image [H,W,3], and count its statistics under its label."""
        import torch

        from adctl.data.preprocess import to_network_input

        pixels = torch.from_numpy(to_network_input(image, self._detector.input)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            shown = self._explain(pixels)
        self.titles, self._words = tuple(shown.pictures), shown.words
        if shown.values:
            values = {name: float(value[0]) for name, value in shown.values.items()}
            self._values.setdefault(label or "unlabelled", []).append(values)
        return [_to_rgb(picture[0]) for picture in shown.pictures.values()]

    def tables(self) -> tuple[Table, ...]:
        """Return the mean statistics by label, and the words nearest to learnt tokens, as far as there are any."""
        tables = []
        if self._values:
            names = tuple(next(iter(self._values.values()))[0])
            rows = tuple(
                (label, str(len(found)), *(f"{np.mean([one[name] for one in found]):.3f}" for name in names))
                for label, found in sorted(self._values.items())
            )
            note = "Means over the pictures below. The share is that of the abnormal prompt in the attention to both."
            tables.append(Table("Attention to the prompts", ("label", "images", *names), rows, note))
        if self._words:
            note = "Words whose vectors are most similar, with the cosine; learnt tokens need not mean any word."
            words = tuple((name, words or ABSENT) for name, words in self._words)
            tables.append(Table("Words nearest to the learnt tokens", ("token", "nearest words"), words, note))
        return tuple(tables)

    def _explain(self, pixels: Tensor) -> Explanation:
        from adctl.engine.phases import Explanation

        if hasattr(self._detector, "explain"):
            found: Explanation = self._detector.explain(pixels)
            return found
        return Explanation({"reconstruction": self._detector.reconstruct(pixels)})


def _model_file_problem(path: Path, digest: str) -> str:
    from adctl.files import sha256_file

    if path.suffix != ".safetensors" or not path.is_file():
        return "the model file no longer exists"
    if digest and sha256_file(path) != digest:
        return "the model file is not the one that scored these images"
    return ""


def _covers_whole_image(spec: InputSpec) -> bool:
    return spec.resize == "squash" and spec.tile is None and spec.roi is None and tuple(spec.scales) in ((), (1.0,))


def _to_rgb(picture: Tensor) -> Rgb:
    """Return a picture [C,h,w] in [0, 1] as [h,w,3] of uint8."""
    import torch

    array = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
