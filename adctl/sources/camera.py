"""Base of cameras: trigger, images of a part, faults of the picture, and connecting again after a loss."""

from __future__ import annotations

import hashlib
import logging
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.data.loader import ArraySample
from adctl.run_folder import timestamp, utc
from adctl.scoring.watch_log import Stamp
from adctl.sources.base import Part, Source
from adctl.sources.trigger import Order, open_trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_DARK, _EVEN = 8.0, 1.0
"""Mean grey level below which a picture is black, and standard deviation below which it has one colour."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_LONGEST_PART = 200


@dataclass(frozen=True)
class CameraOptions:
    """When and how a camera takes a part.

    Attributes:
        trigger: Text of the trigger; see `open_trigger`.
        frames: Number of consecutive images of a part.
        debounce: Seconds after a part in which no other is taken.
        lot: Lot of the parts.
    """

    trigger: str = "interval=1"
    frames: int = 1
    debounce: float = 0.0
    lot: str = ""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a camera.

    Attributes:
        grey: Small grey copy [h,w] of uint8.
        pixels: Function that returns the whole image [H,W] or [H,W,3] of uint8, RGB.
        moment: Time of the image on the clock of the source, seconds.
    """

    grey: NDArray[np.uint8]
    pixels: Callable[[], NDArray[np.uint8]]
    moment: float


class LostError(Exception):
    """The camera gives no images; the text says why."""


class Camera(Source):
    """Camera, or a video file.

    Args:
        name: Name of the source.
        address: Address that the user gave.
        options: Trigger and images of a part.

    Raises:
        UsageError: The trigger is not valid.
    """

    live = True

    def __init__(self, name: str, address: str, options: CameraOptions) -> None:
        super().__init__(name, address)
        self._options = options
        self._trigger = open_trigger(options.trigger)
        self._last_digest = b""
        self._count = 0

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Connect and yield images until the stream ends.

        Raises:
            LostError: The camera is away, or was lost.
        """

    def trigger(self, part: str = "", lot: str = "") -> bool:
        """Take a part now, if the trigger is `http`."""
        return self._trigger.request(Order(part, lot))

    def close(self) -> None:
        """Make `parts` end soon."""
        super().close()
        self._trigger.close()

    def parts(self) -> Iterator[Part]:
        """Yield a part for each trigger; a camera that is lost is looked for again until it is back."""
        pause, was_lost = _FIRST_PAUSE, False
        while not self.stops.is_set():
            reason = "the stream ended"
            try:
                for part in self._parts_of(self.frames()):
                    if was_lost:
                        log.info("%s is back.", self.name)
                        was_lost, pause = False, _FIRST_PAUSE
                    if part is not None:
                        yield part
            except LostError as error:
                reason = str(error)
            if not self.live and reason == "the stream ended":
                self.state = "ended"
                return
            self.state = f"lost: {reason}"
            if not was_lost and not self.stops.is_set():
                log.warning("%s gives no images: %s. Looking for it again.", self.name, reason)
            was_lost = True
            self.stops.wait(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _parts_of(self, frames: Iterator[Frame]) -> Iterator[Part | None]:
        """Yield a part for each trigger, and None for each frame without one."""
        order: Order | None = None
        taken: list[NDArray[np.uint8]] = []
        greys: list[NDArray[np.uint8]] = []
        started = quiet_until = -np.inf
        for frame in frames:
            if self.stops.is_set():
                return
            self.state = "running"
            if order is None and frame.moment >= quiet_until:
                order = self._trigger.fires(frame.grey, frame.moment)
                started, quiet_until = (
                    (time.monotonic(), frame.moment + self._options.debounce) if order else (started, quiet_until)
                )
            if order is not None:
                taken.append(frame.pixels())
                greys.append(frame.grey)
            if order is None or len(taken) < self._options.frames:
                yield None
                continue
            yield self._part(order, taken, greys, started)
            order, taken, greys = None, [], []

    def _part(
        self, order: Order, taken: list[NDArray[np.uint8]], greys: list[NDArray[np.uint8]], started: float
    ) -> Part:
        now = time.time() - (time.monotonic() - started)
        self._count += 1
        stem = f"{timestamp()[:19].replace(':', '').replace('T', '-')}-{self._count:06}"
        part, lot = order.part[:_LONGEST_PART], order.lot[:_LONGEST_PART]
        key = f"{self.name}/{part}-{stem}" if part else f"{self.name}/{stem}"  # a part may come twice
        samples = tuple(ArraySample(Path(key), key, array=image) for image in taken)
        fault = self._fault(taken, greys)
        return Part(
            key, self.name, part or stem, lot or self._options.lot, () if fault else samples, started, utc(now),
            Stamp(0, int(now * 1e9)), fault, live=self.live,
        )  # fmt: skip

    def _fault(self, taken: list[NDArray[np.uint8]], greys: list[NDArray[np.uint8]]) -> str:
        """Return why the images of a part cannot be judged; empty if they can."""
        before, self._last_digest = self._last_digest, _digest(taken[-1])
        if any(grey.mean() < _DARK for grey in greys):
            return f"The picture of {self.name} is black."
        if any(grey.std() < _EVEN for grey in greys):
            return f"The picture of {self.name} has one colour only."
        if self._last_digest == before:
            return f"The picture of {self.name} is frozen: it equals that of the part before in every pixel."
        return ""


def _digest(image: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
