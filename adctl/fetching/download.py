"""One file from the network to the disk: mirrors, resuming, retries, and digests checked before it counts.

A download grows in `TARGET.part`, beside a note of who sends it and how much came (`TARGET.part.json`), and becomes
`TARGET` by a rename once its length and digest are right. Large files come over several connections at once where the
server can send parts. Knows nothing of what files hold. Two processes must not fetch the same target at once; the
caller sees to that.
"""

from __future__ import annotations

import hashlib
import http
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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
"""Told (done, total) in bytes; the total is None while it is not known."""

_BLOCK = 1 << 18
_GAIN = 1 << 20
"""So many new bytes make a try worth its while: the count of failures starts again."""

_LONGEST_WAIT = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Transfer:
    """How patiently and how broadly files are brought.

    Attributes:
        attempts: Tries in a row at one place that bring nothing new before it is given up.
        timeout: Seconds to wait for a connection and for each piece of data.
        backoff: Seconds before the second try; doubled before each further one.
        connections: At once for one file, where the server can send parts.
        smallest_piece: Bytes that are worth a connection of their own.
    """

    attempts: int = 4
    timeout: float = 30.0
    backoff: float = 1.0
    connections: int = 4
    smallest_piece: int = 16 << 20

    @classmethod
    def of(cls, settings: TransferSettings) -> Transfer:
        """Take the values from the settings of a command."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls)})


@dataclass(frozen=True, slots=True)
class DownloadResult:
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
    transfer: Transfer | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> DownloadResult:
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
        transfer: How it is brought; the defaults when None.
        sleep: Waits between tries; for tests.

    Raises:
        FetchError: No place gave the file as promised; the target is untouched.
        OutputError: It cannot be written, or there is no room for it.
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
        "Check the network and the proxy settings (HTTPS_PROXY), then run it again: it goes on where it stopped.",
    )


def head(
    url: str, *, transfer: Transfer | None = None, sleep: Callable[[float], None] = time.sleep
) -> HTTPMessage | None:
    """The headers a server answers to HEAD with; redirects are followed within the same host only.

    Returns:
        The headers, or None where there is no such file.

    Raises:
        FetchError: There is no answer, or a refusal.
    """
    check_url(url)
    how = transfer or Transfer()
    for failed in range(1, how.attempts + 1):
        try:
            with send(make_request(url, method="HEAD"), how.timeout, SameHostRedirectHandler()) as response:
                return response.headers
        except NotFoundError:
            return None
        except RedirectedError as redirect:
            return redirect.headers
        except RetryableError as cut:
            failure: Exception = cut
            if failed < how.attempts:
                sleep(_wait(cut, failed, how))
        except PermanentError as refusal:
            failure = refusal
            break
    raise FetchError(
        f"Cannot reach {without_secrets(url)}: {failure}.", "Check the network and the proxy settings (HTTPS_PROXY)."
    )


def format_bytes(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def check_disk_space(needed: int, folder: Path, what: str) -> None:
    """Refuse what the disk has no room for.

    Raises:
        OutputError: More bytes are needed than are free.
    """
    with files.output_errors(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{what} needs {format_bytes(needed)} more in {folder}, where {format_bytes(free)} are free.",
            "Free some space, or name a folder on another disk with ADCTL_DATA_DIR.",
        )


@dataclass(frozen=True)
class _Job:
    """What is asked for; see `download`."""

    target: Path
    sha256: str | None
    md5: str | None
    size: int | None
    progress: Progress | None
    transfer: Transfer
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


@dataclass
class _Mirror:
    """One place that has the file; fewer connections at once after each trouble."""

    url: str
    job: _Job
    connections: int = field(init=False)

    def __post_init__(self) -> None:
        self.connections = self.job.transfer.connections

    def download(self) -> DownloadResult:
        """The file, whole and checked.

        Raises:
            FailedError: It is not to be had here.
        """
        best, failed, afresh = self._begun().have, 0, False
        while True:
            try:
                at_once, total = self._transfer()
                return _accept(self.job, total)
            except RetryableError as cut:
                self._ease(cut)
                have = self._begun().have
                failed = 1 if have >= best + _GAIN else failed + 1
                best = max(best, have)
                if failed >= self.job.transfer.attempts:
                    raise PermanentError(f"{cut} (gave up after {failed} tries)") from cut
                self.job.sleep(_wait(cut, failed, self.job.transfer))
            except MismatchError:
                # The fault may lie in what was there before, or in how parts were put together: once more, in one go.
                if at_once or afresh:
                    raise
                self.connections, afresh = 1, True

    def _ease(self, cut: RetryableError) -> None:
        """Ask less of a server that could not give what it was asked for."""
        self.connections = max(1, self.connections // 2)
        if isinstance(cut, BadRangeError):
            self.job.discard()
            self.connections = 1

    def _begun(self) -> PartialDownload:
        """What an earlier try at the same address left; nothing if neither server nor digest can vouch for it."""
        begun = read_partial(self.job.part, self.job.note, self.url)
        if begun.have and (begun.validator or self.job.checkable):
            return begun
        return PartialDownload()

    def _transfer(self) -> tuple[bool, int | None]:
        """Fill the part; tell whether it came from one answer, and how long it has to be."""
        begun = self._begun()
        if not begun.have:
            self.job.discard()
        elif begun.have == begun.total:
            return False, begun.total
        if self.job.size is not None:
            check_disk_space(self.job.size - begun.have, self.job.target.parent, self.job.target.name)
        if begun.pieces:
            self._receiver(begun).run(self._ask)
            return False, begun.total
        with self._ask(begun.have, None, begun) as response:
            start = begun.have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            total = self._total(response)
            check_disk_space((total or 0) - start, self.job.target.parent, self.job.target.name)
            now = PartialDownload(start, _validator(response), total, self._split(response, start, total))
            write_partial(self.job.note, self.url, now)
            if now.pieces:
                self._receiver(now).run(self._ask, response)
            else:
                self._receive(response, start, total)
        return start == 0 and not now.pieces, total

    def _ask(self, start: int, end: int | None, begun: PartialDownload) -> HTTPResponse:
        """Ask for the bytes from `start` to before `end`, or to the end; the answer is one that fits."""
        wanted: dict[str, str] = {}
        if start or end is not None:
            wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
            if begun.validator:
                wanted["If-Range"] = begun.validator
        response = send(make_request(self.url, wanted), self.job.transfer.timeout, SafeRedirectHandler())
        try:
            _check_fit(response, start, end, begun)
        except BaseException:
            response.close()
            raise
        return response

    def _split(self, response: HTTPResponse, start: int, total: int | None) -> tuple[Segment, ...]:
        """What each connection brings; nothing where one has to do."""
        provable = _validator(response) or self.job.checkable
        if total is None or not provable or response.headers.get("Accept-Ranges", "").strip() != "bytes":
            return ()
        count = min(self.connections, (total - start) // self.job.transfer.smallest_piece)
        if count <= 1:
            return ()
        marks = [start + (total - start) * index // count for index in range(count + 1)]
        first = Segment(0, marks[1], start)
        return (first, *(Segment(low, high, 0) for low, high in itertools.pairwise(marks[1:])))

    def _receiver(self, begun: PartialDownload) -> SegmentDownloader:
        return SegmentDownloader(self.url, self.job.part, self.job.note, begun, self.connections, self.job.progress)

    def _total(self, response: HTTPResponse) -> int | None:
        """The length of the whole file, as promised by the server and the caller."""
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            last = response.headers["Content-Range"].rpartition("/")[2]
            offered = int(last) if last.isdecimal() else None
        else:
            offered = response.length
        if offered is not None and self.job.size is not None and offered != self.job.size:
            raise PermanentError(f"it offers {offered} bytes where {self.job.size} are expected")
        total = offered if offered is not None else self.job.size
        if total is None and not response.chunked and not self.job.checkable:
            raise PermanentError("the server does not say how long the file is, so that a cut would go unnoticed")
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


def _check_fit(response: HTTPResponse, start: int, end: int | None, begun: PartialDownload) -> None:
    """See to it that an answer is what was asked for: from `start` to `end`, or the whole file."""
    if response.status == http.HTTPStatus.OK:
        if end is not None:
            raise BadRangeError("the server sent the whole file instead of a part of it")
        return
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise PermanentError(f"HTTP {response.status}")
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    tag = response.headers.get("ETag")
    fits = (
        found is not None
        and int(found[1]) == start
        and (end is None or int(found[2]) == end - 1)
        and response.length in {None, int(found[2]) - start + 1}
        and (begun.total is None or found[3] in {"*", str(begun.total)})
        and (tag is None or begun.validator is None or not begun.validator.startswith('"') or tag == begun.validator)
    )
    if not fits:
        raise BadRangeError("the server sent another part than the one asked for")


def _validator(response: HTTPResponse) -> str | None:
    """How the server would know the file again; a weak tag does not promise the same bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _wait(cut: RetryableError, failed: int, transfer: Transfer) -> float:
    """Seconds before the next try: doubling, or what the server asks for within reason."""
    return min(max(transfer.backoff * 2.0 ** (failed - 1), cut.wait), _LONGEST_WAIT)


def check_file(path: Path, expected: Mapping[str, str | int | None]) -> tuple[int, str]:
    """Hold a file against what is known of it.

    Args:
        path: The file.
        expected: `size`, `sha256` and `md5`, each None when it is not known.

    Returns:
        Its length and its SHA-256.

    Raises:
        MismatchError: It is another one.
    """
    md5 = expected.get("md5")
    with path.open("rb") as stream:
        length, sha256, md5_found = _measure(stream, with_md5=md5 is not None)
    found = {"length": length, "SHA-256": sha256, "MD5": md5_found}
    promised = {"length": expected.get("size"), "SHA-256": expected.get("sha256"), "MD5": md5}
    for what, value in promised.items():
        if value is not None and (value.lower() if isinstance(value, str) else value) != found[what]:
            raise MismatchError(f"the file is not the promised one: its {what} is {found[what]}, not {value}")
    return length, sha256


def _accept(job: _Job, total: int | None) -> DownloadResult:
    """Check the finished part against everything that is known, and put it in place."""
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
        job.note.unlink(missing_ok=True)
    return DownloadResult(job.target, sha256, length, verified=job.checkable)


def _measure(stream: IO[bytes], *, with_md5: bool) -> tuple[int, str, str | None]:
    length, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while block := stream.read(_BLOCK):
        length += len(block)
        sha256.update(block)
        if with_md5:
            md5.update(block)
    return length, sha256.hexdigest(), md5.hexdigest() if with_md5 else None
