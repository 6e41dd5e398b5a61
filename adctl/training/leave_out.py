"""Images that a fitted detector can leave out at once, as if it had not learned from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.data.images import image_size
from adctl.data.split import ranked_units
from adctl.data.tiling import Tiling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.data.preprocess import InputSpec
    from adctl.data.split import Split
    from adctl.records import Sample

_LARGEST_SHARE = 0.1
"""Largest share of the images that `Detector.held_out` leaves out at once; it is not exact for more."""

_MOST_TILES = 32
"""Most tiles of an image that are left out together; their features are in memory at once."""


def can_leave_out(spec: InputSpec, split: Split, known: int = 0) -> bool:
    """Return whether each training image can be left out, with its copies and the images of its group.

    Args:
        spec: Input of the detector.
        split: Split whose training part it learns from.
        known: Number of other images that it has learned from before.
    """
    units = ranked_units(split.train, split.digests)
    if spec.tiled and (max(map(len, units)) > 1 or max(count_tiles(spec, split)) > _MOST_TILES):
        return False
    return are_small(units, len(split.train) + known)


def count_tiles(spec: InputSpec, split: Split) -> list[int]:
    """Return the number of network inputs of each training image."""
    sizes = [image_size(sample.path) for sample in split.train]
    return [len(Tiling.for_image(spec, height, width)) for width, height in sizes]


def are_small(units: Sequence[Sequence[Sample]], images: int) -> bool:
    """Return whether each set of images is small enough, among so many images, to be left out at once."""
    return max(map(len, units)) <= max(1, _LARGEST_SHARE * images)
