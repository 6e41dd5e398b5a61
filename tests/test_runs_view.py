"""The page of runs: its data, its safety, and a walk through it in a browser."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import absent
from starlette.testclient import TestClient
from test_serve_page import STICKS_OUT
from test_tracking import add_metrics, make_run

from adctl.config import RunsViewSettings, validated
from adctl.errors import UsageError
from adctl.serve.page import runs_view
from adctl.serve.server import listen
from adctl.tracking import database, notes, record

HISTORY = "epoch,loss,validation,seconds,memory_bytes\n1,0.9,,1.5,7\n2,0.5,nan,1.5,7\n3,0.4,0.6,1.6,7\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs, one with a history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(database.VARIABLE, raising=False)
        folder = tmp_path_factory.mktemp("runs")
        for name, arch, auroc in (("a", "cnn", 0.9), ("b", "patchcore", 0.97), ("c<b>", "patchcore", 0.8)):
            run = make_run(folder, name, arch=arch)
            if arch == "cnn":
                (run / "history.csv").write_text(HISTORY)
            record.training_finished(run)
            add_metrics(run, image_auroc=auroc)
        notes.tag(folder, "a", add=["line3"])
        yield folder


@pytest.fixture
def client(runs):
    return TestClient(runs_view.create_app(runs), base_url="http://127.0.0.1:8001")


def names(answer) -> list[str]:
    return [run["name"] for run in answer.json()["runs"]]


def test_runs_are_filtered_and_sorted(client):
    assert names(client.get("/data/runs")) == ["c<b>", "b", "a"]
    assert names(client.get("/data/runs?where=arch%3Dpatchcore and image_auroc>0.9&sort=name")) == ["b"]
    assert names(client.get("/data/runs?sort=-image_auroc&limit=2")) == ["b", "a"]
    assert "image_auroc" in client.get("/data/runs").json()["columns"]


@pytest.mark.parametrize("query", ["where=nonsense", "limit=0", "limit=x", "limit=99999999"])
def test_what_cannot_be_understood_is_explained(client, query):
    answer = client.get(f"/data/runs?{query}")
    assert answer.status_code == 400
    assert answer.json()["detail"]
    assert answer.json()["remedy"]


def test_curves_and_lineage_of_a_run(client):
    first = client.get("/data/runs?where=name%3Da").json()["runs"][0]
    curves = client.get(f"/data/runs/{first['id']}/curves").json()
    assert curves["loss"] == [[1, 0.9], [2, 0.5], [3, 0.4]]
    assert set(curves) == {"loss", "seconds"}  # a single value and equal ones are no curve
    assert client.get(f"/data/runs/{first['id']}/lineage").json()["kind"] == "images"
    other = client.get("/data/runs?where=name%3Db").json()["runs"][0]
    assert client.get(f"/data/runs/{other['id']}/curves").json() == {}
    assert client.get("/data/runs/NOTHING/curves").status_code == 400
    for damaged in (b"loss\n\xff,1\n", b"loss,loss\n1,2,3\n", b"\0"):
        (Path(other["folder"]) / "history.csv").write_bytes(damaged)
        assert client.get(f"/data/runs/{other['id']}/curves").json() == {}


def test_only_this_machine_by_its_own_name(client, runs):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"Host": "[::1]:8001"}).status_code == 200
    assert "script-src 'self';" in client.get("/").headers["content-security-policy"]
    assert client.post("/data/runs").status_code == 405
    assert client.get("/page/x/..%2f..%2frendering.py").status_code == 404
    with pytest.raises(UsageError, match="asks for no key"):
        runs_view.serve_runs(validated(RunsViewSettings, {"host": "0.0.0.0", "runs": runs}), print)


def test_the_command_tells_its_address_and_ends(runs):
    command = [sys.executable, "-m", "adctl", "runs", "view", "--runs", str(runs), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first = ""
        while not first.endswith("}\n") or first.count("{") != first.count("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            first += line
        address = json.loads(first)["result"]["page"]
        with urllib.request.urlopen(f"{address}data/runs", timeout=20) as answer:
            assert len(json.load(answer)["runs"]) == 3
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors


def test_a_walk_through_the_page(browser, runs, monkeypatch):
    import threading

    import uvicorn

    monkeypatch.delenv(database.VARIABLE, raising=False)
    server = uvicorn.Server(uvicorn.Config(runs_view.create_app(runs), log_level="warning"))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    try:
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        page.locator("#rows tr").nth(2).wait_for()
        page.get_by_role("checkbox", name="Compare a").check()
        page.get_by_role("checkbox", name="Compare b").check()
        page.locator("#curves .line").first.wait_for()
        assert "image_auroc" in page.locator("#differences").inner_text()
        page.get_by_role("button", name="a", exact=True).click()
        page.locator("#details .lineage").wait_for()
        page.keyboard.press("Escape")
        page.locator("#heads").get_by_role("button", name="image_auroc").click()
        page.locator("th[aria-sort=descending]", has_text="image_auroc").wait_for()
        assert page.locator("#rows th").all_inner_texts() == ["b", "a", "c<b>"]
        page.locator("input[name=where]").fill("arch=cnn")
        page.keyboard.press("Enter")
        page.get_by_text("1 run is shown.").wait_for()
        for width in (390, 3840):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(50)
            assert page.evaluate(STICKS_OUT) == [], width
        try:
            from axe_playwright_python.sync_playwright import Axe
        except ImportError:
            absent("axe-playwright-python is not installed")
        found = Axe().run(page).response["violations"]
        assert [one["nodes"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert logged == []
    finally:
        context.close()
        server.should_exit = True
        thread.join()
