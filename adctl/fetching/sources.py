"""Sources of a data set: its download servers, archives or folders on this machine, or a bundle.

Every source is checked and yields unpacked folders. The converters find the categories in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import FetchError, UsageError
from adctl.fetching import archives, packing
from adctl.fetching.catalogue import DatasetKind
from adctl.fetching.digests import list_files
from adctl.fetching.download import DownloadResult, Transfer, add_remedy, check_disk_space, check_file, download
from adctl.fetching.http import MismatchError, without_secrets
from adctl.fetching.store import STAGING, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path, PurePosixPath

    from adctl.fetching.catalogue import CatalogueEntry, RemoteFile
    from adctl.progress import Reporter

_SPACE_FACTOR = 2.2
"""Disk space needed per byte of archive: the archive, its unpacked images (which hardly compress), and a reserve."""


@dataclass(frozen=True)
class FetchSource:
    """An unpacked folder that contains some categories.

    Attributes:
        tree: The folder.
        display_path: Path of the source for messages.
        provenance: Provenance of its categories.
        category_provenance: Provenance of single categories, if known more precisely.
        required: Categories it must contain; empty if any will do.
        movable: Whether its files may be moved away instead of copied.
    """

    tree: Path
    display_path: Path
    provenance: Provenance
    category_provenance: Mapping[str, Provenance] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    movable: bool = True


@dataclass(frozen=True)
class FetchRequest:
    """The categories of a data set to fetch.

    Attributes:
        entry: The data set.
        folder: Its folder on this machine.
        categories: Categories to fetch; empty for all, if the source decides which there are.
        named: Whether the user named the categories, rather than asking for all.
    """

    entry: CatalogueEntry
    folder: Path
    categories: tuple[str, ...]
    named: bool

    @property
    def staging(self) -> Path:
        """Folder for unfinished downloads and unpacked files."""
        return self.folder / STAGING

    @property
    def required(self) -> tuple[str, ...]:
        """Categories that a local source must contain: those the user named."""
        return self.categories if self.named else ()


def remote_sources(request: FetchRequest, reporter: Reporter, transfer: Transfer) -> Iterator[FetchSource]:
    """Download the requested files, one group after another; each group is deleted after its source was used.

    Raises:
        FetchError: A download failed, or a downloaded file is damaged.
        OutputError: The disk is too small.
        UsageError: The user has to download the data set.
    """
    entry = request.entry
    if entry.kind is DatasetKind.MANUAL:
        raise UsageError(
            f"{entry.title} has to be downloaded manually. {entry.steps.format(homepage=entry.homepage)}",
            f"Then: adctl fetch {entry.name} --from FOLDER --accept-license",
        )
    groups = _download_groups(request)
    _check_space(request, [remote for remotes, _ in groups for remote in remotes])
    for remotes, categories in groups:
        with add_remedy(_manual_remedy(entry)):
            downloads = [_download(remote, request.staging, reporter, transfer) for remote in remotes]
            try:
                tree = _unpack_files(request, remotes, [file.path for file in downloads], reporter)
            except FetchError:
                _delete(downloads)  # a damaged archive would fail again
                raise
        urls = tuple(without_secrets(url) for remote in remotes for url in remote.urls)
        yield FetchSource(tree, downloads[0].path, _provenance(urls, remotes, downloads), required=categories)
        _delete(downloads)


def local_sources(request: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """Take the requested categories from a bundle, folder or archive on this machine.

    Raises:
        UsageError: There is no such file or folder.
        FetchError: A file is damaged, or is not the file that its name promises.
    """
    if packing.is_bundle(source):
        yield from _bundle_sources(request, source, reporter)
    elif source.is_dir():
        yield from _folder_sources(request, source, reporter)
    elif source.is_file():
        provenance = _archive_provenance(request.entry, source)  # before unpacking: it finds damaged files
        yield FetchSource(_unpack(request, source, reporter), source, provenance, required=request.required)
    else:
        raise UsageError(f"There is no archive or folder {source}.", "Check the path given to --from.")


# ---- download servers


def _download_groups(request: FetchRequest) -> list[tuple[tuple[RemoteFile, ...], tuple[str, ...]]]:
    """Return groups of files that are downloaded together, each with the categories to take from it."""
    entry = request.entry
    in_parts = all(category in entry.parts for category in request.categories)
    if in_parts and (request.named or not entry.whole):
        return [((entry.parts[category],), (category,)) for category in request.categories]
    if not entry.whole:
        raise FetchError(f"The catalogue has no address for {entry.title}.", _manual_remedy(entry))
    return [(entry.whole, request.categories)]


def _check_space(request: FetchRequest, remotes: Sequence[RemoteFile]) -> None:
    """Check before the first download that the archives and their contents fit on the disk."""
    sizes = [remote.size or 0 for remote in remotes]
    files.make_folder(request.staging)
    downloaded = sum((request.staging / path).stat().st_size for path in list_files(request.staging))
    check_disk_space(int(_SPACE_FACTOR * sum(sizes)) - downloaded, request.folder, request.entry.title)


def _download(remote: RemoteFile, staging: Path, reporter: Reporter, transfer: Transfer) -> DownloadResult:
    """Download a file, unless an earlier run left it complete, as its digest shows."""
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


def _provenance(
    urls: tuple[str, ...], remotes: Sequence[RemoteFile], downloads: Sequence[DownloadResult]
) -> Provenance:
    sha256 = downloads[0].sha256 if len(downloads) == 1 else None
    size = sum(file.bytes for file in downloads)
    return Provenance(urls, sha256, size, all(remote.has_digest for remote in remotes))


def _delete(downloads: Sequence[DownloadResult]) -> None:
    for file in downloads:
        file.path.unlink(missing_ok=True)


def _manual_remedy(entry: CatalogueEntry) -> str:
    flag = " --accept-license" if entry.restricted else ""
    return f"Or download it manually from {entry.homepage}: adctl fetch {entry.name} --from ARCHIVE_OR_FOLDER{flag}."


# ---- files and folders on this machine


def _folder_sources(request: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """Take categories from a folder that holds the published archives, or their unpacked contents."""
    entry = request.entry

    def has_all(remotes: Sequence[RemoteFile]) -> bool:
        return all((source / remote.filename).is_file() for remote in remotes)

    groups = _download_groups(request) if entry.remotes and request.categories else []
    present = [group for group in groups if has_all(group[0])]
    if not present and entry.whole and has_all(entry.whole):
        present = [(entry.whole, request.categories)]
    for remotes, categories in present:
        paths = [source / remote.filename for remote in remotes]
        checked = [_check_local(remote, path) for remote, path in zip(remotes, paths, strict=True)]
        archive = any(remote.archive for remote in remotes)
        tree = _unpack_files(request, remotes, paths, reporter) if archive else source
        yield FetchSource(tree, source, _provenance((), remotes, checked), required=categories, movable=archive)
    if not present:
        size = sum((source / path).stat().st_size for path in list_files(source))
        yield FetchSource(source, source, Provenance(bytes=size), required=request.required, movable=False)


def _check_local(remote: RemoteFile, path: Path) -> DownloadResult:
    """Check that a local file with the name of a published file is that file."""
    try:
        length, sha256 = check_file(path, {"size": remote.size, "sha256": remote.sha256, "md5": remote.md5})
    except MismatchError as error:
        raise FetchError(
            f"{path} is damaged or another file: {error}.",
            "Copy or download it again; an archive you packed yourself needs another name.",
        ) from error
    return DownloadResult(path, sha256, length, remote.has_digest)


def _archive_provenance(entry: CatalogueEntry, source: Path) -> Provenance:
    named = next((remote for remote in entry.remotes if remote.filename == source.name), None)
    if named is not None:
        return _provenance((), [named], [_check_local(named, source)])
    sha256 = files.sha256_file(source)
    published = {remote.sha256 for remote in entry.remotes}
    return Provenance(sha256=sha256, bytes=source.stat().st_size, verified=sha256 in published)


def _bundle_sources(request: FetchRequest, source: Path, reporter: Reporter) -> Iterator[FetchSource]:
    """Take categories from a bundle after verifying their archives against its digests."""
    known = packing.read_bundled_provenance(source, request.entry.name)
    present = [name for name in (request.categories or sorted(known)) if name in known]
    missing = [name for name in request.required if name not in known]
    if missing or not present:
        what = ", ".join(missing) or request.entry.title
        raise FetchError(f"The bundle {source} does not contain {what}.", "Make one that does: adctl fetch bundle OUT.")
    for category in present:
        archive = packing.verified_file(source, packing.archive_path(request.entry.name, category))
        tree = _unpack(request, archive, reporter, only={category})
        yield FetchSource(tree, source, known[category], required=(category,))


# ---- unpacking


def _unpack_files(
    request: FetchRequest, remotes: Sequence[RemoteFile], paths: Sequence[Path], reporter: Reporter
) -> Path:
    """Return a folder with the contents of one archive, or with the given files if they are not archives."""
    if len(paths) == 1 and remotes[0].archive:
        return _unpack(request, paths[0], reporter)
    tree = request.staging / "unpacked" / "files"
    files.make_folder(tree)
    for path in paths:
        path.replace(tree / path.name)
    return tree


def _unpack(request: FetchRequest, archive: Path, reporter: Reporter, only: set[str] | None = None) -> Path:
    """Unpack an archive into a folder named like it, without the categories that were not requested."""
    skipped = {*request.entry.categories} - (only or {*request.categories})

    def wanted(path: PurePosixPath) -> bool:
        return not skipped.intersection(path.parts[:2])

    name = re.sub(r"\.(tar|tar\.\w+|zip|tgz)$", "", archive.name, flags=re.IGNORECASE)
    tree = request.staging / "unpacked" / (name or "archive")
    with reporter.stage(f"unpacking {archive.name}", in_bytes=True) as update:
        archives.extract(archive, tree, wanted=wanted, progress=update)
    return tree
