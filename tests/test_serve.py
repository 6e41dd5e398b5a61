"""A real server on loopback: scores as `adctl score`, history, reviews, events, models, and its orderly end."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import re
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import psutil
import pytest
from conftest import check_document
from jsonschema import Draft202012Validator
from PIL import Image
from server_process import ServerProcess, form

from adctl.data.images import read_image
from adctl.scoring.score_set import ScoreSet
from adctl.serve.events import Events
from adctl.serve.problems import ProblemError, of_error


def images_of(zippers):
    return sorted((zippers / "test").rglob("*.png"))


@pytest.fixture(scope="module")
def world(exported, tmp_path_factory):
    """A folder with runs, in which the run line3 has exported models."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(exported, folder / "runs" / "line3")
    return folder


@pytest.fixture(scope="module")
def server(world):
    running = ServerProcess(
        world, "line3=runs/line3/model.xml", "other=runs/line3/model.onnx", "--models", "runs", "--store-images", "all",
        "--max-upload", "2MB", "--deadline", 20, "--max-pixels", 1_000_000,
    )  # fmt: skip
    yield running
    done = running.stop()
    check_document(done, "serve")
    assert done["result"]["models"] == ["line3", "other"]


@pytest.fixture(scope="module")
def rows(world, zippers, tmp_path_factory):
    """Rows of `adctl score`, by the runtime."""
    from adctl.config import ScoreSettings, load
    from adctl.scoring.score import score

    found = {}
    for name in ("model.xml", "model.onnx"):
        out = tmp_path_factory.mktemp("scores") / "out"
        score(load(ScoreSettings, {
            "images": (str(zippers / "test"),), "model": world / "runs" / "line3" / name, "out": out, "heatmaps": False,
            "runs": world / "runs", "maps": True,
        }))  # fmt: skip
        stored = ScoreSet.load(out)
        found[name] = {row.key: row for row in stored.rows}
    return found


# ---- scores


def test_scores_equal_those_of_the_command_to_the_last_digit(server, rows, zippers):
    images = images_of(zippers)

    def ask(image):
        return server.score(image.read_bytes(), query="?lot=L7&part=P1").json

    with ThreadPoolExecutor(8) as pool:  # requests that are joined into batches
        answers = list(pool.map(ask, images * 2))
    for image, answer in zip(images * 2, answers, strict=True):
        (result,) = answer["results"]
        row = rows["model.xml"][image.relative_to(zippers / "test").as_posix()]
        assert result["score"] == row.score
        for name in ("verdict", "p_value", "probability"):
            assert result[name] == getattr(row, name)
        assert [tuple(box.values()) for box in result["boxes"]] == [
            (box.x, box.y, box.width, box.height, box.peak) for box in row.boxes
        ]
        assert (result["width"], result["height"], result["threshold"]) == (row.width, row.height, row.threshold)
        assert answer["history"] == {"stored": True, "missing": 0}


def test_a_form_of_several_images_and_one_that_is_none(server, rows, zippers):
    images = images_of(zippers)[:3]
    body, kind = form([*((image.name, image.read_bytes()) for image in images), ("x\u2028<b>.png", b"none")])
    answer = server.score(body, "other", Content_Type=kind).json
    expected = [rows["model.onnx"][image.relative_to(zippers / "test").as_posix()].score for image in images]
    assert [result["score"] for result in answer["results"][:3]] == expected
    assert answer["results"][3]["verdict"] == "error"
    assert "not a PNG" in answer["results"][3]["error"]
    assert set(answer["milliseconds"]) == {"decode", "queue", "predict", "post", "history", "total"}


def test_maps_as_array_picture_and_overlay(server, zippers):
    image = images_of(zippers)[0].read_bytes()
    raw = server.score(image, Accept="application/x-npy")
    cells = np.load(io.BytesIO(raw.body), allow_pickle=False)
    assert cells.dtype == np.float16
    assert raw.headers["content-type"] == "application/x-npy"
    coded = server.score(image, query="?map=npy").json["results"][0]["map"]
    np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(coded))), cells)
    for kind in ("png", "overlay"):
        found = base64.b64decode(server.score(image, query=f"?map={kind}").json["results"][0]["map"])
        assert found.startswith(b"\x89PNG")
    coded = server.score(image, query="?map=png").json["results"][0]["map"]
    layer = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))))
    values = cv2.resize(cells.astype(np.float32), layer.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    opacity = layer[..., 3].ravel()
    assert np.corrcoef(opacity, values.ravel())[0, 1] > 0.8


def test_a_threshold_for_one_request(server, zippers):
    image = images_of(zippers)[0].read_bytes()
    assert server.score(image, query="?threshold=0").json["results"][0]["verdict"] == "reject"
    assert server.score(image, query="?threshold=1e9").json["results"][0]["verdict"] == "good"
    assert server.score(image, query="?threshold=nan").status == 422


def test_the_routes_of_early_clients_mean_the_same(server, zippers):
    image = images_of(zippers)[0].read_bytes()
    body, kind = form([("a.png", image), ("b.png", image)])
    scores = {result["score"] for result in server("POST", "/api/batch_test", body, Content_Type=kind).json["results"]}
    scores.add(server("POST", "/api/test_image", image, Content_Type="image/png").json["results"][0]["score"])
    assert scores == {server.score(image).json["results"][0]["score"]}
    assert [model["name"] for model in server("GET", "/api/status").json["models"]][:2] == ["line3", "other"]
    assert server("POST", "/api/load_model", {"model_path": "line3/model.onnx", "name": "other"}).json["loaded"] is True


# ---- bad input


def png_header(width, height):
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + data
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return head + struct.pack(">I", 1000) + b"IDAT" + bytes(64)


BAD = {
    "no image": (b"hello", {}, 422, "not a PNG"),
    "nothing": (b"", {}, 422, "empty"),
    "huge header": (png_header(20_000, 20_000), {}, 422, "at most 1000000 pixels"),
    "truncated": (png_header(64, 64), {}, 422, "truncated"),
    "text": (b"{}", {"Content_Type": "application/json"}, 415, "not accepted"),
    "no boundary": (b"--x", {"Content_Type": "multipart/form-data"}, 400, "boundary"),
    "bad form": (b"--x\r\nzzz", {"Content_Type": "multipart/form-data; boundary=x"}, 422, "no file"),
    "too large": (bytes(2_000_001), {}, 413, "2000000 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_as_a_problem(server, case):
    body, headers, status, words = BAD[case]
    answer = server.score(body, **headers)
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json["detail"]
    assert answer.json["status"] == status


def test_a_client_that_has_left_is_no_error_of_the_server():
    assert of_error(ProblemError(499, "The client has left.")).status_code == 499


def test_too_many_parts_an_unknown_model_and_unknown_addresses(server):
    body, kind = form([(f"{number}.png", b"x") for number in range(100)])
    many = server.score(body, Content_Type=kind)
    assert (many.status, many.json["remedy"]) == (413, "Send at most 64 files in one request.")
    assert server.score(b"x", "nobody").status == 404
    assert "line3" in server.score(b"x", "nobody").json["remedy"]
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/history/x", 422),
    ):
        answer = server(method, path)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /v1/models/line3/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_that_is_too_large_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/models/line3/score", iter([bytes(1_500_000)] * 2), {"Content-Type": "image/png"})
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_leaves_costs_nothing(server, zippers):
    image = images_of(zippers)[0].read_bytes()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(
                b"POST /v1/models/line3/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc"
            )
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = f"POST /v1/models/line3/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
            client.sendall(head.encode() + image)
    assert server.score(image).status == 200
    for _ in range(100):
        if server("GET", "/api/status").json["queue"] == 0:
            break
        time.sleep(0.05)
    assert server("GET", "/api/status").json["queue"] == 0


# ---- history and reviews


def test_history_files_and_reviews(server, world, zippers):
    image = images_of(zippers)[1].read_bytes()
    result = server.score(image, query="?lot=lot%25_1&part=p-9").json["results"][0]
    entry = server("GET", f"/v1/history/{result['id']}").json
    assert (entry["lot"], entry["part"], entry["score"], entry["client"]) == ("lot%_1", "p-9", result["score"], "local")
    assert server("GET", f"/v1/history/{result['id']}/image").body == image
    assert server("GET", f"/v1/history/{result['id']}/thumbnail").body.startswith(b"\xff\xd8")
    assert np.load(io.BytesIO(server("GET", f"/v1/history/{result['id']}/map").body)).dtype == np.float16
    found = server("GET", "/v1/history?q=lot%25_1").json["verdicts"]
    assert [one["id"] for one in found] == [result["id"]]
    assert not server("GET", "/v1/history?q=lotx").json["verdicts"]

    label = {
        "verdict_id": result["id"],
        "label": "defect",
        "kind": "scratch",
        "region": {"x": 1, "y": 2, "width": 3, "height": 4},
    }
    review = server("POST", "/v1/reviews", label)
    assert review.status == 201
    stored = world / "runs" / "serve" / review.json["image"]
    assert stored.read_bytes() == image
    assert stored.parent.name == "scratch"
    assert server("GET", f"/v1/history/{result['id']}").json["review"]["region"] == label["region"]
    changed = server("POST", "/v1/reviews", {"verdict_id": result["id"], "label": "good"}).json
    assert not stored.exists()
    assert (world / "runs" / "serve" / changed["image"]).read_bytes() == image
    (counted,) = [one for one in server("GET", "/v1/reviews").json["reviews"] if one["verdict_id"] == result["id"]]
    assert counted["label"] == "good"
    assert server("POST", "/v1/reviews", {**label, "kind": "../../x"}).status == 422
    assert server("POST", "/v1/reviews", {**label, "verdict_id": "0" * 26}).status == 404


def test_pages_of_the_history_hold_every_verdict_once(server):
    seen, cursor = [], ""
    while True:
        page = server("GET", f"/v1/history?limit=7{cursor}").json
        seen += [one["id"] for one in page["verdicts"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert seen == sorted(set(seen), reverse=True)
    assert len(server("GET", "/v1/history?limit=500").json["verdicts"]) == len(seen)


def test_the_queue_of_reviews_begins_near_the_threshold(server, zippers):
    for image in images_of(zippers):
        server.score(image.read_bytes())
    waiting = server("GET", "/v1/reviews/queue?model=line3").json["verdicts"]
    distances = [abs(one["score"] - one["threshold"]) for one in waiting]
    assert distances == sorted(distances)
    assert waiting
    server("POST", "/v1/reviews", {"verdict_id": waiting[0]["id"], "label": "unsure"})
    assert waiting[0]["id"] not in [one["id"] for one in server("GET", "/v1/reviews/queue").json["verdicts"]]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_processes_of_a_server_exchange_events(tmp_path):
    async def newest(events, publish):
        listening = events.listen(None)
        waiting = asyncio.ensure_future(anext(listening))
        await asyncio.sleep(0.05)
        publish()
        found = await asyncio.wait_for(waiting, 10)
        await listening.aclose()
        return found

    first, second = Events(), Events()
    for events in (first, second):
        events.share(tmp_path)
    (tmp_path / "killed").touch()
    found = asyncio.run(newest(second, lambda: first.publish("01", "model", {"name": "länge"})))
    assert (found["id"], found["event"], json.loads(found["data"])) == ("01", "model", {"name": "länge"})
    second.close()
    first.publish("02", "model", {})
    assert len(first._kept) == 2
    assert not (tmp_path / "killed").exists()
    first.close()


def listen(port, **headers):
    """Listen to events; return the connection and the answer, whose headers have come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/events", headers=headers)
    return connection, connection.getresponse()


def next_event(answer):
    lines = {}
    while (line := answer.readline().decode().strip()) or not lines:
        name, _, value = line.partition(": ")
        lines[name] = value
    return lines


def process_of(connection, port):
    """Return the process of a server that has accepted a connection."""
    mine = connection.sock.getsockname()[1]
    ends = psutil.net_connections("tcp")
    return next((one.pid for one in ends if one.laddr.port == port and one.raddr and one.raddr.port == mine), None)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_part_that_one_process_scored_is_told_to_the_listeners_of_all(world, zippers):
    running = ServerProcess(world, "line3=runs/line3/model.onnx", "--runs", "shared", "--workers", 2)
    listeners, opened = {}, []
    while len(listeners) < 2:
        assert len(opened) < 500
        connection, answer = listen(running.port)
        opened += [connection, answer]
        listeners.setdefault(process_of(connection, running.port), answer)
        time.sleep(0.05)  # the second process may still load its model
    assert None not in listeners
    image = images_of(zippers)[0].read_bytes()
    scored = [running.score(image).json["results"][0]["id"] for _ in range(4)]
    for answer in listeners.values():
        events = []
        while len(events) < len(scored):
            event = next_event(answer)
            events += [event["id"]] if event.get("event") == "verdict" else []
        assert set(events) == set(scored)
    for one in opened:
        one.close()
    running.stop()


def test_events_come_as_they_happen_and_missed_ones_later(server, zippers):
    connection, answer = listen(server.port)
    time.sleep(0.3)
    first = server.score(images_of(zippers)[0].read_bytes()).json["results"][0]["id"]
    second = server.score(images_of(zippers)[1].read_bytes()).json["results"][0]["id"]
    event = next_event(answer)
    assert (event["event"], event["id"]) == ("verdict", first)
    assert json.loads(event["data"])["model"] == "line3"
    connection.close()
    connection, answer = listen(server.port, **{"Last-Event-ID": first})
    assert next_event(answer)["id"] == second
    connection.close()


# ---- models


def test_models_are_described_loaded_and_unloaded(server, zippers):
    image = images_of(zippers)[0].read_bytes()
    line3 = server("GET", "/v1/models").json[0]
    assert (line3["name"], line3["arch"], line3["runtime"], line3["loaded"]) == ("line3", "patchcore", "openvino", True)
    assert re.fullmatch(r".* false alarms, by \d+ good images\.", line3["promise"])
    assert line3["calibration_images"] > 0
    assert server("POST", "/v1/models/other/unload").status == 204
    assert server.score(image, "other").status == 404
    assert server("GET", "/v1/models").json[-1]["loaded"] is False
    assert server("POST", "/v1/models/other/load", {}).json["version"] == 1
    assert server.score(image, "other").status == 200
    assert server("POST", "/v1/models/third/load", {"path": "line3/model.onnx"}).json["version"] == 1
    assert server.score(image, "third").status == 200
    assert server("POST", "/v1/models/third/unload").status == 204


@pytest.mark.parametrize("path", ["../x.onnx", "/etc/passwd", "line3/../../model.onnx", "line3/run.json", "link", "\0"])
def test_models_elsewhere_are_never_loaded(server, world, path):
    elsewhere = world / "model.onnx"
    shutil.copy(world / "runs" / "line3" / "model.onnx", elsewhere)
    link = world / "runs" / "link"
    if not link.is_symlink():
        link.symlink_to(elsewhere)
    answer = server("POST", "/v1/models/evil/load", {"path": path})
    assert answer.status in (400, 422), answer
    assert str(world) not in answer.body.decode()


def test_reloading_under_load_fails_no_request(server, zippers):
    image, statuses, ends = images_of(zippers)[0].read_bytes(), [], threading.Event()

    def ask():
        while not ends.is_set():
            statuses.append(server.score(image, "other").status)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        assert server("POST", "/v1/models/other/load", {}).status == 200
    ends.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}


def test_reviews_recalibrate_a_model_which_is_compared_and_accepted(server, zippers):
    for image in images_of(zippers):
        if image.parent.name == "good":
            scored = server.score(image.read_bytes()).json["results"][0]
            server("POST", "/v1/reviews", {"verdict_id": scored["id"], "label": "good"})
    address = "/v1/models/line3/candidates"
    assert server("POST", address, {"kind": "forget"}).status == 422
    made = server("POST", address, {"kind": "recalibrate"})
    assert made.status == 201, made
    while (newest := server("GET", address).json["candidates"][0])["training"]["state"] == "running":
        time.sleep(0.2)
    update = newest["update"]
    assert (update["way"], update["learned"]) == ("threshold alone", 0), newest
    assert [one["name"] for one in update["comparison"]["models"]] == ["present", "candidate"]
    before = server("GET", "/v1/models").json[0]
    now = server("POST", f"{address}/{made.json['id']}/accept").json
    assert (now["method"], now["calibration_images"]) == ("conformal", update["held_out"])
    assert now["promise"].startswith("At most ")
    assert now["version"] == before["version"] + 1
    assert server("POST", "/v1/models/line3/rollback").json["version"] == before["version"]


# ---- the server itself


def test_health_metrics_and_documentation(server):
    assert server("GET", "/livez").json == {"status": "ok"}
    assert server("GET", "/readyz").json["status"] == "ready"
    metrics = server("GET", "/metrics").body.decode()
    for name in ("adctl_verdicts_total", "adctl_stage_seconds_bucket", "adctl_queue_length", "adctl_model_info"):
        assert name in metrics
    page = server("GET", "/docs").body.decode()
    assert "/v1/models/{name}/score" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "text/css" in server("GET", "/docs.css").headers["content-type"]
    assert server("GET", "/openapi.json").json["openapi"].startswith("3.")


def test_each_operation_of_the_documentation_has_valid_examples(serve):
    document = serve(start=False).get("/openapi.json").json()

    def check(schema, example):
        Draft202012Validator({**schema, "components": document["components"]}).validate(example)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                check(parameter["schema"], parameter["example"])
            contents = list(operation.get("requestBody", {}).get("content", {}).values())
            for status, answer in operation["responses"].items():
                kinds = answer.get("content", {})
                assert kinds or status == "204", (method, path, status)
                if status >= "400" and path != "/readyz":
                    assert kinds["application/problem+json"]["example"]["status"] == int(status)
                    assert len(kinds) == 1
                contents += kinds.values()
            for content in contents:
                check(content["schema"], content["example"])


def test_work_in_hand_is_finished_at_the_end_and_the_history_is_kept(world, zippers):
    image = images_of(zippers)[0].read_bytes()
    running = ServerProcess(world, "line3=runs/line3/model.onnx", "--runs", "kept")
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(running.score, image) for _ in range(8)]
        while not any(future.done() for future in futures):
            time.sleep(0.005)
        running.process.send_signal(signal.SIGTERM)
        statuses = [status_of(future) for future in futures]
    assert statuses.count(200) >= 1
    assert set(statuses) <= {200, None}  # None: not accepted any more
    assert running.stop()["result"]["counts"] == {"good": statuses.count(200)}


def status_of(future):
    try:
        return future.result().status
    except OSError:
        return None


def test_kill_9_loses_no_acknowledged_verdict(world, zippers):
    image, told = images_of(zippers)[0].read_bytes(), []
    for _ in range(2):
        running = ServerProcess(world, "line3=runs/line3/model.onnx", "--runs", "killed", "--queue", 64)

        def ask(running=running):
            try:
                while True:
                    told.append(running.score(image).json["results"][0]["id"])
            except (OSError, http.client.HTTPException):
                return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        running.kill()
        for thread in threads:
            thread.join()
    from adctl.serve.history import Filters, History

    history = History(world / "killed")
    rows, _ = history.find(Filters(), None, 100_000)
    history.close()
    found = [row["id"] for row in rows]
    assert len(found) == len(set(found))
    assert set(told) <= set(found)
    assert len(told) > 4


def test_pictures_that_are_stored_open_again(server, world):
    stored = next((world / "runs" / "serve" / "verdicts").rglob("*.thumb.jpg"))
    assert max(read_image(stored).shape[:2]) <= 160
