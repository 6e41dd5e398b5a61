"""Preprocessing: from an image to the input of the network, and from an anomaly map back to the image.

Three resize modes: `squash` resizes each side independently; `pad` keeps the aspect ratio and fills the margins, with
mid-grey, or with the outermost pixels and a mask plane that tells them from the image; `crop` keeps the aspect ratio
and cuts off the margins equally. In every mode, `map_to_image` returns a map that covers the whole original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from adctl.data.images import resize
from adctl.data.roi import FILL, decode_region
from adctl.image_sizes import both_sides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adctl.data.images import RgbImage

Pixels: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[np.float32]
Resize: TypeAlias = Literal["squash", "pad", "crop"]

MAX_MAP_SIDE = 4096
"""Maximum number of cells along a side of a map that covers an image; finer maps are averaged."""

_SETTINGS = ("channels", "resize", "bit_depth", "tile", "tile_overlap", "scales", "roi")


@dataclass(frozen=True)
class InputSpec:
    """Input format of a detector, and the preprocessing that produces it; the detector normalises the pixels itself.

    Attributes:
        height: Height of the network's input, pixels.
        width: Width of the network's input, pixels.
        channels: 3 for RGB, 1 for luminance; otherwise the channels of the file, see `adctl.data.multichannel`.
        resize: Resize mode: "squash", "pad" or "crop".
        bit_depth: Used bits of 16-bit files; see `read_image`.
        tile: Side of the square tiles, pixels of the original image; None disables tiling.
        tile_overlap: Minimum overlap of neighbouring tiles, as a share of a tile.
        scales: Magnifications at which the image is scored: at 0.5 tiles are twice as large, at 2 half as large.
        roi: Region of interest, cropped before all other steps; see `adctl.data.roi`. None uses the whole image.
        masked: Whether a last plane follows the channels: 255 inside the image, 0 in the margins of `pad`.
    """

    height: int
    width: int
    channels: int = 3
    resize: Resize = "squash"
    bit_depth: int = 16
    tile: int | None = None
    tile_overlap: float = 0.25
    scales: tuple[float, ...] = (1.0,)
    roi: str | None = None
    masked: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> InputSpec:
        """Create the input format from a detector's config; settings that an old model file lacks get defaults."""
        settings = {name: config[name] for name in _SETTINGS if name in config}
        if "scales" in settings:
            settings["scales"] = tuple(settings["scales"])
        masked = config.get("margin") == "masked" and config.get("resize") == "pad"
        return cls(*both_sides(config["image_size"]), masked=masked, **settings)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input: (H, W, planes)."""
        return self.height, self.width, self.planes

    @property
    def planes(self) -> int:
        """Number of planes of one input: the channels, and the mask if there is one."""
        return self.channels + self.masked

    @property
    def tiled(self) -> bool:
        """True if one image may become several inputs."""
        return self.tile is not None or self.scales != (1.0,)


@dataclass(frozen=True)
class _Span:
    """Position of the image along one side of the network's input; a cropped image extends beyond both ends.

    Attributes:
        start: Start of the image, pixels of the input; negative if it is cropped.
        length: Length of the whole image, pixels of the input.
    """

    start: float
    length: float


def to_network_input(image: RgbImage, spec: InputSpec) -> Pixels:
    """Crop, resize and pad an image to the input of the network, and convert its channels.

    Args:
        image: Array of shape [h, w, C], uint8. A grey image is accepted for an RGB input and vice versa; it is
            converted after resizing, so that grey images cost a third of the work.
        spec: Input format of the network.

    Returns:
        Array of shape [H, W, C], uint8, with a mask as last plane if the input format has one.
    """
    if spec.roi is not None:
        image = decode_region(spec.roi).crop(image)
    if spec.resize == "crop":
        height, width = _crop_size(image.shape[0], image.shape[1], spec)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
    if spec.resize == "pad":
        image, inside = _pad(image, spec)
        pixels = _convert_channels(image, spec.channels)
        return np.concatenate([pixels, inside[..., None]], 2) if spec.masked else pixels
    return _convert_channels(resize(image, spec.height, spec.width), spec.channels)


def check_region(path: Path, image: RgbImage, spec: InputSpec) -> None:
    """Check that the region of interest lies in an image.

    Raises:
        ImageError: The region lies outside the image.
    """
    if spec.roi is not None:
        decode_region(spec.roi).check(path, *image.shape[:2])


def map_to_image(anomaly_map: Map, spec: InputSpec, height: int, width: int) -> Map:
    """Transform an anomaly map of the network's input to a map of the whole image.

    Padding is removed. Areas that the network did not see, outside a centre crop or a region of interest, get the
    map's lowest value: no anomaly is shown there, and a defect there counts as missed.

    Args:
        anomaly_map: Array of shape [h, w], covering the network's input.
        spec: Input format that produced the input.
        height: Height of the image, pixels.
        width: Width of the image, pixels.

    Returns:
        Array of shape [h', w'], covering the image with cells of about the same size in input pixels.
    """
    if spec.roi is None:
        return _undo_resize(anomaly_map, spec, height, width)
    region = decode_region(spec.roi)
    box = region.box(height, width)
    values = _undo_resize(anomaly_map, spec, box.height, box.width)
    values, _ = _resample_axis(values, 0, _Span(-box.top, height), box.height)
    values, _ = _resample_axis(values, 1, _Span(-box.left, width), box.width)
    values[~region.cells(values.shape, height, width)] = anomaly_map.min()
    return values


def _undo_resize(anomaly_map: Map, spec: InputSpec, height: int, width: int) -> Map:
    """Transform a map to the area that was resized for the network: the image, or its region of interest."""
    if spec.resize == "squash":
        return anomaly_map
    rows, columns = _placement(spec, height, width)
    values, rows_inside = _resample_axis(anomaly_map, 0, rows, spec.height)
    values, columns_inside = _resample_axis(values, 1, columns, spec.width)
    lowest = anomaly_map.min()
    values[~rows_inside] = lowest
    values[:, ~columns_inside] = lowest
    return values


def interpolate(values: Map, axis: int, positions: NDArray[np.float64], spacing: float) -> Map:
    """Interpolate a map linearly at new positions along one axis.

    Args:
        values: Array of two axes.
        axis: 0 or 1.
        positions: New cell centres, as shares of the axis: its ends are 0 and 1.
        spacing: Distance between neighbouring positions, as a share of the axis. Narrower cells are averaged first,
            so that none is skipped.
    """
    if spacing * values.shape[axis] > 1.5:  # noqa: PLR2004 - below, the interpolation reaches every cell
        values = _average(values, axis, max(1, round(1 / spacing)))
    cells = values.shape[axis]
    coordinates = np.clip(positions * cells - 0.5, 0, cells - 1)
    before = np.minimum(coordinates.astype(np.intp), max(0, cells - 2))
    after = np.minimum(before + 1, cells - 1)
    weight = (coordinates - before).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight
    return np.asarray(values.take(before, axis) * (1 - weight) + values.take(after, axis) * weight, np.float32)


def _average(values: Map, axis: int, cells: int) -> Map:
    height, width = (cells, values.shape[1]) if axis == 0 else (values.shape[0], cells)
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _resample_axis(values: Map, axis: int, span: _Span, side: int) -> tuple[Map, NDArray[np.bool_]]:
    """Resample a map along one axis of the image; also return which cells lie inside the network's input."""
    cells = min(MAX_MAP_SIDE, max(1, round(span.length * values.shape[axis] / side)))
    centres = (span.start + (np.arange(cells) + 0.5) / cells * span.length) / side
    return interpolate(values, axis, centres, span.length / cells / side), (centres >= 0) & (centres <= 1)


def _placement(spec: InputSpec, height: int, width: int) -> tuple[_Span, _Span]:
    """Return the position of the image's rows and columns in the network's input, for `pad` and `crop`."""
    if spec.resize == "pad":
        resized = _fitted_size(height, width, spec)
        return _padded_span(resized[0], spec.height), _padded_span(resized[1], spec.width)
    crop = _crop_size(height, width, spec)
    return _cropped_span(height, crop[0], spec.height), _cropped_span(width, crop[1], spec.width)


def _padded_span(resized: int, side: int) -> _Span:
    return _Span((side - resized) // 2, resized)


def _cropped_span(whole: int, cropped: int, side: int) -> _Span:
    return _Span(-((whole - cropped) // 2) * side / cropped, whole * side / cropped)


def _fitted_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Return the size of the image when it is scaled to fit into the network's input."""
    factor = min(spec.height / height, spec.width / width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _crop_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Return the size of the largest part of the image with the aspect ratio of the network's input."""
    factor = max(spec.height / height, spec.width / width)
    return min(height, max(1, round(spec.height / factor))), min(width, max(1, round(spec.width / factor)))


def _pad(image: RgbImage, spec: InputSpec) -> tuple[Pixels, Pixels]:
    """Return the image with margins, and the mask [H,W] of the image in it."""
    height, width = _fitted_size(image.shape[0], image.shape[1], spec)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    margins = ((top, spec.height - height - top), (left, spec.width - width - left))
    resized, inside = resize(image, height, width), np.full((height, width), 255, np.uint8)
    around = (*margins, (0, 0))
    padded = np.pad(resized, around, "edge") if spec.masked else np.pad(resized, around, constant_values=FILL)
    return padded, np.pad(inside, margins)


def _convert_channels(image: Pixels, channels: int) -> Pixels:
    if channels == image.shape[2]:
        return image
    if image.shape[2] == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
