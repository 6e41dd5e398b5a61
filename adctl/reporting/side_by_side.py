"""Heatmaps of the same image from several models: the original, and one overlay per model with its own colour scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.reporting.pictures import Thumbnail, colour_scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adctl.evaluation.match_images import SharedScores
    from adctl.reporting.pictures import Rgb


@dataclass(frozen=True)
class Views:
    """Pictures of one image.

    Attributes:
        index: Number of the image among the shared images.
        original: Original image [H,W,3].
        overlays: Image [H,W,3] with the heatmap of each set; None if the set has no map of this image.
    """

    index: int
    original: Rgb
    overlays: tuple[Rgb | None, ...]


def views(sets: Sequence[SharedScores], images: Sequence[int], side: int) -> Iterator[Views]:
    """Yield the pictures of each image that can be read, in the given order.

    Args:
        sets: Scored sets, reduced to the same images.
        images: Numbers of the images; the maps of all of them are in memory at once.
        side: Longer side of each picture in pixels.
    """
    maps = [dict(scores.maps(images)) for scores in sets]
    scales = [colour_scale(scores, set_maps.values()) for scores, set_maps in zip(sets, maps, strict=True)]
    for index in images:
        thumbnail = Thumbnail.read(sets[0], index, side)
        if thumbnail is None:
            continue
        overlays = [
            thumbnail.overlay(scores, set_maps[index], scale) if index in set_maps else None
            for scores, set_maps, scale in zip(sets, maps, scales, strict=True)
        ]
        yield Views(index, thumbnail.small, tuple(overlays))
