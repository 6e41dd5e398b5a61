"""Keys, roles, sessions, other sites, limits and headers, without a network."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server_process import form

pytest.importorskip("fastapi")


from adctl.errors import UsageError
from adctl.serve.keys import add_key, list_keys, revoke_key
from adctl.serve.sessions import Sessions

HOME = "http://127.0.0.1:8000"


@pytest.fixture
def keys(tmp_path):
    """A key for each role."""
    return {role: add_key(tmp_path / "runs", f"{role} key", role).key for role in ("score", "review", "admin")}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


# ---- keys and roles


def test_only_digests_are_stored_and_a_key_is_shown_once(keys, tmp_path, adctl):
    for file in (tmp_path / "runs").iterdir():
        assert keys["admin"].encode() not in file.read_bytes()
        assert keys["admin"].rpartition("_")[2].encode() not in file.read_bytes()
    runs = tmp_path / "runs"
    listed = adctl("serve", "keys", "--runs", runs).stdout
    assert "review key" in listed
    assert "adctl_" not in listed
    made = adctl.json("serve", "keys", "add", "camera 1", "--role", "score", "--runs", runs)["result"]
    assert re.fullmatch(r"adctl_[0-9A-Z]{26}_[\w-]{43}", made["key"])
    assert "already" in adctl("serve", "keys", "add", "camera 1", "--runs", runs, code=2).stderr
    assert "Name the machine" in adctl("serve", "keys", "add", "--runs", runs, code=2).stderr
    assert adctl.json("serve", "keys", "revoke", "camera 1", "--runs", runs)["result"]["revoked"]
    assert "no key" in adctl("serve", "keys", "revoke", "nobody", "--runs", runs, code=2).stderr
    assert [key["name"] for key in adctl.json("serve", "keys", "list", "--runs", runs)["result"]][-1] == "camera 1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_key_that_nobody_could_see_is_revoked(tmp_path, adctl):
    command = [sys.executable, "-m", "adctl", "serve", "keys", "add", "line", "--runs", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "is revoked" in done.stderr
    assert [bool(key.revoked) for key in list_keys(tmp_path)] == [True]
    assert "hide the key" in adctl("serve", "keys", "add", "other", "--quiet", "--runs", tmp_path, code=2).stderr


ALLOWED = {
    ("GET", "/v1/models"): "score",
    ("POST", "/v1/models/line3/score"): "score",
    ("POST", "/api/test_image"): "score",
    ("GET", "/api/status"): "score",
    ("GET", "/metrics"): "score",
    ("GET", "/v1/line"): "score",
    ("POST", "/v1/line/cam/trigger"): "score",
    ("GET", "/v1/history"): "review",
    ("GET", "/v1/history/01M8H72GJ2GQ72TTZ1WF26W9RE/image"): "review",
    ("GET", "/v1/reviews"): "review",
    ("GET", "/v1/reviews/queue"): "review",
    ("POST", "/v1/reviews"): "review",
    ("POST", "/v1/models/line3/load"): "admin",
    ("POST", "/v1/models/nobody/unload"): "admin",
    ("POST", "/api/load_model"): "admin",
    ("GET", "/v1/audit"): "admin",
}


def test_each_role_may_do_what_it_may(serve, keys):
    client = serve(start=False)
    order = ["score", "review", "admin"]
    for (method, path), needed in ALLOWED.items():
        assert client.request(method, path).status_code == 401, path
        for role in order:
            status = client.request(method, path, headers=bearer(keys[role])).status_code
            may = order.index(role) >= order.index(needed)
            assert (status != 403) == may, (method, path, role, status)
            assert status < 500 or status == 503


def test_every_route_needs_a_key_but_health_and_documentation(serve, keys):
    client = serve(start=False)
    document = client.get("/openapi.json").json()
    free = {"/livez", "/readyz", "/v1/session"}
    for path, methods in document["paths"].items():
        for method in methods:
            status = client.request(method, path.replace("{", "").replace("}", ""), json={}).status_code
            assert status in (401, 422) or path in free, (method, path, status)


def test_wrong_keys_are_refused_and_revoked_ones_end(serve, keys, tmp_path):
    client = serve(start=False)
    server = client.app.state.server
    good = keys["score"]
    wrong = [
        good[:-1],
        good + "x",
        good.replace("adctl_", ""),
        "adctl_" + "0" * 26 + good[32:],
        "é",
        "_",
        "",
        "x" * 5000,
    ]
    for key in wrong:
        headers = {"Authorization": f"Bearer {key}".encode()}
        assert client.get("/v1/models", headers=headers).status_code == 401, key
    assert client.get("/v1/models", headers=bearer(good)).status_code == 200
    revoke_key(tmp_path / "runs", "score key")
    server.keys.refresh()
    assert client.get("/v1/models", headers=bearer(good)).status_code == 401
    for name in ("review key", "admin key"):
        revoke_key(tmp_path / "runs", name)
    assert [key.revoked == "" for key in list_keys(tmp_path / "runs")] == [False] * 3


def test_secrets_are_compared_in_constant_time():
    sources = [
        Path(__file__).parent.parent / "adctl" / "serve" / name for name in ("keys.py", "sessions.py", "security.py")
    ]
    for source in sources:
        tree = ast.parse(source.read_text())
        calls = [node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")]
        assert "compare_digest" in calls
        compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        assert not [one for one in compared if re.search(r"digest|secret|signature|csrf", one)]


def test_another_address_needs_a_key(serve, tmp_path, adctl):
    with pytest.raises(UsageError, match="needs a key") as refused:
        serve(start=False, host="0.0.0.0")
    assert "--tls-cert" in refused.value.remedy
    add_key(tmp_path / "runs", "camera", "score")
    client = serve(start=False, host="0.0.0.0")
    assert client.get("/v1/models").status_code == 401
    revoke_key(tmp_path / "runs", "camera")
    client.app.state.server.keys.refresh()
    assert client.get("/v1/models").status_code == 401
    assert "belong together" in adctl("serve", "x", "--tls-cert", "c.pem", code=2).stderr


def test_the_limit_of_requests_is_for_each_key(serve, keys):
    client = serve(start=False, rate=2.0)
    statuses = [client.get("/v1/models", headers=bearer(keys["score"])) for _ in range(4)]
    assert [one.status_code for one in statuses] == [200, 200, 429, 429]
    assert statuses[-1].headers["retry-after"] == "1"
    assert client.get("/v1/models", headers=bearer(keys["admin"])).status_code == 200


# ---- the page


def test_a_session_needs_its_token_for_changes(serve, keys):
    client = serve(start=False)
    assert client.post("/v1/session", json={"key": "adctl_x_y"}).status_code == 401
    begun = client.post("/v1/session", json={"key": keys["review"]})
    cookie = begun.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    csrf = begun.json()["csrf"]
    assert client.get("/v1/session").json() == {"name": "review key", "role": "review", "csrf": csrf, "needs_key": True}
    review = {"verdict_id": "0" * 26, "label": "good"}
    assert client.post("/v1/reviews", json=review).status_code == 403
    assert client.post("/v1/reviews", json=review, headers={"X-CSRF-Token": csrf[:-1]}).status_code == 403
    assert client.post("/v1/reviews", json=review, headers={"X-CSRF-Token": csrf}).status_code == 404
    assert client.post("/v1/models/line3/unload", headers={"X-CSRF-Token": csrf}).status_code == 403
    assert client.delete("/v1/session", headers={"X-CSRF-Token": csrf}).status_code == 204
    client.cookies.clear()
    assert client.get("/v1/session").status_code == 401


def test_a_forged_or_old_cookie_is_refused(tmp_path, monkeypatch):
    sessions = Sessions(tmp_path)
    cookie = sessions.start("KEY")
    assert sessions.key_of(cookie) == "KEY"
    assert Sessions(tmp_path).key_of(cookie) == "KEY"
    assert Sessions(tmp_path / "other").key_of(cookie) is None
    for forged in ("", ".", cookie[:-1], "OTHER" + cookie[3:], cookie + ".x", "é.9.x.y"):
        assert sessions.key_of(forged) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert sessions.key_of(cookie) is None
    if os.name == "posix":
        assert (tmp_path / "session.secret").stat().st_mode & 0o077 == 0


def test_pages_of_other_sites_change_nothing(serve):
    client = serve(start=False, cors=("https://line.example",))
    path, post = "/v1/models/nobody/unload", client.post
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert post(path, headers=headers).status_code == 403, headers
    for headers in ({}, {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}, {"Origin": "https://line.example"}):
        assert post(path, headers=headers).status_code == 400, headers
    assert "access-control-allow-origin" not in client.get("/livez", headers={"Origin": "https://evil.example"}).headers
    allowed = client.get("/livez", headers={"Origin": "https://line.example"}).headers
    assert allowed["access-control-allow-origin"] == "https://line.example"


def test_other_host_names_are_refused_on_loopback(serve):
    client = serve(start=False)
    assert client.get("/livez", headers={"Host": "evil.example:8000"}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/livez", headers={"Host": host}).status_code == 200, host


def test_every_answer_has_the_headers_of_safety(serve):
    client = serve(start=False)
    for path in ("/livez", "/docs", "/nowhere", "/v1/history/x", "/openapi.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(r"[0-9A-Z]{26}", headers["x-request-id"])
        assert "server" not in headers


# ---- names from outside


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<script>alert(1)</script>.png", "a\x00b", "n" * 5000, "\u202egnp.exe"]
)
def test_names_of_files_are_only_text(serve, zippers, name, tmp_path):
    client = serve()
    image = next((zippers / "test" / "good").iterdir()).read_bytes()
    body, kind = form([(name, image)])
    answer = client.post("/v1/models/line3/score?threshold=-1e9", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (200, 400), answer.text
    assert answer.headers["content-type"] == "application/json" or answer.status_code == 400
    stored = [path for path in (tmp_path / "runs" / "serve").rglob("*") if path.is_file()]
    allowed = re.compile(r"session\.secret|[0-9A-Z]{26}(\.thumb)?\.(jpg|png|npy)")
    assert all(allowed.fullmatch(path.name) for path in stored), stored


def test_paths_that_climb_are_no_identifiers(serve):
    client = serve(start=False)
    for path in ("/v1/history/..%2f..%2fsession.secret/image", "/v1/history/%2e%2e/image", "/v1/models/..%2fx/score"):
        assert client.get(path).status_code in (404, 405, 422)


def test_secrets_are_in_no_log_and_no_answer(serve, keys, caplog):
    caplog.set_level(logging.DEBUG)
    client = serve(start=False)
    client.get("/v1/models", headers=bearer(keys["admin"]))
    refused = client.post("/v1/session", json={"key": keys["admin"] + "x"})
    invalid = client.post("/v1/session", json={"key": [keys["admin"]]})
    assert keys["admin"] not in refused.text + invalid.text + caplog.text
    entries = client.get("/v1/audit", headers=bearer(keys["admin"])).text
    assert keys["admin"] not in entries


def test_the_audit_log_says_who_did_what(serve, keys):
    client = serve(models=None)
    client.post("/v1/models/line3/load", headers=bearer(keys["admin"]))
    client.post("/v1/models/line3/unload", headers=bearer(keys["admin"]))
    entries = client.get("/v1/audit", headers=bearer(keys["admin"])).json()["entries"]
    assert [(entry["who"], entry["action"], entry["target"]) for entry in entries] == [
        ("admin key", "unload", "line3"),
        ("admin key", "load", "line3"),
    ]
