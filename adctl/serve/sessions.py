"""Sessions of the page: a signed cookie that names a key, and a token against forged requests.

Nothing is stored: a session is valid while its key is, on every process of the server and after a restart.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import time
from typing import TYPE_CHECKING

from adctl import files

if TYPE_CHECKING:
    from pathlib import Path

COOKIE = "adctl_session"
CSRF_HEADER = "X-CSRF-Token"

SECONDS = 12 * 3600
"""Longest time of a session: a shift."""

_SECRET = "session.secret"  # noqa: S105 - the name of a file
_FIELDS = 3


class Sessions:
    """Signs and checks the cookies of a server.

    Args:
        folder: Data folder, which keeps the secret.

    Raises:
        OutputError: The secret cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._secret = _secret_in(folder)

    def start(self, key_id: str) -> str:
        """Return the cookie for a key."""
        content = f"{key_id}.{int(time.time()) + SECONDS}.{secrets.token_urlsafe(16)}"
        return f"{content}.{self._sign(content)}"

    def key_of(self, cookie: str) -> str | None:
        """Return the identifier of the key that a cookie names; None for one that is forged or too old."""
        content, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(self._sign(content).encode(), signature.encode()):
            return None
        key_id, ends, *_ = content.split(".", _FIELDS - 1)
        return key_id if int(ends) > time.time() else None

    def csrf(self, cookie: str) -> str:
        """Return the token that requests of a session which change something must send."""
        return self._sign(f"csrf {cookie}")

    def _sign(self, text: str) -> str:
        digest = hmac.digest(self._secret, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _secret_in(folder: Path) -> bytes:
    path = files.make_folder(folder) / _SECRET
    with files.output_errors(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_bytes()
        secret = secrets.token_bytes(32)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secret)
        return secret
