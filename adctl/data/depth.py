"""Check whether the values of 16-bit images fit the setting `bit_depth`."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from adctl.data.images import read_header, read_stored
from adctl.data.multichannel import read_channels
from adctl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adctl.records import Sample

log = logging.getLogger(__name__)

_MAX_READ = 8
"""Number of images whose values are looked at."""

_CAMERA_DEPTHS = (8, 10, 12)
_FULL = 16


def warn_of_depth(samples: Sequence[Sample], bit_depth: int) -> bool:
    """Log a warning if 16-bit images do not fit a bit depth, once for the same images; only a few of them are read.

    Returns:
        Whether they do not fit.
    """
    step = max(1, len(samples) // _MAX_READ)
    return _warn_once(tuple(sample.path for sample in samples[::step][:_MAX_READ]), bit_depth)


@lru_cache(maxsize=16)
def _warn_once(paths: tuple[Path, ...], bit_depth: int) -> bool:
    problem = describe_depth(filter(None, map(_peak, paths)), bit_depth)
    if problem is not None:
        log.warning("%s", problem)
    return problem is not None


def describe_depth(peaks: Iterable[int], bit_depth: int) -> str | None:
    """Return a sentence if the values of 16-bit images do not fit a bit depth, or None.

    Args:
        peaks: Largest value of each image; see `adctl.data.images.StoredImage.peak`.
        bit_depth: The setting `bit_depth`.
    """
    highest = max(peaks, default=0)
    if bit_depth < _FULL and highest >= 1 << bit_depth:
        return (
            f"The 16-bit images hold values up to {highest}, but with bit_depth={bit_depth} all above "
            f"{(1 << bit_depth) - 1} become white. Train with --set bit_depth={_FULL}."
        )
    fitting = next((depth for depth in _CAMERA_DEPTHS if highest < 1 << depth), None)
    if not highest or fitting is None or fitting >= bit_depth:
        return None
    return (
        f"The 16-bit images use only values up to {highest}, which is nearly black. "
        f"If the camera delivers {fitting} bits, train with --set bit_depth={fitting}."
    )


def _peak(path: Path) -> int | None:
    """Return the largest value of a 16-bit image; None for other images and unreadable ones."""
    try:
        header = read_header(path)
        if not header.deep:
            return None
        return (read_channels(path) if header.bands else read_stored(path)).peak
    except ImageError:
        return None
