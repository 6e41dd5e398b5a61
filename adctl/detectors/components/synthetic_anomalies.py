"""Reproducible synthetic defects: an image with the same key gets the same defect, so its features can be cached."""

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
    """Paint a random defect onto each image.

    Args:
        images: Tensor [B,C,H,W] of float32 in [0, 1].
        keys: Seeds of the defects, one for each image; None draws the defects from torch's generator.

    Returns:
        Images, tensor [B,C,H,W], and masks, bool [B,H,W]; see `adctl.data.synthetic.paint`.
    """
    if keys is None:
        return paint(images, KINDS, probability=1.0)
    results = [_paint_one(image[None], key) for image, key in zip(images, keys, strict=True)]
    return torch.cat([image for image, _ in results]), torch.cat([mask for _, mask in results])


def _paint_one(image: Tensor, key: str) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(key.encode(errors="surrogatepass")))
        return paint(image, KINDS, probability=1.0)
