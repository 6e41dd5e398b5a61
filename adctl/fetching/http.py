"""One HTTP or HTTPS request: safe redirects, protected passwords, and errors that say whether a retry makes sense."""

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

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_FOUND_STATUS = frozenset({404, 410})


class PermanentError(Exception):
    """Failure of this address that a retry cannot mend; the text gives the reason."""


class MismatchError(PermanentError):
    """The downloaded file does not have the expected length or digest."""


class NotFoundError(PermanentError):
    """The server has no such file."""


class RedirectedError(PermanentError):
    """The server redirects to another host, which was not to be followed; `headers` are those of its answer."""

    def __init__(self, headers: HTTPMessage) -> None:
        super().__init__("it redirects to another host")
        self.headers = headers


class RetryableError(Exception):
    """Temporary failure: retry after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class BadRangeError(RetryableError):
    """The server cannot continue the partial download: retry from the start."""


def without_secrets(url: str) -> str:
    """Return the address without user, password, query and fragment, for messages and records."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class SafeRedirectHandler(urllib.request.HTTPRedirectHandler):
    """Redirect handler that follows http and https, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Follow a redirect, unless its scheme is not http or https or it would give up the encryption."""
        schemes = (urlsplit(req.full_url).scheme, urlsplit(newurl).scheme)
        if schemes not in {("http", "http"), ("http", "https"), ("https", "https")}:
            fp.close()
            raise PermanentError(f"it redirects from {schemes[0]} to {schemes[1] or 'nowhere'}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


class SameHostRedirectHandler(SafeRedirectHandler):
    """Redirect handler that stays on one host; for other hosts it raises `RedirectedError` with the headers."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Follow a redirect within the same host."""
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            fp.close()
            raise RedirectedError(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str) -> None:
    """Check that an address is an http or https address.

    Raises:
        FetchError: It is not.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FetchError(
            f"Cannot download {without_secrets(url)}: it is not an http or https address.", "Give a web address."
        )


def make_request(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> urllib.request.Request:
    """Return a request for uncompressed bytes; a password in the address is sent to its own host only."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    defaults = {"User-Agent": f"adctl/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        urlunsplit(parts._replace(netloc=host, fragment="")), headers={**defaults, **(headers or {})}, method=method
    )
    if user:
        # An unredirected header is not sent to the hosts of redirects.
        credentials = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    return request


def send(request: urllib.request.Request, timeout: float, redirects: SafeRedirectHandler) -> HTTPResponse:
    """Send a request and read the headers of the response.

    Raises:
        PermanentError: The request failed; a retry would fail again.
        RetryableError: The request failed; a retry may succeed.
    """
    try:
        response: HTTPResponse = urllib.request.build_opener(redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(error) from error
    except urllib.error.URLError as error:
        raise _connection_error(error.reason) from error
    except (OSError, HTTPException, UnicodeError) as error:
        raise _connection_error(error) from error
    return response


def _status_error(error: urllib.error.HTTPError) -> Exception:
    """Return the exception for an HTTP error status."""
    status = f"HTTP {error.code} {responses.get(error.code, '')}".strip()
    if error.code in _RETRYABLE_STATUS:
        seconds = error.headers.get("Retry-After", "").strip()
        return RetryableError(status, float(seconds) if seconds.isdecimal() else 0.0)
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return BadRangeError(status)
    return NotFoundError(status) if error.code in _NOT_FOUND_STATUS else PermanentError(status)


def _connection_error(cause: object) -> Exception:
    """Return the exception for a failed connection."""
    if isinstance(cause, socket.gaierror):
        return PermanentError("the host is unknown, or there is no network")
    permanent = (ssl.SSLCertVerificationError, ConnectionRefusedError, InvalidURL, UnicodeError)
    if isinstance(cause, permanent) or not isinstance(cause, (OSError, HTTPException)):
        return PermanentError(describe_failure(cause))
    return RetryableError(describe_failure(cause))


def describe_failure(cause: object) -> str:
    """Return why a connection failed, in words without the address."""
    if isinstance(cause, TimeoutError):
        return "the server stopped answering"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno).lower()
    return f"the connection broke ({type(cause).__name__})"


def read_block(response: HTTPResponse, most: int) -> bytes:
    """Return the next bytes of a response, at most `most`; empty at its end.

    Raises:
        RetryableError: The connection broke.
    """
    try:
        return response.read1(most)
    except (OSError, HTTPException) as error:
        raise RetryableError(describe_failure(error)) from error
