"""Where a data set comes from: its hosts, archives on this machine, a folder, or a bundle; each checked alike.

Yields unpacked trees; knows nothing of what they hold.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import FetchError, UsageError
from adctl.fetching import archives, packing
from adctl.fetching.catalogue import DatasetKind
from adctl.fetching.digests import list_files
from adctl.fetching.download import DownloadResult, Transfer, check_disk_space, check_file, download
from adctl.fetching.http import MismatchError, without_secrets
from adctl.fetching.store import STAGING, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path, PurePosixPath

    from adctl.fetching.catalogue import CatalogueEntry, RemoteFile
    from adctl.progress import Reporter

_ROOM = 2.2
"""Bytes that an archive needs with what is in it: images hardly shrink, and a little to spare."""


@dataclass(frozen=True)
class FetchSource:
    """A tree that holds some categories.

    Attributes:
        tree: Its folder.
        what: What to call it in messages.
        origin: Where it comes from.
        origins: Where single categories come from, where that is known better.
        asked: Categories it must hold; empty when any will do.
        own: Whether its files may be taken away.
    """

    tree: Path
    what: Path
    origin: Provenance
    origins: Mapping[str, Provenance] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    own: bool = True


@dataclass(frozen=True)
class FetchRequest:
    """What is wanted of a data set.

    Attributes:
        entry: The data set.
        folder: Where it will lie.
        categories: Which are wanted; empty for all, where the source says which there are.
        named: Whether somebody named them, rather than wanting all.
    """

    entry: CatalogueEntry
    folder: Path
    categories: tuple[str, ...]
    named: bool

    @property
    def staging(self) -> Path:
        """For what is on its way."""
        return self.folder / STAGING


def remote_sources(wish: FetchRequest, reporter: Reporter, transfer: Transfer) -> Iterator[FetchSource]:
    """Download what is wanted, one group of files after another; each is deleted once its supply was used.

    Raises:
        FetchError: A download failed, or what came is damaged.
        OutputError: There is no room.
        UsageError: It has to be brought by hand.
    """
    entry = wish.entry
    if entry.kind is DatasetKind.MANUAL:
        raise UsageError(
            f"{entry.title} has to be brought by hand. {entry.steps.format(homepage=entry.homepage)}",
            f"Then: adctl fetch {entry.name} --from FOLDER --accept-license",
        )
    groups = _groups(wish)
    _check_room(wish, [remote for remotes, _ in groups for remote in remotes])
    for remotes, categories in groups:
        with _other_way(_by_hand(entry)):
            got = [_obtain(remote, wish.staging, reporter, transfer) for remote in remotes]
            try:
                tree = _unpacked(wish, remotes, [file.path for file in got], reporter)
            except FetchError:
                _delete(got)  # damaged: keeping it would fail again
                raise
        urls = tuple(without_secrets(url) for remote in remotes for url in remote.urls)
        yield FetchSource(tree, got[0].path, _origin(urls, remotes, got), asked=categories)
        _delete(got)


def local_sources(wish: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """Take what is wanted from a file or folder.

    Raises:
        UsageError: There is none.
        FetchError: It is damaged, or not what it is called.
    """
    if packing.is_bundle(source):
        yield from _from_bundle(wish, source, reporter)
    elif source.is_dir():
        yield from _from_folder(wish, source, reporter)
    elif source.is_file():
        origin = _file_origin(wish.entry, source)  # first: what is damaged is not unpacked
        yield FetchSource(_unpack(wish, source, reporter), source, origin, asked=_asked(wish))
    else:
        raise UsageError(f"There is no archive or folder {source}.", "Check the path given to --from.")


def _asked(wish: FetchRequest) -> tuple[str, ...]:
    return wish.categories if wish.named else ()


# ---- from its hosts


def _groups(wish: FetchRequest) -> list[tuple[tuple[RemoteFile, ...], tuple[str, ...]]]:
    """Which files to download together, and which categories to take from them."""
    entry = wish.entry
    in_parts = all(category in entry.parts for category in wish.categories)
    if in_parts and (wish.named or not entry.whole):
        return [((entry.parts[category],), (category,)) for category in wish.categories]
    if not entry.whole:
        raise FetchError(f"The catalogue has no address for {entry.title}.", _by_hand(entry))
    return [(entry.whole, wish.categories)]


def _check_room(wish: FetchRequest, remotes: Sequence[RemoteFile]) -> None:
    """Before the first byte: room for the largest archive beside everything that is unpacked."""
    sizes = [remote.size or 0 for remote in remotes]
    files.make_folder(wish.staging)
    begun = sum((wish.staging / path).stat().st_size for path in list_files(wish.staging))
    check_disk_space(int(_ROOM * sum(sizes)) - begun, wish.folder, wish.entry.title)


def _obtain(remote: RemoteFile, staging: Path, reporter: Reporter, transfer: Transfer) -> DownloadResult:
    """Download a file, unless an earlier run got that far and its digest tells that it is the one."""
    target = staging / remote.filename
    if remote.sha256 is not None and target.is_file() and files.sha256_file(target) == remote.sha256:
        return DownloadResult(target, remote.sha256, target.stat().st_size, verified=True)
    with reporter.stage(f"downloading {remote.filename}", remote.size, in_bytes=True) as update:
        return download(
            remote.urls,
            target,
            sha256=remote.sha256,
            md5=remote.md5,
            size=remote.size,
            progress=update,
            transfer=transfer,
        )


def _origin(urls: tuple[str, ...], remotes: Sequence[RemoteFile], got: Sequence[DownloadResult]) -> Provenance:
    sha256 = got[0].sha256 if len(got) == 1 else None
    return Provenance(urls, sha256, sum(file.bytes for file in got), all(remote.verifiable for remote in remotes))


def _delete(got: Sequence[DownloadResult]) -> None:
    for file in got:
        file.path.unlink(missing_ok=True)


def _by_hand(entry: CatalogueEntry) -> str:
    flag = " --accept-license" if entry.restricted else ""
    return f"Or bring it by hand from {entry.homepage}: adctl fetch {entry.name} --from ARCHIVE_OR_FOLDER{flag}."


@contextmanager
def _other_way(remedy: str) -> Iterator[None]:
    """Add to what can be done about a failed download."""
    try:
        yield
    except FetchError as error:
        raise FetchError(error.message, f"{error.remedy} {remedy}".strip()) from error


# ---- from files and folders


def _from_folder(wish: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """A folder of the archives that the hosts give out, or of what was in them."""
    groups = _groups(wish) if wish.entry.remotes and wish.categories else []
    present = [group for group in groups if all((source / remote.filename).is_file() for remote in group[0])]
    if not present and wish.entry.whole and all((source / remote.filename).is_file() for remote in wish.entry.whole):
        present = [(wish.entry.whole, wish.categories)]
    for remotes, categories in present:
        paths = [source / remote.filename for remote in remotes]
        got = [_checked(remote, path) for remote, path in zip(remotes, paths, strict=True)]
        archive = any(remote.archive for remote in remotes)
        tree = _unpacked(wish, remotes, paths, reporter) if archive else source
        yield FetchSource(tree, source, _origin((), remotes, got), asked=categories, own=archive)
    if not present:
        size = sum((source / path).stat().st_size for path in list_files(source))
        yield FetchSource(source, source, Provenance(bytes=size), asked=_asked(wish), own=False)


def _checked(remote: RemoteFile, path: Path) -> DownloadResult:
    """A file under the name that its host gives it has to be that file."""
    try:
        length, sha256 = check_file(path, {"size": remote.size, "sha256": remote.sha256, "md5": remote.md5})
    except MismatchError as error:
        raise FetchError(
            f"{path} is damaged or another file: {error}.",
            "Copy or download it again; an archive you packed yourself needs another name.",
        ) from error
    return DownloadResult(path, sha256, length, remote.verifiable)


def _file_origin(entry: CatalogueEntry, source: Path) -> Provenance:
    named = next((remote for remote in entry.remotes if remote.filename == source.name), None)
    if named is not None:
        return _origin((), [named], [_checked(named, source)])
    sha256 = files.sha256_file(source)
    published = {remote.sha256 for remote in entry.remotes}
    return Provenance(sha256=sha256, bytes=source.stat().st_size, verified=sha256 in published)


def _from_bundle(wish: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """What `adctl fetch bundle` packed, held against its list of digests."""
    known = packing.read_bundled_provenance(source, wish.entry.name)
    wanted = [name for name in (wish.categories or sorted(known)) if name in known]
    lacking = [name for name in _asked(wish) if name not in known]
    if lacking or not wanted:
        what = ", ".join(lacking) or wish.entry.title
        raise FetchError(f"The bundle {source} does not hold {what}.", "Make one that does: adctl fetch bundle OUT.")
    for category in wanted:
        archive = packing.verified_file(source, packing.archive_path(wish.entry.name, category))
        tree = _unpack(wish, archive, reporter, only={category})
        yield FetchSource(tree, source, known[category], asked=(category,))


# ---- unpacking


def _unpacked(wish: FetchRequest, remotes: Sequence[RemoteFile], paths: Sequence[Path], reporter: Reporter) -> Path:
    """The tree that some files add up to: an archive unpacked, or a folder of files that are none."""
    if len(paths) == 1 and remotes[0].archive:
        return _unpack(wish, paths[0], reporter)
    tree = wish.staging / "unpacked" / "files"
    files.make_folder(tree)
    for path in paths:
        path.replace(tree / path.name)
    return tree


def _unpack(wish: FetchRequest, archive: Path, reporter: Reporter, only: set[str] | None = None) -> Path:
    """Unpack into a folder of the archive's name, leaving out the categories that are not wanted."""
    unwanted = {*wish.entry.categories} - (only or {*wish.categories})

    def wanted(path: PurePosixPath) -> bool:
        return not unwanted.intersection(path.parts[:2])

    name = re.sub(r"\.(tar|tar\.\w+|zip|tgz)$", "", archive.name, flags=re.IGNORECASE)
    tree = wish.staging / "unpacked" / (name or "archive")
    with reporter.stage(f"unpacking {archive.name}", in_bytes=True) as update:
        archives.extract(archive, tree, wanted=wanted, progress=update)
    return tree
