"""Reading of ground-truth masks. All values of a mask together determine which pixels are the defect.

Masks have values 0 and 1 or 0 and 255, a few labels, colours, or transparency; in JPEG files, the values are spread
around the intended ones. Black, if it occurs, is the background. `Mask.doubt` describes what was unclear. A mask that
seems to be inverted is not inverted; `fetch check` and `report` name it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile

from adctl.data import images, storage, tiff
from adctl.data.multichannel import read_channels
from adctl.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from adctl.records import Sample

BoolMask: TypeAlias = NDArray[np.bool_]

_MAX_LABELS = 16
"""Maximum number of different values of a mask that holds labels."""

_MAX_IDENTIFIER = 64
"""Values below this may number the defects of an image, however many there are."""

_NEAR = 32
"""Distance in grey levels within which smeared values belong to black or to the brightest value."""

_TOUCHING = 8
"""Distance in grey levels from both ends within which even a few values are smeared, not labels."""

_INVERTED_SHARE = 0.5
"""Marked share of a mask, and of its border, above which the mask is taken to be inverted."""

_MIN_SMEARED_TOP = 128
_CLEAR_SHARE = 0.6
"""Share of the pixels that are not black which lies near black or near the top value, if two values were meant."""

_MIN_PEAK = 0.2
"""Share of the pixels that are not near black which a smeared label has."""

_PEAK_WIDTH = 8
_MAX_ALPHA_CHANNELS = {2, 4}  # grey and alpha, colour and alpha
_PALETTE_CLASSES: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "BMP": BmpImageFile}
_INDEX_DOUBT = "the first entry of its palette counts as the background"


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Defective pixels of an image.

    Attributes:
        defect: Array [H,W]; True for the defect.
        doubt: Clause that says what was not clear and how it was decided, or None.
    """

    defect: BoolMask
    doubt: str | None = None


def read_mask(path: Path) -> BoolMask:
    """Return the defective pixels of a mask, array [H,W]; raises the same errors as `interpret_mask`."""
    return interpret_mask(path).defect


def interpret_mask(path: Path) -> Mask:
    """Decode a ground-truth mask and decide which pixels are the defect.

    Raises:
        ImageError: The mask cannot be read; see `adctl.data.images.read_image`.
    """
    header = images.read_header(path)
    pixels = images.read_stored(path).pixels if header.bands else read_channels(path).pixels
    if pixels.shape[2] in _MAX_ALPHA_CHANNELS:
        alpha, pixels = pixels[..., -1], pixels[..., :-1]
        visible = alpha > alpha.max() / 2  # the opaque parts of an overlay may be half transparent
        if visible.any() and not visible.all():
            return _interpret_transparent(pixels, visible)
    if pixels.dtype.kind == "f" and np.isnan(pixels).any():
        return Mask(_level(np.nan_to_num(pixels)) > 0, "its values that are no numbers count as the background")
    level = _level(pixels)
    if level.min() == level.max() or level.min() > 0:
        indices = _palette_indices(path, header)
        if indices is not None and indices.any() and not indices.all():
            return Mask(indices != 0, _INDEX_DOUBT)
    is_lossy = header.format == "JPEG" or (header.tags is not None and header.tags.is_jpeg)
    return _interpret_colours(pixels, is_lossy=is_lossy)


def mask_for(sample: Sample, width: int, height: int) -> BoolMask | None:
    """Read the ground-truth mask of a sample and check its size.

    Args:
        sample: The image; its `mask` may be None.
        width: Width of the image from `read_image`, pixels.
        height: Height of the image from `read_image`, pixels.

    Returns:
        Array of shape [height, width], bool; None if the sample has no mask.

    Raises:
        ImageError: The mask cannot be read.
        DataError: The mask and its image differ in size.
    """
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask)
    if mask.shape != (height, width):
        raise DataError(
            f"The mask {sample.mask} is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"but its image {sample.path} is {width} x {height}.",
            "Save the mask in the size of the displayed image (after EXIF rotation), or remove it.",
        )
    return mask


def seems_inverted(defect: BoolMask) -> bool:
    """Return whether most of a mask [H,W] and of its border is marked."""
    return min(float(defect.mean()), border_share(defect)) > _INVERTED_SHARE


def border_share(defect: BoolMask) -> float:
    """Return the marked share of the border of a mask [H,W]."""
    return float(np.concatenate([defect[0], defect[-1], defect[:, 0], defect[:, -1]]).mean())


def _level(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the distance from black, [H,W]: the largest channel."""
    level: NDArray[Any] = np.abs(pixels).max(axis=2) if pixels.dtype.kind in "if" else pixels.max(axis=2)
    return level


def _interpret_transparent(pixels: NDArray[Any], visible: BoolMask) -> Mask:
    """Interpret a mask with transparent parts, which are background whatever their colour."""
    is_black = _level(pixels) == 0
    if not (is_black & visible).any():
        return Mask(visible)
    if (is_black | ~visible).all():
        return Mask(visible, None if is_black.all() else "its visible parts, which are black, count as the defect")
    return Mask(visible & ~is_black, "its transparent and its black parts count as the background")


def _interpret_colours(pixels: NDArray[Any], *, is_lossy: bool) -> Mask:
    """Interpret an opaque mask, [H,W,C]: black is the background, or else the most frequent colour of the border."""
    level = _level(pixels)
    low, top = float(level.min()), float(level.max())
    has_black = low == 0 or (is_lossy and low * 255 <= _NEAR * top)
    if has_black or (pixels == pixels[0, 0]).all():
        return _interpret_levels(level, is_lossy=is_lossy)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colours, counts = np.unique(border, axis=0, return_counts=True)
    background = colours[counts.argmax()]
    distance = np.abs(pixels.astype(np.float32) - background.astype(np.float32))
    defect = _interpret_levels(_level(distance), is_lossy=is_lossy).defect
    named = ", ".join(map(str, background.tolist()))
    return Mask(
        defect, f"it has no black; the value {named}, the most frequent of its border, counts as the background"
    )


def _interpret_levels(level: NDArray[Any], *, is_lossy: bool) -> Mask:
    """Interpret the distances of pixels from the background, [H,W]."""
    values = np.flatnonzero(np.bincount(level.ravel())) if level.dtype == np.uint8 else np.unique(level)
    if len(values) <= 2 or (not is_lossy and _are_labels(values)):  # noqa: PLR2004 - background and defect
        return Mask(level > 0)
    top = float(values[-1])
    scaled = np.rint(level.astype(np.float32) * (255 / top)).astype(np.uint8)
    counts = np.bincount(scaled.ravel(), minlength=256)
    threshold = _smeared_threshold(counts)
    if threshold is not None:
        defect, shown = scaled >= threshold, f"{threshold * top / 255:.3g}"
        return Mask(defect, f"its values are smeared, as by JPEG; those of at least {shown} count as the defect")
    if is_lossy:
        return Mask(scaled > 127, f"its values have all levels; those above {top / 2:.3g} count as the defect")  # noqa: PLR2004 - half
    return Mask(level > 0, "its values have all levels; all that are not 0 count as the defect")


def _are_labels(values: NDArray[Any]) -> bool:
    """Return True if the sorted values of a mask are labels rather than smeared."""
    top = values[-1]
    if len(values) > _MAX_LABELS and not (values.dtype.kind in "ui" and top < _MAX_IDENTIFIER):
        return False
    middle = values[values > 0]
    near_black, near_top = middle <= _TOUCHING, middle >= top - _TOUCHING
    is_smeared = top >= _MIN_SMEARED_TOP and near_black.any() and near_top.sum() > 1 and (near_black | near_top).all()
    return not is_smeared


def _smeared_threshold(counts: NDArray[np.int64]) -> int | None:
    """Return the lowest level of the defect, or None if it is unclear, from the number of pixels of each level."""
    others = counts[1:].sum()
    near = counts[1 : _NEAR + 1].sum() + counts[256 - _NEAR :].sum()
    if near >= _CLEAR_SHARE * others and counts[256 - _NEAR :].sum():
        return 128
    bright = counts.copy()
    bright[: _NEAR + 1] = 0
    mass = np.convolve(bright, np.ones(2 * _PEAK_WIDTH + 1, np.int64), "same")
    peaks = np.flatnonzero(mass >= _MIN_PEAK * bright.sum())
    return None if not len(peaks) else int(peaks[0] + _PEAK_WIDTH) // 2


def _palette_indices(path: Path, header: images.Header) -> NDArray[Any] | None:
    """Return the palette entry of each pixel, [H,W]; None if the image has no palette."""
    if header.tags is not None:
        return tiff.palette_indices(storage.read_bytes(path), header.tags)
    if header.format not in _PALETTE_CLASSES:
        return None
    with storage.open_binary(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _PALETTE_CLASSES[header.format](stream)
        indices: NDArray[Any] | None = np.asarray(image) if image.mode == "P" else None
        return indices
