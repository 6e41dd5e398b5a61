"""Faults: full disk, database away, model files that vanish, slow clients, overload, clock jumps; and odd requests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pytest
from postgres_server import PostgresServer
from server_process import form

pytest.importorskip("fastapi")

import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings

from adctl.errors import DataError
from adctl.run_folder import encode_id
from adctl.serve import connection
from adctl.serve.ids import IncreasingIds
from adctl.serve.row_writer import RowWriter
from adctl.serve.server import options
from adctl.tracking import database

IMAGE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
SCORE = "/v1/models/line3/score"


def score(client, **headers):
    return client.post(SCORE, content=IMAGE, headers={"Content-Type": "image/png", **headers})


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


# ---- history


def test_a_full_disk_stops_no_verdict_and_the_history_catches_up(serve, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting needs more rights")
    try:
        client = serve(runs=disk / "runs", store_images="all")
        assert score(client).json()["history"] == {"stored": True, "missing": 0}
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(4096))
        answers = [score(client) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        last = answers[-1].json()
        assert last["results"][0]["verdict"] in ("good", "warn", "reject")
        assert last["history"]["stored"] is False
        assert client.get("/readyz").json()["history"]["missing"] == last["history"]["missing"] >= 1
        assert "full" in client.get("/readyz").json()["history"]["reason"]
        assert client.get("/readyz").json()["images"]["failed"] > 0
        filler.unlink()
        wait_for(lambda: client.get("/readyz").json()["history"]["missing"] == 0)
        told = {answer.json()["results"][0]["id"] for answer in answers}
        assert told <= {entry["id"] for entry in client.get("/v1/history").json()["verdicts"]}
        client.app.state.server.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_postgresql_away_and_back(serve, tmp_path, monkeypatch):
    with PostgresServer() as postgres:
        monkeypatch.setenv(database.VARIABLE, postgres.address)
        client = serve()
        told = [score(client).json()["results"][0]["id"]]
        postgres.stop()
        away = [score(client) for _ in range(3)]
        assert {answer.status_code for answer in away} == {200}
        assert away[-1].json()["history"]["stored"] is False
        assert client.get("/v1/history").status_code == 503
        postgres.start()
        wait_for(lambda: client.get("/readyz").json()["history"]["missing"] == 0)
        told += [answer.json()["results"][0]["id"] for answer in away]
        told.append(score(client).json()["results"][0]["id"])
        listed = client.get("/v1/history?q=image&limit=500").json()["verdicts"]
        assert [entry["id"] for entry in listed] == sorted(told, reverse=True)
        assert client.post("/v1/reviews", json={"verdict_id": told[0], "label": "good"}).status_code == 201
        assert client.get("/v1/reviews/queue").status_code == 200
        client.app.state.server.stop()


def test_rows_of_a_failed_commit_are_written_once_and_a_slow_one_holds_nobody(monkeypatch):
    monkeypatch.setattr("adctl.serve.row_writer._RETRY_SECONDS", 0.05)
    monkeypatch.setattr("adctl.serve.row_writer._STALLED_SECONDS", 0.05)
    written, fails, slow = [], threading.Event(), threading.Event()

    def write(rows):
        if slow.is_set():
            time.sleep(0.3)
        if fails.is_set():
            raise DataError("away")
        written.extend(row["id"] for row in rows)

    writer = RowWriter(write)
    assert writer.add({"id": 0}).result(5) is True
    fails.set()
    assert writer.add({"id": 1}).result(5) is False
    assert (writer.missing, writer.reason) == (1, "away")
    fails.clear()
    wait_for(lambda: writer.missing == 0)
    slow.set()
    first = writer.add({"id": 2})
    time.sleep(0.15)
    assert writer.add({"id": 3}).result(0.01) is False
    assert writer.missing == 1
    assert first.result(5) is True
    slow.clear()
    wait_for(lambda: writer.missing == 0)
    writer.close()
    assert written == [0, 1, 2, 3]


def test_the_spool_is_bounded(monkeypatch):
    monkeypatch.setattr("adctl.serve.row_writer._SPOOL", 5)

    def write(_):
        raise DataError("away")

    writer = RowWriter(write)
    for number in range(9):
        writer.add({"id": number}).result(5)
    assert (writer.missing, len(writer._spool)) == (9, 5)
    writer.close()


@pytest.mark.parametrize(("charset", "name"), [("unicode_escape", "x\\ud800"), ("utf-8", "a\x00b")])
def test_no_name_of_a_client_ends_the_history(serve, charset, name):
    client = serve()
    body, kind = form([(name, IMAGE)])
    answer = client.post(SCORE, content=body, headers={"Content-Type": f"{kind}; charset={charset}"})
    assert answer.json()["history"] == {"stored": True, "missing": 0}
    assert client.get("/v1/history").json()["verdicts"][0]["name"] in ("x\\ud800", "a\\x00b")


def test_files_are_removed_although_the_database_is_full(serve, monkeypatch):
    client = serve(store_images="all", keep="1h")
    server = client.app.state.server
    old = encode_id(int((datetime.now(UTC) - timedelta(hours=2)).timestamp() * 1000), bytes(10))
    server.images.write(old, ".png", IMAGE)

    def full(_):
        raise DataError("database or disk is full")

    monkeypatch.setattr(server.history, "remove_before", full)
    with pytest.raises(DataError):
        server._retention.run()
    assert not server.images.path(old, ".png").exists()


def test_identifiers_increase_when_the_clock_is_set_back(monkeypatch):
    ids = IncreasingIds()
    first = [ids.next() for _ in range(100)]
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    later = [ids.next() for _ in range(100)]
    assert [*first, *later] == sorted({*first, *later})
    assert IncreasingIds(later[-1]).next() > later[-1]


def test_old_verdicts_and_many_bytes_are_removed_and_reviews_stay(serve):
    client = serve(store_images="all", keep="1h", keep_bytes="1GB")
    server = client.app.state.server
    kept = score(client).json()["results"][0]["id"]
    client.post("/v1/reviews", json={"verdict_id": kept, "label": "good"})
    old = encode_id(int((datetime.now(UTC) - timedelta(hours=2)).timestamp() * 1000), bytes(10))
    row = {**server.history.get(kept), "id": old}
    del row["review"]
    server.history.writer.add(row).result(5)
    server.images.write(old, ".png", IMAGE)
    assert server._retention.run() == (1, 1)
    assert client.get(f"/v1/history/{old}").status_code == 404
    assert client.get(f"/v1/history/{kept}/image").content == IMAGE
    server.images.write(old, ".png", IMAGE)
    server._retention._bytes, server._retention._age = 0, timedelta(days=1)
    assert server._retention.run() == (0, 1)
    assert server.images.good.joinpath(f"{kept}.png").read_bytes() == IMAGE


# ---- models


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_a_model_file_that_vanishes_or_is_replaced_while_serving(serve, exported, tmp_path, name):
    folder = tmp_path / "line3"
    shutil.copytree(exported, folder)
    client = serve(model=(f"line3={folder / name}",))
    before = score(client).json()["results"][0]["score"]
    for file in (folder / name, folder / "model.bin"):
        file.write_bytes(b"something else")  # in place
    assert score(client).json()["results"][0]["score"] == before
    assert client.post("/v1/models/line3/load").status_code == 422
    for file in (folder / name, folder / "model.bin"):
        file.unlink()
    assert client.post("/v1/models/line3/load").status_code == 422
    assert score(client).json()["results"][0]["score"] == before
    for file in (name, "model.bin"):
        shutil.copy(exported / file, folder / file)
    assert client.post("/v1/models/line3/load").status_code == 200
    assert score(client).json()["results"][0]["score"] == before


def test_a_version_and_its_threshold_survive_a_restart(serve, exported, tmp_path):
    client = serve()
    server = client.app.state.server
    server.models.activate("line3", exported / "model.xml", "anna")
    server.models.set_threshold("line3", 0.5, "anna")
    assert score(client).json()["results"][0]["verdict"] == "reject"
    server.stop()
    described = serve().get("/v1/models").json()[0]
    assert (described["runtime"], described["threshold"], described["version"]) == ("openvino", 0.5, 2)
    assert "by hand" in described["promise"]


# ---- load


def test_beyond_the_queue_requests_are_refused_at_once(serve):
    client = serve(queue=2)
    admission = client.app.state.server.admission
    admission.count = 2
    began = time.perf_counter()
    refused = score(client)
    assert time.perf_counter() - began < 0.5
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    admission.count = 0
    assert score(client).status_code == 200
    assert admission.count == 0


def test_a_request_that_takes_too_long_ends(serve):
    client = serve(deadline=0.3)
    runtime = client.app.state.server.models.get("line3").runtime
    predict = runtime.predict
    runtime.predict = lambda pixels: time.sleep(1) or predict(pixels)
    late = score(client)
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    runtime.predict = predict
    time.sleep(1)
    assert score(client).status_code == 200


@pytest.fixture(params=["PlainConnection", "FastConnection"])
def listening(request, serve, monkeypatch):
    """Port of a server in a thread, with short limits of time, for both parsers of HTTP."""
    if not hasattr(connection, request.param):
        pytest.skip("httptools is not installed")
    monkeypatch.setattr(connection, "Connection", getattr(connection, request.param))
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.4)
    client = serve(deadline=1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(client.app, **options(client.app.state.server.settings)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_slow_clients_are_cut_off(listening):
    def answer_to(sent, drip=b"", seconds=5):
        with socket.create_connection(("127.0.0.1", listening), timeout=10) as client:
            client.sendall(sent)
            until = time.monotonic() + seconds
            client.settimeout(0.1)
            while time.monotonic() < until:
                try:
                    found = client.recv(1000)
                except TimeoutError:
                    client.sendall(drip)
                except OSError:
                    return b""
                else:
                    return found
        raise AssertionError("never cut off")

    assert answer_to(b"") == b""
    assert answer_to(b"GET /livez HTTP/1.1\r\nX: ", b"T") == b""
    slow = answer_to(b"POST /v1/models/line3/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"x")
    assert slow.startswith(b"HTTP/1.1 408")
    whole = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert answer_to(whole).startswith(b"HTTP/1.1 200")
    assert not answer_to(b"GET /livez HTTP/1.1\r\nX: ", b"x" * 30_000).startswith(b"HTTP/1.1 200")


# ---- odd requests


def ask_everything(client, examples):
    failed = []
    client.app.state.server.allowed_hosts.add("testserver")
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/v1/events":  # it never ends
            continue

        @given(case=operation.as_strategy())
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def ask(case):
            status = case.call().status_code
            if status >= 500 and status != 503:
                failed.append((case.method, case.formatted_path, status))

        ask()
    assert not failed


@pytest.mark.filterwarnings("ignore")
def test_generated_requests_cause_no_server_error(serve):
    ask_everything(serve(), examples=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_generated_requests_cause_no_server_error(serve):
    ask_everything(serve(), examples=300)


def test_the_command_names_what_is_missing():
    program = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'uvicorn' else find(name, *a); "
        "from adctl.cli.app import run; raise SystemExit(run(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "adctl[serve]" in done.stderr


def test_torch_is_not_imported_for_an_exported_model(exported, tmp_path):
    program = (
        "import sys; from adctl.config import ServeSettings, validated; from adctl.serve.state import Server; "
        f"from adctl.serve.app import create_app; s = Server(validated(ServeSettings, dict(runs={str(tmp_path)!r}, "
        f"model=[{str(exported / 'model.onnx')!r}]))); s.start(); create_app(s).openapi(); s.stop(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert done.stdout == "False\n", done.stderr
