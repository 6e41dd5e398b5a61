"""The whole line under faults: kills, a full disk, clocks that jump, an hour without a peer, and ten thousand parts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import ROOT
from peers import Broker, OpcUa, Plc, Web, free_port, wait_until
from test_sinks import messages, numbers

from adctl.errors import OutputError
from adctl.sinks.delivery import Outbox
from adctl.sources.camera import Camera, CameraOptions, Frame


class Belt(Camera):
    """Camera before which a new part stands at each tick."""

    def __init__(self, images, count: int, rate: float) -> None:
        super().__init__("belt", "0", CameraOptions("interval=0.000001", lot="soak"))
        self._images, self._number, self._rate = images, count, rate

    def frames(self):
        start = time.monotonic()
        for number in range(self._number):
            self.stops.wait(max(0.0, start + number / self._rate - time.monotonic()))
            image = self._images[number % len(self._images)].copy()
            image[0, 0] = number % 256, number // 256, 0  # no two parts are equal in every pixel
            yield Frame(image.mean(-1).astype(np.uint8), lambda whole=image: whole, time.monotonic())
        self.stops.wait()


def images_of(zippers) -> list:
    from adctl.data.images import read_image

    return [read_image(path) for path in sorted((zippers / "test").rglob("*.png"))]


PARTS = int(os.environ.get("ADCTL_SOAK_PARTS", "10000"))
RATE = float(os.environ.get("ADCTL_SOAK_RATE", "20"))


@pytest.mark.parametrize(
    ("count", "rate"), [
        (40, 20), pytest.param(PARTS, RATE, marks=pytest.mark.slow),
        pytest.param(max(40, PARTS // 20), RATE / 4, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_no_part_is_lost_on_the_way_to_five_sinks(serve, zippers, tmp_path, monkeypatch, count, rate):
    from adctl.line import intake

    monkeypatch.setattr(intake, "open_sources", lambda *_, **__: [Belt(images_of(zippers), count, rate)])
    with Broker(tmp_path, "line/#") as broker, Web() as web, Plc() as plc, OpcUa() as opcua:
        client = serve(source=("0",), sink=(
            f"mqtt://127.0.0.1:{broker.port}/line", f"http://127.0.0.1:{web.port}/",
            f"modbus-tcp://127.0.0.1:{plc.port}?max_age=0",
            f"opc.tcp://127.0.0.1:{opcua.port}/line?max_age=0&node={opcua.prefix}",
            f"csv:{tmp_path / 'all.csv'}",
        ), store_images="none")  # fmt: skip
        server = client.app.state.server
        wait_until(lambda: min(one.delivered for one in server.outbox.status()) == count, count / rate + 120)
        states = server.outbox.status()
        waits = [f"{one.name}: {one.median_ms:.1f} ms, p95 {one.p95_ms:.1f}, max {one.max_ms:.1f}" for one in states]
        (tmp_path / "latency.txt").write_text("\n".join([f"{count} parts at {rate}/s", *waits]))
        assert plc.read()[1][3] == (count - 1) % 65535 + 1
        assert opcua.read("Number") == count
        by_mqtt = [one["id"] for one in broker.verdicts("line")]
    with (tmp_path / "all.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == web.ids() == by_mqtt
    assert len({row["part"] for row in rows}) == count
    assert len(rows) == count
    errors = [row["error"] for row in rows if row["verdict"] == "error"]
    assert all("faster" in error for error in errors)
    judged = [
        (datetime.fromisoformat(row["time"]) - datetime.fromisoformat(row["triggered"])).total_seconds() * 1000
        for row in rows
    ]
    with (tmp_path / "latency.txt").open("a") as report:
        report.write(f"\nverdict after {statistics.median(judged):.1f} ms; errors {len(errors)}\n")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_each_part_has_one_verdict_over_kill_9_of_the_server(exported, zippers, tmp_path, kills):
    inbox, good = tmp_path / "inbox", sorted((zippers / "test" / "good").glob("*.png"))
    inbox.mkdir()
    with Web() as web:
        command = [
            sys.executable, "-m", "adctl", "serve", f"line3={exported / 'model.onnx'}", "--runs", tmp_path / "runs",
            "--port", 0, "--device", "cpu", "--source", inbox, "--sink", f"http://127.0.0.1:{web.port}/", "--settle",
            0.1,
        ]  # fmt: skip

        def start() -> subprocess.Popen:
            return subprocess.Popen(
                [*map(str, command)],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.DEVNULL,
            )

        for turn in range(kills):
            process, before = start(), len(web.requests)
            for number in range(6):
                shutil.copy(good[number % len(good)], inbox / f"{turn:02}-{number}.png")
            wait_until(lambda wanted=before + 1 + turn % 5: len(web.requests) >= wanted, 120)
            process.send_signal(signal.SIGKILL)
            process.wait()
        process = start()
        wait_until(lambda: len({json.loads(body)["part"] for _, body in web.requests}) == 6 * kills, 120)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        sent = [json.loads(body) for _, body in web.requests]
    ids = {}
    for one in sent:
        ids.setdefault(one["part"], set()).add(one["id"])
    assert all(len(found) == 1 for found in ids.values()), "a part was judged twice"
    assert list(dict.fromkeys(one["id"] for one in sent)) == sorted({one["id"] for one in sent})


def test_verdicts_go_on_over_a_full_disk_and_reach_the_sink_after_it(serve, zippers, monkeypatch):
    from adctl.serve import history

    image = next((zippers / "test" / "good").glob("*.png")).read_bytes()
    real, full = history.database.durable_transaction, [True]

    def transaction(runs, *, reads=False):
        if full and not reads:
            raise OutputError("No space left on device.", "Free some.")
        return real(runs, reads=reads)

    with Web() as web:
        client = serve(sink=(f"http://127.0.0.1:{web.port}/",))
        monkeypatch.setattr(history.database, "durable_transaction", transaction)
        answer = client.post("/v1/models/line3/score", content=image, headers={"Content-Type": "image/png"}).json()
        assert not answer["history"]["stored"]
        assert not web.requests
        full.clear()
        wait_until(lambda: web.requests)
        assert web.ids() == [answer["results"][0]["id"]]


def test_an_hour_of_verdicts_waits_for_the_broker_and_arrives_in_order(tmp_path):
    port, start = free_port(), datetime.now(UTC) - timedelta(hours=1)
    outbox = Outbox(tmp_path, [f"mqtt://127.0.0.1:{port}/line"])
    hour = [
        {**messages(1, second)[0], "time": (start + timedelta(seconds=second)).isoformat()} for second in range(3600)
    ]
    outbox.put(hour)
    wait_until(lambda: outbox.status()[0].failures)
    with Broker(tmp_path, "line", port) as broker:
        wait_until(lambda: len(broker.messages) == 3600, 60)
        outbox.close()
        assert numbers([one["id"] for one in broker.verdicts("line")]) == list(range(3600))


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_holds_no_verdict_back(tmp_path, hours):
    with Plc() as plc:
        outbox = Outbox(tmp_path, [f"modbus-tcp://127.0.0.1:{plc.port}"])
        outbox.trigger(f"{0:026}", time.monotonic())
        outbox.put(messages(1, time=(datetime.now(UTC) + timedelta(hours=hours)).isoformat()))
        wait_until(lambda: outbox.status()[0].delivered == 1)
        outbox.close()
        assert plc.read()[1][3] == 1
