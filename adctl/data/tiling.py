"""Large images in overlapping tiles, and the tiles' maps stitched into one without seams.

Each scale lays a grid of equal tiles over the image, spread evenly so that the last one ends where the image does.
Their maps are blended with weights that fall to nothing towards a tile's edge, where a network sees least around it.
Scales are averaged. Knows sizes and arrays, nothing of files or detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adctl.data.preprocess import MAX_MAP_SIDE, interpolate, map_to_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.data.images import RgbImage
    from adctl.data.preprocess import InputSpec, Map

_AT_THE_EDGE = 1e-4
"""Weight of a tile at its very edge, which counts only where no other tile lies."""


class Tile(NamedTuple):
    """A rectangle of the original image, pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: RgbImage) -> RgbImage:
        """Its part of an image [H,W,3], without a copy."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Grid:
    """Equal tiles over an image at one scale.

    Attributes:
        tops: Of the rows of tiles.
        lefts: Of the columns of tiles.
        height: Of a tile, pixels of the original.
        width: Of a tile, pixels of the original.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int

    def tile(self, row: int, column: int) -> Tile:
        """One of them."""
        return Tile(self.tops[row], self.lefts[column], self.height, self.width)


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image.

    Attributes:
        height: Of the image, pixels.
        width: Of the image, pixels.
        grids: One a scale.
    """

    height: int
    width: int
    grids: tuple[Grid, ...]

    @classmethod
    def for_image(cls, spec: InputSpec, height: int, width: int) -> Tiling:
        """Lay the tiles over an image of this size."""
        return cls(height, width, tuple(_grid(spec, scale, height, width) for scale in spec.scales))

    def __len__(self) -> int:
        return sum(len(grid.tops) * len(grid.lefts) for grid in self.grids)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Numbers (scale, row, column) of every tile: scale by scale, row by row."""
        for scale, grid in enumerate(self.grids):
            for row in range(len(grid.tops)):
                for column in range(len(grid.lefts)):
                    yield scale, row, column

    def __iter__(self) -> Iterator[Tile]:
        """In the order of `places`."""
        for scale, row, column in self.places():
            yield self.grids[scale].tile(row, column)

    def __getitem__(self, index: int) -> Tile:
        """The tile that iterating gives as number `index`."""
        for grid in self.grids:
            count = len(grid.tops) * len(grid.lefts)
            if index < count:
                row, column = divmod(index, len(grid.lefts))
                return grid.tile(row, column)
            index -= count
        raise IndexError(index)


class Stitcher:
    """Scores and maps of an image's tiles to one score and one map that spans the image.

    The score is that of the strangest tile, averaged over the scales: a defect in one tile is not diluted by the
    good ones beside it, and every detector and runtime keeps the way it scores an input.

    Args:
        spec: How tiles became inputs.
        tiling: Where they lie.
    """

    def __init__(self, spec: InputSpec, tiling: Tiling) -> None:
        self._spec = spec
        self._tiling = tiling
        self._scores: list[list[float]] = [[] for _ in tiling.grids]
        self._map: Map | None = None
        self._places = tiling.places()

    def add(self, score: float, anomaly_map: Map) -> None:
        """Take what the detector says of the next tile, in the order of the tiling.

        Args:
            score: Raw.
            anomaly_map: Array [h,w], spanning the network's input.
        """
        scale, row, column = next(self._places)
        grid = self._tiling.grids[scale]
        self._scores[scale].append(score)
        values = map_to_image(anomaly_map, self._spec, grid.height, grid.width)
        if self._map is None:
            self._start(values.shape)
        assert self._map is not None
        rows, columns = self._rows[scale][row], self._columns[scale][column]
        values = interpolate(values, 0, rows.positions, self._cell[0] / grid.height)
        values = interpolate(values, 1, columns.positions, self._cell[1] / grid.width)
        self._map[rows.cells, columns.cells] += rows.weights[:, None] * values * columns.weights

    def result(self) -> tuple[float, Map]:
        """The image's score and map, once every tile was added."""
        assert self._map is not None
        return float(np.mean([max(scores) for scores in self._scores])), self._map

    def _start(self, cells: tuple[int, ...]) -> None:
        """Make the map, its cells as small as those of the smallest tiles as far as its size allows."""
        tiling = self._tiling
        finest = min(tiling.grids, key=lambda grid: grid.height * grid.width)
        wanted = (tiling.height * cells[0] / finest.height, tiling.width * cells[1] / finest.width)
        factor = min(1.0, MAX_MAP_SIDE / max(wanted))
        height, width = (max(1, round(side * factor)) for side in wanted)
        self._map = np.zeros((height, width), np.float32)
        self._cell = (tiling.height / height, tiling.width / width)
        share = 1 / len(tiling.grids)
        self._rows = [_blending(grid.tops, grid.height, height, self._cell[0], share) for grid in tiling.grids]
        self._columns = [_blending(grid.lefts, grid.width, width, self._cell[1], 1.0) for grid in tiling.grids]


@dataclass(frozen=True)
class _Blend:
    """One tile along one axis of the stitched map.

    Attributes:
        cells: Those whose centres the tile covers.
        positions: Of the centres, as shares of the tile.
        weights: Of the tile at the centres; those of all tiles add up to the same everywhere.
    """

    cells: slice
    positions: NDArray[np.float64]
    weights: NDArray[np.float32]


def _blending(starts: Sequence[int], side: int, cells: int, cell: float, total: float) -> list[_Blend]:
    """Weights of each tile along one axis: sin^2, which two neighbours at half overlap add up to one by themselves."""
    centres = (np.arange(cells) + 0.5) * cell
    covered = [
        slice(int(np.searchsorted(centres, start)), int(np.searchsorted(centres, start + side))) for start in starts
    ]
    positions = [(centres[part] - start) / side for part, start in zip(covered, starts, strict=True)]
    weights = [np.sin(np.pi * places) ** 2 + _AT_THE_EDGE for places in positions]
    sums = np.zeros(cells)
    for part, values in zip(covered, weights, strict=True):
        sums[part] += values
    return [
        _Blend(part, places, (total * values / sums[part]).astype(np.float32))
        for part, places, values in zip(covered, positions, weights, strict=True)
    ]


def _grid(spec: InputSpec, scale: float, height: int, width: int) -> Grid:
    """Tiles of one scale; an image smaller than a tile along a side has one tile there, as long as the image."""
    down, across = (height, width) if spec.tile is None else (spec.tile, spec.tile)
    tile_height, tile_width = min(height, math.ceil(down / scale)), min(width, math.ceil(across / scale))
    return Grid(
        _starts(height, tile_height, spec.tile_overlap),
        _starts(width, tile_width, spec.tile_overlap),
        tile_height,
        tile_width,
    )


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    if length == side:
        return (0,)
    steps = math.ceil((length - side) / (side * (1 - overlap)) - 1e-9)
    return tuple(round(number * (length - side) / steps) for number in range(steps + 1))
