"""Download of one file: mirrors, resuming, retries, and digests that are checked before the file is used.

A download is written to `TARGET.part`. The state file `TARGET.part.json` beside it records the server and the progress.
The part is renamed to `TARGET` when its length and digest are correct. Large files use several connections if the
server supports ranges. Two processes must not download the same target at the same time; the caller has to prevent
that.
"""

from __future__ import annotations

import hashlib
import http
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import IO, TYPE_CHECKING

from adctl import files
from adctl.errors import FetchError, OutputError
from adctl.fetching.download_segments import PartialDownload, Segment, SegmentDownloader, read_partial, write_partial
from adctl.fetching.http import (
    BadRangeError,
    MismatchError,
    NotFoundError,
    PermanentError,
    RedirectedError,
    RetryableError,
    SafeRedirectHandler,
    SameHostRedirectHandler,
    check_url,
    make_request,
    read_block,
    send,
    without_secrets,
)

if TYPE_CHECKING:
    from http.client import HTTPMessage, HTTPResponse
    from pathlib import Path

    from adctl.config import TransferSettings

Progress = Callable[[int, int | None], None]
"""Function called with (done, total) in bytes; the total is None while it is unknown."""

_BLOCK = 1 << 18
_USEFUL_BYTES = 1 << 20
"""An attempt that adds this many bytes resets the count of failures."""

_LONGEST_WAIT = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Download settings.

    Attributes:
        attempts: Attempts in a row without new data before an address is given up.
        timeout: Seconds to wait for a connection and for each block of data.
        backoff: Seconds before the second attempt; doubled before each further one.
        connections: Connections per file, if the server supports ranges.
        smallest_piece: Smallest number of bytes for a connection of its own.
    """

    attempts: int = 4
    timeout: float = 30.0
    backoff: float = 1.0
    connections: int = 4
    smallest_piece: int = 16 << 20

    @classmethod
    def of(cls, settings: TransferSettings) -> Transfer:
        """Take the values from the settings of a command."""
        return cls(**{setting.name: getattr(settings, setting.name) for setting in fields(cls)})


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """A complete downloaded file.

    Attributes:
        path: The file.
        sha256: Hexadecimal SHA-256 digest.
        bytes: Size in bytes.
        verified: Whether it was checked against a published digest.
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
    transfer: Transfer | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> DownloadResult:
    """Download one file completely, or raise an error.

    An interrupted download is resumed if the server can prove that its file is unchanged (RFC 9110, sections 13.1.5 and
    14). Proxies are taken from the environment.

    Args:
        urls: http or https addresses of the same file, tried in turn.
        target: File to write; replaced if it exists.
        sha256: Expected SHA-256 digest, if known.
        md5: Expected MD5 digest, if known.
        size: Expected size in bytes, if known.
        progress: Called with (done, total) in bytes.
        transfer: Download settings; the defaults when None.
        sleep: Function that waits between attempts; replaceable for tests.

    Raises:
        FetchError: No address gave the expected file; the target is unchanged.
        OutputError: The file cannot be written, or the disk is too small.
    """
    for url in urls:
        check_url(url)
    job = _Job(target, sha256, md5, size, progress, transfer or Transfer(), sleep)
    files.make_folder(target.parent)
    failures = []
    for url in urls:
        try:
            return _Mirror(url, job).download()
        except PermanentError as failure:
            failures.append(f"{without_secrets(url)}: {failure}")
    raise FetchError(
        f"Cannot download {target.name}. {'; '.join(failures) or 'No address is known'}.",
        "Check the network and the proxy settings (HTTPS_PROXY), then try again: the download will be resumed.",
    )


def head(
    url: str, *, transfer: Transfer | None = None, sleep: Callable[[float], None] = time.sleep
) -> HTTPMessage | None:
    """Send a HEAD request and return the headers; redirects are followed only on the same host.

    Returns:
        Headers, or None if the server has no such file.

    Raises:
        FetchError: The server does not answer, or refuses.
    """
    check_url(url)
    transfer = transfer or Transfer()
    for attempt in range(1, transfer.attempts + 1):
        try:
            with send(make_request(url, method="HEAD"), transfer.timeout, SameHostRedirectHandler()) as response:
                return response.headers
        except NotFoundError:
            return None
        except RedirectedError as redirect:
            return redirect.headers
        except RetryableError as error:
            failure: Exception = error
            if attempt < transfer.attempts:
                sleep(_wait(error, attempt, transfer))
        except PermanentError as error:
            failure = error
            break
    raise FetchError(
        f"Cannot reach {without_secrets(url)}: {failure}.", "Check the network and the proxy settings (HTTPS_PROXY)."
    )


def format_bytes(count: int) -> str:
    """Format a number of bytes in decimal units, such as `1.2 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def check_disk_space(needed: int, folder: Path, what: str) -> None:
    """Check that a folder's disk has room for `needed` more bytes; `what` names their purpose.

    Raises:
        OutputError: The disk has too little free space.
    """
    with files.output_errors(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{what} needs {format_bytes(needed)} more in {folder}, where {format_bytes(free)} are free.",
            "Free some space, or set ADCTL_DATA_DIR to a folder on another disk.",
        )


@contextmanager
def add_remedy(remedy: str) -> Iterator[None]:
    """Append a sentence to the remedy of a `FetchError` raised inside."""
    try:
        yield
    except FetchError as error:
        raise FetchError(error.message, f"{error.remedy} {remedy}".strip()) from error


@dataclass(frozen=True)
class _Job:
    """The arguments of `download`, and the temporary files."""

    target: Path
    sha256: str | None
    md5: str | None
    size: int | None
    progress: Progress | None
    transfer: Transfer
    sleep: Callable[[float], None]

    @property
    def part(self) -> Path:
        """File with the data received so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def state(self) -> Path:
        """State file of the part."""
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def checkable(self) -> bool:
        """Whether a digest would reveal a wrong file."""
        return bool(self.sha256 or self.md5)

    def discard(self) -> None:
        """Delete the part and its state."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


@dataclass
class _Mirror:
    """One address of the file; each failure halves the number of connections."""

    url: str
    job: _Job
    connections: int = field(init=False)

    def __post_init__(self) -> None:
        self.connections = self.job.transfer.connections

    def download(self) -> DownloadResult:
        """Download and check the file.

        Raises:
            PermanentError: This address does not give the file.
        """
        most, failures, restarted = self._partial().have, 0, False
        while True:
            try:
                in_one_response, total = self._transfer()
                return _accept(self.job, total)
            except RetryableError as error:
                self._reduce_load(error)
                have = self._partial().have
                failures = 1 if have >= most + _USEFUL_BYTES else failures + 1
                most = max(most, have)
                if failures >= self.job.transfer.attempts:
                    raise PermanentError(f"{error} (gave up after {failures} attempts)") from error
                self.job.sleep(_wait(error, failures, self.job.transfer))
            except MismatchError:
                # An earlier part or the joining of segments may be at fault: try once more with one connection.
                if in_one_response or restarted:
                    raise
                self.connections, restarted = 1, True

    def _reduce_load(self, error: RetryableError) -> None:
        """Use fewer connections after a failure, and start again if the server does not support the range."""
        self.connections = max(1, self.connections // 2)
        if isinstance(error, BadRangeError):
            self.job.discard()
            self.connections = 1

    def _partial(self) -> PartialDownload:
        """Return the earlier partial download; empty if neither the server nor a digest can prove that it fits."""
        partial = read_partial(self.job.part, self.job.state, self.url)
        return partial if partial.have and (partial.validator or self.job.checkable) else PartialDownload()

    def _transfer(self) -> tuple[bool, int | None]:
        """Complete the part; return whether all of it came in one response, and the expected length."""
        partial = self._partial()
        if not partial.have:
            self.job.discard()
        elif partial.have == partial.total:
            return False, partial.total
        if self.job.size is not None:
            check_disk_space(self.job.size - partial.have, self.job.target.parent, self.job.target.name)
        if partial.segments:
            self._segment_downloader(partial).run(self._ask)
            return False, partial.total
        with self._ask(partial.have, None, partial) as response:
            start = partial.have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            total = self._total(response)
            check_disk_space((total or 0) - start, self.job.target.parent, self.job.target.name)
            partial = PartialDownload(start, _validator(response), total, self._split(response, start, total))
            write_partial(self.job.state, self.url, partial)
            if partial.segments:
                self._segment_downloader(partial).run(self._ask, response)
            else:
                self._receive(response, start, total)
        return start == 0 and not partial.segments, total

    def _ask(self, start: int, end: int | None, partial: PartialDownload) -> HTTPResponse:
        """Request the bytes from `start` up to `end` (or the end of the file) and check that the response has them."""
        headers: dict[str, str] = {}
        if start or end is not None:
            headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
            if partial.validator:
                headers["If-Range"] = partial.validator
        response = send(make_request(self.url, headers), self.job.transfer.timeout, SafeRedirectHandler())
        try:
            _check_range(response, start, end, partial)
        except BaseException:
            response.close()
            raise
        return response

    def _split(self, response: HTTPResponse, start: int, total: int | None) -> tuple[Segment, ...]:
        """Divide the rest of the file between the connections; return no segments if one connection has to do."""
        provable = _validator(response) or self.job.checkable
        if total is None or not provable or response.headers.get("Accept-Ranges", "").strip() != "bytes":
            return ()
        count = min(self.connections, (total - start) // self.job.transfer.smallest_piece)
        if count <= 1:
            return ()
        marks = [start + (total - start) * index // count for index in range(count + 1)]
        first = Segment(0, marks[1], start)
        return (first, *(Segment(low, high, 0) for low, high in itertools.pairwise(marks[1:])))

    def _segment_downloader(self, partial: PartialDownload) -> SegmentDownloader:
        return SegmentDownloader(self.url, self.job.part, self.job.state, partial, self.connections, self.job.progress)

    def _total(self, response: HTTPResponse) -> int | None:
        """Return the length of the whole file, as stated by the server or the caller; None if unknown."""
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            last = response.headers["Content-Range"].rpartition("/")[2]
            offered = int(last) if last.isdecimal() else None
        else:
            offered = response.length
        if offered is not None and self.job.size is not None and offered != self.job.size:
            raise PermanentError(f"it offers {offered} bytes, but {self.job.size} are expected")
        total = offered if offered is not None else self.job.size
        if total is None and not response.chunked and not self.job.checkable:
            raise PermanentError("the server does not state the length of the file, so that a cut would go unnoticed")
        return total

    def _receive(self, response: HTTPResponse, start: int, total: int | None) -> None:
        done = start
        with files.output_errors(self.job.part), self.job.part.open("ab" if start else "wb") as stream:
            while block := read_block(response, _BLOCK):
                stream.write(block)
                done += len(block)
                if self.job.progress is not None:
                    self.job.progress(done, total)
        if total is not None and done < total:
            raise RetryableError(f"the connection was cut at {done} of {total} bytes")


def _check_range(response: HTTPResponse, start: int, end: int | None, partial: PartialDownload) -> None:
    """Check that a response contains the requested range, or the whole file from the start."""
    if response.status == http.HTTPStatus.OK:
        if end is not None:
            raise BadRangeError("the server sent the whole file instead of the requested range")
        return
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise PermanentError(f"HTTP {response.status}")
    content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    tag = response.headers.get("ETag")
    fits = (
        content_range is not None
        and int(content_range[1]) == start
        and (end is None or int(content_range[2]) == end - 1)
        and response.length in {None, int(content_range[2]) - start + 1}
        and (partial.total is None or content_range[3] in {"*", str(partial.total)})
        and (tag is None or not (partial.validator or "").startswith('"') or tag == partial.validator)
    )
    if not fits:
        raise BadRangeError("the server sent another range than the requested one")


def _validator(response: HTTPResponse) -> str | None:
    """Return the strong ETag or the modification date; a weak ETag does not guarantee the same bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _wait(error: RetryableError, failures: int, transfer: Transfer) -> float:
    """Return the seconds to wait before the next attempt: exponential backoff, or longer if the server asks for it."""
    return min(max(transfer.backoff * 2.0 ** (failures - 1), error.wait), _LONGEST_WAIT)


def check_file(path: Path, expected: Mapping[str, str | int | None]) -> tuple[int, str]:
    """Compare a file with its expected size and digests.

    Args:
        path: The file.
        expected: `size`, `sha256` and `md5`; each may be None or absent.

    Returns:
        Length in bytes and SHA-256 digest.

    Raises:
        MismatchError: The file is different.
    """
    md5 = expected.get("md5")
    with path.open("rb") as stream:
        length, sha256, md5_found = _measure(stream, with_md5=md5 is not None)
    found = {"length": length, "SHA-256": sha256, "MD5": md5_found}
    known = {"length": expected.get("size"), "SHA-256": expected.get("sha256"), "MD5": md5}
    for what, value in known.items():
        if value is not None and (value.lower() if isinstance(value, str) else value) != found[what]:
            raise MismatchError(f"the file is not the expected one: its {what} is {found[what]}, not {value}")
    return length, sha256


def _accept(job: _Job, total: int | None) -> DownloadResult:
    """Check the complete part against length and digests, and rename it to the target."""
    with files.output_errors(job.part):
        with job.part.open("rb+") as stream:
            os.fsync(stream.fileno())
        try:
            length, sha256 = check_file(job.part, {"size": total, "sha256": job.sha256, "md5": job.md5})
        except MismatchError:
            job.discard()
            raise
    with files.output_errors(job.target):
        job.part.replace(job.target)
        job.state.unlink(missing_ok=True)
    return DownloadResult(job.target, sha256, length, verified=job.checkable)


def _measure(stream: IO[bytes], *, with_md5: bool) -> tuple[int, str, str | None]:
    length, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while block := stream.read(_BLOCK):
        length += len(block)
        sha256.update(block)
        if with_md5:
            md5.update(block)
    return length, sha256.hexdigest(), md5.hexdigest() if with_md5 else None
