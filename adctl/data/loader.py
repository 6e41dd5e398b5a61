"""Ordered loading of images from disk in batches, with bounded prefetching in threads."""

from __future__ import annotations

import bisect
import itertools
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil

from adctl.data.cache import DamagedCacheError, PreprocessedCache
from adctl.data.images import image_size, resize
from adctl.data.multichannel import array_pixels, read_pixels, to_display_image
from adctl.data.preprocess import check_region, to_network_input
from adctl.data.split import file_digest
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

# Images are already read in parallel; OpenCV's own threads would compete with the network for the cores.
cv2.setNumThreads(1)


_SHOWN_CHANNELS = 3
_EARLY = 32
"""Images that are read while modules are imported and the network is built."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySample(Sample):
    """Image in memory; `path` is only its name in messages.

    Attributes:
        array: Pixels [H,W] (grey) or [H,W,C]; see `adctl.data.multichannel.array_pixels`.
    """

    array: NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BytesSample(Sample):
    """Image file in memory; `path` is only its name in messages.

    Attributes:
        data: All bytes of the file.
    """

    data: bytes


@dataclass(frozen=True)
class LoadedImage:
    """One preprocessed image, or the reason why it could not be read.

    Attributes:
        sample: The image file.
        pixels: Network input, array [H,W,C] of uint8; None if the image is unreadable or tiled.
        width: Width of the original, pixels; 0 if unreadable.
        height: Height of the original, pixels; 0 if unreadable.
        error: Reason why the image could not be read, or None.
        display: The original scaled down for display, if requested; otherwise None.
        whole: Original image, array [height,width,C] of uint8, if the input format uses tiles; otherwise None.
        inputs: Statistics of the image, as from `measure_input`, if they are known.
    """

    sample: Sample
    pixels: Pixels | None
    width: int = 0
    height: int = 0
    error: ImageError | None = None
    display: NDArray[np.uint8] | None = None
    whole: NDArray[np.uint8] | None = None
    inputs: tuple[float, ...] | None = None


class _KeptImages:
    """Preprocessed images in memory, up to a number of bytes; at worst two threads read the same image."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._images: dict[tuple[Sample, InputSpec], LoadedImage] = {}

    def get(self, sample: Sample, spec: InputSpec) -> LoadedImage:
        """Return an image, from memory if it is there."""
        key = sample, spec
        if key in self._images:
            return self._images[key]
        item = _load(sample, spec, None)
        size = 0 if item.pixels is None else item.pixels.nbytes
        if item.error is None and size <= self._room:
            self._images[key] = item
            self._room -= size
        return item


_KEPT: ContextVar[_KeptImages | None] = ContextVar("adctl_kept_images", default=None)


@contextmanager
def keep_images() -> Iterator[None]:
    """Keep images in memory inside the block, for several passes; they take at most a quarter of the free memory."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set(_KeptImages(psutil.virtual_memory().available // 4))
    try:
        yield
    finally:
        _KEPT.reset(token)


def load_image(sample: Sample, spec: InputSpec, display: int | None = None) -> LoadedImage:
    """Read and preprocess one image; an `ImageError` is stored in the result, not raised.

    Args:
        sample: The image to read.
        spec: Input format of the network.
        display: Maximum side in pixels of a copy for display, which keeps the aspect ratio; None makes no copy.
    """
    kept = _KEPT.get()
    if kept is None or display is not None or spec.tiled:
        return _load(sample, spec, display)
    return kept.get(sample, spec)


def _load(sample: Sample, spec: InputSpec, display: int | None) -> LoadedImage:
    try:
        if isinstance(sample, ArraySample):
            image = array_pixels(sample.path, sample.array, spec.channels, bit_depth=spec.bit_depth)
        else:
            data = sample.data if isinstance(sample, BytesSample) else None
            image = read_pixels(sample.path, spec.channels, bit_depth=spec.bit_depth, data=data)
        check_region(sample.path, image, spec)
    except ImageError as error:
        return LoadedImage(sample, None, error=error)
    copy = None if display is None else to_display_image(_scale_down(image[..., :_SHOWN_CHANNELS], display))
    height, width = image.shape[:2]
    if spec.tiled:
        return LoadedImage(sample, None, width, height, display=copy, whole=image)
    return LoadedImage(sample, to_network_input(image, spec), width, height, display=copy)


def stream_images(
    samples: Iterable[Sample], spec: InputSpec, *, workers: int, display: int | None = None, batch_size: int = 1
) -> Iterator[LoadedImage]:
    """Read images in order, and prefetch a bounded number of them.

    Args:
        samples: The images to read; may be infinite.
        spec: Input format of the network.
        workers: Number of reading threads; 0 reads in the caller's thread.
        display: See `load_image`.
        batch_size: Number of images that the consumer processes at a time; at least as many are prefetched, unless
            images are tiled.
    """
    # Tiled images are held in their full size, which may be a gigabyte.
    ahead = 1 if spec.tiled else max(4 * workers, batch_size)
    return map_ordered(
        lambda sample: load_image(sample, spec, display), samples, workers=workers, ahead=ahead, name="adctl-read"
    )


def network_inputs(item: LoadedImage, spec: InputSpec) -> Iterator[Pixels]:
    """Yield the network inputs [H,W,C] of a readable image: one input, or one for each tile."""
    if item.whole is None:
        assert item.pixels is not None
        yield item.pixels
        return
    for tile in Tiling.for_image(spec, item.height, item.width):
        yield to_network_input(tile.cut(item.whole), spec)


def batch_images(items: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Group images into lists with `size` readable images each; unreadable ones keep their place in the order."""
    group: list[LoadedImage] = []
    readable = 0
    for item in items:
        group.append(item)
        readable += item.error is None
        if readable == size:
            yield group
            group, readable = [], 0
    if group:
        yield group


def stack_pixels(items: Iterable[LoadedImage]) -> NDArray[np.uint8]:
    """Stack the pixels of the readable images into an array [B,H,W,C], without a copy if they lie side by side."""
    pixels = [item.pixels for item in items if item.pixels is not None]
    base = pixels[0].base
    if isinstance(base, np.ndarray) and base.shape == (len(pixels), *pixels[0].shape) and base.dtype == np.uint8:
        places = [one.__array_interface__["data"][0] for one in pixels]
        if places == list(range(places[0], places[0] + base.nbytes, pixels[0].nbytes)):
            return base
    return np.stack(pixels)


def _require_readable(items: Iterable[LoadedImage]) -> Iterator[LoadedImage]:
    for item in items:
        if item.error is not None:
            raise item.error
        yield item


def _scale_down(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    return resize(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))


class ImageSource:
    """Set of images that is read once or several times, and is kept decoded in memory if it fits.

    Each tile counts as an image. To read tiles in shuffled order, without memory or a cache, the whole image is decoded
    for every tile.

    Args:
        samples: The images.
        spec: Input format of the network.
        workers: Number of reading threads.
        reuse: True if the images are read several times; only then are they kept in memory.
        cache: Folder for a cache of preprocessed images, reused by later runs; None disables the cache.
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
        self._early: dict[int, Future[LoadedImage]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self.samples else 0

    def read_ahead(self, count: int = _EARLY) -> None:
        """Start reading the first images in other threads, for the first pass over them; do nothing for tiled images.

        Args:
            count: Number of images; what they take as network inputs stays in memory until then.
        """
        if self.spec.tiled or self._cache is not None or not self.workers:
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="adctl-early")
        for index, sample in enumerate(self.samples[:count]):
            self._early[index] = pool.submit(copy_context().run, load_image, sample, self.spec)
        pool.shutdown(wait=False)

    def name(self, index: int) -> str:
        """Return the path of an image, for messages."""
        return str(self.samples[self._locate(index)[0]].path)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[Pixels]:
        """Yield batches of pixels [B,H,W,C], uint8, in the order of the indices (None: all images in sequence).

        Raises:
            ImageError: An image cannot be read.
            OutputError: The cache cannot be written.
        """
        indices = range(len(self)) if order is None else order
        if self._keep:
            kept = self._decoded()
            yield from (kept[chunk] for chunk in _chunks(indices, size))
        elif self._cache is not None:
            yield from (self._cached(chunk) for chunk in _chunks(indices, size))
        else:
            inputs = self._in_sequence() if order is None else self._in_order(order)
            yield from (np.stack(chunk) for chunk in _chunks(inputs, size))

    @cached_property
    def _ends(self) -> list[int]:
        """Cumulative number of inputs after each image."""
        if not self.spec.tiled:
            return list(range(1, len(self.samples) + 1))
        sizes = (image_size(sample.path) for sample in self.samples)
        return list(itertools.accumulate(len(Tiling.for_image(self.spec, height, width)) for width, height in sizes))

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of an input's image, and the input's index within the image."""
        image = bisect.bisect_right(self._ends, index)
        return image, index - (self._ends[image - 1] if image else 0)

    @cached_property
    def _keep(self) -> bool:
        return self.reuse and len(self) * int(np.prod(self.spec.shape)) < psutil.virtual_memory().available // 4

    def _decoded(self) -> Pixels:
        if self._kept is None:
            kept = np.empty((len(self), *self.spec.shape), np.uint8)
            rows = range(len(self))
            inputs = self._in_sequence() if self._cache is None else (self._cached([row])[0] for row in rows)
            for row, pixels in enumerate(inputs):
                kept[row] = pixels
            self._kept = kept
        return self._kept

    def _in_sequence(self) -> Iterator[Pixels]:
        """Yield all inputs in sequence; each image is decoded once."""
        return (pixels for _, pixels in self._inputs(range(len(self.samples))))

    def _inputs(self, images: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield (image index, pixels) of every input of the given images."""
        ahead = 1 if self.spec.tiled else 4 * self.workers
        items = map_ordered(self._load, images, workers=self.workers, ahead=ahead, name="adctl-read")
        for image, item in zip(images, _require_readable(items), strict=True):
            for pixels in network_inputs(item, self.spec):
                yield image, pixels

    def _load(self, image: int) -> LoadedImage:
        early = self._early.pop(image, None)
        return load_image(self.samples[image], self.spec) if early is None else early.result()

    def _in_order(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield inputs in the given order."""
        if not self.spec.tiled:
            return (pixels for _, pixels in self._inputs(order))
        log.warning("The tiles do not fit into memory: every tile decodes its image again. Use --cache to avoid this.")
        return map_ordered(self._tile, order, workers=self.workers, ahead=4 * self.workers, name="adctl-read")

    def _tile(self, index: int) -> Pixels:
        image, number = self._locate(index)
        item = load_image(self.samples[image], self.spec)
        if item.error is not None:
            raise item.error
        assert item.whole is not None
        tile = Tiling.for_image(self.spec, item.height, item.width)[number]
        # A copy, not a view, so that the whole image is freed.
        return np.ascontiguousarray(to_network_input(tile.cut(item.whole), self.spec))

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
        self._rows = self._cache.fill([file_digest(sample) for sample in self.samples], self._inputs)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
