"""One request to a web server, safely: redirects, passwords, and what each kind of failure means for the next step.

Knows http and https, nothing of files.
"""

from __future__ import annotations

import base64
import http
import os
import socket
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL, responses
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from adctl import __version__
from adctl.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


class PermanentError(Exception):
    """This mirror will not do; the text says why."""


class MismatchError(PermanentError):
    """What came is not what was promised."""


class NotFoundError(PermanentError):
    """There is no such file."""


class RedirectedError(PermanentError):
    """The file is elsewhere, and whoever asked did not want to go there."""

    def __init__(self, headers: HTTPMessage) -> None:
        super().__init__("it is elsewhere")
        self.headers = headers


class RetryableError(Exception):
    """Something that may pass: worth another try after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class BadRangeError(RetryableError):
    """The server cannot go on from the part that is here: worth another try without it."""


def without_secrets(url: str) -> str:
    """The address without user, password, query and fragment: fit for messages and records."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class SafeRedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http and https, never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """As the base class does, unless it would leave the web or lose the encryption."""
        schemes = (urlsplit(req.full_url).scheme, urlsplit(newurl).scheme)
        if schemes not in {("http", "http"), ("http", "https"), ("https", "https")}:
            fp.close()
            raise PermanentError(f"it redirects from {schemes[0]} to {schemes[1] or 'nowhere'}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


class SameHostRedirectHandler(SafeRedirectHandler):
    """Follows redirects within one host; hands out the headers of those that lead elsewhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """As above, within one host."""
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            fp.close()
            raise RedirectedError(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str) -> None:
    """Refuse what is no web address.

    Raises:
        FetchError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FetchError(f"Cannot download {without_secrets(url)}: only http and https are.", "Give a web address.")


def make_request(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> urllib.request.Request:
    """A request that asks for bytes as they are; a password in the address goes to its host alone."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    always = {"User-Agent": f"adctl/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        urlunsplit(parts._replace(netloc=host, fragment="")), headers={**always, **(headers or {})}, method=method
    )
    if user:
        # Unredirected: the password is for this host alone.
        secret = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def send(request: urllib.request.Request, timeout: float, redirects: SafeRedirectHandler) -> HTTPResponse:
    """Send a request and read the head of the answer.

    Raises:
        FailedError: There is no sense in asking again.
        CutError: There may be.
    """
    try:
        response: HTTPResponse = urllib.request.build_opener(redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refusal(error) from error
    except urllib.error.URLError as error:
        raise _unreachable(error.reason) from error
    except (OSError, HTTPException, UnicodeError) as error:
        raise _unreachable(error) from error
    return response


def _refusal(error: urllib.error.HTTPError) -> Exception:
    """What an HTTP error status means for the next step."""
    status = f"HTTP {error.code} {responses.get(error.code, '')}".strip()
    if error.code in _WORTH_A_RETRY:
        seconds = error.headers.get("Retry-After", "").strip()
        return RetryableError(status, float(seconds) if seconds.isdecimal() else 0.0)
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return BadRangeError(status)
    return NotFoundError(status) if error.code in _GONE else PermanentError(status)


def _unreachable(cause: object) -> Exception:
    """What a failure to connect means for the next step."""
    if isinstance(cause, socket.gaierror):
        return PermanentError("no such host, or no network")
    final = (ssl.SSLCertVerificationError, ConnectionRefusedError, InvalidURL, UnicodeError)
    if isinstance(cause, final) or not isinstance(cause, (OSError, HTTPException)):
        return PermanentError(describe_failure(cause))
    return RetryableError(describe_failure(cause))


def describe_failure(cause: object) -> str:
    """Why a connection failed, in words that hold no address."""
    if isinstance(cause, TimeoutError):
        return "the server does not answer any more"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno).lower()
    return f"the connection broke ({type(cause).__name__})"


def read_block(response: HTTPResponse, most: int) -> bytes:
    """The next bytes of an answer, at most so many; none at its end.

    Raises:
        CutError: The connection broke.
    """
    try:
        return response.read1(most)
    except (OSError, HTTPException) as error:
        raise RetryableError(describe_failure(error)) from error
