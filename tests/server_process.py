"""A server in a process of its own, and the plain HTTP by which tests ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ServerProcess:
    """`adctl serve` on a free port.

    Args:
        folder: Folder to run in.
        arguments: Arguments after `adctl serve`.
    """

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.log = folder / "server.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADCTL_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "adctl", "serve", *map(str, arguments), "--port", "0", "--json"],
                cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.port = self._port()

    def _port(self) -> int:
        for _ in range(1200):
            found = re.search(r"Listening on https?://[^ ]*:(\d+)", self.log.read_text("utf-8"))
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(self.log.read_text("utf-8"))

    def __call__(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, seconds: float = 60, **headers: str
    ) -> Answer:
        """Send one request on a connection of its own; underscores in names of headers stand for dashes."""
        kinds = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)) as connection:
            connection.request(method, path, sent, {**kinds, **named})
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def score(self, image: bytes, name: str = "line3", query: str = "", **headers: str) -> Answer:
        """Score one image."""
        headers.setdefault("Content_Type", "image/png")
        return self("POST", f"/v1/models/{name}/score{query}", image, **headers)

    def stop(self, seconds: float = 60) -> Any:
        """End the server in order, and return the document that it prints."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, self.log.read_text("utf-8")
        return json.loads(out)

    def kill(self) -> None:
        """End the server at once."""
        self.process.kill()
        self.process.communicate()


def form(parts: list[tuple[str, bytes]], boundary: str = "AaB03x") -> tuple[bytes, str]:
    """A multipart form of files, and its content type."""
    lines = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return lines + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
