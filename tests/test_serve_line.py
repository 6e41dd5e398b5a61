"""The server with sources and sinks: parts are judged, recorded and sent, and requests go to sinks too."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from peers import Broker, Web, wait_until
from test_line import Pictures, write_video

from adctl import line_demonstration
from adctl.config import DemoLineSettings, load
from adctl.data.images import read_image
from adctl.errors import UsageError
from adctl.sources.camera import CameraOptions


def history(client) -> list[dict]:
    return client.get("/v1/history", params={"limit": 200}).json()["verdicts"]


def test_files_of_a_folder_are_judged_once_and_their_verdicts_sent(serve, zippers, tmp_path):
    inbox = tmp_path / "inbox"
    shutil.copytree(zippers / "test" / "good", inbox)
    (inbox / "broken.png").write_bytes(b"no image")
    with Web() as web:
        given = {"source": (str(inbox),), "sink": (f"http://127.0.0.1:{web.port}/",), "settle": 0.05, "lot": "L1"}
        client = serve(**given)
        wait_until(lambda: len(web.requests) == 7)
        rows = history(client)
        client.app.state.server.stop()
        client = serve(**given)
        shutil.copy(
            inbox / "000.png" if (inbox / "000.png").exists() else next(inbox.glob("0*.png")), inbox / "new.png"
        )
        wait_until(lambda: len(web.requests) == 8)
        sent = [json.loads(body) for _, body in web.requests]
        assert len(history(client)) == 8  # after a restart, only the new file
        state = client.get("/v1/line").json()
        assert (state["sources"][0]["state"], state["sinks"][0]["delivered"]) == ("running", 1)
        assert state["sinks"][0]["p95_ms"] > 0
        assert "adctl_sink_seconds_count" in client.get("/metrics").text
    assert {row["id"] for row in rows} == {one["id"] for one in sent[:7]}
    assert {one["lot"] for one in sent} == {"L1"}
    assert [one["part"] for one in sent if one["verdict"] == "error"] == ["broken"]


def test_requests_reach_the_sinks_too(serve, zippers, tmp_path):
    image = next((zippers / "test" / "good").glob("*.png"))
    with Web() as web:
        client = serve(sink=(f"http://127.0.0.1:{web.port}/",))
        answer = client.post(
            "/v1/models/line3/score", params={"lot": "L2", "part": "P1"}, content=image.read_bytes(),
            headers={"Content-Type": "image/png"},
        ).json()  # fmt: skip
        wait_until(lambda: web.requests)
    sent = json.loads(web.requests[0][1])
    assert (sent["id"], sent["score"]) == (answer["results"][0]["id"], answer["results"][0]["score"])
    assert (sent["part"], sent["lot"], sent["model"], sent["source"]) == ("P1", "L2", "line3", "local")


def test_the_worst_image_of_a_camera_decides_and_faults_are_errors(serve, zippers, monkeypatch):
    from adctl.line import intake

    images = [read_image(path) for path in sorted((zippers / "test").rglob("*.png"))[:4]]
    black = np.zeros_like(images[0])
    camera = Pictures([*images, black, images[0]], CameraOptions("interval=0.000001", frames=2, lot="L3"))
    monkeypatch.setattr(intake, "open_sources", lambda *_, **__: [camera])
    client = serve(source=("0",), store_images="all")
    wait_until(lambda: len(history(client)) == 3)
    rows = history(client)[::-1]
    runtime = client.app.state.server.models.loaded[0].runtime
    from adctl.data.loader import ArraySample
    from adctl.scoring.predict import predict

    samples = [ArraySample(Path("a"), "a", array=image) for image in images]
    alone = [one.score for one in predict(runtime, samples)]
    assert [row["score"] for row in rows] == [
        pytest.approx(max(alone[:2]), rel=1e-5), pytest.approx(max(alone[2:]), rel=1e-5), None,
    ]  # fmt: skip
    assert (rows[2]["verdict"], "black" in rows[2]["error"]) == ("error", True)
    stored = client.get(f"/v1/history/{rows[0]['id']}/image").content
    assert stored[:4] == b"\x89PNG"


def test_a_request_takes_a_part_of_a_video(serve, zippers, tmp_path):
    write_video(tmp_path / "line.mkv", [read_image(next((zippers / "test" / "good").glob("*.png")))] * 2)
    client = serve(source=(f"cam={tmp_path / 'line.mkv'}",), trigger="interval=10")
    assert client.post("/v1/line/cam/trigger").status_code == 409
    assert client.post("/v1/line/other/trigger").status_code == 404
    assert serve(start=True).post("/v1/line/cam/trigger").status_code == 409


def test_several_processes_cannot_share_a_source(serve):
    with pytest.raises(UsageError, match="--workers"):
        serve(source=("0",), workers=2)


def test_the_demonstration_of_a_line_ends_after_its_parts(adctl, exported):
    model = exported / "model.onnx"
    given = ("--parts", 6, "--rate", 20, "--port", 0, "--defective", "50%")
    result = adctl.json("demo", "line", "--model", model, *given)["result"]
    assert (result["parts"], result["judged"]) == (6, 6)
    assert 0 < result["defective"] < 6
    assert [sink["delivered"] for sink in result["sinks"]] == [6] * (1 + bool(Broker.is_installed()))


def test_the_demonstration_of_a_line_has_a_camera(adctl, exported):
    if line_demonstration._rtsp_python() is None and "CI" not in os.environ:
        pytest.skip("GStreamer's RTSP server is not installed")
    given = ("--parts", 4, "--rate", 1, "--port", 0, "--defective", "50%", "--rtsp")
    result = adctl.json("demo", "line", "--model", exported / "model.onnx", *given)["result"]
    assert (result["parts"], result["judged"]) == (4, 4)
    with (Path(result["folder"]) / "verdicts.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["part"].partition("-")[0] for row in rows] == [f"{number:06}" for number in range(4)]
    assert {row["error"] for row in rows} == {""}  # each part was in the picture when it was taken


def test_a_camera_for_the_demonstration_that_cannot_be_had_is_said(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(line_demonstration, "_rtsp_python", lambda: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        line_demonstration.demo_line(load(DemoLineSettings, {"rtsp": True, "runs": tmp_path}))
    assert "gir1.2-gst-rtsp-server-1.0" in caught.value.remedy
