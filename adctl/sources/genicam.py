"""GenICam cameras (GigE Vision, USB3 Vision) through the package `harvesters` and the producer file of their maker.

genicam:SERIAL?cti=/opt/maker/producer.cti      the camera with this serial number
genicam:0?cti=/opt/maker/producer.cti           the first camera
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import cv2
import numpy as np

from adctl.errors import MissingExtraError, UsageError
from adctl.sources.camera import Camera, CameraOptions, Frame, LostError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "genicam:"

_TIMEOUT = 5.0
_GREY_SIZE = (64, 48)
_COLOURS = 3
_LONGEST_PLACE = 2


class Genicam(Camera):
    """Camera that a GenTL producer gives.

    Raises:
        MissingExtraError: The package is not installed.
        UsageError: The address names no producer.
    """

    def __init__(self, name: str, address: str, options: CameraOptions) -> None:
        try:
            from harvesters.core import Harvester
        except ImportError as error:
            raise MissingExtraError("harvesters", "genicam") from error
        self._harvester_class: Any = Harvester
        self._camera, _, query = address.removeprefix(PREFIX).partition("?")
        self._producers = parse_qs(query).get("cti", [])
        if not self._producers:
            raise UsageError(
                f"{address} names no producer file.", "Write genicam:SERIAL?cti=FILE with the .cti file of the maker."
            )
        super().__init__(name, address, options)

    def frames(self) -> Iterator[Frame]:
        """Connect and yield images."""
        harvester = self._harvester_class()
        try:
            for producer in self._producers:
                harvester.add_file(producer)
            harvester.update()
            is_place = len(self._camera) <= _LONGEST_PLACE  # a serial number is longer than a place in the list
            wanted: Any = int(self._camera or 0) if is_place else {"serial_number": self._camera}
            camera = harvester.create(wanted)
            camera.start()
            while not self.stops.is_set():
                with camera.fetch(timeout=_TIMEOUT) as buffer:
                    component = buffer.payload.components[0]
                    image = component.data.reshape(component.height, component.width, -1).copy()
                if image.shape[2] == 1:
                    image = image[..., 0]
                grey = image if image.ndim < _COLOURS else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
                yield Frame(cv2.resize(grey, _GREY_SIZE), partial(np.asarray, image), time.monotonic())
        except GeneratorExit:
            raise
        except Exception as error:  # producers raise exceptions of their own
            raise LostError(str(error) or type(error).__name__) from error
        finally:
            harvester.reset()
