"""Division of large images into overlapping tiles, and seamless stitching of the tiles' anomaly maps.

For each scale, a grid of equal tiles covers the image; the tiles are spaced evenly, and the last one ends at the image
border. Maps are blended with weights that fall to almost zero at a tile's edge, where the network sees the least
context. The maps of all scales are averaged.
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

_EDGE_WEIGHT = 1e-4
"""Weight of a tile at its edge; it matters only where no other tile overlaps."""


class Tile(NamedTuple):
    """Rectangle of the original image, pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: RgbImage) -> RgbImage:
        """Return the tile's part of an image [H,W,C] as a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Grid:
    """Grid of equal tiles over an image at one scale.

    Attributes:
        tops: Top edge of each row of tiles, pixels of the original.
        lefts: Left edge of each column of tiles, pixels of the original.
        height: Height of a tile, pixels of the original.
        width: Width of a tile, pixels of the original.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int

    def tile(self, row: int, column: int) -> Tile:
        """Return the tile in a row and column of the grid."""
        return Tile(self.tops[row], self.lefts[column], self.height, self.width)


@dataclass(frozen=True)
class Tiling:
    """All tiles of one image.

    Attributes:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        grids: The grid of each scale.
    """

    height: int
    width: int
    grids: tuple[Grid, ...]

    @classmethod
    def for_image(cls, spec: InputSpec, height: int, width: int) -> Tiling:
        """Create the tiles for an image of the given size, in pixels."""
        return cls(height, width, tuple(_grid(spec, scale, height, width) for scale in spec.scales))

    def __len__(self) -> int:
        return sum(len(grid.tops) * len(grid.lefts) for grid in self.grids)

    def indices(self) -> Iterator[tuple[int, int, int]]:
        """Yield (scale, row, column) of every tile: scale by scale, row by row."""
        for scale, grid in enumerate(self.grids):
            for row in range(len(grid.tops)):
                for column in range(len(grid.lefts)):
                    yield scale, row, column

    def __iter__(self) -> Iterator[Tile]:
        """Yield the tiles in the order of `indices`."""
        for scale, row, column in self.indices():
            yield self.grids[scale].tile(row, column)

    def __getitem__(self, index: int) -> Tile:
        """Return the tile at position `index` of the iteration."""
        for grid in self.grids:
            count = len(grid.tops) * len(grid.lefts)
            if index < count:
                row, column = divmod(index, len(grid.lefts))
                return grid.tile(row, column)
            index -= count
        raise IndexError(index)


class Stitcher:
    """Combination of the scores and maps of an image's tiles into one score and one map of the whole image.

    The score is the maximum over the tiles of a scale, averaged over the scales. Good tiles therefore do not dilute a
    defect in one tile.

    Args:
        spec: Input format of the detector.
        tiling: Tiles of the image.
    """

    def __init__(self, spec: InputSpec, tiling: Tiling) -> None:
        self._spec = spec
        self._tiling = tiling
        self._scores: list[list[float]] = [[] for _ in tiling.grids]
        self._map: Map | None = None
        self._indices = tiling.indices()

    def add(self, score: float, anomaly_map: Map) -> None:
        """Add the result of the next tile, in the order of the tiling.

        Args:
            score: Raw score.
            anomaly_map: Array [h,w], covering the network's input.
        """
        scale, row, column = next(self._indices)
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
        """Return the image's score and map, after all tiles have been added."""
        assert self._map is not None
        return float(np.mean([max(scores) for scores in self._scores])), self._map

    def _start(self, cells: tuple[int, ...]) -> None:
        """Create the map with the cell size of the smallest tiles, limited by `MAX_MAP_SIDE`."""
        tiling = self._tiling
        finest = min(tiling.grids, key=lambda grid: grid.height * grid.width)
        size = (tiling.height * cells[0] / finest.height, tiling.width * cells[1] / finest.width)
        factor = min(1.0, MAX_MAP_SIDE / max(size))
        height, width = (max(1, round(side * factor)) for side in size)
        self._map = np.zeros((height, width), np.float32)
        self._cell = (tiling.height / height, tiling.width / width)
        share = 1 / len(tiling.grids)
        self._rows = [_blend_weights(grid.tops, grid.height, height, self._cell[0], share) for grid in tiling.grids]
        self._columns = [_blend_weights(grid.lefts, grid.width, width, self._cell[1], 1.0) for grid in tiling.grids]


@dataclass(frozen=True)
class _Blend:
    """Blending weights of one tile along one axis of the stitched map.

    Attributes:
        cells: Cells of the map whose centres the tile covers.
        positions: Centres of these cells, as shares of the tile.
        weights: Weight of the tile at these cells; the weights of all tiles have a constant sum.
    """

    cells: slice
    positions: NDArray[np.float64]
    weights: NDArray[np.float32]


def _blend_weights(starts: Sequence[int], side: int, cells: int, cell: float, total: float) -> list[_Blend]:
    """Compute sin^2 weights of each tile along one axis, normalised to the sum `total` at each cell."""
    centres = (np.arange(cells) + 0.5) * cell
    covered = [
        slice(int(np.searchsorted(centres, start)), int(np.searchsorted(centres, start + side))) for start in starts
    ]
    positions = [(centres[part] - start) / side for part, start in zip(covered, starts, strict=True)]
    weights = [np.sin(np.pi * shares) ** 2 + _EDGE_WEIGHT for shares in positions]
    sums = np.zeros(cells)
    for part, values in zip(covered, weights, strict=True):
        sums[part] += values
    return [
        _Blend(part, shares, (total * values / sums[part]).astype(np.float32))
        for part, shares, values in zip(covered, positions, weights, strict=True)
    ]


def _grid(spec: InputSpec, scale: float, height: int, width: int) -> Grid:
    """Create the grid of one scale; along a side shorter than a tile, the grid has one tile as long as the side."""
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
