"""The same synthetic defects on the same image each time it comes, so that what is computed of them can be kept."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from adctl.data.synthetic import PAINTERS, paint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

KINDS = tuple(sorted(PAINTERS))


def paint_anomaly(images: Tensor, keys: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Paint a defect of some kind onto each image.

    Args:
        images: Tensor [B,C,H,W] of float32 in [0, 1].
        keys: Decide the defects, image by image; None draws them from torch's generator.

    Returns:
        Tensor [B,C,H,W] and the masks, bool [B,H,W]; see `adctl.data.synthetic.paint`.
    """
    if keys is None:
        return paint(images, KINDS, probability=1.0)
    results = [_painted_alone(image[None], key) for image, key in zip(images, keys, strict=True)]
    return torch.cat([image for image, _ in results]), torch.cat([mask for _, mask in results])


def _painted_alone(image: Tensor, key: str) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(key.encode()))
        return paint(image, KINDS, probability=1.0)
