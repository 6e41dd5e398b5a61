"""Images from disk to batches: threads decode ahead, order is kept, memory stays bounded.

Knows samples and what a network takes, nothing of devices or detectors.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil

from adctl.data import storage
from adctl.data.cache import DamagedCacheError, PreprocessedCache
from adctl.data.images import image_size, resize
from adctl.data.multichannel import array_pixels, read_pixels, to_display_image
from adctl.data.preprocess import check_region, to_network_input
from adctl.data.tiling import Tiling
from adctl.errors import ImageError
from adctl.records import Sample
from adctl.threads import map_ordered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from adctl.data.preprocess import InputSpec, Pixels

log = logging.getLogger(__name__)

# Several images are read at once already: threads within one would only take the cores from the network.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySample(Sample):
    """An image in memory; `path` is only its name in messages.

    Attributes:
        array: Array [H,W] (grey) or [H,W,C]; see `adctl.data.multichannel.array_pixels`.
    """

    array: NDArray[Any]


@dataclass(frozen=True)
class LoadedImage:
    """One image, read and brought to what the network takes, or why it could not be.

    Attributes:
        sample: Where it came from.
        pixels: Array [H,W,C] of uint8; None where it is unreadable or to be cut into tiles.
        width: Of the original, pixels; 0 when unreadable.
        height: Of the original, pixels; 0 when unreadable.
        error: Why it could not be read, or None.
        display: The original scaled down to look at, where that was asked for; None otherwise.
        whole: Array [height,width,C] of uint8, the original where it is to be cut into tiles; None otherwise.
    """

    sample: Sample
    pixels: Pixels | None
    width: int = 0
    height: int = 0
    error: ImageError | None = None
    display: NDArray[np.uint8] | None = None
    whole: NDArray[np.uint8] | None = None


def load_image(sample: Sample, spec: InputSpec, display: int | None = None) -> LoadedImage:
    """Read one image and bring it to what the network takes; an image error is returned, not raised.

    Args:
        sample: What to read.
        spec: What the network takes.
        display: Also keep the image at its own proportions, its longer side at most so many pixels.
    """
    try:
        if isinstance(sample, ArraySample):
            image = array_pixels(sample.path, sample.array, spec.channels, bit_depth=spec.bit_depth)
        else:
            image = read_pixels(sample.path, spec.channels, bit_depth=spec.bit_depth)
        check_region(sample.path, image, spec)
    except ImageError as error:
        return LoadedImage(sample, None, error=error)
    shown = None if display is None else _scaled(to_display_image(image), display)
    height, width = image.shape[:2]
    if spec.tiled:
        return LoadedImage(sample, None, width, height, display=shown, whole=image)
    return LoadedImage(sample, to_network_input(image, spec), width, height, display=shown)


def stream_images(
    samples: Iterable[Sample], spec: InputSpec, *, workers: int, display: int | None = None, batch_size: int = 1
) -> Iterator[LoadedImage]:
    """Read images in order, a bounded number ahead of the reader.

    Args:
        samples: What to read; may be endless.
        spec: What the network takes.
        workers: Threads; 0 reads in the caller's own.
        display: See `load_image`.
        batch_size: Images the reader takes at once; as many are read while it works on the ones before.
    """
    # Images that are cut into tiles wait in their full size, which may be a gigabyte.
    ahead = 1 if spec.tiled else max(4 * workers, batch_size)
    return map_ordered(
        lambda sample: load_image(sample, spec, display), samples, workers=workers, ahead=ahead, name="adctl-read"
    )


def network_inputs(item: LoadedImage, spec: InputSpec) -> Iterator[Pixels]:
    """What the network sees of a readable image [H,W,C]: the whole of it, or tile by tile."""
    if item.whole is None:
        assert item.pixels is not None
        yield item.pixels
        return
    for tile in Tiling.for_image(spec, item.height, item.width):
        yield to_network_input(tile.cut(item.whole), spec)


def batch_images(items: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Cut a stream into lists with `size` readable images each; unreadable ones stay in their places."""
    held: list[LoadedImage] = []
    readable = 0
    for item in items:
        held.append(item)
        readable += item.error is None
        if readable == size:
            yield held
            held, readable = [], 0
    if held:
        yield held


def stack_pixels(items: Iterable[LoadedImage]) -> NDArray[np.uint8]:
    """Pixels [B,H,W,C] of the readable images."""
    return np.stack([item.pixels for item in items if item.pixels is not None])


def _all_readable(items: Iterable[LoadedImage]) -> Iterator[LoadedImage]:
    for item in items:
        if item.error is not None:
            raise item.error
        yield item


def _scaled(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    return resize(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))


class ImageSource:
    """A set of images that is gone through once or many times, kept decoded in memory when it fits.

    Tiles count as images of their own. Where they are wanted in another order than that of their images and are
    neither in memory nor in a cache, each one costs decoding its image.

    Args:
        samples: The images.
        spec: What the network takes.
        workers: Threads that read.
        reuse: Whether it will be gone through more than once; only then is anything kept in memory.
        cache: A folder to keep preprocessed images in, for this time and the next; None keeps none.
    """

    def __init__(
        self, samples: Sequence[Sample], spec: InputSpec, *, workers: int, reuse: bool, cache: Path | None = None
    ) -> None:
        self.samples = tuple(samples)
        self.spec = spec
        self.workers = workers
        self.reuse = reuse
        self._cache = None if cache is None else PreprocessedCache(cache, spec)
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)
        self._kept: Pixels | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self.samples else 0

    def name(self, index: int) -> str:
        """What an image is called in messages."""
        return str(self.samples[self._place(index)[0]].path)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[Pixels]:
        """Pixels [B,H,W,C] of uint8, in the order given by indices (all in their own order when None).

        Raises:
            ImageError: An image could not be read.
            OutputError: The cache cannot be written.
        """
        indices = range(len(self)) if order is None else order
        if self._keep:
            kept = self._decoded()
            yield from (kept[chunk] for chunk in _chunks(indices, size))
        elif self._cache is not None:
            yield from (self._cached(chunk) for chunk in _chunks(indices, size))
        else:
            found = self._all() if order is None else self._chosen(order)
            yield from (np.stack(chunk) for chunk in _chunks(found, size))

    @cached_property
    def _ends(self) -> list[int]:
        """After each image, how many pieces there are until then."""
        if not self.spec.tiled:
            return list(range(1, len(self.samples) + 1))
        sizes = (image_size(sample.path) for sample in self.samples)
        return list(itertools.accumulate(len(Tiling.for_image(self.spec, height, width)) for width, height in sizes))

    def _place(self, index: int) -> tuple[int, int]:
        """The image of a piece, and the number of the piece within it."""
        image = bisect.bisect_right(self._ends, index)
        return image, index - (self._ends[image - 1] if image else 0)

    @cached_property
    def _keep(self) -> bool:
        return self.reuse and len(self) * int(np.prod(self.spec.shape)) < psutil.virtual_memory().available // 4

    def _decoded(self) -> Pixels:
        if self._kept is None:
            kept = np.empty((len(self), *self.spec.shape), np.uint8)
            found = self._all() if self._cache is None else (self._cached([row])[0] for row in range(len(self)))
            for place, pixels in enumerate(found):
                kept[place] = pixels
            self._kept = kept
        return self._kept

    def _all(self) -> Iterator[Pixels]:
        """Every piece in order; each image is decoded once."""
        return (pixels for _, pixels in self._pieces(range(len(self.samples))))

    def _pieces(self, images: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """(image, pixels) of every piece of some images."""
        items = stream_images((self.samples[image] for image in images), self.spec, workers=self.workers)
        for image, item in zip(images, _all_readable(items), strict=True):
            for pixels in network_inputs(item, self.spec):
                yield image, pixels

    def _chosen(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Pieces in any order."""
        if not self.spec.tiled:
            return (pixels for _, pixels in self._pieces(order))
        log.warning("The tiles do not fit into memory: each is decoded by itself. A --cache folder saves that.")
        return map_ordered(self._one, order, workers=self.workers, ahead=4 * self.workers, name="adctl-read")

    def _one(self, index: int) -> Pixels:
        image, number = self._place(index)
        item = load_image(self.samples[image], self.spec)
        if item.error is not None:
            raise item.error
        assert item.whole is not None
        tile = Tiling.for_image(self.spec, item.height, item.width)[number]
        return np.ascontiguousarray(to_network_input(tile.cut(item.whole), self.spec))  # no view: the image is let go

    def _cached(self, indices: Sequence[int]) -> Pixels:
        assert self._cache is not None
        if not self._cache.is_open:
            self._fill_cache()
        try:
            return self._cache.read(self._rows[indices])
        except DamagedCacheError:
            self._cache.discard()
            self._fill_cache()
            return self._cache.read(self._rows[indices])

    def _fill_cache(self) -> None:
        assert self._cache is not None
        self._rows = self._cache.fill([_digest(sample) for sample in self.samples], self._pieces)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _digest(sample: Sample) -> str:
    try:
        return storage.digest(sample.path)
    except OSError as error:
        raise ImageError(
            f"Cannot read the image {sample.path}: {error.strerror or error}.", "Check the file and its permissions."
        ) from error
