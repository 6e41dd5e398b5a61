"""Downloads against a real server on loopback that cuts, stalls, lies and corrupts: a whole right file, or none."""

from __future__ import annotations

import hashlib
import http.server
import random
import shutil
import socket
import ssl
import subprocess
import threading
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adctl.data import download as module
from adctl.data.download import Transfer, download, head
from adctl.data.web import without_secrets
from adctl.errors import FetchError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@dataclass
class Site:
    """A web site: a body, faults for the next requests in turn, and what was asked for."""

    port: int = 0
    body: bytes = BODY
    etag: str | None = '"one"'
    faults: list[Callable] = field(default_factory=list)
    always: Callable | None = None
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/data/file.bin"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, _, headers in self.seen]

    def answer(self, handler) -> None:
        self.seen.append((handler.command, handler.path, dict(handler.headers)))
        fault = self.faults.pop(0) if self.faults else self.always
        (fault or serve)(self, handler)


def serve(site, handler, *, body=None, ranges=True, stop=None, length=None, claim=None):
    """A right answer, unless told to stop after some bytes or to lie about the length or the range."""
    body = site.body if body is None else body
    start = 0
    asked = handler.headers.get("Range")
    if ranges and asked and handler.headers.get("If-Range") in {None, site.etag}:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", claim or f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    if site.etag is not None:
        handler.send_header("ETag", site.etag)
    handler.send_header("Content-Length", str(len(body) - start if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[start : len(body) if stop is None else min(len(body), start + stop)])
    handler.close_connection = True


def cut(after=100_000, **options):
    return lambda site, handler: serve(site, handler, stop=after, **options)


def status(code, **headers):
    def answer(site, handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def stall(site, handler):
    serve(site, handler, stop=50_000)
    handler.wfile.flush()
    site.done.wait(5)


def flipped(site, handler):
    serve(site, handler, body=site.body[:1000] + bytes([site.body[1000] ^ 1]) + site.body[1001:])


def from_the_start(site, handler):
    """As many bytes as were asked for, but the first ones instead of the last."""
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    length = len(site.body) - start
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-{length - 1}/{len(site.body)}")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(site.body[:length])


def more_than_asked(site, handler):
    """A part that claims to begin where it should, and does not."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 100000-{len(site.body) - 1}/{len(site.body)}")
    handler.send_header("Content-Length", str(len(site.body)))
    handler.end_headers()
    handler.wfile.write(site.body)


def reset(site, handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.close_connection = True


def without_length(site, handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(site.body)
    handler.close_connection = True


def chunked(stop=None):
    def answer(site, handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number, start in enumerate(range(0, len(site.body), 50_000)):
            if number == stop:
                break
            piece = site.body[start : start + 50_000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        else:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return answer


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.site.answer(self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


@pytest.fixture
def sites():
    """Start web sites on loopback."""
    servers = []

    def start(context: ssl.SSLContext | None = None) -> Site:
        server = QuietServer(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.site = Site(server.server_port)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.site

    yield start
    for server in servers:
        server.site.done.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(sites):
    return sites()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "files" / "file.bin"


@pytest.fixture
def slept():
    return []


@pytest.fixture
def fetch(target, slept):
    """Download without waiting between tries."""

    def run(*urls, **options):
        names = {"attempts", "timeout", "backoff", "connections", "smallest_piece"}
        how = Transfer(**{"timeout": 0.3, **{name: options.pop(name) for name in names & set(options)}})
        return download(urls, target, transfer=how, **{"sleep": slept.append, **options})

    return run


def test_a_whole_file_comes_with_its_digest(site, target, fetch):
    told = []
    got = fetch(site.url, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == BODY
    assert (got.path, got.sha256, got.bytes, got.verified) == (target, SHA256, len(BODY), False)
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("digest", [{"sha256": SHA256}, {"sha256": SHA256.upper()}, {"md5": MD5}], ids=str)
def test_a_right_digest_makes_it_verified(site, fetch, digest):
    assert fetch(site.url, size=len(BODY), **digest).verified


PASSING = {
    "cut": [cut()],
    "cut twice": [cut(), cut(7)],
    "cut at once": [cut(0)],
    "reset": [reset],
    "stall": [stall],
    "503": [status(503), status(503), status(503)],
    "429": [status(429, Retry_After="7")],
    "cut, then ranges refused": [cut(), lambda site, handler: serve(site, handler, ranges=False)],
    "cut, then another range": [cut(), lambda site, handler: serve(site, handler, claim="bytes 5-9/300000")],
    "cut, then no range": [cut(), lambda site, handler: serve(site, handler, claim="nonsense")],
    "cut, then another length": [cut(), lambda site, handler: serve(site, handler, claim="bytes 100000-399999/400000")],
    "cut, then from the start": [cut(), from_the_start],
    "cut, then more than asked": [cut(), more_than_asked],
    "cut, then 416": [cut(), status(416)],
    "length too long": [lambda site, handler: serve(site, handler, length=len(BODY) + 1)],
    "chunked": [chunked()],
    "chunked, cut": [chunked(stop=2)],
    "redirect": [status(302, Location="/elsewhere")],
    "permanent redirect": [status(308, Location="/elsewhere")],
}


@pytest.mark.parametrize("digest", [SHA256, None], ids=["digest", "no digest"])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_got_over(site, target, fetch, name, digest):
    site.faults = list(PASSING[name])
    assert fetch(site.url, sha256=digest).sha256 == SHA256
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


FATAL = {
    "503 for ever": (status(503), "503"),
    "404": (status(404), "404"),
    "403": (status(403), "403"),
    "204": (status(204), "204"),
    "cut for ever": (cut(0), "cut"),
    "reset for ever": (reset, "gave up"),
    "stalls for ever": (stall, "cut|answer"),
    "corrupt": (flipped, "SHA-256"),
    "length too short": (lambda site, handler: serve(site, handler, length=1000), "SHA-256"),
    "redirect to a file": (status(302, Location="file:///etc/passwd"), "302|file"),
    "redirect to ftp": (status(302, Location="ftp://127.0.0.1/x"), "ftp"),
    "redirects in circles": (status(302, Location="/data/file.bin"), "302"),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_does_not_pass_is_one_clear_error(site, target, fetch, name):
    site.always, says = FATAL[name]
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    with pytest.raises(FetchError, match=says) as error:
        fetch(site.url, sha256=SHA256)
    assert error.value.remedy
    assert target.read_bytes() == b"what was there before"


def test_a_wrong_file_is_not_kept_for_resuming(site, target, fetch):
    site.always = flipped
    with pytest.raises(FetchError):
        fetch(site.url, sha256=SHA256)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("fault", [flipped, status(404), status(500), reset, cut(0)])
def test_the_next_mirror_helps_out(sites, target, fetch, fault):
    bad, good = sites(), sites()
    bad.always = fault
    assert fetch(bad.url, good.url, sha256=SHA256).verified
    assert target.read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_again(sites, fetch, slept):
    bad, good = sites(), sites()
    bad.always = status(404)
    fetch(bad.url, good.url)
    assert (len(bad.seen), slept) == (1, [])


def test_waits_grow_and_the_server_may_ask_for_more(site, fetch, slept):
    site.faults = [status(503), status(503), status(429, Retry_After="9")]
    fetch(site.url)
    assert slept == [1.0, 2.0, 9.0]


def test_a_try_that_brings_much_does_not_count_against_the_server(site, target, fetch):
    site.body = random.Random(1).randbytes(9 << 20)
    site.always = cut(3 << 19)
    fetch(site.url, attempts=2)
    assert target.read_bytes() == site.body


def test_resuming_asks_for_the_rest_and_for_the_same_file(site, fetch):
    site.faults = [cut(100_000)]
    fetch(site.url)
    assert site.ranges == [None, "bytes=100000-"]
    assert site.seen[1][2]["If-Range"] == '"one"'


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(site, target, fetch):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, progress=interrupt)
    assert not target.exists()
    fetch(site.url)
    assert target.read_bytes() == BODY
    assert site.ranges[0] is None
    assert site.ranges[1].startswith("bytes=")


def test_a_file_that_changed_meanwhile_is_fetched_anew(site, target, fetch):
    site.faults = [cut()]
    with pytest.raises(FetchError):
        fetch(site.url, attempts=1)
    site.body, site.etag = BODY[::-1], '"two"'
    fetch(site.url)
    assert target.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_proof_of_sameness_only_a_digest_allows_resuming(site, target, fetch, etag):
    site.etag = etag
    site.faults = [cut(), cut()]
    fetch(site.url)
    assert site.ranges == [None, None, None]
    site.faults = [cut()]
    fetch(site.url, sha256=SHA256)
    assert site.ranges[-1] == "bytes=100000-"
    assert target.read_bytes() == BODY


def test_a_part_of_another_address_is_not_built_upon(sites, target, fetch):
    one, two = sites(), sites()
    one.always = cut()
    two.body = BODY[::-1]
    fetch(one.url, two.url, attempts=1)
    assert target.read_bytes() == BODY[::-1]


def test_a_part_damaged_on_disk_is_thrown_away(site, target, fetch):
    site.faults = [cut()]
    with pytest.raises(FetchError):
        fetch(site.url, sha256=SHA256, attempts=1)
    part = target.with_name("file.bin.part")
    part.write_bytes(bytes(part.stat().st_size))
    assert fetch(site.url, sha256=SHA256).verified
    assert target.read_bytes() == BODY


def test_a_finished_part_needs_no_request(site, target, fetch):
    site.faults = [cut(len(BODY) - 1)]
    with pytest.raises(FetchError):
        fetch(site.url, attempts=1)
    with target.with_name("file.bin.part").open("ab") as part:
        part.write(BODY[-1:])
    fetch(site.url)
    assert len(site.seen) == 1
    assert target.read_bytes() == BODY


@given(
    cuts=st.lists(st.integers(0, 2000), max_size=3), length=st.integers(0, 2000), etag=st.sampled_from(['"a"', None])
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_it_is_cut_the_file_is_the_same(site, tmp_path, cuts, length, etag):
    site.body, site.etag, site.faults = BODY[:length], etag, [cut(after) for after in cuts]
    download([site.url], tmp_path / "cut.bin", transfer=Transfer(timeout=1), sleep=lambda _: None)
    assert (tmp_path / "cut.bin").read_bytes() == BODY[:length]
    site.faults.clear()


def test_a_promised_size_is_held_against_the_server(site, target, fetch):
    with pytest.raises(FetchError, match="299999 are expected"):
        fetch(site.url, size=len(BODY) - 1)
    site.always = chunked()
    with pytest.raises(FetchError, match="length is 300000"):
        fetch(site.url, size=len(BODY) - 1)
    assert not target.exists()


def test_a_file_of_unknown_length_needs_a_digest(site, target, fetch):
    site.always = without_length
    with pytest.raises(FetchError, match="how long"):
        fetch(site.url)
    assert not target.exists()
    assert fetch(site.url, sha256=SHA256).verified


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_noticed_before_it_is_full(site, target, fetch, monkeypatch, known):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"300.0 kB .* 1.0 kB are free"):
        fetch(site.url, size=len(BODY) if known else None)
    assert len(site.seen) == (not known)
    assert not target.exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/etc/passwd", "http://"])
def test_only_the_web_is_read(target, fetch, url):
    with pytest.raises(FetchError, match="only http"):
        fetch(url)
    with pytest.raises(FetchError, match="only http"):
        head(url)


def test_nobody_there(target, fetch, slept):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(FetchError, match="refused"):
        fetch(url)
    with pytest.raises(FetchError, match="no such host"):
        fetch("http://nowhere.invalid/x")
    assert slept == []


def test_secrets_stay_out_of_messages_and_files(site, target, fetch):
    site.always = status(403)
    url = site.url.replace("http://", "http://me:pass%20word@") + "?token=hidden#also"
    with pytest.raises(FetchError) as error:
        fetch(url)
    assert site.url in error.value.message
    assert not any(secret in str(vars(error.value)) for secret in ("pass", "me:", "hidden", "also"))
    assert site.seen[0][2]["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    site.always = cut()
    with pytest.raises(FetchError):
        fetch(url, attempts=1)
    assert "hidden" not in target.with_name("file.bin.part.json").read_text()
    assert without_secrets("https://u:p@host:1/a/b?c#d") == "https://host:1/a/b"


def test_a_password_is_not_carried_to_another_host(sites, fetch):
    one, two = sites(), sites()
    one.always = status(302, Location=two.url)
    fetch(one.url.replace("http://", "http://me:word@"))
    assert "Authorization" not in two.seen[0][2]


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate for 127.0.0.1 that this process trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    pem = tmp_path / "host.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", pem, "-out", tmp_path / "cert.pem", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(pem.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_encrypted_addresses_do_not_lead_to_plain_ones(sites, certificate, target, fetch, monkeypatch):
    safe, plain = sites(certificate), sites()
    url = safe.url.replace("http:", "https:")
    assert fetch(url).sha256 == SHA256
    safe.always = status(302, Location=plain.url)
    with pytest.raises(FetchError, match="from https to http"):
        fetch(url)
    assert plain.seen == []
    plain.always = status(302, Location=url)
    safe.always = None
    assert fetch(plain.url).sha256 == SHA256
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match="certificate"):
        fetch(url)


def test_head_tells_headers_and_stays_on_its_host(site, sites):
    assert head(site.url)["Content-Length"] == str(len(BODY))
    site.faults = [status(307, Location="/renamed")]
    assert head(site.url)["ETag"] == '"one"'
    assert [(method, path) for method, path, _ in site.seen[-2:]] == [("HEAD", "/data/file.bin"), ("HEAD", "/renamed")]
    other = sites()
    site.faults = [status(302, Location=other.url, X_Linked_Size="5")]
    assert head(site.url)["X-Linked-Size"] == "5"
    assert other.seen == []
    site.faults = [status(404)]
    assert head(site.url) is None
    site.faults = [status(500)]
    assert head(site.url, sleep=lambda _: None) is not None
    site.always = status(401)
    with pytest.raises(FetchError, match="401"):
        head(site.url)
