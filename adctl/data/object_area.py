"""The pixels of the part, where it can be told apart from a plain background; else the whole image.

The background is modelled by a linear trend of colour, fitted to the image's frame. The part is the largest region that
differs from it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SIDE = 192
"""Longer side at which the part is found, pixels."""
_RING = 3
"""Width of the frame that the background is fitted to, pixels at that size."""
_PLAIN = 0.12
"""Largest deviation of nine tenths of the frame from its trend, as a share of the image's own contrast."""
_SHARES = (0.03, 0.85)
"""Smallest and largest share of the image that a part takes."""
_KEPT = 0.7
"""Share of the frame that is kept for the second fit, because the part may touch the frame."""


def object_area(image: NDArray[Any]) -> Mask:
    """Return the pixels of the part.

    Args:
        image: Image [H,W] or [H,W,C] of numbers.

    Returns:
        Mask [H,W]; all true if the background is not plain, or if no single part stands out from it.
    """
    height, width = image.shape[:2]
    small = _reduced(image)
    distance = _background_distance(small)
    whole = np.ones((height, width), np.bool_)
    if distance is None:
        return whole
    scaled = np.asarray(np.clip(distance / max(float(distance.max()), 1e-6) * 255, 0, 255), np.uint8)
    _, raised = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    part = _largest(np.asarray(raised, np.uint8))
    if not _SHARES[0] <= part.mean() <= _SHARES[1]:
        return whole
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR) > 0)


def _reduced(image: NDArray[Any]) -> Plane:
    """Return the image [h,w,C] in float32, reduced and slightly smoothed."""
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = image.reshape(height, width, -1).astype(np.float32)
    smaller = [
        cv2.resize(planes[..., channel], size, interpolation=cv2.INTER_AREA) for channel in range(planes.shape[2])
    ]
    return np.stack([np.asarray(cv2.GaussianBlur(plane, (0, 0), 1.0), np.float32) for plane in smaller], axis=2)


def _background_distance(image: Plane) -> Plane | None:
    """Return the distance [h,w] of each pixel from the background's colour there; None if the frame is not plain."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    terms = np.stack([np.ones_like(x), x / width, y / height], axis=2)
    ring = np.ones((height, width), np.bool_)
    ring[_RING:-_RING, _RING:-_RING] = False
    contrast = float(np.percentile(image, 99) - np.percentile(image, 1))
    if ring.all() or contrast <= 0:
        return None
    design, colours = terms[ring], image[ring]
    kept = np.ones(len(design), np.bool_)
    for _ in range(2):
        trend = np.linalg.lstsq(design[kept], colours[kept], rcond=None)[0]
        residual = np.linalg.norm(colours - design @ trend, axis=1)
        kept = residual <= np.quantile(residual, _KEPT)
    if np.quantile(residual, 0.9) > _PLAIN * contrast:
        return None
    return np.asarray(np.linalg.norm(image - terms @ trend, axis=2), np.float32)


def _largest(raised: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the largest region without its holes; all zeros if there is no region."""
    opened = cv2.morphologyEx(raised, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(raised)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    return filled
