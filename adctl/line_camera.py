"""Camera of the demonstrated line: an RTSP server that always shows what one JPEG file holds.

It is run, `python3 line_camera.py PORT FILE`, by a Python that has GStreamer, and imports nothing of adctl.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

_PICTURES_A_SECOND = 25


def serve(port: int, file: str) -> None:
    """Serve the stream at rtsp://127.0.0.1:PORT/line until the process is killed.

    Args:
        port: Port of this machine.
        file: JPEG file, colours subsampled, which another process replaces whenever the picture changes.
    """
    gst, rtsp, glib = _gstreamer()
    gst.init(None)

    def push(source: Any) -> bool:
        picture = gst.Buffer.new_wrapped(Path(file).read_bytes())
        return bool(source.emit("push-buffer", picture) == gst.FlowReturn.OK)

    def configure(_: Any, media: Any) -> None:
        source = media.get_element().get_by_name("camera")
        push(source)
        glib.timeout_add(1000 // _PICTURES_A_SECOND, push, source)

    server = rtsp.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(port))
    factory = rtsp.RTSPMediaFactory()
    factory.set_launch(
        "( appsrc name=camera is-live=true do-timestamp=true format=time max-buffers=1 leaky-type=downstream"
        f" caps=image/jpeg,framerate={_PICTURES_A_SECOND}/1 ! jpegparse ! rtpjpegpay name=pay0 )"
    )
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    glib.MainLoop().run()


def _gstreamer() -> tuple[Any, Any, Any]:
    gi: Any = importlib.import_module("gi")
    for name in ("Gst", "GstRtspServer"):
        gi.require_version(name, "1.0")
    gst, rtsp, glib = (importlib.import_module(f"gi.repository.{name}") for name in ("Gst", "GstRtspServer", "GLib"))
    return gst, rtsp, glib


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
