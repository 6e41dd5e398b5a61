"""One file from the network to the disk: mirrors, resuming, retries, and digests checked before it counts.

A download grows in `TARGET.part`, beside a note of who sends it (`TARGET.part.json`), and becomes `TARGET` by a
rename once its length and digest are right. Knows http and https, nothing of what files hold. Two processes must
not fetch the same target at once; the caller sees to that.
"""

from __future__ import annotations

import base64
import hashlib
import http
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL, responses
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from adctl import __version__, files
from adctl.errors import FetchError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int | None], None]
"""Told (done, total) in bytes; the total is None while it is not known."""

_BLOCK = 1 << 18
_GAIN = 1 << 20
"""So many new bytes make a try worth its while: the count of failures starts again."""

_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})
_LONGEST_WAIT = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that came whole.

    Attributes:
        path: Where it lies.
        sha256: Its digest, hexadecimal.
        bytes: Its length.
        verified: Whether it was checked against a digest known beforehand.
    """

    path: Path
    sha256: str
    bytes: int
    verified: bool


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    attempts: int = 4,
    timeout: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Bring one file, or nothing.

    What an interrupted download left is taken up again where the server can prove that it still has the same
    file (RFC 9110, sections 13.1.5 and 14). Proxies are taken from the environment.

    Args:
        urls: The same file at different places, tried in turn; `http` or `https`.
        target: Where it is put; replaced if it exists.
        sha256: Its digest, if known.
        md5: Its digest, if only that is known.
        size: Its length in bytes, if known.
        progress: Told how far it is.
        attempts: Tries in a row at one place that bring nothing new before it is given up.
        timeout: Seconds to wait for a connection and for each piece of data.
        sleep: Waits between tries; for tests.

    Raises:
        FetchError: No place gave the file as promised; the target is untouched.
        OutputError: It cannot be written, or there is no room for it.
    """
    for url in urls:
        _check_address(url)
    job = _Job(target, sha256, md5, size, progress, attempts, timeout, sleep)
    files.make_folder(target.parent)
    failures = []
    for url in urls:
        try:
            return _from_mirror(url, job)
        except _FailedError as failure:
            failures.append(f"{without_secrets(url)}: {failure}")
    raise FetchError(
        f"Cannot download {target.name}. {'; '.join(failures) or 'No address is known'}.",
        "Check the network and the proxy settings (HTTPS_PROXY), then run it again: it goes on where it stopped.",
    )


def head(
    url: str, *, attempts: int = 4, timeout: float = 30.0, sleep: Callable[[float], None] = time.sleep
) -> HTTPMessage | None:
    """The headers a server answers to HEAD with; redirects are followed within the same host only.

    Returns:
        The headers, or None where there is no such file.

    Raises:
        FetchError: There is no answer, or a refusal.
    """
    _check_address(url)
    for failed in range(1, attempts + 1):
        try:
            with _open(_request(url, method="HEAD"), timeout, _LocalRedirects()) as response:
                return response.headers
        except _GoneError:
            return None
        except _RedirectedError as redirect:
            return redirect.headers
        except _CutError as cut:
            failure: Exception = cut
            if failed < attempts:
                sleep(_wait(cut, failed))
        except _FailedError as refusal:
            failure = refusal
            break
    raise FetchError(
        f"Cannot reach {without_secrets(url)}: {failure}.", "Check the network and the proxy settings (HTTPS_PROXY)."
    )


def without_secrets(url: str) -> str:
    """The address without user, password, query and fragment: fit for messages and records."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def size_in_words(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


# ---- one mirror


class _FailedError(Exception):
    """This mirror will not do; the text says why."""


class _MismatchError(_FailedError):
    """What came is not what was promised."""


class _GoneError(_FailedError):
    """There is no such file."""


class _RedirectedError(_FailedError):
    """The file is elsewhere, and whoever asked did not want to go there."""

    def __init__(self, headers: HTTPMessage) -> None:
        super().__init__("it is elsewhere")
        self.headers = headers


class _CutError(Exception):
    """Something that may pass: worth another try after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _UnfitPartError(_CutError):
    """The server cannot go on from the part that is here: worth another try without it."""


@dataclass(frozen=True)
class _Job:
    """What is asked for; see `download`."""

    target: Path
    sha256: str | None
    md5: str | None
    size: int | None
    progress: Progress | None
    attempts: int
    timeout: float
    sleep: Callable[[float], None]

    @property
    def part(self) -> Path:
        """What came so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """Who sends it."""
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def checkable(self) -> bool:
        """Whether a wrong file would be noticed."""
        return bool(self.sha256 or self.md5)

    def discard(self) -> None:
        """Start from nothing."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Begun:
    """How much of a file is here already, and how the server knows it again.

    Attributes:
        have: Bytes in the part.
        validator: The ETag or the date of change the server gave; None when it gave neither.
        total: The length it promised, if it did.
    """

    have: int = 0
    validator: str | None = None
    total: int | None = None


def _from_mirror(url: str, job: _Job) -> Downloaded:
    best, failed, afresh = _length(job.part), 0, False
    while True:
        try:
            resumed, total = _transfer(url, job)
            return _accept(job, total)
        except _CutError as cut:
            if isinstance(cut, _UnfitPartError):
                job.discard()
            have = _length(job.part)
            failed = 1 if have >= best + _GAIN else failed + 1
            best = max(best, have)
            if failed >= job.attempts:
                raise _FailedError(f"{cut} (gave up after {failed} tries)") from cut
            job.sleep(_wait(cut, failed))
        except _MismatchError:
            # The fault may lie in what was there before: one more try, from nothing.
            if not resumed or afresh:
                raise
            afresh = True


def _transfer(url: str, job: _Job) -> tuple[bool, int | None]:
    """Fill the part; tell whether it was begun before, and how long it has to be."""
    begun = _begun(url, job)
    if begun.total is not None and begun.have == begun.total:
        return True, begun.total
    if job.size is not None:
        _check_space(job, job.size - begun.have)
    headers = {"Range": f"bytes={begun.have}-"} if begun.have else {}
    if begun.have and begun.validator:
        headers["If-Range"] = begun.validator
    with _open(_request(url, headers), job.timeout, _SafeRedirects()) as response:
        start = _start(response, begun)
        total = _total(response, job)
        _check_space(job, (total or 0) - start)
        _write_note(url, response, total, job)
        _receive(response, start, total, job)
    return start > 0, total


def _begun(url: str, job: _Job) -> _Begun:
    """What an earlier try at the same address left, if the server or a digest can vouch for the whole."""
    try:
        note = json.loads(job.note.read_text(encoding="utf-8"))
        begun = _Begun(job.part.stat().st_size, note["validator"], note["total"])
        same = note["url"] == _fingerprint(url)
    except (OSError, ValueError, TypeError, KeyError):
        same, begun = False, _Begun()
    fits = begun.total is None or begun.have <= begun.total
    if same and fits and begun.have and (begun.validator or job.checkable):
        return begun
    job.discard()
    return _Begun()


def _start(response: HTTPResponse, begun: _Begun) -> int:
    """The offset at which the answer begins: where the part ends, or 0 for the whole file."""
    if response.status == http.HTTPStatus.OK:
        return 0
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise _FailedError(f"HTTP {response.status}")
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    tag = response.headers.get("ETag")
    fits = (
        found is not None
        and int(found[1]) == begun.have
        and (begun.total is None or found[2] in {"*", str(begun.total)})
        and (tag is None or begun.validator is None or not begun.validator.startswith('"') or tag == begun.validator)
    )
    if not fits:
        raise _UnfitPartError("the server sent another part than the one asked for")
    return begun.have


def _total(response: HTTPResponse, job: _Job) -> int | None:
    """The length of the whole file, as promised by the server and the caller."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        last = response.headers["Content-Range"].rpartition("/")[2]
        offered = int(last) if last.isdecimal() else None
    else:
        offered = response.length
    if offered is not None and job.size is not None and offered != job.size:
        raise _FailedError(f"it offers {offered} bytes where {job.size} are expected")
    total = offered if offered is not None else job.size
    if total is None and not response.chunked and not job.checkable:
        raise _FailedError("the server does not say how long the file is, so that a cut would go unnoticed")
    return total


def _receive(response: HTTPResponse, start: int, total: int | None, job: _Job) -> None:
    done = start
    with files.output_errors(job.part), job.part.open("ab" if start else "wb") as stream:
        while block := _read(response):
            stream.write(block)
            done += len(block)
            if job.progress is not None:
                job.progress(done, total)
    if total is not None and done < total:
        raise _CutError(f"the connection was cut at {done} of {total} bytes")


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)
    except (OSError, HTTPException) as error:
        raise _CutError(_reason(error)) from error


def _accept(job: _Job, total: int | None) -> Downloaded:
    """Check the finished part against everything that is known, and put it in place."""
    with files.output_errors(job.part), job.part.open("rb+") as stream:
        os.fsync(stream.fileno())
        length, sha256, md5 = _measure(stream, with_md5=job.md5 is not None)
    for what, promised, found in (
        ("length", total, length),
        ("SHA-256", job.sha256 and job.sha256.lower(), sha256),
        ("MD5", job.md5 and job.md5.lower(), md5),
    ):
        if promised is not None and promised != found:
            job.discard()
            raise _MismatchError(f"the file is not the promised one: its {what} is {found}, not {promised}")
    with files.output_errors(job.target):
        job.part.replace(job.target)
        job.note.unlink(missing_ok=True)
    return Downloaded(job.target, sha256, length, verified=job.checkable)


def _measure(stream: IO[bytes], *, with_md5: bool) -> tuple[int, str, str | None]:
    length, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while block := stream.read(_BLOCK):
        length += len(block)
        sha256.update(block)
        if with_md5:
            md5.update(block)
    return length, sha256.hexdigest(), md5.hexdigest() if with_md5 else None


def _write_note(url: str, response: HTTPResponse, total: int | None, job: _Job) -> None:
    # A weak tag does not promise the same bytes, so it cannot vouch for a resumed download.
    tag = response.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    files.write_json(job.note, {"url": _fingerprint(url), "validator": validator, "total": total})


def _fingerprint(url: str) -> str:
    """Tells addresses apart without keeping the secrets in them."""
    return hashlib.sha256(url.encode()).hexdigest()


def _check_space(job: _Job, needed: int) -> None:
    with files.output_errors(job.target):
        free = shutil.disk_usage(job.target.parent).free
    if needed > free:
        raise OutputError(
            f"{job.target.name} needs {size_in_words(needed)} more in {job.target.parent}, "
            f"where {size_in_words(free)} are free.",
            "Free some space, or name a folder on another disk with ADCTL_DATA_DIR.",
        )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait(cut: _CutError, failed: int) -> float:
    """Seconds before the next try: doubling, or what the server asks for within reason."""
    return min(max(2.0 ** (failed - 1), cut.wait), _LONGEST_WAIT)


# ---- one request


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http and https, never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        schemes = (urlsplit(req.full_url).scheme, urlsplit(newurl).scheme)
        if schemes not in {("http", "http"), ("http", "https"), ("https", "https")}:
            fp.close()
            raise _FailedError(f"it redirects from {schemes[0]} to {schemes[1] or 'nowhere'}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


class _LocalRedirects(_SafeRedirects):
    """Follows redirects within one host; hands out the headers of those that lead elsewhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            fp.close()
            raise _RedirectedError(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FetchError(f"Cannot download {without_secrets(url)}: only http and https are.", "Give a web address.")


def _request(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> urllib.request.Request:
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


def _open(request: urllib.request.Request, timeout: float, redirects: _SafeRedirects) -> HTTPResponse:
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
    reason = f"HTTP {error.code} {responses.get(error.code, '')}".strip()
    if error.code in _WORTH_A_RETRY:
        seconds = error.headers.get("Retry-After", "").strip()
        return _CutError(reason, float(seconds) if seconds.isdecimal() else 0.0)
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _UnfitPartError(reason)
    return _GoneError(reason) if error.code in _GONE else _FailedError(reason)


def _unreachable(cause: object) -> Exception:
    """What a failure to connect means for the next step."""
    if isinstance(cause, socket.gaierror):
        return _FailedError("no such host, or no network")
    final = (ssl.SSLCertVerificationError, ConnectionRefusedError, InvalidURL, UnicodeError)
    if isinstance(cause, final) or not isinstance(cause, (OSError, HTTPException)):
        return _FailedError(_reason(cause))
    return _CutError(_reason(cause))


def _reason(cause: object) -> str:
    """Why a connection failed, in words that hold no address."""
    if isinstance(cause, TimeoutError):
        return "the server does not answer any more"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno).lower()
    return f"the connection broke ({type(cause).__name__})"
