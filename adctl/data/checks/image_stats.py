"""Statistics of each image: digest, size, mode, exposure, and two signatures to find duplicates.

Images with the same coarse brightness pattern have similar perceptual hashes. The detail signature tells whether they
also share their fine structure; copies do, and images of two different parts do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from adctl.data import storage
from adctl.data.colours import colour_meaning
from adctl.data.images import as_rgb, read_header, read_stored, resize, to_uint8
from adctl.data.multichannel import read_channels, to_display_image
from adctl.errors import AdctlError, ImageError
from adctl.threads import map_ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.data.images import RgbImage
    from adctl.records import Sample

Part = Literal["train", "test"]

DETAIL_SIDE = 128
_HASH_SIDE, _HASH_CELLS = 32, 8
_BLUR = 2.4
_DETAIL_RANGE = 4
"""Range of the detail signature, in standard deviations of the fine structure; larger values saturate."""
_AHEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class ImageStats:
    """Statistics of one image.

    Attributes:
        sample: The image.
        part: Part of the dataset that the image belongs to.
        digest: SHA-256 of the file, hexadecimal; empty if the file cannot be read.
        error: Reason why the image cannot be used, or None. With an error, the attributes below are not set.
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        mode: Channels and number type, such as "grey uint8".
        peak: Largest value of a 16-bit image that states no depth; None for other images.
        brightness: Mean luminance, 0 to 255.
        contrast: Standard deviation of the luminance.
        hash: Perceptual hash, 64 bits.
        detail: Detail signature, array [DETAIL_SIDE * DETAIL_SIDE] of int8.
        colours: Meaning of the colours if it is not sRGB; see `adctl.data.colours.colour_meaning`.
    """

    sample: Sample
    part: Part
    digest: str
    error: ImageError | None = None
    width: int = 0
    height: int = 0
    mode: str = ""
    peak: int | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    hash: int = 0
    detail: NDArray[np.int8] | None = None
    colours: str = ""


def collect_image_stats(
    samples: Iterable[tuple[Sample, Part]], workers: int, update: Callable[[int, int | None], None]
) -> list[ImageStats]:
    """Compute the statistics of images in threads; the results keep the order of the images.

    Args:
        samples: The images, each with its part of the dataset.
        workers: Number of threads, at least one.
        update: Function called with the number of images done.
    """
    workers = max(1, workers)
    results: list[ImageStats] = []
    for stats in map_ordered(lambda each: measure_image(*each), samples, workers=workers, ahead=_AHEAD * workers):
        results.append(stats)
        update(len(results), None)
    return results


def measure_image(sample: Sample, part: Part) -> ImageStats:
    """Compute the statistics of one image; if it cannot be read, store the error."""
    digest = ""
    try:
        digest = storage.digest(sample.path)
        header = read_header(sample.path)
        rgb, mode, peak = _read_rgb_and_mode(sample.path, header.bands)
    except ImageError as error:
        return ImageStats(sample, part, digest, error)
    except (OSError, AdctlError) as error:
        return ImageStats(sample, part, digest, ImageError(f"Cannot read the image {sample.path}: {error}."))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    mean, deviation = cv2.meanStdDev(grey)
    return ImageStats(
        sample,
        part,
        digest,
        None,
        width,
        height,
        mode,
        peak,
        float(mean.item()),
        float(deviation.item()),
        perceptual_hash(grey),
        fine_structure(grey),
        colour_meaning(header),
    )


def _read_rgb_and_mode(path: Path, bands: int) -> tuple[RgbImage, str, int | None]:
    """Read an image as RGB; return it with its channels and number type in words, and its `StoredImage.peak`."""
    if bands:
        stored = read_channels(path)
        rgb = to_display_image(to_uint8(path, stored.pixels, stored.depth or 16))
        return rgb, f"{bands} channels {stored.number_type}", stored.peak
    stored = read_stored(path)
    kind = "grey" if stored.pixels.ndim == 2 else "colour"  # noqa: PLR2004 - axes
    return as_rgb(path, stored), f"{kind} {stored.number_type}", stored.peak


def perceptual_hash(grey: NDArray[np.generic]) -> int:
    """Compute the perceptual hash: 64 bits that tell which low spatial frequencies are above their median.

    (pHash; Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1.)

    Args:
        grey: Array of shape [H, W], uint8.
    """
    small = _shrink(grey, _HASH_SIDE)
    low = cv2.dct(small)[:_HASH_CELLS, :_HASH_CELLS].ravel()
    bits = low > np.median(low[1:])  # the median excludes the first coefficient, the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def fine_structure(grey: NDArray[np.generic]) -> NDArray[np.int8]:
    """Compute the detail signature: the high-pass filtered image, normalised so that exposure does not matter.

    Args:
        grey: Array of shape [H, W], uint8.

    Returns:
        Array of shape [DETAIL_SIDE * DETAIL_SIDE], int8; all zero if the image has no structure.
    """
    small = _shrink(grey, DETAIL_SIDE)
    fine = small - cv2.GaussianBlur(small, (0, 0), _BLUR)
    fine -= fine.mean()
    deviation = float(fine.std())
    if deviation < 1e-3:  # noqa: PLR2004 - grey levels: an image without structure
        return np.zeros(fine.size, np.int8)
    units = fine.ravel() / deviation * (127 / _DETAIL_RANGE)
    signature: NDArray[np.int8] = np.clip(np.rint(units), -127, 127).astype(np.int8)
    return signature


def _shrink(grey: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    small = resize(np.asarray(grey, np.uint8)[..., None], side, side)
    return small[..., 0].astype(np.float32)
