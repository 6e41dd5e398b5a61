"""Web server on loopback that cuts, delays and corrupts downloads on request."""

from __future__ import annotations

import hashlib
import http.server
import random
import socket
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    start, end = 0, len(body)
    asked = handler.headers.get("Range")
    if ranges and asked and handler.headers.get("If-Range") in {None, site.etag}:
        start, end = asked_range(handler, body)
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", claim or f"bytes {start}-{end - 1}/{len(body)}")
    else:
        handler.send_response(200)
    if ranges:
        handler.send_header("Accept-Ranges", "bytes")
    if site.etag is not None:
        handler.send_header("ETag", site.etag)
    handler.send_header("Content-Length", str(end - start if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[start : end if stop is None else min(end, start + stop)])
    handler.close_connection = True


def asked_range(handler, body) -> tuple[int, int]:
    first, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else len(body)


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
    start, end = asked_range(handler, site.body)
    length = end - start
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-{length - 1}/{len(site.body)}")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(site.body[:length])


def more_than_asked(site, handler):
    """A part that claims to begin where it should, and goes on for longer."""
    start, end = asked_range(handler, site.body)
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(site.body)}")
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


@contextmanager
def web_sites() -> Iterator[Callable[..., Site]]:
    """Start web sites on loopback; all are gone at the end."""
    servers = []

    def start(context: ssl.SSLContext | None = None) -> Site:
        server = QuietServer(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.site = Site(server.server_port)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.site

    try:
        yield start
    finally:
        for server in servers:
            server.site.done.set()
            server.shutdown()
            server.server_close()


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
