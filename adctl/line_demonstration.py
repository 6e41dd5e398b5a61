"""Demonstration of a production line: zippers go by at a rate, through a folder or a camera, a server and sinks."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import cv2
import numpy as np

from adctl import files, line_camera, run_folder
from adctl.config import DemoLineSettings, DemoSettings, LoadedSettings, ServeSettings, names_of, validated
from adctl.data.images import to_png
from adctl.demonstration import train_and_calibrate
from adctl.errors import MissingExtraError, UsageError
from adctl.fetching.demo_dataset import DEFECTS, render
from adctl.progress import SILENT, Reporter
from adctl.serve.server import require_packages, run_server
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from adctl.sinks.delivery import SinkStatus

log = logging.getLogger(__name__)

_KEPT = 200
"""Images that stay in the folder; older ones were judged long before."""

_PATIENCE = 60.0
"""Longest time for the last verdicts, seconds."""

_OPENING = 300.0
"""Longest time for the server to open the model, seconds."""

_IN_VIEW = 0.6
"""Share of a part's time before the camera after which the stream surely shows it."""

_JPEG_QUALITY = 98

_NAME = "zipper"
_TOPIC = "adctl/zipper"


@dataclass(frozen=True)
class DemoLineResult:
    """Result of `demo_line`.

    Attributes:
        model: Model file.
        folder: Folder of images, verdicts and history.
        address: Address of the page.
        parts: Number of parts that went by.
        judged: Number of parts with a verdict.
        defective: Number of defective parts among them.
        found: Number of defective parts that were rejected.
        false_alarms: Number of good parts that were rejected.
        sinks: State of each sink at the end.
        seconds: Time that the line ran.
    """

    model: Path
    folder: Path
    address: str
    parts: int
    judged: int
    defective: int
    found: int
    false_alarms: int
    sinks: tuple[SinkStatus, ...]
    seconds: float


def demo_line(loaded: LoadedSettings[DemoLineSettings], reporter: Reporter = SILENT) -> DemoLineResult:
    """Run the line until Ctrl-C, or until `settings.parts` parts have verdicts.

    Args:
        loaded: Settings and their origins.
        reporter: Receiver of progress reports.

    Raises:
        MissingExtraError: A package of the extra `serve`, or with `rtsp` of `line`, is not installed.
        UsageError: `rtsp` is set, and GStreamer's RTSP server is not installed.
        AdctlError: The model cannot be found or trained, a sink is not valid, or the port is taken.
    """
    settings = loaded.settings
    require_packages()
    if settings.rtsp:
        _require_rtsp()
    model = find_model(settings.runs, settings.model) if settings.model else _trained(settings, reporter)
    folder = run_folder.new_folder(settings.runs / "demo-line").absolute()
    verdicts = folder / "verdicts.csv"
    belt = (_FilmedBelt if settings.rtsp else _Belt)(settings, files.make_folder(folder / "inbox"), verdicts)
    with _broker(folder, settings) as broker, belt.opened() as source:
        sinks = settings.sink or broker
        server = validated(ServeSettings, {
            "runs": folder / "runs", "model": (f"{_NAME}={model}",), "source": (f"{_NAME}={source}",),
            "sink": (*sinks, f"csv:{verdicts}"), "port": settings.port, "device": settings.device, "gpu": settings.gpu,
            "lot": "demo", "trigger": belt.trigger,
        })  # fmt: skip
        for sink in sinks:
            log.info("Verdicts go to %s.", sink)
        try:
            served = run_server(server, belt.serve)
        finally:
            belt.stops.set()
    judged = _judged(verdicts)
    bad = [rejected for defective, rejected in judged if defective]
    good = [rejected for defective, rejected in judged if not defective]
    return DemoLineResult(
        model=model, folder=folder, address=served.address, parts=belt.count, judged=len(judged), defective=len(bad),
        found=sum(bad), false_alarms=sum(good), sinks=served.sinks, seconds=served.seconds,
    )  # fmt: skip


def _trained(settings: DemoLineSettings, reporter: Reporter) -> Path:
    """Train and calibrate as `adctl demo` does, and return the model."""
    shared = {name: value for name, value in asdict(settings).items() if name in names_of(DemoSettings)}
    log.info("Training a model of zippers first.")
    return train_and_calibrate(DemoSettings(**shared), reporter).model


class _Belt(threading.Thread):
    """Thread that lets a part go by at each tick: it puts an image into a folder.

    Args:
        settings: Rate, number and share of defective parts.
        inbox: The folder.
        verdicts: CSV file in which verdicts arrive.

    Attributes:
        trigger: Trigger of the source.
        address: Address of the server.
        count: Number of parts that went by.
        stops: Set when the line ends.
    """

    trigger = "interval=1"

    def __init__(self, settings: DemoLineSettings, inbox: Path, verdicts: Path) -> None:
        super().__init__(name="adctl-belt", daemon=True)
        self.inbox, self._verdicts = inbox, verdicts
        self._settings = settings
        self._shown: list[Path] = []
        self.address = ""
        self.count = 0
        self.stops = threading.Event()

    def serve(self, address: str) -> None:
        """Begin when the server at an address answers."""
        self.address = address
        self.start()

    @contextmanager
    def opened(self) -> Iterator[str]:
        """Yield the address of the source that takes the parts."""
        yield str(self.inbox)

    def run(self) -> None:
        """Let parts go by; after the last verdict, end the program as Ctrl-C does."""
        settings, random = self._settings, np.random.default_rng(self._settings.seed)
        with urlopen(f"{self.address}/livez", timeout=_OPENING):  # noqa: S310 - our own server
            log.info("Open %s in a browser to watch.", self.address)
        start = time.monotonic()
        while settings.parts is None or self.count < settings.parts:
            defect = str(random.choice(DEFECTS)) if random.random() < settings.defective else None
            image, _ = render([settings.seed, 7, self.count], defect)
            if self.stops.wait(max(0.0, start + self.count / settings.rate - time.monotonic())):
                return
            self.show(f"{self.count:06}-{defect or 'good'}", image)
            self.count += 1
        until = time.monotonic() + _PATIENCE
        while len(_judged(self._verdicts)) < self.count and time.monotonic() < until and not self.stops.wait(0.2):
            pass
        if not self.stops.is_set():
            signal.raise_signal(signal.SIGINT)

    def show(self, part: str, image: NDArray[np.uint8]) -> None:
        """Let a part go by.

        Args:
            part: Identifier, which ends with the name of the defect, or with `good`.
            image: Its picture, RGB [H,W,3].
        """
        self._shown.append(self.inbox / f"{part}.png")
        files.write_bytes(self._shown[-1], to_png(image), flush=False)
        if len(self._shown) > _KEPT:
            self._shown.pop(0).unlink(missing_ok=True)


class _FilmedBelt(_Belt):
    """Belt below a camera, an RTSP stream; a light barrier tells the server when a part is in the picture."""

    trigger = "http"

    @contextmanager
    def opened(self) -> Iterator[str]:
        """Run the camera, and yield its address."""
        picture = self.inbox / "camera.jpg"
        self._film(render([self._settings.seed, 7, 0])[0])
        port = _free_port()
        process = subprocess.Popen(  # noqa: S603 - a program of ours
            [_rtsp_python() or sys.executable, Path(line_camera.__file__), str(port), picture],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            address = f"rtsp://127.0.0.1:{port}/line"
            log.info("The camera is %s.", address)
            yield address
        finally:
            process.kill()
            process.wait()

    def show(self, part: str, image: NDArray[np.uint8]) -> None:
        """Put a part before the camera, and tell the server when the stream shows it."""
        self._film(image)
        if self.stops.wait(_IN_VIEW / self._settings.rate):
            return
        request = Request(f"{self.address}/v1/line/{_NAME}/trigger?{urlencode({'part': part})}", method="POST")  # noqa: S310 - our own server
        with urlopen(request, timeout=_OPENING):  # noqa: S310 - our own server
            pass

    def _film(self, image: NDArray[np.uint8]) -> None:
        _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        files.write_bytes(self.inbox / "camera.jpg", jpeg.tobytes(), flush=False)


def _require_rtsp() -> None:
    """Raise if a stream can be neither served nor read.

    Raises:
        MissingExtraError: PyAV is not installed.
        UsageError: GStreamer's RTSP server is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", "line")
    if _rtsp_python() is None:
        raise UsageError(
            "--rtsp needs the RTSP server of GStreamer, which is not installed.",
            "Install it (Debian: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
            "gstreamer1.0-plugins-good), or leave --rtsp out: the parts then go through a folder.",
        )


@cache
def _rtsp_python() -> str | None:
    """Return a Python that can import GStreamer's RTSP server: this one or that of the system."""
    question = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    for program in (sys.executable, shutil.which("python3", path=os.defpath)):
        if program and subprocess.run([program, "-c", question], capture_output=True, check=False).returncode == 0:  # noqa: S603 - a fixed program
            return program
    return None


def _judged(verdicts: Path) -> list[tuple[bool, bool]]:
    """Return for each verdict whether the part is defective, and whether it was rejected."""
    if not verdicts.exists():
        return []
    with verdicts.open(newline="", encoding="utf-8") as stream:
        return [(not row["part"].endswith("-good"), row["verdict"] == "reject") for row in csv.DictReader(stream)]


@contextmanager
def _broker(folder: Path, settings: DemoLineSettings) -> Iterator[tuple[str, ...]]:
    """Run mosquitto on this machine, and yield the address for the verdicts; none if it is not needed or installed."""
    program = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if settings.sink or program is None or importlib.util.find_spec("paho") is None:
        if not settings.sink:
            log.info("No broker: mosquitto or the Python package paho-mqtt is not installed.")
        yield ()
        return
    port = _free_port()
    written = folder / "mosquitto.conf"
    files.write_bytes(written, f"listener {port} 127.0.0.1\nallow_anonymous true\n".encode())
    process = subprocess.Popen(  # noqa: S603 - a program of this machine, with a file of ours
        [program, "-c", written], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        log.info("To see the verdicts: mosquitto_sub -h 127.0.0.1 -p %d -t '%s/#' -v", port, _TOPIC)
        yield (f"mqtt://127.0.0.1:{port}/{_TOPIC}",)
    finally:
        process.terminate()
        process.wait(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
