"""Sources, triggers, parts and their verdicts, from real video files and a real RTSP stream to sinks."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from peers import Web, free_port, wait_for_port, wait_until

from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.data.images import read_image
from adctl.errors import MissingExtraError, UsageError
from adctl.line.intake import Intake
from adctl.line.scoring import score_sources
from adctl.line.verdicts import deciding
from adctl.records import ScoredImage, Verdict
from adctl.scoring.watch_log import Stamp, file_id
from adctl.sources.camera import Camera, CameraOptions, Frame, LostError
from adctl.sources.opening import open_sources, shown, split_name
from adctl.sources.trigger import HttpRequest, Interval, Motion, open_trigger


def settings_for(model: Path, folder: Path, **changes) -> LoadedSettings[ScoreSettings]:
    given = {"model": model, "runs": folder / "runs", "out": folder / "out", "device": "cpu", "heatmaps": False,
             "settle": 0.1, **changes}  # fmt: skip
    return LoadedSettings(validated(ScoreSettings, given), dict.fromkeys(names_of(ScoreSettings), "default"))


def noise(seed: int, level: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(level - 20, level + 20, (48, 64, 3)).astype(np.uint8)


def write_video(path: Path, images: list[np.ndarray], rate: int = 10) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=rate)  # without loss
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


class Pictures(Camera):
    """Camera whose images are given."""

    def __init__(self, images, options, losses=()):
        super().__init__("cam", "0", options)
        self._images, self._losses = list(images), set(losses)

    def frames(self):
        if not self._images:
            self.stops.set()
        while self._images:
            image = self._images.pop(0)
            if image is None:
                raise LostError("unplugged")
            yield Frame(image.mean(-1).astype(np.uint8), lambda whole=image: whole, time.monotonic())


# ---- triggers


def test_an_interval_keeps_its_time_and_starts_anew_after_a_pause():
    trigger = Interval(1.0)
    grey = np.zeros((4, 4), np.uint8)
    fired = [moment for moment in (0.0, 0.4, 0.9, 1.1, 2.0, 2.1, 9.0, 9.5, 10.0) if trigger.fires(grey, moment)]
    assert fired == [0.0, 1.1, 2.0, 9.0, 10.0]


def test_motion_fires_once_for_each_part_that_comes_into_view():
    trigger = Motion(0.05)
    belt, part = np.full((48, 64), 100, np.uint8), np.full((48, 64), 100, np.uint8)
    part[10:30, 20:40] = 200
    sequence = [belt, belt, part, part, belt + 3, belt, part, belt]
    assert [bool(trigger.fires(grey, 0.0)) for grey in sequence] == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
        False,
    ]


def test_http_takes_a_part_with_its_name_and_lot():
    trigger = open_trigger(f"http={free_port()}")
    assert isinstance(trigger, HttpRequest)
    request = urllib.request.Request(f"http://127.0.0.1:{trigger.port}/?part=P7&lot=L1", method="POST")
    assert urllib.request.urlopen(request, timeout=5).status == 202
    order = trigger.fires(np.zeros((2, 2), np.uint8), 0.0)
    assert (order.part, order.lot) == ("P7", "L1")
    assert trigger.fires(np.zeros((2, 2), np.uint8), 0.0) is None
    with pytest.raises(UsageError, match="Cannot listen"):
        open_trigger(f"http={trigger.port}")
    trigger.close()


@pytest.mark.parametrize("text", ["interval=0", "interval=x", "motion=-1", "laser", "http=x"])
def test_a_wrong_trigger_is_refused(text):
    with pytest.raises(UsageError) as raised:
        open_trigger(text)
    assert "interval=SECONDS" in raised.value.remedy


# ---- parts


def test_frozen_black_and_even_pictures_are_said_and_not_judged():
    images = [noise(1), noise(1), noise(2), np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 90, np.uint8)]
    parts = list(Pictures(images, CameraOptions("interval=0.000001")).parts())
    assert [bool(part.samples) for part in parts] == [True, False, True, False, False]
    assert [next((word for word in ("frozen", "black", "colour") if word in part.fault), "") for part in parts] == [
        "", "frozen", "", "black", "colour",
    ]  # fmt: skip


def test_a_camera_that_was_unplugged_is_taken_back(caplog):
    camera = Pictures([noise(1), None, noise(2)], CameraOptions("interval=0.000001"))
    caplog.set_level("INFO", "adctl")
    parts = list(camera.parts())
    assert len(parts) == 2
    assert "cam gives no images: unplugged" in caplog.text
    assert "cam is back" in caplog.text


def test_several_images_make_one_part_and_debounce_keeps_others_away():
    images = [noise(number) for number in range(9)]
    parts = list(Pictures(images, CameraOptions("interval=0.000001", frames=3, lot="L2")).parts())
    assert [len(part.samples) for part in parts] == [3, 3, 3]
    assert {part.lot for part in parts} == {"L2"}
    calm = list(Pictures(images, CameraOptions("interval=0.000001", debounce=60)).parts())
    assert len(calm) == 1


def test_parts_that_come_too_fast_are_errors_and_not_lost():
    intake = Intake([Pictures([noise(number) for number in range(40)], CameraOptions("interval=0.000001"))])
    wait_until(lambda: intake._running == 0)
    parts = []
    while not intake.ended:
        part = intake.next(0.1)
        if part is not None:
            parts.append(part)
    assert len(parts) == 40
    assert [part.fault for part in parts[:32]] == [""] * 32
    assert all("faster" in part.fault for part in parts[32:])


def row(score: float | None) -> ScoredImage:
    verdict = Verdict.ERROR if score is None else Verdict.GOOD
    return ScoredImage("a", "a", None, None, score, 1.0, verdict)


def test_the_worst_or_the_median_image_decides_and_an_unreadable_one_first():
    rows = [row(1.0), row(3.0), row(2.0), row(0.5)]
    assert deciding(rows, lambda one: one, "worst").score == 3.0
    assert deciding(rows, lambda one: one, "median").score == 2.0
    assert deciding([*rows, row(None)], lambda one: one, "median").score is None


def test_names_and_addresses():
    assert split_name("cam1=rtsp://a:b@host/x?channel=1") == ("cam1", "rtsp://a:b@host/x?channel=1")
    assert split_name("rtsp://host/x?channel=1") == ("", "rtsp://host/x?channel=1")
    assert shown("rtsp://anna:secret@host/x") == "rtsp://host/x"


def test_genicam_asks_harvesters_for_images(monkeypatch):
    class Buffer:
        payload = types.SimpleNamespace(
            components=[types.SimpleNamespace(data=noise(3).reshape(-1), height=48, width=64)]
        )

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    made = []

    class Harvester:
        def add_file(self, path):
            made.append(path)

        def update(self):
            pass

        def reset(self):
            made.append("reset")

        def create(self, wanted):
            made.append(wanted)
            return types.SimpleNamespace(start=lambda: None, fetch=lambda **_: Buffer())

    def open_it():
        return open_sources(["genicam:SN123?cti=/opt/x.cti"], CameraOptions(), done={}, settle=0, without=Path("out"))[
            0
        ]

    monkeypatch.setitem(sys.modules, "harvesters", None)
    with pytest.raises(MissingExtraError, match="harvesters"):
        open_it()
    module = types.ModuleType("harvesters.core")
    module.Harvester = Harvester
    monkeypatch.setitem(sys.modules, "harvesters", types.ModuleType("harvesters"))
    monkeypatch.setitem(sys.modules, "harvesters.core", module)
    camera = open_it()
    parts = camera.parts()
    assert np.array_equal(next(parts).samples[0].array, noise(3))
    camera.close()
    parts.close()
    assert made == ["/opt/x.cti", {"serial_number": "SN123"}, "reset"]


# ---- from source to sink


def test_a_video_file_gives_a_verdict_for_each_part(exported, zippers, tmp_path):
    images = [read_image(path) for path in sorted((zippers / "test").rglob("*.png"))[:6]]
    write_video(tmp_path / "line.mkv", images)
    with Web() as web:
        result = score_sources(settings_for(
            exported / "model.onnx", tmp_path, source=(f"cam1={tmp_path / 'line.mkv'}",), trigger="interval=0.1",
            sink=(f"http://127.0.0.1:{web.port}/", f"csv:{tmp_path / 'all.csv'}"), lot="L9",
        ))  # fmt: skip
        sent = [json.loads(body) for _, body in web.requests]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(sent) == len(result) == 6
    assert [one["score"] for one in sent] == [one["score"] for one in rows]
    assert {(one["source"], one["lot"]) for one in sent} == {("cam1", "L9")}
    for image, one in zip(images, rows, strict=True):
        from adctl.scoring.model import Model

        assert one["score"] == pytest.approx(Model(exported / "model.onnx").predict(image).score, rel=1e-6)
        if one["verdict"] == "reject":
            assert np.array_equal(read_image(Path(one["path"])), image)
    assert [(status.delivered, status.waiting) for status in result.sinks] == [(6, 0), (6, 0)]
    assert result.sinks[0].p95_ms > 0
    with (tmp_path / "all.csv").open(newline="") as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == [one["id"] for one in sent]


def test_a_watched_folder_sends_each_file_with_an_identifier_of_its_own(exported, zippers, tmp_path):
    inbox = tmp_path / "in"
    shutil.copytree(zippers / "test" / "good", inbox)
    with Web() as web:
        score_sources(settings_for(
            exported / "model.onnx", tmp_path, source=(str(inbox),), sink=(f"http://127.0.0.1:{web.port}/",),
            watch_idle=0.3,
        ))  # fmt: skip
        sent = [json.loads(body) for _, body in web.requests]
    files = sorted(inbox.iterdir())
    assert [one["part"] for one in sent] == [path.stem for path in files]
    assert sent[0]["id"] == file_id(sent[0]["model_sha256"], files[0].name, Stamp.of(files[0].stat()))


def test_two_sources_at_once(exported, zippers, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(zippers / "test" / "good", tmp_path / name)
    given = settings_for(
        exported / "model.onnx", tmp_path, source=(str(tmp_path / "a"), str(tmp_path / "b")), watch_idle=0.5
    )
    assert len(score_sources(given)) == 12
    assert len(score_sources(given)) == 0  # each file once, also after a restart
    assert {one["key"].partition("/")[0] for one in rows_of(tmp_path / "out")} == {"a", "b"}


def test_what_cannot_be_a_source_is_refused(exported, tmp_path):
    for source, match in (("nothing.mp4", "no folder or video file"), ("genicam:0", "harvesters")):
        with pytest.raises((UsageError, MissingExtraError), match=match):
            score_sources(settings_for(exported / "model.onnx", tmp_path, source=(source,), out=tmp_path / match))


class Rtsp:
    """RTSP server of GStreamer."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            ["/usr/bin/python3", ROOT / "tests" / "rtsp_server.py", str(port)], stderr=subprocess.PIPE
        )
        try:
            wait_for_port(port)
        except AssertionError:
            self.stop()
            if "CI" in os.environ:
                raise
            pytest.skip("GStreamer's RTSP server is not installed")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_an_rtsp_stream_that_breaks_and_comes_back(exported, tmp_path):
    port = free_port()
    server = Rtsp(port)
    done = []
    given = settings_for(
        exported / "model.onnx", tmp_path, source=(f"rtsp://127.0.0.1:{port}/line",), trigger="interval=0.2",
        sink=(f"csv:{tmp_path / 'all.csv'}",), watch_for=60,
    )  # fmt: skip

    def count() -> int:
        path = tmp_path / "out" / "results.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    from adctl.line import scoring

    intakes = []
    original = scoring.open_intake
    scoring.open_intake = lambda *arguments: intakes.append(original(*arguments)) or intakes[0]
    try:
        thread = threading.Thread(target=lambda: done.append(score_sources(given)))
        thread.start()
        wait_until(lambda: count() >= 3, 40)
        server.stop()
        wait_until(lambda: "lost" in intakes[0].sources[0].state)
        before = count()
        server = Rtsp(port)
        wait_until(lambda: count() >= before + 3, 40)
        intakes[0].close()
        thread.join(20)
    finally:
        scoring.open_intake = original
        server.stop()
    assert len(done[0]) >= 6
    assert done[0].counts["error"] == 0
