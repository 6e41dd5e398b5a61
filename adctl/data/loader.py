"""Images from disk to batches: threads decode ahead, order is kept, memory stays bounded.

Knows samples and their size in pixels, nothing of devices or detectors.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from adctl.data.images import read_image, resize
from adctl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.records import Sample


@dataclass(frozen=True)
class Loaded:
    """One image, read and resized, or why it could not be.

    Attributes:
        sample: Where it came from.
        pixels: Array [H,W,3] of uint8 RGB at the size asked for, or None.
        width: Of the original, pixels; 0 when unreadable.
        height: Of the original, pixels; 0 when unreadable.
        error: Why it could not be read, or None.
        display: The original scaled down to look at, where that was asked for; None otherwise.
    """

    sample: Sample
    pixels: NDArray[np.uint8] | None
    width: int = 0
    height: int = 0
    error: ImageError | None = None
    display: NDArray[np.uint8] | None = None


def load_one(sample: Sample, height: int, width: int, display: int | None = None) -> Loaded:
    """Read and resize one image; an image error is returned, not raised.

    Args:
        sample: What to read.
        height: To resize to, pixels.
        width: To resize to, pixels.
        display: Also keep the image at its own proportions, its longer side at most so many pixels.
    """
    try:
        image = read_image(sample.path)
    except ImageError as error:
        return Loaded(sample, None, error=error)
    shown = None if display is None else _fit(image, display)
    return Loaded(sample, resize(image, height, width), image.shape[1], image.shape[0], display=shown)


def stream(
    samples: Iterable[Sample], height: int, width: int, *, workers: int, display: int | None = None
) -> Iterator[Loaded]:
    """Read and resize images in order, a bounded number ahead of the reader.

    Args:
        samples: What to read; may be endless.
        height: To resize to, pixels.
        width: To resize to, pixels.
        workers: Threads; 0 reads in the caller's own.
        display: See `load_one`.
    """
    if workers == 0:
        yield from (load_one(sample, height, width, display) for sample in samples)
        return
    ahead: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="adctl-read") as pool:
        try:
            for sample in samples:
                ahead.append(pool.submit(load_one, sample, height, width, display))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def groups(items: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Cut a stream into lists with `size` readable images each; unreadable ones stay in their places."""
    held: list[Loaded] = []
    readable = 0
    for item in items:
        held.append(item)
        readable += item.error is None
        if readable == size:
            yield held
            held, readable = [], 0
    if held:
        yield held


def stack(items: Iterable[Loaded]) -> NDArray[np.uint8]:
    """Pixels [B,H,W,3] of the readable images."""
    return np.stack([item.pixels for item in items if item.pixels is not None])


def _all_readable(items: Iterable[Loaded]) -> Iterator[Loaded]:
    for item in items:
        if item.error is not None:
            raise item.error
        yield item


def _fit(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    return resize(image, max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))


class ImageSource:
    """A set of images that is gone through once or many times, kept decoded in memory when it fits.

    Args:
        samples: The images.
        height: To resize to, pixels.
        width: To resize to, pixels.
        workers: Threads that read.
        reuse: Whether it will be gone through more than once; only then is anything kept.
    """

    def __init__(self, samples: Sequence[Sample], height: int, width: int, *, workers: int, reuse: bool) -> None:
        self.samples = tuple(samples)
        self.height = height
        self.width = width
        self.workers = workers
        self._kept: NDArray[np.uint8] | None = None
        self._keep = reuse and self._bytes() < psutil.virtual_memory().available // 4

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Pixels [B,H,W,3] of uint8, in the order given by indices (all in their own order when None).

        Raises:
            ImageError: An image could not be read.
        """
        indices = list(range(len(self.samples)) if order is None else order)
        if self._keep:
            kept = self._decoded()
            yield from (kept[indices[start : start + size]] for start in range(0, len(indices), size))
            return
        chosen = (self.samples[index] for index in indices)
        items = stream(chosen, self.height, self.width, workers=self.workers)
        yield from (stack(group) for group in groups(_all_readable(items), size))

    def _decoded(self) -> NDArray[np.uint8]:
        if self._kept is None:
            items = stream(self.samples, self.height, self.width, workers=self.workers)
            self._kept = stack(_all_readable(items))
        return self._kept

    def _bytes(self) -> int:
        return len(self.samples) * self.height * self.width * 3
