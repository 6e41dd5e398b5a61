"""An image to the pixels a network takes, and an anomaly map back onto the image.

Three ways to bring an image to the network's shape: `squash` resizes each side for itself; `pad` keeps the
proportions and fills what is left over, on both sides alike, with mid-grey; `crop` keeps the proportions and cuts
off what stands out, on both sides alike. Whatever the way, a map leaves here spanning the whole original image.

Knows sizes and arrays, nothing of files or detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from adctl.data.images import resize
from adctl.data.roi import FILL, decode_region

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adctl.data.images import RgbImage

Pixels: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[np.float32]
Resize: TypeAlias = Literal["squash", "pad", "crop"]

MAX_MAP_SIDE = 4096
"""Cells along the longer side of a map that spans an image; finer ones are averaged."""

_SETTINGS = ("channels", "resize", "bit_depth", "tile", "tile_overlap", "scales", "roi")


@dataclass(frozen=True)
class InputSpec:
    """The images a detector takes, and how files become them; it normalises them itself.

    Attributes:
        height: Of the network's input, pixels.
        width: Of the network's input, pixels.
        channels: 3 for RGB, 1 for luminance; otherwise those an image is stored with, see `adctl.data.multichannel`.
        resize: How an image is brought to height x width.
        bit_depth: Bits in use of 16-bit files; see `read_image`.
        tile: Side of the squares an image is cut into, pixels of the original; None takes it as a whole.
        tile_overlap: Share of a tile that the next one repeats, at least.
        scales: Magnifications the image is looked at in: at 0.5 tiles are twice as large, at 2 half as large.
        roi: Region of interest, cut out before all else; see `adctl.data.roi`. None looks everywhere.
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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> InputSpec:
        """What a detector's settings say, also those of model files from before a setting existed."""
        said = {name: config[name] for name in _SETTINGS if name in config}
        if "scales" in said:
            said["scales"] = tuple(said["scales"])
        return cls(config["image_size"], config["image_size"], **said)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input: (H, W, C)."""
        return self.height, self.width, self.channels

    @property
    def tiled(self) -> bool:
        """Whether one image may become several inputs."""
        return self.tile is not None or self.scales != (1.0,)


@dataclass(frozen=True)
class _Span:
    """Where an image lies along one side of the network's input, which it may leave on both ends.

    Attributes:
        start: Of the image, pixels of the input.
        length: Of the whole image, pixels of the input.
    """

    start: float
    length: float


def to_network_input(image: RgbImage, spec: InputSpec) -> Pixels:
    """Bring an image to what the network takes.

    Args:
        image: Array of shape [h, w, C], uint8: of as many channels as the network takes, or grey or RGB where it
            takes the other. Grey is resized as such, which is a third of the work.
        spec: What the network takes.

    Returns:
        Array of shape [H, W, C], uint8.
    """
    if spec.roi is not None:
        image = decode_region(spec.roi).cut(image)
    if spec.resize == "crop":
        height, width = _cropped(image.shape[0], image.shape[1], spec)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
    if spec.resize == "pad":
        image = _padded(image, spec)
    return _in_channels(resize(image, spec.height, spec.width), spec.channels)


def check_region(path: Path, image: RgbImage, spec: InputSpec) -> None:
    """Refuse an image that the region of interest does not lie in.

    Raises:
        ImageError: It does not.
    """
    if spec.roi is not None:
        decode_region(spec.roi).check(path, *image.shape[:2])


def map_to_image(anomaly_map: Map, spec: InputSpec, height: int, width: int) -> Map:
    """Take an anomaly map from the network's input back onto the image.

    Padding is cut off. Outside a centre crop or a region of interest, where the network saw nothing, stands the map's
    lowest value: nothing is drawn there, and a defect there counts as missed.

    Args:
        anomaly_map: Array of shape [h, w], spanning the network's input.
        spec: How the image became that input.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Returns:
        Array of shape [h', w'], spanning the image in cells of about the same size.
    """
    if spec.roi is None:
        return _onto_seen(anomaly_map, spec, height, width)
    region = decode_region(spec.roi)
    box = region.box(height, width)
    values = _onto_seen(anomaly_map, spec, box.height, box.width)
    values, _ = _along(values, 0, _Span(-box.top, height), box.height)
    values, _ = _along(values, 1, _Span(-box.left, width), box.width)
    values[~region.cells(values.shape, height, width)] = anomaly_map.min()
    return values


def _onto_seen(anomaly_map: Map, spec: InputSpec, height: int, width: int) -> Map:
    """Onto what was brought to the network: the image, or the region of it that was cut out."""
    if spec.resize == "squash":
        return anomaly_map
    rows, columns = _placement(spec, height, width)
    values, seen_rows = _along(anomaly_map, 0, rows, spec.height)
    values, seen_columns = _along(values, 1, columns, spec.width)
    lowest = anomaly_map.min()
    values[~seen_rows] = lowest
    values[:, ~seen_columns] = lowest
    return values


def interpolate(values: Map, axis: int, positions: NDArray[np.float64], spacing: float) -> Map:
    """Read cells along one axis at other positions, by linear interpolation.

    Args:
        values: Array of two axes.
        axis: 0 or 1.
        positions: Of the cells wanted, as shares of the axis: its ends are 0 and 1.
        spacing: Between neighbouring positions, likewise; cells narrower than it are averaged first, so that
            none is passed over.
    """
    if spacing * values.shape[axis] > 1.5:  # noqa: PLR2004 - below, the interpolation reaches every cell
        values = _averaged(values, axis, max(1, round(1 / spacing)))
    cells = values.shape[axis]
    places = np.clip(positions * cells - 0.5, 0, cells - 1)
    before = np.minimum(places.astype(np.intp), max(0, cells - 2))
    after = np.minimum(before + 1, cells - 1)
    share = (places - before).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    return np.asarray(values.take(before, axis) * (1 - share) + values.take(after, axis) * share, np.float32)


def _averaged(values: Map, axis: int, cells: int) -> Map:
    height, width = (cells, values.shape[1]) if axis == 0 else (values.shape[0], cells)
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _along(values: Map, axis: int, span: _Span, side: int) -> tuple[Map, NDArray[np.bool_]]:
    """Cells along one axis of the image, and which of them lie on the network's input."""
    cells = min(MAX_MAP_SIDE, max(1, round(span.length * values.shape[axis] / side)))
    centres = (span.start + (np.arange(cells) + 0.5) / cells * span.length) / side
    return interpolate(values, axis, centres, span.length / cells / side), (centres >= 0) & (centres <= 1)


def _placement(spec: InputSpec, height: int, width: int) -> tuple[_Span, _Span]:
    """Where the image's rows and columns lie on the network's input, for `pad` and `crop`."""
    if spec.resize == "pad":
        inside = _inside(height, width, spec)
        return _padded_span(inside[0], spec.height), _padded_span(inside[1], spec.width)
    seen = _cropped(height, width, spec)
    return _cropped_span(height, seen[0], spec.height), _cropped_span(width, seen[1], spec.width)


def _padded_span(inside: int, side: int) -> _Span:
    return _Span((side - inside) // 2, inside)


def _cropped_span(whole: int, seen: int, side: int) -> _Span:
    return _Span(-((whole - seen) // 2) * side / seen, whole * side / seen)


def _inside(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Size of an image that just fits into the network's input."""
    factor = min(spec.height / height, spec.width / width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _cropped(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Size of the largest part of an image in the proportions of the network's input."""
    factor = max(spec.height / height, spec.width / width)
    return min(height, max(1, round(spec.height / factor))), min(width, max(1, round(spec.width / factor)))


def _padded(image: RgbImage, spec: InputSpec) -> Pixels:
    height, width = _inside(image.shape[0], image.shape[1], spec)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    padded = np.full((spec.height, spec.width, image.shape[2]), FILL, np.uint8)
    padded[top : top + height, left : left + width] = resize(image, height, width)
    return padded


def _in_channels(image: Pixels, channels: int) -> Pixels:
    if channels == image.shape[2]:
        return image
    if image.shape[2] == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
