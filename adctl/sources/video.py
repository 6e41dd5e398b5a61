"""Video files, RTSP streams and cameras of this machine, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.errors import MissingExtraError, UsageError
from adctl.sources.camera import Camera, CameraOptions, Frame, LostError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT = 5.0
"""Seconds without an image after which a stream is lost."""

_GREY_WIDTH, _GREY_HEIGHT = 64, 48


class Video(Camera):
    """A video file, `rtsp://...`, or the number of a camera.

    A file is decoded as fast as parts are judged, and no part is left out; its times are those of the recording.

    Raises:
        MissingExtraError: PyAV is not installed.
        UsageError: There is no such file.
    """

    def __init__(self, name: str, address: str, options: CameraOptions) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingExtraError("av", "line") from error
        self._av = av
        self.live = address.isdecimal() or "://" in address
        if not self.live and not Path(address).is_file():
            raise UsageError(f"There is no folder or video file {address}.", "Check --source.")
        super().__init__(name, address, options)

    def frames(self) -> Iterator[Frame]:
        """Connect and yield decoded images."""
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                stream.thread_type = "SLICE"  # frame threads would hold images back
                for decoded in container.decode(stream):
                    moment = time.monotonic() if self.live or decoded.time is None else decoded.time
                    grey = decoded.reformat(_GREY_WIDTH, _GREY_HEIGHT, "gray").to_ndarray()
                    yield Frame(grey, partial(decoded.to_ndarray, format="rgb24"), moment)
        except (self._av.error.FFmpegError, OSError, IndexError) as error:
            raise LostError(getattr(error, "strerror", None) or str(error)) from error

    def _open(self) -> Any:
        address, options = self.address, {}
        if address.startswith("rtsp"):
            # Over UDP, lost packets would give torn pictures, which score as defects.
            options = {"rtsp_transport": "tcp", "fflags": "nobuffer", "timeout": str(int(1e6 * _TIMEOUT))}
        kind = None
        if address.isdecimal():
            kind, address = {
                "linux": ("v4l2", f"/dev/video{address}"),
                "darwin": ("avfoundation", address),
            }.get(sys.platform, ("dshow", f"video={address}"))
        return self._av.open(address, format=kind, options=options, timeout=(2 * _TIMEOUT, _TIMEOUT))
