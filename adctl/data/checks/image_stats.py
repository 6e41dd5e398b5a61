"""One look at each image: what its file is, how it is exposed, and two signatures to find its like by.

The perceptual hash says which pictures have the same broad light and dark; the detail says whether they also share
their fine structure, as copies do and two parts of one kind do not. Knows nothing of what is right or wrong.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from adctl.data import storage
from adctl.data.images import as_rgb, read_header, read_stored, resize, to_uint8
from adctl.data.multichannel import read_channels, to_display_image
from adctl.errors import AdctlError, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.data.images import RgbImage
    from adctl.records import Sample

Part = Literal["train", "test"]

DETAIL_SIDE = 128
_HASH_SIDE, _HASH_CELLS = 32, 8
_BLUR = 2.4
_DETAIL_RANGE = 4
"""Standard deviations of a picture's fine structure that its signature keeps apart."""
_AHEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class ImageStats:
    """What one image looks like.

    Attributes:
        sample: The image.
        part: What it is for.
        digest: SHA-256 of its file, hexadecimal; empty where it cannot be read.
        error: Why it cannot be used, or None; then nothing below is meant.
        width: Pixels.
        height: Pixels.
        mode: Channels and number type, as in "grey uint8".
        brightness: Mean luminance, 0 to 255.
        contrast: Standard deviation of the luminance.
        hash: Perceptual hash, 64 bits.
        detail: Fine structure, array [DETAIL_SIDE x DETAIL_SIDE] of int8.
    """

    sample: Sample
    part: Part
    digest: str
    error: ImageError | None = None
    width: int = 0
    height: int = 0
    mode: str = ""
    brightness: float = 0.0
    contrast: float = 0.0
    hash: int = 0
    detail: NDArray[np.int8] | None = None


def collect_image_stats(
    samples: Iterable[tuple[Sample, Part]], workers: int, update: Callable[[int, int | None], None]
) -> list[ImageStats]:
    """Look at images in order.

    Args:
        samples: The images and what they are for.
        workers: Threads; at least one is used.
        update: Told how many are done.
    """
    looks = []
    for number, look in enumerate(_in_threads(list(samples), max(1, workers)), 1):
        looks.append(look)
        update(number, None)
    return looks


def _in_threads(samples: list[tuple[Sample, Part]], workers: int) -> Iterator[ImageStats]:
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[ImageStats]] = deque()
        for sample, part in samples:
            waiting.append(pool.submit(measure_image, sample, part))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def measure_image(sample: Sample, part: Part) -> ImageStats:
    """Look at one image; where it cannot be read, say why."""
    digest = ""
    try:
        digest = storage.digest(sample.path)
        rgb, mode = _seen(sample.path)
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
        float(mean.item()),
        float(deviation.item()),
        perceptual_hash(grey),
        fine_structure(grey),
    )


def _seen(path: Path) -> tuple[RgbImage, str]:
    """An image to look at, and its channels and number type in words."""
    bands = read_header(path).bands
    if bands:
        stored = read_channels(path)
        return to_display_image(to_uint8(path, stored, 16)), f"{bands} channels {stored.dtype}"
    stored = read_stored(path)
    return as_rgb(path, stored), f"{'grey' if stored.ndim == 2 else 'colour'} {stored.dtype}"  # noqa: PLR2004 - axes


def perceptual_hash(grey: NDArray[np.generic]) -> int:
    """64 bits: which of the lowest spatial frequencies are above their median (pHash; Zauner, 2010, section 3.2.1).

    Args:
        grey: Array of shape [H, W], uint8.
    """
    small = _shrunk(grey, _HASH_SIDE)
    low = cv2.dct(small)[:_HASH_CELLS, :_HASH_CELLS].ravel()
    bits = low > np.median(low[1:])  # the mean, which comes first, says only how bright it is
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def fine_structure(grey: NDArray[np.generic]) -> NDArray[np.int8]:
    """What remains of a picture without its broad light and dark, in units that exposure does not change.

    Args:
        grey: Array of shape [H, W], uint8.

    Returns:
        Array of shape [DETAIL_SIDE * DETAIL_SIDE], int8; zero where there is no structure.
    """
    small = _shrunk(grey, DETAIL_SIDE)
    fine = small - cv2.GaussianBlur(small, (0, 0), _BLUR)
    fine -= fine.mean()
    deviation = float(fine.std())
    if deviation < 1e-3:  # noqa: PLR2004 - of 255: an empty picture
        return np.zeros(fine.size, np.int8)
    units = fine.ravel() / deviation * (127 / _DETAIL_RANGE)
    signature: NDArray[np.int8] = np.clip(np.rint(units), -127, 127).astype(np.int8)
    return signature


def _shrunk(grey: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    small = resize(np.asarray(grey, np.uint8)[..., None], side, side)
    return small[..., 0].astype(np.float32)
